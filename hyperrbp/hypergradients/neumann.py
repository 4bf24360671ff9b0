"""Neumann-RBP (Liao et al. 2018, section 4.2, Algorithm 2, eq. 18)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import NonNegativeFloat

from hyperrbp.hypergradients.implicit import ImplicitMethod, series_status
from hyperrbp.hypergradients.method import Solution, Status

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from hyperrbp.problems.base import Jacobian


@dataclass(frozen=True)
class Neumann(ImplicitMethod):
    """z = Σ_{k=0..K} (Jᵀ)ᵏ g, summed in place: memory is constant in K and T.

    Residual k is ‖(Jᵀ)ᵏ g‖ / ‖g‖, which is the relative residual of the sum of the terms before
    it, since (I − Jᵀ) Σ_{j<k} (Jᵀ)ʲ g = g − (Jᵀ)ᵏ g.
    """

    name = "neumann"
    tolerance: NonNegativeFloat = 1e-12
    """Stop when a term's norm, relative to the first, is this small."""
    cut_growing: bool = False
    """Sum a growing series to its smallest term only, as one does with a divergent one."""

    def _iterate(
        self, jacobian: Jacobian, g: Tensor, scale: float, trunc: int, generator: torch.Generator
    ) -> Solution:
        """Sum the series to its term ``trunc``, one product each."""
        term, z = g, g.clone()
        norms = [1.0]
        until_smallest = z.clone() if self.cut_growing else z
        for _ in range(trunc):
            term = jacobian.transposed(term)
            z.add_(term)
            norms.append(float(term.norm()) / scale)
            if not self.tolerance < norms[-1] < float("inf"):
                break
            if self.cut_growing and norms[-1] <= min(norms):
                until_smallest.copy_(z)
        status = series_status(norms, self.tolerance)
        if self.cut_growing and norms[-1] == float("inf"):
            status = Status.GROWING  # what overflowed is not part of the sum
        cut = self.cut_growing and status is Status.GROWING
        return Solution(until_smallest if cut else z, norms, status, len(norms) - 1)
