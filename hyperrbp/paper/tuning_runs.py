"""The runs of hyperparameter optimization (section 5.3): of Table 3 and Figures 4 to 6."""

from __future__ import annotations

from abc import ABC
from typing import Any

from hyperrbp.experiments.results.records import StepRecord
from hyperrbp.paper.artifact import Artifact, or_nan
from hyperrbp.paper.plan import Plan
from hyperrbp.paper.published import FIGURE4, METHODS
from hyperrbp.paper.run_specs import RunSpec, TuneSpec, tuning_recipe_of

QUICK_SPECS = ((50, 10), (100, 10), (200, 10), (400, 10), (50, 20), (100, 20), (200, 20), (400, 20))
"""(T, K) of the quick version, on the small digits, which are learnt completely by T = 800."""


QUICK_META_STEPS = 12


def hyperparameters_of(record: StepRecord) -> dict[str, dict[str, float]]:
    """Return the hyperparameters of a record, NaN for one that was not finite."""
    return {
        kind: {name: or_nan(value) for name, value in values.items()}
        for kind, values in record.hyperparameters.items()
    }


def tuning_spec(plan: Plan, method: str, steps: int, trunc: int) -> RunSpec:
    """Return the tuning run by one method, T and K."""
    settings: dict[str, Any] = {
        "gradient.method": method,
        "gradient.trunc": trunc,
        "inner.steps": steps,
        "device": plan.device,
        "record.test_seeds": 0,  # no table or figure has it
    }
    base = "mnist"
    if plan.quick:
        base = "digits"
        settings["meta.steps"] = QUICK_META_STEPS
    if method == "tbptt":  # as in the authors' release: one end point
        settings["gradient.averaging.minibatches"] = 1
    name = f"{base}-{method}-T{steps}-K{trunc}"
    return TuneSpec(name, tuning_recipe_of(base, settings))


class Grid(Artifact, ABC):
    """A figure of the eight runs (T, K) by every method."""

    def scale(self, plan: Plan) -> str:
        """Return the data and lengths: small digits and short runs, or MNIST."""
        if plan.quick:
            longest = max(steps for steps, _ in QUICK_SPECS)
            return (
                f"quick: scikit-learn's 8×8 digits, T up to {longest}, K = 10 and 20,"
                f" {QUICK_META_STEPS} meta steps (paper: MNIST, T up to 1500, K = 50 and 100)"
            )
        return "MNIST, 60 meta steps; CG-RBP included, which the paper left out"

    @staticmethod
    def grid(plan: Plan) -> tuple[tuple[int, int], ...]:
        """Return the pairs (T, K)."""
        return QUICK_SPECS if plan.quick else FIGURE4

    def run_specs(self, plan: Plan) -> list[RunSpec]:
        """Return every (T, K) by every method."""
        return [tuning_spec(plan, m, steps, k) for steps, k in self.grid(plan) for m in METHODS]
