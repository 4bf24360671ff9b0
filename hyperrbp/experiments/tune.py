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
from hyperrbp.config.recipe_keys import ADAM
from hyperrbp.exceptions import CheckpointError, DivergedError
from hyperrbp.experiments.cautions import cautions, setback
from hyperrbp.experiments.common_draws import Evaluated, ThetaHistory, candidates, choose
from hyperrbp.experiments.experiment import Experiment
from hyperrbp.experiments.export import export_groups
from hyperrbp.experiments.gradient_monitor import GradientMonitor
from hyperrbp.experiments.meta_optimizer import evaluations, meta_optimizer
from hyperrbp.experiments.replicates import compare_on_replicates
from hyperrbp.experiments.results.records import RollbackRecord, StepRecord
from hyperrbp.experiments.results.run import DONE, spent
from hyperrbp.experiments.results.tune import (
    BestStep,
    CommonDraws,
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
from hyperrbp.problems.base import loss_where_finite
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
        state, history = restored or (optimizer.init(experiment.theta), ThetaHistory())
        folder.create(experiment.recipe)
        folder.forget_from(state.meta_step)
        if restored is None:
            _save(experiment, folder, state, history)
        return _run(experiment, folder, optimizer, state, history, callback)


def _restored(
    folder: RunFolder, experiment: Experiment, optimizer: Optimizer[Any], inexact: bool
) -> tuple[OptimizerState, ThetaHistory] | None:
    """Return where the run stood; None if it was killed before it had begun."""
    found = folder.load(experiment.environment(), inexact)
    if found is None:
        return None
    try:
        state: OptimizerState = optimizer.restore(found[0], experiment.theta)
        history = ThetaHistory.restored(found[1], experiment.theta, state.meta_step)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder.checkpoint_file}: not of this version ({error})") from None
    if state.theta.shape != experiment.theta.shape:
        raise CheckpointError(f"{folder.checkpoint_file}: of another network")
    if state.updates > experiment.meta.steps:
        raise CheckpointError(
            f"{folder.path} has already taken {state.updates} meta steps, more than the"
            f" {experiment.meta.steps} asked for"
        )
    return state, history


def _save(
    experiment: Experiment, folder: RunFolder, state: OptimizerState, history: ThetaHistory
) -> None:
    """Write a checkpoint: with earlier θ only where the best of them is chosen at the end."""
    fresh = experiment.recipe.inner.fresh
    tensors = history.tensors() if fresh else None
    folder.save(state.state_dict(), experiment.environment(), tensors)


def _run(
    experiment: Experiment,
    folder: RunFolder,
    optimizer: Optimizer[Any],
    state: OptimizerState,
    history: ThetaHistory,
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
            history.add(Evaluated(record.meta_step, record.meta_loss, step.theta))
            _save(experiment, folder, state, history)
        return _finish(experiment, folder, state, history, started, callback)
    except DivergedError as error:
        if math.isfinite(state.best_loss):
            _finish(experiment, folder, state, history, started, callback, status=str(error))
        raise
    finally:
        callback.on_end()


@dataclass(frozen=True)
class _Answer:
    """The best θ of a run, and how it compares with the start."""

    theta: torch.Tensor
    """Shape (p,)."""
    best: BestStep
    untuned_loss: float | None
    """The meta loss of the start; None if it is not finite."""
    draws: CommonDraws | None = None
    """On which the best was chosen."""

    @property
    def improved(self) -> bool:
        """Whether its meta loss is below that of the start."""
        if self.draws is not None:
            return self.draws.chosen != 0
        return self.untuned_loss is None or self.best.meta_loss < self.untuned_loss


def _answer(
    experiment: Experiment,
    state: OptimizerState,
    history: ThetaHistory,
    losses: Sequence[float],
    callback: TuneCallback,
) -> _Answer:
    """Return the best θ: of the lowest meta loss, if the losses are of the same draw."""
    recipe = experiment.recipe
    descended = recipe.meta.optimizer == ADAM
    if not recipe.inner.fresh:
        best = BestStep(meta_step=state.best_step, meta_loss=state.best_loss)
        at_start = [*losses[:1], state.best_loss][0] if descended else _untuned_loss(experiment)
        return _Answer(state.best_theta, best, at_start)
    several = list(candidates(experiment.theta, history, len(losses), descended=descended))
    theta, draws = choose(experiment.draw, several, len(losses), callback.on_progress)
    chosen = draws.candidates[draws.chosen]
    mean = chosen.meta_loss.mean
    best = BestStep(
        meta_step=chosen.meta_step,
        meta_loss=state.best_loss if mean is None else mean,
        standard_error=chosen.standard_error,
        averaged=chosen.averaged,
    )
    return _Answer(theta, best, draws.candidates[0].meta_loss.mean, draws)


def _untuned_loss(experiment: Experiment) -> float | None:
    """Return the meta loss of the start, which a search need not take; None if not finite."""
    problem = experiment.problem()
    loss = loss_where_finite(problem, problem.last_state(experiment.theta))
    return loss if math.isfinite(loss) else None


def _finish(
    experiment: Experiment,
    folder: RunFolder,
    state: OptimizerState,
    history: ThetaHistory,
    started: float,
    callback: TuneCallback,
    status: str = DONE,
) -> TuneResult:
    """Write the result, the tuned hyperparameters, and the code that uses them."""
    wall_seconds = time.perf_counter() - started
    records = folder.records(StepRecord)
    losses = [record.meta_loss for record in records]
    answer = _answer(experiment, state, history, losses, callback)
    test = compare_on_replicates(experiment, answer.theta, experiment.theta, callback.on_progress)
    result = _result(experiment, folder, state, answer, records, status, wall_seconds, test)
    folder.write_result(result)
    export = export_groups(
        experiment.problem(),
        answer.theta,
        result,
        experiment.recipe,
        rows=experiment.data.train_rows,
    )
    folder.write_hyperparameters(summarize(result.hyperparameters), export.code, export.tensors)
    return result


def _result(
    experiment: Experiment,
    folder: RunFolder,
    state: OptimizerState,
    answer: _Answer,
    records: Sequence[StepRecord],
    status: str,
    wall_seconds: float,
    test: ReplicateComparison | None,
) -> TuneResult:
    recipe, problem = experiment.recipe, experiment.problem()
    losses = [record.meta_loss for record in records]
    best, untuned_loss, improved = answer.best, answer.untuned_loss, answer.improved
    seconds, peak_bytes = spent(records)
    return TuneResult(
        improved=improved,
        setback=setback(recipe, losses, best, untuned_loss, improved),
        status=status,
        optimizer=recipe.meta.optimizer,
        method=recipe.gradient.method,
        trunc=recipe.gradient.trunc,
        train_steps=recipe.inner.steps,
        meta_steps=recipe.meta.steps,
        seed=recipe.seed,
        device=recipe.device,
        meta_loss=losses,
        stopped_early=_stopped_early(records, recipe, status),
        best=best,
        common_draws=answer.draws,
        untuned_loss=untuned_loss,
        hyperparameters=problem.describe(answer.theta),
        last=LastStep(meta_step=state.updates, hyperparameters=problem.describe(state.theta)),
        untuned=problem.describe(experiment.theta),
        grains={
            kind: GrainRecord(by=grain.by, segments=grain.segments)
            for kind, grain in problem.layout.grains.items()
        },
        warnings=list(cautions(recipe, records, answer.draws)),
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
    if status != DONE or records[-1].meta_step == recipe.meta.steps:
        return None
    return StoppedEarly(meta_step=records[-1].meta_step)
