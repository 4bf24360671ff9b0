"""How a loss on the last state is differentiated: a method with its truncation and averaging."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hyperrbp.hypergradients import Averaging, Hypergradient, Method, hypergradient
from hyperrbp.hypergradients.method import Phase, unmetered

if TYPE_CHECKING:
    from torch import Tensor

    from hyperrbp.problems.base import Problem


@dataclass(frozen=True)
class GradientSettings:
    """The arguments of ``hypergradient`` that stay the same from meta step to meta step."""

    method: str | Method = "neumann"
    trunc: int = 50
    averaging: Averaging = field(default_factory=Averaging)
    options: Mapping[str, Any] = field(default_factory=dict)

    def hypergradient(
        self, problem: Problem, theta: Tensor, *, seed: int, step: int = 0, phase: Phase = unmetered
    ) -> Hypergradient:
        """Run the problem at θ and differentiate its last loss; see ``hypergradient``."""
        return hypergradient(
            problem,
            theta,
            self.method,
            trunc=self.trunc,
            averaging=self.averaging,
            options=self.options,
            seed=seed,
            step=step,
            phase=phase,
        )
