"""A training run on disk: records, checkpoints, weights and the answer."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from hyperrbp import checkpoint
from hyperrbp.errors import CheckpointError, DivergedError, UsageError
from hyperrbp.experiment import environment
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
    out: Path | None = None,
    *,
    hyperparameters: Mapping[str, Mapping[str, float]] | None = None,
    data_root: Path | None = None,
    resume: bool = False,
    observers: Sequence[TrainingObserver] = (),
) -> dict[str, Any]:
    """Train the network of a recipe once, and return what ``result.json`` holds.

    Args:
        recipe: of a network with a convergent part; or a tuning recipe, whose inner network is
            trained.
        out: the run folder; ``runs/<recipe>-<UTC time>`` if not given.
        hyperparameters: of an inner network; see :class:`InnerTraining`.
        data_root: where data sets live.
        resume: go on with the run in ``out``.
        observers: told of every record.

    Raises:
        UsageError: if the folder or the hyperparameters cannot be used.
        DivergedError: if the training turns non-finite; the folder then holds the best so far.
        HyperrbpError: any other failure of :mod:`hyperrbp.errors`.
    """
    folder = open_run(out or default_folder(recipe.name), resume)
    trainee = _trainee(recipe, data_root, hyperparameters)
    if resume:
        folder.check_same(trainee.recipe)
        _restore(trainee, folder)
    folder.create(trainee.recipe)
    folder.forget_from(trainee.unit, trainee.position)
    _save(trainee, folder)
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
    checkpoint.save_with_tensors(folder.checkpoint_file, trainee.content(), trainee.tensors())


def _restore(trainee: Trainee, folder: RunFolder) -> None:
    if not folder.checkpoint_file.exists() and not folder.records():
        return  # it was killed before it had begun
    content, tensors = checkpoint.load_with_tensors(folder.checkpoint_file)
    try:
        trainee.restore(content, tensors)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{folder.checkpoint_file}: of another run ({error})") from None


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
        "environment": environment(trainee.device),
    }
    result = checkpoint.finite(result)
    folder.write_result(result)
    return result
