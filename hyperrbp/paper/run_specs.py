"""The runs of a reproduction: each is run once, resumed if interrupted, and then only read."""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from hyperrbp.config import presets
from hyperrbp.config.loading import read, read_any
from hyperrbp.config.recipe import Recipe
from hyperrbp.config.schema import BaseRecipe
from hyperrbp.exceptions import (
    CheckpointError,
    DivergedError,
    HyperrbpError,
    LockError,
    MissingDataError,
    StorageError,
    UsageError,
)
from hyperrbp.experiments.compare import CompareCallback, compare
from hyperrbp.experiments.method_specs import method_specs
from hyperrbp.experiments.results.compare import CompareReport
from hyperrbp.experiments.results.document import Document
from hyperrbp.experiments.results.records import Record, TrainRecord
from hyperrbp.experiments.results.run import RunResult
from hyperrbp.experiments.run_folder import RunFolder
from hyperrbp.experiments.train import TrainCallback, TrainContext, train_recipe
from hyperrbp.experiments.tune import TuneCallback, TuneContext, TuneStep, tune_recipe
from hyperrbp.paper.plan import Plan
from hyperrbp.reporting.comparison import write
from hyperrbp.runtime.callbacks import Progress, Report
from hyperrbp.runtime.locks import held

D = TypeVar("D", bound=Document)
R = TypeVar("R", bound=Record)


@dataclass
class Outcome:
    """What came of a run."""

    folder: RunFolder
    result: Document | None
    """None if there is none."""
    failure: str | None = None
    """Why there is none, or why the run ended early."""

    def result_of(self, expected: type[D]) -> D | None:
        """Return the result, which is of this kind, or None."""
        assert self.result is None or isinstance(self.result, expected)
        return self.result

    def records(self, expected: type[R]) -> list[R]:
        """Return the records of the run, which are of this kind; empty if it was not begun."""
        return self.folder.records(expected)


@dataclass(frozen=True)
class RunSpec(ABC):
    """A recipe, and the folder that its run goes to."""

    name: str
    recipe: BaseRecipe

    def outcome(self, runs: Path, plan: Plan, report: Report) -> Outcome:
        """Run it, resume it, or read what came of it.

        Args:
            runs: the folder of the run's folder.
            plan: what it runs on.
            report: receives the progress.

        Raises:
            UsageError: if its folder holds a run of another recipe.
            CheckpointError: if the run there cannot be resumed.
            LockError: if another process is at it.
            StorageError: if it cannot be written.
        """
        folder = RunFolder(runs / self.name)
        if folder.recipe_file.exists() or folder.result_file.exists():
            self._check_same(folder)
        if folder.result_file.exists():
            result = self.read(folder)
            if isinstance(result, RunResult) and not result.finished:
                return Outcome(folder, result, result.status)
            return Outcome(folder, result)
        try:
            return Outcome(folder, self.run(folder, plan, report))
        except DivergedError as error:
            found = self.read(folder) if folder.result_file.exists() else None
            return Outcome(folder, found, str(error))
        except MissingDataError:
            return Outcome(folder, None, "not run: files absent")
        except (UsageError, CheckpointError, LockError, StorageError):
            raise
        except HyperrbpError as error:
            return Outcome(folder, None, f"not run: {error}")

    def done(self, runs: Path) -> bool:
        """Return whether there is nothing left to run."""
        return RunFolder(runs / self.name).result_file.exists()

    def _check_same(self, folder: RunFolder) -> None:
        machine = {"device", "threads", "name"}
        there = read_any(folder.recipe_file).model_dump(exclude=machine)
        if there != self.recipe.model_dump(exclude=machine):
            raise UsageError(
                f"{folder.path} holds a run of another recipe; move it away, or choose another"
                " --out"
            )

    def read(self, folder: RunFolder) -> Document:
        """Read the result of a finished run."""
        return folder.result(RunResult)

    @abstractmethod
    def run(self, folder: RunFolder, plan: Plan, report: Report) -> Document:
        """Run it or resume it, and return the result."""


