"""One run of an experiment: done once, taken up again where it was left, and then only read."""

from __future__ import annotations

import json
import shutil
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyperrbp.config import presets
from hyperrbp.config.loading import read, read_any
from hyperrbp.config.recipe import Recipe
from hyperrbp.config.schema import BaseRecipe
from hyperrbp.exceptions import (
    CheckpointError,
    DataError,
    DivergedError,
    HyperrbpError,
    LockError,
    MissingDataError,
    StorageError,
    UsageError,
)
from hyperrbp.experiments.results.document import to_json
from hyperrbp.experiments.run_folder import RunFolder
from hyperrbp.runtime import files
from hyperrbp.runtime.callbacks import Callback
from hyperrbp.runtime.locks import held

if TYPE_CHECKING:
    from hyperrbp.experiments.results.records import TrainRecord
    from hyperrbp.experiments.train import TrainContext
    from hyperrbp.experiments.tune import TuneContext, TuneStep
    from hyperrbp.paper.artifact import Plan


@dataclass
class Outcome:
    """What came of a spec."""

    folder: RunFolder
    result: dict[str, Any]
    """Of the run; empty if there is none."""
    failure: str | None = None
    """Why there is none, or why it ended early."""

    def records(self) -> list[dict[str, Any]]:
        """Of the run."""
        return _plain_records(self.folder)


class Watch:
    """Told how far a spec has come; does nothing by itself."""

    def at(self, position: int, last: int) -> None:
        """So many of its steps are done."""


@dataclass(frozen=True)
class RunSpec(ABC):
    """A recipe, and the folder that its run goes to."""

    name: str
    recipe: BaseRecipe

    def outcome(self, runs: Path, plan: Plan, watch: Watch) -> Outcome:
        """Run it, go on with it, or read what it came to.

        Raises:
            UsageError: if its folder holds a run of another recipe.
            CheckpointError: if the run there cannot be gone on with.
            LockError: if another process is at it.
            StorageError: if it cannot be written.
        """
        folder = RunFolder(runs / self.name)
        if folder.result_file.exists():
            self._check_same(folder)
            result = _plain_result(folder)
            status = result.get("status", "done")
            return Outcome(folder, result, None if status == "done" else status)
        if folder.recipe_file.exists():
            self._check_same(folder)
        try:
            result = self.run(folder, plan, watch)
        except DivergedError as error:
            result = _plain_result(folder) if folder.result_file.exists() else {}
            return Outcome(folder, result, str(error))
        except DataError as error:
            absent = "files absent" if isinstance(error, MissingDataError) else str(error)
            return Outcome(folder, {}, f"not run: {absent}")
        except HyperrbpError as error:
            if isinstance(error, UsageError | CheckpointError | LockError | StorageError):
                raise
            return Outcome(folder, {}, f"not run: {error}")
        return Outcome(folder, result)

    def done(self, runs: Path) -> bool:
        """Whether there is nothing left to run."""
        return RunFolder(runs / self.name).result_file.exists()

    def _check_same(self, folder: RunFolder) -> None:
        machine = {"device", "threads", "name"}
        there = read_any(folder.recipe_file).model_dump(exclude=machine)
        if there != self.recipe.model_dump(exclude=machine):
            raise UsageError(
                f"{folder.path} holds a run of another recipe; move it away, or choose another"
                " --out"
            )

    @abstractmethod
    def run(self, folder: RunFolder, plan: Plan, watch: Watch) -> dict[str, Any]:
        """Run it, or go on with it; returns the result."""


class TrainSpec(RunSpec):
    """``hyperrbp train``."""

    def run(self, folder: RunFolder, plan: Plan, watch: Watch) -> dict[str, Any]:
        """Run it, or go on with it; returns the result."""
        from hyperrbp.experiments.train import train_recipe

        return train_recipe(
            self.recipe,
            folder.path,
            data_root=plan.data_root,
            resume=folder.recipe_file.exists(),
            inexact_resume=plan.inexact_resume,
            callbacks=[_TrainWatch(watch)],
        ).model_dump(mode="json")


class TuneSpec(RunSpec):
    """``hyperrbp tune``."""

    def run(self, folder: RunFolder, plan: Plan, watch: Watch) -> dict[str, Any]:
        """Run it, or go on with it; returns the result."""
        from hyperrbp.experiments.tune import tune_recipe

        assert isinstance(self.recipe, Recipe)
        return tune_recipe(
            self.recipe,
            folder.path,
            data_root=plan.data_root,
            resume=folder.recipe_file.exists(),
            inexact_resume=plan.inexact_resume,
            callbacks=[_TuneWatch(watch)],
        ).model_dump(mode="json")


@dataclass(frozen=True)
class CompareSpec(RunSpec):
    """``hyperrbp compare``; it has nothing to take up again, and begins anew."""

    methods: tuple[str, ...] = ("bptt", "neumann")
    truncs: tuple[int, ...] = (10, 50, 100)
    repeats: int = 10

    def run(self, folder: RunFolder, plan: Plan, watch: Watch) -> dict[str, Any]:
        """Run it; returns the document."""
        from hyperrbp.experiments.compare import compare
        from hyperrbp.experiments.method_specs import method_specs
        from hyperrbp.reporting.comparison import write

        assert isinstance(self.recipe, Recipe)
        field = method_specs(self.methods, self.truncs, [self.recipe.inner.steps])
        with held(folder.path):
            document = compare(self.recipe, field, repeats=self.repeats, data_root=plan.data_root)
            shutil.rmtree(folder.events, ignore_errors=True)  # of an earlier try
            write(document, folder.path)
            folder.create(self.recipe)
            text = to_json(document, indent=2) + "\n"
            files.write_atomically(folder.result_file, text)
        return dict(json.loads(folder.result_file.read_text(encoding="utf-8")))


class _TrainWatch(Callback["TrainContext", "TrainRecord"]):
    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def on_start(self, context: TrainContext) -> None:
        self._last = context.trainer.last

    def on_record(self, record: TrainRecord) -> None:
        self._watch.at(record.number, self._last)


class _TuneWatch(Callback["TuneContext", "TuneStep"]):
    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def on_start(self, context: TuneContext) -> None:
        self._last = context.experiment.meta.steps

    def on_record(self, record: TuneStep) -> None:
        self._watch.at(record.record.meta_step, self._last)


def _plain_records(folder: RunFolder) -> list[dict[str, Any]]:
    from hyperrbp.experiments.results.records import Record

    return [record.model_dump(mode="json") for record in folder.records(Record)]


def _plain_result(folder: RunFolder) -> dict[str, Any]:
    return dict(json.loads(folder.result_file.read_text(encoding="utf-8")))


def recipe_of(name: str, settings: dict[str, Any]) -> BaseRecipe:
    """A built-in recipe with other values."""
    overrides = [("reproduce", key, value) for key, value in settings.items()]
    return read_any(presets.built_in(name), overrides)


def tuning_recipe_of(name: str, settings: dict[str, Any]) -> Recipe:
    """A built-in tuning recipe with other values."""
    overrides = [("reproduce", key, value) for key, value in settings.items()]
    return read(presets.built_in(name), overrides)
