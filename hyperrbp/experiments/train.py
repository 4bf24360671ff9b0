"""Trains the network of a recipe, in a run folder: records, checkpoints, weights, the result."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hyperrbp.config.equilibrium import EquilibriumRecipe
from hyperrbp.config.recipe import Recipe
from hyperrbp.config.schema import BaseRecipe
from hyperrbp.exceptions import CheckpointError, DivergedError, UsageError
from hyperrbp.experiments import checkpoint
from hyperrbp.experiments.results.records import TrainRecord
from hyperrbp.experiments.results.run import DONE, spent
from hyperrbp.experiments.results.train import TrainResult
from hyperrbp.experiments.run_folder import RunFolder, default_folder, open_run
from hyperrbp.experiments.trainers.base import Trainer
from hyperrbp.experiments.trainers.equilibrium import EquilibriumTrainer
from hyperrbp.experiments.trainers.inner_run import InnerRunTrainer
from hyperrbp.runtime import files
from hyperrbp.runtime.callbacks import Callback, Callbacks


@dataclass(frozen=True)
class TrainContext:
    """A training that is about to begin, or to go on."""

    trainer: Trainer
    folder: RunFolder
    earlier: Sequence[TrainRecord]
    """Of a run that is resumed."""


TrainCallback = Callback[TrainContext, TrainRecord]


def train_recipe(
    recipe: BaseRecipe,
    out: Path | RunFolder | None = None,
    *,
    hyperparameters: Mapping[str, Mapping[str, float]] | None = None,
    data_root: Path | None = None,
    resume: bool = False,
    inexact_resume: bool = False,
    callbacks: Sequence[TrainCallback] = (),
) -> TrainResult:
    """Train the network of a recipe once, and return what ``result.json`` holds.

    Args:
        recipe: of a network with a convergent part; or a tuning recipe, whose inner network is
            trained.
        out: the run folder, or one that is open; ``runs/<recipe>-<UTC time>`` if not given.
        hyperparameters: of an inner network; see ``InnerRunTrainer``.
        data_root: where data sets live.
        resume: go on with the run in ``out``.
        inexact_resume: also where versions, threads or device are others than they were.
        callbacks: receive every record.

    Raises:
        UsageError: if the folder or the hyperparameters cannot be used.
        LockError: if another process is using the folder.
        DivergedError: if the training turns non-finite; the folder then holds the best so far.
        HyperrbpError: any other failure of ``hyperrbp.exceptions``.
    """
    with open_run(out or default_folder(recipe.name), resume) as folder:
        if resume:
            folder.check_same(recipe)
        trainer = _trainer(recipe, data_root, hyperparameters)
        if resume:
            folder.check_same(trainer.recipe)  # now with what the data decide
        restored = resume and _restore(trainer, folder, inexact_resume)
        folder.create(trainer.recipe)
        folder.forget_from(trainer.position)
        if not restored:
            _save(trainer, folder)
        return _run(trainer, folder, Callbacks(callbacks))


def _trainer(
    recipe: BaseRecipe,
    data_root: Path | None,
    hyperparameters: Mapping[str, Mapping[str, float]] | None,
) -> Trainer:
    if isinstance(recipe, Recipe):
        return InnerRunTrainer(recipe, data_root, hyperparameters)
    assert isinstance(recipe, EquilibriumRecipe)
    if hyperparameters is not None:
        raise UsageError(
            f"--hyperparameters are of a tuning recipe's inner network; {recipe.name} has none"
        )
    return EquilibriumTrainer(recipe, data_root)


def _restore(trainer: Trainer, folder: RunFolder, inexact: bool) -> bool:
    """Put the trainer where the run stood; False if it was killed before it had begun."""
    found = folder.load(trainer.environment(), inexact)
    if found is None:
        return False
    try:
        trainer.restore(*found)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{folder.checkpoint_file}: of another run ({error})") from None
    return True


def _save(trainer: Trainer, folder: RunFolder) -> None:
    folder.save(trainer.content(), trainer.environment(), trainer.tensors())


def _run(trainer: Trainer, folder: RunFolder, callback: TrainCallback) -> TrainResult:
    earlier = folder.records(TrainRecord)
    started = time.perf_counter()
    try:
        callback.on_start(TrainContext(trainer, folder, earlier))
        while trainer.position <= trainer.last:
            record = trainer.advance()
            callback.on_record(record)
            folder.append(record)
            if trainer.due():
                _save(trainer, folder)
    except DivergedError as error:
        _finish(trainer, folder, started, status=str(error))
        raise
    finally:
        callback.on_end()
    return _finish(trainer, folder, started)


def _finish(trainer: Trainer, folder: RunFolder, started: float, status: str = DONE) -> TrainResult:
    """Write the weights and the result."""
    files.write_atomically(folder.weights_file, checkpoint.packed_tensors(trainer.weights()))
    seconds, peak_bytes = spent(folder.records(TrainRecord))
    result = trainer.result(
        TrainResult(
            status=status,
            seed=trainer.recipe.seed,
            device=trainer.recipe.device,
            seconds=seconds,
            peak_bytes=peak_bytes,
            wall_seconds=time.perf_counter() - started,
            run_folder=str(folder.path),
            weights=str(folder.weights_file),
            inexact_resumes=folder.inexact_resumes,
            environment=trainer.environment(),
        )
    )
    folder.write_result(result)
    return result