class TrainSpec(RunSpec):
    """A run of ``hyperrbp train``."""

    def run(self, folder: RunFolder, plan: Plan, report: Report) -> RunResult:
        """Run it or resume it, and return the result."""
        return train_recipe(
            self.recipe,
            folder.path,
            data_root=plan.data_root,
            resume=folder.recipe_file.exists(),
            inexact_resume=plan.inexact_resume,
            callbacks=[_TrainProgress(self.name, report)],
        )


class TuneSpec(RunSpec):
    """A run of ``hyperrbp tune``."""

    def run(self, folder: RunFolder, plan: Plan, report: Report) -> RunResult:
        """Run it or resume it, and return the result."""
        assert isinstance(self.recipe, Recipe)
        return tune_recipe(
            self.recipe,
            folder.path,
            data_root=plan.data_root,
            resume=folder.recipe_file.exists(),
            inexact_resume=plan.inexact_resume,
            callbacks=[_TuneProgress(self.name, report)],
        )


@dataclass(frozen=True)
class CompareSpec(RunSpec):
    """A run of ``hyperrbp compare``; it cannot be resumed, and begins anew."""

    methods: tuple[str, ...] = ("bptt", "neumann")
    truncs: tuple[int, ...] = (10, 50, 100)
    repeats: int = 10

    def run(self, folder: RunFolder, plan: Plan, report: Report) -> CompareReport:
        """Run it, and return the report."""
        assert isinstance(self.recipe, Recipe)
        specs = method_specs(self.methods, self.truncs, [self.recipe.inner.steps])
        with held(folder.path):
            found = compare(
                self.recipe,
                specs,
                repeats=self.repeats,
                data_root=plan.data_root,
                callback=_CompareProgress(self.name, report),
            )
            shutil.rmtree(folder.events, ignore_errors=True)  # of an earlier try
            write(found, folder.path)
            folder.create(self.recipe)
            folder.write_result(found)
        return found

    def read(self, folder: RunFolder) -> CompareReport:
        """Read the report of a finished comparison.

        Raises:
            CheckpointError: if it is not one of this version.
        """
        try:
            return CompareReport.model_validate_json(folder.result_file.read_bytes())
        except ValidationError:
            raise CheckpointError(f"{folder.result_file}: not a result of this version") from None


# --- progress -------------------------------------------------------------------------------------


class _TrainProgress(TrainCallback):
    """Reports the steps of a training as the progress of a run spec."""

    def __init__(self, name: str, report: Report) -> None:
        self._name, self._report_to = name, report

    def on_start(self, context: TrainContext) -> None:
        self._last, self._unit = context.trainer.last, f"{context.trainer.unit}s"

    def on_record(self, record: TrainRecord) -> None:
        self._report_to(Progress(self._name, record.number, self._last, self._unit))


class _TuneProgress(TuneCallback):
    """Reports the meta steps of a tuning as the progress of a run spec."""

    def __init__(self, name: str, report: Report) -> None:
        self._name, self._report_to = name, report

    def on_start(self, context: TuneContext) -> None:
        self._last = context.experiment.meta.steps

    def on_record(self, record: TuneStep) -> None:
        self._report_to(Progress(self._name, record.record.meta_step, self._last, "meta steps"))


class _CompareProgress(CompareCallback):
    """Reports the seconds of a comparison as the progress of a run spec."""

    def __init__(self, name: str, report: Report) -> None:
        self._name, self._report_to = name, report

    def on_progress(self, progress: Progress) -> None:
        self._report_to(replace(progress, task=self._name, detail=progress.task))


# --- recipes --------------------------------------------------------------------------------------


def recipe_of(name: str, settings: dict[str, Any]) -> BaseRecipe:
    """Return a built-in recipe with other values."""
    overrides = [("reproduce", key, value) for key, value in settings.items()]
    return read_any(presets.built_in(name), overrides)


def tuning_recipe_of(name: str, settings: dict[str, Any]) -> Recipe:
    """Return a built-in tuning recipe with other values."""
    overrides = [("reproduce", key, value) for key, value in settings.items()]
    return read(presets.built_in(name), overrides)
