"""A training run on disk: records, checkpoints, weights and the answer."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from hyperrbp.config.equilibrium import NetworkRecipe
from hyperrbp.config.recipe import Recipe
from hyperrbp.config.schema import AnyRecipe
from hyperrbp.exceptions import CheckpointError, DivergedError, UsageError
from hyperrbp.experiments import checkpoint
from hyperrbp.experiments.run_folder import RunFolder, default_folder, open_run
from hyperrbp.experiments.trainers.base import Trainer
from hyperrbp.experiments.trainers.equilibrium import NetworkTraining
from hyperrbp.experiments.trainers.inner_run import InnerTraining
from hyperrbp.runtime import files
from hyperrbp.runtime.documents import finite_or_null
from hyperrbp.runtime.metering import spent

Record = Mapping[str, Any]
"""One line of ``records.jsonl``."""


class TrainingObserver(Protocol):
    """Someone who is told how a training goes, and cannot change it."""

    def started(self, trainer: Trainer, folder: RunFolder, earlier: Sequence[Record]) -> None:
        """The data are loaded; ``earlier`` are the records of a run that is resumed."""

    def stepped(self, record: Record) -> None:
        """One more record is there."""

    def stopped(self) -> None:
        """There will be no more of them, for whatever reason."""


def train_recipe(
    recipe: AnyRecipe,
    out: Path | RunFolder | None = None,
    *,
    hyperparameters: Mapping[str, Mapping[str, float]] | None = None,
    data_root: Path | None = None,
    resume: bool = False,
    inexact_resume: bool = False,
    observers: Sequence[TrainingObserver] = (),
) -> dict[str, Any]:
    """Train the network of a recipe once, and return what ``result.json`` holds.

    Args:
        recipe: of a network with a convergent part; or a tuning recipe, whose inner network is
            trained.
        out: the run folder, or one that is open; ``runs/<recipe>-<UTC time>`` if not given.
        hyperparameters: of an inner network; see :class:`InnerTraining`.
        data_root: where data sets live.
        resume: go on with the run in ``out``.
        inexact_resume: also where versions, threads or device are others than they were.
        observers: told of every record.

    Raises:
        UsageError: if the folder or the hyperparameters cannot be used.
        LockError: if another process is using the folder.
        DivergedError: if the training turns non-finite; the folder then holds the best so far.
        HyperrbpError: any other failure of :mod:`hyperrbp.exceptions`.
    """
    with open_run(out or default_folder(recipe.name), resume) as folder:
        if resume:
            folder.check_same(recipe)
        trainer = _trainer(recipe, data_root, hyperparameters)
        restored = resume and _restored(trainer, folder, inexact_resume)
        folder.create(trainer.recipe)
        folder.forget_from(trainer.unit, trainer.position)
        if not restored:
            _save(trainer, folder)
        return _run(trainer, folder, observers)


def _run(
    trainer: Trainer, folder: RunFolder, observers: Sequence[TrainingObserver]
) -> dict[str, Any]:
    earlier = folder.records()
    started = time.perf_counter()
    try:
        for observer in observers:
            observer.started(trainer, folder, earlier)
        while trainer.position <= trainer.last:
            record = finite_or_null(trainer.advance())
            for observer in observers:
                observer.stepped(record)
            folder.append(record)
            if trainer.due():
                _save(trainer, folder)
    except DivergedError as error:
        _finish(trainer, folder, started, status=str(error))
        raise
    finally:
        for observer in observers:
            observer.stopped()
    return _finish(trainer, folder, started, status="done")


def _trainer(
    recipe: AnyRecipe,
    data_root: Path | None,
    hyperparameters: Mapping[str, Mapping[str, float]] | None,
) -> Trainer:
    if isinstance(recipe, Recipe):
        return InnerTraining(recipe, data_root, hyperparameters)
    assert isinstance(recipe, NetworkRecipe)
    if hyperparameters is not None:
        raise UsageError(
            f"--hyperparameters are of a tuning recipe's inner network; {recipe.name} has none"
        )
    return NetworkTraining(recipe, data_root)


def _save(trainer: Trainer, folder: RunFolder) -> None:
    folder.save(trainer.content(), trainer.environment(), trainer.tensors())


def _restored(trainer: Trainer, folder: RunFolder, inexact: bool) -> bool:
    """Whether there was something to go on from, where the trainer stands now."""
    found = folder.load(trainer.environment(), inexact)
    if found is None:
        return False
    try:
        trainer.restore(*found)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{folder.checkpoint_file}: of another run ({error})") from None
    return True


def _finish(trainer: Trainer, folder: RunFolder, started: float, status: str) -> dict[str, Any]:
    weights = checkpoint.packed_tensors(trainer.weights())
    files.write_atomically(folder.weights_file, weights)
    result: dict[str, Any] = {
        "status": status,
        "seed": trainer.recipe.seed,
        "device": trainer.recipe.device,
        **trainer.result(),
        **spent(folder.records()),
        "wall_seconds": time.perf_counter() - started,
        "run_folder": str(folder.path),
        "weights": str(folder.weights_file),
        "inexact_resumes": folder.inexact_resumes,
        "environment": trainer.environment(),
    }
    result = finite_or_null(result)
    folder.write_result(result)
    return result
