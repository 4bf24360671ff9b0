"""A tuning run on disk: the meta loop, its records, its checkpoints and its answer."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch

from hyperrbp.config.recipe import Recipe
from hyperrbp.exceptions import CheckpointError, DivergedError
from hyperrbp.experiments.experiment import Experiment
from hyperrbp.experiments.export import exported
from hyperrbp.experiments.final_evaluation import evaluate_replicates
from hyperrbp.experiments.gradient_monitor import GradientMonitor
from hyperrbp.experiments.meta_optimizer import evaluations, meta_optimizer
from hyperrbp.experiments.run_folder import RunFolder, default_folder, open_run
from hyperrbp.experiments.summary_statistics import NAMED_UP_TO, summarized
from hyperrbp.optimizers.base import Evaluation, OptimizerState
from hyperrbp.problems.training.run import TrainingRun
from hyperrbp.runtime.callbacks import Report, Told
from hyperrbp.runtime.documents import finite_or_null
from hyperrbp.runtime.metering import measured, spent

Record = Mapping[str, Any]
"""One line of ``records.jsonl``."""


class Observer(Protocol):
    """Someone who is told how a run goes, and cannot change it."""

    def started(self, experiment: Experiment, folder: RunFolder, earlier: Sequence[Record]) -> None:
        """The data are loaded; ``earlier`` are the records of a run that is resumed."""

    def stepped(self, record: Record, theta: torch.Tensor) -> None:
        """One more meta step is done."""

    def stopped(self) -> None:
        """There will be no more of them, for whatever reason."""


def tune_recipe(
    recipe: Recipe,
    out: Path | RunFolder | None = None,
    *,
    data_root: Path | None = None,
    resume: bool = False,
    inexact_resume: bool = False,
    observers: Sequence[Observer] = (),
    told: Told = lambda *_: None,
) -> dict[str, Any]:
    """Tune as the recipe says, and return what ``result.json`` holds.

    Args:
        recipe: a validated recipe.
        out: the run folder, or one that is open; ``runs/<recipe>-<UTC time>`` if not given.
        data_root: where data sets live.
        resume: go on with the run in ``out``.
        inexact_resume: also where versions, threads or device are others than they were.
        observers: told of every step.
        told: told how the screening and the test at the end go.

    Raises:
        UsageError: if the folder cannot be used.
        LockError: if another process is using it.
        DivergedError: if the run turns non-finite; the folder then holds the best so far.
        HyperrbpError: any other failure of :mod:`hyperrbp.exceptions`.
    """
    with open_run(out or default_folder(recipe.name), resume) as folder:
        if resume:
            folder.check_same(recipe)
        experiment = Experiment(recipe, data_root)
        restored = _restored(folder, experiment, inexact_resume) if resume else None
        state = restored or meta_optimizer(experiment).init(experiment.theta)
        folder.create(experiment.recipe)
        folder.forget_from("meta_step", state.meta_step)
        if restored is None:
            folder.save(state.state_dict(), experiment.environment())
        return _run(experiment, folder, state, observers, told)


def _run(
    experiment: Experiment,
    folder: RunFolder,
    state: OptimizerState,
    observers: Sequence[Observer],
    told: Told,
) -> dict[str, Any]:
    earlier = folder.records()
    watch = GradientMonitor(experiment, earlier)
    started = time.perf_counter()
    try:
        for observer in observers:
            observer.started(experiment, folder, earlier)
        optimizer = meta_optimizer(experiment, report=_report_to(told))
        for step in evaluations(experiment, optimizer, state):
            record = to_record(step, state)
            watch.diagnose(step, record)
            for observer in observers:
                observer.stepped(record, step.theta)
            folder.append(record)
            folder.save(state.state_dict(), experiment.environment())
        return _finish(experiment, folder, state, started, told, status="done")
    except DivergedError as error:
        if math.isfinite(state.best_loss):
            _finish(experiment, folder, state, started, told, status=str(error))
        raise
    finally:
        for observer in observers:
            observer.stopped()


def _report_to(told: Told) -> Report:
    return lambda now: told(now.task, int(now.done), int(now.total))


def _restored(folder: RunFolder, experiment: Experiment, inexact: bool) -> OptimizerState | None:
    """Where the run stood; None if it was killed before it had begun."""
    found = folder.load(experiment.environment(), inexact)
    if found is None:
        return None
    try:
        state: OptimizerState = meta_optimizer(experiment).restore(found[0], experiment.theta)
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


def to_record(step: Evaluation, state: OptimizerState | None = None) -> dict[str, Any]:
    """A meta step for ``records.jsonl``; all that may differ between two runs is in ``measured``.

    ``state`` knows of what happened on the way to it: rollbacks, and the choice of a method that
    chooses.

    Gradients and standard errors are with respect to θ, unconstrained: log learning rate, logit
    momentum and so on. Kinds with very many values are told in summary.
    """
    problem, found = step.problem, step.hypergradient
    assert isinstance(problem, TrainingRun)
    record: dict[str, Any] = {
        "meta_step": step.meta_step,
        "meta_loss": step.meta_loss,
        "hyperparameters": summarized(problem.describe(step.theta)),
    }
    if step.source is not None:
        record["source"] = step.source
    if found is not None:
        gradient, error = found.gradient, found.standard_error
        zero = problem.by_name(found.structurally_zero)
        record |= {
            "gradient": summarized(problem.by_name(gradient)),
            "standard_error": None if error is None else summarized(problem.by_name(error)),
            "gradient_norm": float(gradient.norm()),
            "gradient_norms": {
                kind: float(gradient[at].norm()) for kind, at in problem.layout.slices.items()
            },
            "status": str(found.status),
            "residual": found.residual,
            "residuals": found.residuals,
            "products": found.products,
            "structurally_zero": {
                kind: sum(map(bool, values.values()))
                if len(values) > NAMED_UP_TO
                else [name for name, value in values.items() if value]
                for kind, values in zero.items()
            },
            "steady_state_residual": found.steady_state_residual,
        }
    if state is not None:
        if step.source == "gradient":
            record["gradient_information"] = state.gradient_information
        if state.choice is not None and state.choice["meta_step"] == step.meta_step:
            record["choice"] = state.choice
        if back := [back for back in state.rollbacks if back["meta_step"] == step.meta_step]:
            record["rollbacks"] = back
    record["measured"] = measured(step.seconds, step.peak_bytes)
    return dict(finite_or_null(record))


def _finish(
    experiment: Experiment,
    folder: RunFolder,
    state: OptimizerState,
    started: float,
    told: Told,
    status: str,
) -> dict[str, Any]:
    recipe, problem = experiment.recipe, experiment.problem(state.best_step)
    assert isinstance(problem, TrainingRun)
    records = folder.records()
    result: dict[str, Any] = {
        "status": status,
        "optimizer": recipe.meta.optimizer,
        "method": recipe.gradient.method,
        "trunc": recipe.gradient.trunc,
        "train_steps": recipe.inner.steps,
        "meta_steps": recipe.meta.steps,
        "seed": recipe.seed,
        "device": recipe.device,
        "meta_loss": [record["meta_loss"] for record in records],
        "stopped_early": None
        if status != "done" or records[-1]["meta_step"] == recipe.meta.steps
        else {"meta_step": records[-1]["meta_step"]},
        "best": {"meta_step": state.best_step, "meta_loss": state.best_loss},
        "hyperparameters": problem.describe(state.best_theta),
        "last": {
            "meta_step": state.updates,
            "hyperparameters": problem.describe(state.theta),
        },
        "untuned": problem.describe(experiment.theta),
        "grains": {kind: asdict(grain) for kind, grain in problem.layout.grains.items()},
        "warnings": [record["warning"] for record in records if "warning" in record],
        "choices": [record["choice"] for record in records if "choice" in record],
        **spent(records),
        "wall_seconds": time.perf_counter() - started,
        "run_folder": str(folder.path),
        "rollbacks": list(state.rollbacks),
        "given_up": state.given_up,
        "inexact_resumes": folder.inexact_resumes,
        "environment": experiment.environment(),
    }
    thetas = {"tuned": state.best_theta, "untuned": experiment.theta}
    if (test := evaluate_replicates(experiment, thetas, told)) is not None:
        result["test"] = test
    result = finite_or_null(result)  # a rate that overflows is none
    folder.write_result(result)
    code, tensors = exported(
        problem.layout, state.best_theta, result, recipe, rows=experiment.train_rows
    )
    folder.write_hyperparameters(summarized(result["hyperparameters"]), code, tensors)
    return result
