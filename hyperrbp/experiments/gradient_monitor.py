"""Watches over the gradient of a tuning run: is it still one to follow?"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from hyperrbp.experiments.experiment import Experiment
from hyperrbp.experiments.results.examination import ExaminationReport
from hyperrbp.experiments.results.records import Diagnostics, GradientRecord, StepRecord
from hyperrbp.experiments.summary_statistics import summarize_nested
from hyperrbp.hypergradients import Hypergradient
from hyperrbp.hypergradients.diagnostics.examination import Examination, Scope, examine
from hyperrbp.hypergradients.diagnostics.last_state import LastState
from hyperrbp.hypergradients.diagnostics.noise import noise
from hyperrbp.hypergradients.diagnostics.series import growth_rate
from hyperrbp.hypergradients.diagnostics.verdict import Evidence, Verdict, judge
from hyperrbp.optimizers.base import Evaluation
from hyperrbp.runtime.documents import finite_or_null


@dataclass(frozen=True)
class GradientAssessment:
    """What the gradient of one meta step is worth."""

    diagnostics: Diagnostics
    verdict: Verdict
    check: ExaminationReport | None = None
    """Where it was examined in full."""
    check_seconds: float | None = None
    """What the full examination took."""
    warning: str | None = None
    """At the first gradient of a run that should not be followed."""


class GradientMonitor:
    """Assesses the gradient of each meta step, and warns once.

    Args:
        experiment: what is tuned.
        earlier: the records of a run that is resumed.
    """

    def __init__(self, experiment: Experiment, earlier: Sequence[StepRecord]) -> None:
        recipe = experiment.recipe
        self._every, self._seed = recipe.gradient.check_every, recipe.seed
        # Finite differences and float64 are about the loss and its arithmetic, not this gradient.
        self._scope = Scope(
            differences=0, double=False, meta_learning_rate=recipe.meta.learning_rate
        )
        self._warned = any(
            isinstance(record, GradientRecord) and record.warning is not None for record in earlier
        )

    def assess(self, step: Evaluation, found: Hypergradient) -> GradientAssessment:
        """Return what ``found``, the gradient of a meta step, is worth."""
        diagnostics, verdict = cheap_diagnostics(step, found), cheap_verdict(found)
        check = seconds = None
        if self._every and step.meta_step % self._every == 0:
            started = time.perf_counter()
            examination = self._examine(step, found)
            verdict, check = examination.verdict, _without_figures(examination)
            seconds = time.perf_counter() - started
        return GradientAssessment(
            diagnostics, verdict, check, seconds, self._warning(step.meta_step, verdict)
        )

    def _examine(self, step: Evaluation, found: Hypergradient) -> Examination:
        at = LastState(step.problem, step.theta, found.state)
        return examine(step.problem, step.theta, step.settings, self._scope, at=at, seed=self._seed)

    def _warning(self, meta_step: int, verdict: Verdict) -> str | None:
        if verdict.usable or self._warned:
            return None
        self._warned = True
        return (
            f"meta step {meta_step}: the gradient is {verdict}: {verdict.sentence};"
            f" {verdict.advice}"
        )


def _without_figures(examination: Examination) -> ExaminationReport:
    """Return the report for a record: gradients are beside it, large parts are summarized."""
    document = examination.to_json()
    del document["series"]["gradients"], document["gradient"]
    return ExaminationReport.model_validate(summarize_nested(finite_or_null(document)))


def cheap_diagnostics(step: Evaluation, found: Hypergradient) -> Diagnostics:
    """Return what the gradient itself tells, and the norms of its last state."""
    spread = noise(found)
    traces = [trace for trace in found.residuals if len(trace) > 1]
    return Diagnostics(
        growth_rate=max(map(growth_rate, traces), default=None),
        above_noise=None if spread is None else spread.share,
        norms=dict(step.problem.norms(found.state)),
    )


def cheap_verdict(found: Hypergradient) -> Verdict:
    """Return the verdict that needs no further run."""
    spread = noise(found)
    return judge(
        Evidence(
            gradient=found.gradient.tolist(),
            structurally_zero=found.structurally_zero.tolist(),
            status=found.status,
            above_noise=None if spread is None else spread.above_noise,
        )
    )
