"""The original recurrent back-propagation of Almeida and Pineda (Algorithm 1, eq. 10)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import NonNegativeFloat

from hyperrbp.hypergradients.implicit import ImplicitMethod, series_status
from hyperrbp.hypergradients.method import Solution

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from hyperrbp.problems.base import Jacobian


@dataclass(frozen=True)
class Rbp(ImplicitMethod):
    """The fixed-point iteration z ← Jᵀz + g from z₀.

    Residual i is ‖z_i − z_{i−1}‖ / ‖g‖, the residual of z_{i−1}. What is left of z₀ after K
    iterations is (Jᵀ)ᴷ z₀: with the paper's uniform start and a large state it can outweigh the
    gradient, which is the instability that the paper reports.
    """

    name = "rbp"
    z0: Literal["uniform", "zero", "gradient"] = "uniform"
    """The first guess: uniform in [0, 1] (the paper's), zero, or ∂L/∂h."""
    tolerance: NonNegativeFloat = 1e-12
    """ε: stop when ‖z_i − z_{i−1}‖ ≤ ε ‖g‖."""

    def _iterate(
        self, jacobian: Jacobian, g: Tensor, scale: float, trunc: int, generator: torch.Generator
    ) -> Solution:
        """Return the iterate after at most ``trunc`` products."""
        z = self._first_guess(g, generator)
        changes: list[float] = []
        for _ in range(trunc):
            previous, z = z, jacobian.transposed(z).add_(g)
            changes.append(float((z - previous).norm()) / scale)
            if not self.tolerance < changes[-1] < float("inf"):
                break
        return Solution(z, changes, series_status(changes, self.tolerance), len(changes))

    def _first_guess(self, g: Tensor, generator: torch.Generator) -> Tensor:
        if self.z0 == "zero":
            return g.new_zeros(g.shape)
        if self.z0 == "gradient":
            return g.clone()
        uniform = g.new_empty(g.shape, device=generator.device)
        return uniform.uniform_(0, 1, generator=generator).to(g.device)
