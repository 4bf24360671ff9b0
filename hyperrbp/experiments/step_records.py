"""Makes the record of a meta step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hyperrbp.experiments.gradient_monitor import GradientAssessment, GradientMonitor
from hyperrbp.experiments.results.document import Measured
from hyperrbp.experiments.results.records import (
    ChoiceRecord,
    EvaluationRecord,
    GradientInformation,
    GradientRecord,
    RollbackRecord,
    StepRecord,
)
from hyperrbp.experiments.summary_statistics import NAMED_UP_TO, summarize
from hyperrbp.hypergradients import Hypergradient
from hyperrbp.optimizers.base import Evaluation, OptimizerState
from hyperrbp.problems.training.run import TrainingRun


def to_record(step: Evaluation, state: OptimizerState, monitor: GradientMonitor) -> StepRecord:
    """Return the record of a meta step; all that may differ between two runs is in ``measured``.

    Args:
        step: an evaluation that came to its end.
        state: of the optimizer, which knows of rollbacks and of the choice of a method.
        monitor: assesses the gradient, where there is one.
    """
    information = state.gradient_information if step.source == "gradient" else None
    choice, rollbacks = state.choice, [b for b in state.rollbacks if _at(b, step)]
    evaluated = EvaluationRecord(
        meta_step=step.meta_step,
        meta_loss=step.meta_loss,
        hyperparameters=summarize(_training(step).describe(step.theta)),
        source=step.source,
        gradient_information=None
        if information is None
        else GradientInformation.model_validate(information),
        choice=None
        if choice is None or not _at(choice, step)
        else ChoiceRecord.model_validate(choice),
        rollbacks=[RollbackRecord.model_validate(back) for back in rollbacks] or None,
        measured=_measured(step),
    )
    if step.hypergradient is None:
        return evaluated
    return _with_gradient(
        evaluated, step, step.hypergradient, monitor.assess(step, step.hypergradient)
    )


def _with_gradient(
    evaluated: EvaluationRecord,
    step: Evaluation,
    found: Hypergradient,
    assessment: GradientAssessment,
) -> GradientRecord:
    problem, gradient, error = _training(step), found.gradient, found.standard_error
    return GradientRecord(
        meta_step=evaluated.meta_step,
        meta_loss=evaluated.meta_loss,
        hyperparameters=evaluated.hyperparameters,
        source=evaluated.source,
        gradient_information=evaluated.gradient_information,
        choice=evaluated.choice,
        rollbacks=evaluated.rollbacks,
        gradient=summarize(problem.by_name(gradient)),
        standard_error=None if error is None else summarize(problem.by_name(error)),
        gradient_norm=float(gradient.norm()),
        gradient_norms={
            kind: float(gradient[at].norm()) for kind, at in problem.layout.slices.items()
        },
        status=found.status,
        residual=found.residual,
        residuals=[list(trace) for trace in found.residuals],
        products=found.products,
        structurally_zero={
            kind: _names_or_count(values)
            for kind, values in problem.by_name(found.structurally_zero).items()
        },
        steady_state_residual=found.steady_state_residual,
        diagnostics=assessment.diagnostics,
        verdict=assessment.verdict,
        check=assessment.check,
        warning=assessment.warning,
        measured=_measured(step, assessment.check_seconds),
    )


def _names_or_count(values: Mapping[str, float]) -> list[str] | int:
    """Return the names of the values that are not zero, or how many there are of very many."""
    if len(values) > NAMED_UP_TO:
        return sum(map(bool, values.values()))
    return [name for name, value in values.items() if value]


def _at(event: Mapping[str, Any], step: Evaluation) -> bool:
    """Whether an event of the optimizer belongs to a meta step."""
    return bool(event["meta_step"] == step.meta_step)


def _measured(step: Evaluation, check_seconds: float | None = None) -> Measured:
    seconds = dict(step.seconds)
    if check_seconds is not None:
        seconds["check"] = check_seconds
    peaks = {phase: dict(of_phase) for phase, of_phase in step.peak_bytes.items()}
    return Measured.until_now(seconds, peaks)


def _training(step: Evaluation) -> TrainingRun:
    assert isinstance(step.problem, TrainingRun)
    return step.problem
