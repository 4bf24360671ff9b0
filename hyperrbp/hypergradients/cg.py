"""CG-RBP: conjugate gradients on the normal equations (section 4.1, eq. 15-16)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import NonNegativeFloat

from hyperrbp.hypergradients.implicit import ImplicitMethod
from hyperrbp.hypergradients.method import Solution, Status

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from hyperrbp.problems.base import Jacobian


@dataclass(frozen=True)
class ConjugateGradient(ImplicitMethod):
    """Solves ((I − J)(I − Jᵀ) + δI) z = (I − J) g by conjugate gradients.

    The residual of I − Jᵀ itself is carried along instead of the one of the product (Hestenes and
    Stiefel 1952, section 10; 'CGLS'), which in exact arithmetic is the same iteration and in
    floating point loses less. The condition number is the square of the one of I − J.

    Residual i is ‖g − (I − Jᵀ) z_i‖ / ‖g‖ as the recurrence has it; the last one is computed anew
    from z, at the price of one product.
    """

    name = "cg"
    fixed_operator = True
    estimators = ("mean", "frozen")
    damping: NonNegativeFloat = 0.0
    """δ, added to the diagonal of the normal equations (1e-5 in the paper's graph experiment)."""
    tolerance: NonNegativeFloat = 1e-12
    """Stop when the relative residual, or that of the normal equations, is this small."""

    def _iterate(
        self, jacobian: Jacobian, g: Tensor, scale: float, trunc: int, generator: torch.Generator
    ) -> Solution:
        """Return the iterate after at most ``trunc`` steps of two products each."""
        z = g.new_zeros(g.shape)
        r = g.clone()
        s = r - jacobian.forward(r)
        products = 1
        p = s.clone()
        square = start = float(s.square().sum())
        residuals = [1.0]
        status = Status.TRUNCATED
        for _ in range(trunc):
            q = p - jacobian.transposed(p)
            curvature = float(q.square().sum()) + self.damping * float(p.square().sum())
            products += 1
            if not curvature > 0:
                status = Status.NON_FINITE if math.isnan(curvature) else Status.BREAKDOWN
                break
            length = square / curvature
            z.add_(p, alpha=length)
            r.sub_(q, alpha=length)
            residuals.append(float(r.norm()) / scale)
            s = r - jacobian.forward(r)
            products += 1
            if self.damping:
                s.sub_(z, alpha=self.damping)
            previous, square = square, float(s.square().sum())
            if not residuals[-1] < float("inf"):
                break
            if residuals[-1] <= self.tolerance:
                status = Status.CONVERGED
                break
            if square <= self.tolerance**2 * start:
                # The least-squares solution; if I − Jᵀ is singular, g may lie outside its range.
                solved = self.damping > 0 or residuals[-1] <= self.tolerance**0.5
                status = Status.CONVERGED if solved else Status.BREAKDOWN
                break
            p = s.add(p, alpha=square / previous)
        residuals[-1] = float((g - (z - jacobian.transposed(z))).norm()) / scale
        if not residuals[-1] < float("inf"):
            status = Status.NON_FINITE
        return Solution(z, residuals, status, products + 1)
