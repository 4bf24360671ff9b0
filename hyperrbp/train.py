"""A training run on disk: records, checkpoints, weights and the answer."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from hyperrbp import checkpoint
from hyperrbp.errors import CheckpointError, DivergedError, UsageError
from hyperrbp.inner_training import InnerTraining
from hyperrbp.meter import spent
from hyperrbp.network_recipe import NetworkRecipe
from hyperrbp.network_training import NetworkTraining
from hyperrbp.recipe import Recipe
from hyperrbp.run_folder import RunFolder, default_folder, open_run
from hyperrbp.schema import AnyRecipe
from hyperrbp.trainee import Trainee

Record = Mapping[str, Any]
"""One line of ``records.jsonl``."""


class TrainingObserver(Protocol):
    """Someone who is told how a training goes, and cannot change it."""

    def started(self, trainee: Trainee, folder: RunFolder, earlier: Sequence[Record]) -> None:
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
        HyperrbpError: any other failure of :mod:`hyperrbp.errors`.
    """
    with open_run(out or default_folder(recipe.name), resume) as folder:
        if resume:
            folder.check_same(recipe)
        trainee = _trainee(recipe, data_root, hyperparameters)
        restored = resume and _restored(trainee, folder, inexact_resume)
        folder.create(trainee.recipe)
        folder.forget_from(trainee.unit, trainee.position)
        if not restored:
            _save(trainee, folder)
        return _run(trainee, folder, observers)


def _run(
    trainee: Trainee, folder: RunFolder, observers: Sequence[TrainingObserver]
) -> dict[str, Any]:
    earlier = folder.records()
    started = time.perf_counter()
    try:
        for observer in observers:
            observer.started(trainee, folder, earlier)
        while trainee.position <= trainee.last:
            record = checkpoint.finite(trainee.advance())
            for observer in observers:
                observer.stepped(record)
            folder.append(record)
            if trainee.due():
                _save(trainee, folder)
    except DivergedError as error:
        _finish(trainee, folder, started, status=str(error))
        raise
    finally:
        for observer in observers:
            observer.stopped()
    return _finish(trainee, folder, started, status="done")


def _trainee(
    recipe: AnyRecipe,
    data_root: Path | None,
    hyperparameters: Mapping[str, Mapping[str, float]] | None,
) -> Trainee:
    if isinstance(recipe, Recipe):
        return InnerTraining(recipe, data_root, hyperparameters)
    assert isinstance(recipe, NetworkRecipe)
    if hyperparameters is not None:
        raise UsageError(
            f"--hyperparameters are of a tuning recipe's inner network; {recipe.name} has none"
        )
    return NetworkTraining(recipe, data_root)


def _save(trainee: Trainee, folder: RunFolder) -> None:
    folder.save(trainee.content(), trainee.environment(), trainee.tensors())


def _restored(trainee: Trainee, folder: RunFolder, inexact: bool) -> bool:
    """Whether there was something to go on from, where the trainee stands now."""
    found = folder.load(trainee.environment(), inexact)
    if found is None:
        return False
    try:
        trainee.restore(*found)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{folder.checkpoint_file}: of another run ({error})") from None
    return True


def _finish(trainee: Trainee, folder: RunFolder, started: float, status: str) -> dict[str, Any]:
    weights = checkpoint.packed_tensors(trainee.weights())
    checkpoint.write_atomically(folder.weights_file, weights)
    result: dict[str, Any] = {
        "status": status,
        "seed": trainee.recipe.seed,
        "device": trainee.recipe.device,
        **trainee.result(),
        **spent(folder.records()),
        "wall_seconds": time.perf_counter() - started,
        "run_folder": str(folder.path),
        "weights": str(folder.weights_file),
        "inexact_resumes": folder.inexact_resumes,
        "environment": trainee.environment(),
    }
    result = checkpoint.finite(result)
    folder.write_result(result)
    return result
