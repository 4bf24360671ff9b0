"""Whether the gradient of a tuning run is still one to follow, asked at every meta step."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from hyperrbp.experiments.experiment import Experiment
from hyperrbp.experiments.summary_statistics import summarized_nested
from hyperrbp.hypergradients import Hypergradient
from hyperrbp.hypergradients.diagnostics.examination import Scope, examine
from hyperrbp.hypergradients.diagnostics.last_state import LastState
from hyperrbp.hypergradients.diagnostics.noise import noise
from hyperrbp.hypergradients.diagnostics.series import growth_rate
from hyperrbp.hypergradients.diagnostics.verdict import Evidence, Verdict, judge
from hyperrbp.optimizers.base import Evaluation
from hyperrbp.runtime.documents import finite_or_null


class GradientMonitor:
    """Adds to each record what its gradient is worth, and warns once.

    Args:
        experiment: what is tuned.
        earlier: the records of a run that is resumed.
    """

    def __init__(self, experiment: Experiment, earlier: Sequence[Mapping[str, Any]]) -> None:
        recipe = experiment.recipe
        self._every, self._seed = recipe.gradient.check_every, recipe.seed
        # Differences and float64 tell of the loss and its arithmetic, not of this gradient.
        self._scope = Scope(
            differences=0, double=False, meta_learning_rate=recipe.meta.learning_rate
        )
        self._warned = any("warning" in record for record in earlier)

    def diagnose(self, step: Evaluation, record: dict[str, Any]) -> None:
        """Add ``diagnostics``, ``verdict``, at some steps ``check``, and once ``warning``."""
        found = step.hypergradient
        if found is None:
            return
        record["diagnostics"] = finite_or_null(cheap_diagnostics(step, found))
        verdict = cheap_verdict(found)
        if self._every and step.meta_step % self._every == 0:
            clock = time.perf_counter()
            verdict, record["check"] = self._examination(step, found)
            record["measured"]["seconds"]["check"] = time.perf_counter() - clock
        record["verdict"] = str(verdict)
        if not verdict.usable and not self._warned:
            self._warned = True
            record["warning"] = (
                f"meta step {step.meta_step}: the gradient is {verdict}: {verdict.sentence};"
                f" {verdict.advice}"
            )

    def _examination(
        self, step: Evaluation, found: Hypergradient
    ) -> tuple[Verdict, Mapping[str, Any]]:
        at = LastState(step.problem, step.theta, found.state)
        result = examine(
            step.problem, step.theta, step.settings, self._scope, at=at, seed=self._seed
        )
        document = result.to_json()
        del document["series"]["gradients"], document["gradient"]  # figures of a page of its own
        return result.verdict, summarized_nested(finite_or_null(document))


def cheap_diagnostics(step: Evaluation, found: Hypergradient) -> dict[str, Any]:
    """What the gradient itself tells, and the norms of its last state."""
    spread = noise(found)
    traces = [trace for trace in found.residuals if len(trace) > 1]
    return {
        "growth_rate": max(map(growth_rate, traces), default=None),
        "above_noise": None if spread is None else spread.share,
        "norms": dict(step.problem.norms(found.state)),
    }


def cheap_verdict(found: Hypergradient) -> Verdict:
    """The verdict without any further run."""
    spread = noise(found)
    return judge(
        Evidence(
            gradient=found.gradient.tolist(),
            structurally_zero=found.structurally_zero.tolist(),
            status=found.status,
            above_noise=None if spread is None else spread.above_noise,
        )
    )
