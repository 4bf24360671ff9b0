"""Tunes the hyperparameters of a recipe, in a run folder: records, checkpoints, the result."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hyperrbp.config.recipe import Recipe
from hyperrbp.exceptions import CheckpointError, DivergedError
from hyperrbp.experiments.experiment import Experiment
from hyperrbp.experiments.export import export_sgd
from hyperrbp.experiments.gradient_monitor import GradientMonitor
from hyperrbp.experiments.meta_optimizer import evaluations, meta_optimizer
from hyperrbp.experiments.replicates import compare_on_replicates
from hyperrbp.experiments.results.records import GradientRecord, RollbackRecord, StepRecord
from hyperrbp.experiments.results.run import DONE, spent
from hyperrbp.experiments.results.tune import (
    BestStep,
    GrainRecord,
    LastStep,
    ReplicateComparison,
    StoppedEarly,
    TuneResult,
)
from hyperrbp.experiments.run_folder import RunFolder, default_folder, open_run
from hyperrbp.experiments.step_records import to_record
from hyperrbp.experiments.summary_statistics import summarize
from hyperrbp.optimizers.base import Optimizer, OptimizerState
from hyperrbp.problems.training.run import TrainingRun
from hyperrbp.runtime.callbacks import Callback, Callbacks


@dataclass(frozen=True)
class TuneContext:
    """A tuning run that is about to begin, or to go on."""

    experiment: Experiment
    folder: RunFolder
    earlier: Sequence[StepRecord]
    """Of a run that is resumed."""


@dataclass(frozen=True)
class TuneStep:
    """A meta step that is done."""

    record: StepRecord
    theta: torch.Tensor
    """At which the loss was evaluated, shape (p,)."""


TuneCallback = Callback[TuneContext, TuneStep]


def tune_recipe(
    recipe: Recipe,
    out: Path | RunFolder | None = None,
    *,
    data_root: Path | None = None,
    resume: bool = False,
    inexact_resume: bool = False,
    callbacks: Sequence[TuneCallback] = (),
) -> TuneResult:
    """Tune as the recipe says, and return what ``result.json`` holds.

    Args:
        recipe: a validated recipe.
        out: the run folder, or one that is open; ``runs/<recipe>-<UTC time>`` if not given.
        data_root: where data sets live.
        resume: go on with the run in ``out``.
        inexact_resume: also where versions, threads or device are others than they were.
        callbacks: receive every meta step, and the progress of what is done between them.

    Raises:
        UsageError: if the folder cannot be used.
        LockError: if another process is using it.
        DivergedError: if the run turns non-finite; the folder then holds the best so far.
        HyperrbpError: any other failure of ``hyperrbp.exceptions``.
    """
    with open_run(out or default_folder(recipe.name), resume) as folder:
        if resume:
            folder.check_same(recipe)
        experiment = Experiment(recipe, data_root)
        if resume:
            folder.check_same(experiment.recipe)  # now with what the data decide
        callback = Callbacks(callbacks)
        optimizer = meta_optimizer(experiment, report=callback.on_progress)
        restored = _restored(folder, experiment, optimizer, inexact_resume) if resume else None
        state = restored or optimizer.init(experiment.theta)
        folder.create(experiment.recipe)
        folder.forget_from(state.meta_step)
        if restored is None:
            folder.save(state.state_dict(), experiment.environment())
        return _run(experiment, folder, optimizer, state, callback)


def _restored(
    folder: RunFolder, experiment: Experiment, optimizer: Optimizer[Any], inexact: bool
) -> OptimizerState | None:
    """Return where the run stood; None if it was killed before it had begun."""
    found = folder.load(experiment.environment(), inexact)
    if found is None:
        return None
    try:
        state: OptimizerState = optimizer.restore(found[0], experiment.theta)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder.checkpoint_file}: not of this version ({error})") from None
    if state.theta.shape != experiment.theta.shape:
        raise CheckpointError(f"{folder.checkpoint_file}: of another network")
    if state.updates > experiment.meta.steps:
        raise CheckpointError(
            f"{folder.path} has already taken {state.updates} meta steps, more than the"
            f" {experiment.meta.steps} asked for"
        )
    return state


def _run(
    experiment: Experiment,
    folder: RunFolder,
    optimizer: Optimizer[Any],
    state: OptimizerState,
    callback: TuneCallback,
) -> TuneResult:
    earlier = folder.records(StepRecord)
    monitor = GradientMonitor(experiment, earlier)
    started = time.perf_counter()
    try:
        callback.on_start(TuneContext(experiment, folder, earlier))
        for step in evaluations(experiment, optimizer, state):
            record = to_record(step, state, monitor)
            callback.on_record(TuneStep(record, step.theta))
            folder.append(record)
            folder.save(state.state_dict(), experiment.environment())
        return _finish(experiment, folder, state, started, callback)
    except DivergedError as error:
        if math.isfinite(state.best_loss):
            _finish(experiment, folder, state, started, callback, status=str(error))
        raise
    finally:
        callback.on_end()


def _finish(
    experiment: Experiment,
    folder: RunFolder,
    state: OptimizerState,
    started: float,
    callback: TuneCallback,
    status: str = DONE,
) -> TuneResult:
    """Write the result, the tuned hyperparameters, and the code that uses them."""
    wall_seconds = time.perf_counter() - started
    test = compare_on_replicates(
        experiment, state.best_theta, experiment.theta, callback.on_progress
    )
    result = _result(experiment, folder, state, status, wall_seconds, test)
    folder.write_result(result)
    layout = experiment.problem(state.best_step).layout
    export = export_sgd(
        layout, state.best_theta, result, experiment.recipe, rows=experiment.data.train_rows
    )
    folder.write_hyperparameters(summarize(result.hyperparameters), export.code, export.tensors)
    return result


def _result(
    experiment: Experiment,
    folder: RunFolder,
    state: OptimizerState,
    status: str,
    wall_seconds: float,
    test: ReplicateComparison | None,
) -> TuneResult:
    recipe, problem = experiment.recipe, experiment.problem(state.best_step)
    assert isinstance(problem, TrainingRun)
    records = folder.records(StepRecord)
    seconds, peak_bytes = spent(records)
    return TuneResult(
        status=status,
        optimizer=recipe.meta.optimizer,
        method=recipe.gradient.method,
        trunc=recipe.gradient.trunc,
        train_steps=recipe.inner.steps,
        meta_steps=recipe.meta.steps,
        seed=recipe.seed,
        device=recipe.device,
        meta_loss=[record.meta_loss for record in records],
        stopped_early=_stopped_early(records, recipe, status),
        best=BestStep(meta_step=state.best_step, meta_loss=state.best_loss),
        hyperparameters=problem.describe(state.best_theta),
        last=LastStep(meta_step=state.updates, hyperparameters=problem.describe(state.theta)),
        untuned=problem.describe(experiment.theta),
        grains={
            kind: GrainRecord(by=grain.by, segments=grain.segments)
            for kind, grain in problem.layout.grains.items()
        },
        warnings=[
            record.warning
            for record in records
            if isinstance(record, GradientRecord) and record.warning is not None
        ],
        choices=[record.choice for record in records if record.choice is not None],
        seconds=seconds,
        peak_bytes=peak_bytes,
        wall_seconds=wall_seconds,
        run_folder=str(folder.path),
        rollbacks=[RollbackRecord.model_validate(back) for back in state.rollbacks],
        given_up=state.given_up,
        inexact_resumes=folder.inexact_resumes,
        environment=experiment.environment(),
        population=experiment.data.population_note,
        test=test,
    )


def _stopped_early(
    records: Sequence[StepRecord], recipe: Recipe, status: str
) -> StoppedEarly | None:
    last = records[-1].meta_step
    if status != DONE or last == recipe.meta.steps:
        return None
    return StoppedEarly(meta_step=last)
