"""The runs of the associative memory (section 5.1): of Table 1 and Figures 1, 2 and A1."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping
from typing import Any

from hyperrbp.paper.artifact import Artifact
from hyperrbp.paper.plan import Plan
from hyperrbp.paper.published import METHODS
from hyperrbp.paper.run_specs import RunSpec, TrainSpec, recipe_of


def memory_spec(
    plan: Plan,
    method: str,
    trunc: int,
    seed: int,
    epochs: int,
    settings: Mapping[str, Any] | None = None,
) -> RunSpec:
    """Return the run of a memory by one method, truncation and seed."""
    recipe = recipe_of(
        "hopfield",
        {
            "gradient.method": method,
            "gradient.trunc": trunc,
            "training.epochs": epochs,
            "seed": seed,
            "device": plan.device,
            **(settings or {}),
        },
    )
    kind = "small-hopfield" if settings else "hopfield"
    return TrainSpec(f"{kind}-{method}-K{trunc}-epochs{epochs}-seed{seed}", recipe)


SMALL = {
    "data.downsample": 2,
    "data.binarize_above": 0.3,
    "network.hidden": 256,
    "training.batch_size": 10,
    "training.validate_every": 100,
}
"""A memory small enough to learn its digits in minutes; it contracts faster, so K is 4, not 20."""


class FiveMethods(Artifact, ABC):
    """A figure of one run of every method at K = 20."""

    def scale(self, plan: Plan) -> str:
        """Return the size of the memory: a small one, or the paper's."""
        if plan.quick:
            return (
                "quick: 14×14 pixels, 256 hidden neurons, one batch of ten, 2,000 epochs, K = 4"
                " (paper: 28×28, 1,024, one image a step, up to 1,000 epochs, K = 20)"
            )
        return "one seed, 1,000 epochs, K = 20"

    def run_specs(self, plan: Plan) -> list[RunSpec]:
        """Return one run for each method."""
        return list(self.by_method(plan).values())

    def by_method(self, plan: Plan) -> dict[str, RunSpec]:
        """Return the run of each method."""
        if plan.quick:
            return {m: memory_spec(plan, m, 4, 0, 2000, SMALL) for m in METHODS}
        return {m: memory_spec(plan, m, 20, 0, 1000) for m in METHODS}
