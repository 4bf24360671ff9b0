"""LSQR: least squares by Golub-Kahan bidiagonalization (Paige and Saunders 1982)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import NonNegativeFloat

from hyperrbp.gradients.implicit import ImplicitMethod
from hyperrbp.gradients.method import Solution, Status

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from hyperrbp.dynamics import Jacobian


@dataclass(frozen=True)
class Lsqr(ImplicitMethod):
    """Minimizes ‖(I − Jᵀ) z − g‖² + δ ‖z‖² over a growing Krylov space.

    In exact arithmetic its iterates are those of ``cg`` (CGLS), and what differs is floating point:
    the vectors behind them are normalized at every step, and the residual, a product of sines,
    cannot grow.

    Residual i is ‖g − (I − Jᵀ) z_i‖ / ‖g‖ as the recurrence has it; the last one is computed anew
    from z, at the price of one product.
    """

    name = "lsqr"
    fixed_operator = True
    estimators = ("mean", "frozen")
    damping: NonNegativeFloat = 0.0
    """δ, on the diagonal of the normal equations, as in ``cg``."""
    tolerance: NonNegativeFloat = 1e-12
    """Stop when the relative residual, or that of the normal equations, is this small, or the
    latter nothing but rounding."""

    def solve(
        self, jacobian: Jacobian, g: Tensor, trunc: int, generator: torch.Generator
    ) -> Solution:
        """The iterate after at most ``trunc`` steps of two products each."""
        import torch

        scale = float(g.norm())
        z = g.new_zeros(g.shape)
        if scale == 0:
            return Solution(z, [0.0], Status.CONVERGED, 0)
        epsilon, root = torch.finfo(g.dtype).eps, math.sqrt(self.damping)
        u = g / scale
        v, alpha = _unit(u - jacobian.forward(u))
        products = 1
        w = v
        start = rho_bar = largest = alpha
        phi_bar, psi_squares = 1.0, 0.0  # relative to ‖g‖
        residuals = [1.0]
        status = Status.TRUNCATED
        for _ in range(trunc):
            u, beta = _unit((v - jacobian.transposed(v)).sub_(u, alpha=alpha))
            v, alpha = _unit((u - jacobian.forward(u)).sub_(v, alpha=beta))
            products += 2
            if root:  # the rotation that takes the damping in
                damped = math.hypot(rho_bar, root)
                psi_squares += (phi_bar * root / damped) ** 2
                rho_bar, phi_bar = damped, phi_bar * rho_bar / damped
            rho = math.hypot(rho_bar, beta)
            if not 0 < rho < float("inf"):
                status = Status.BREAKDOWN if rho == 0 else Status.NON_FINITE
                break
            cosine, sine = rho_bar / rho, beta / rho
            z.add_(w, alpha=scale * cosine * phi_bar / rho)
            w = v.sub(w, alpha=sine * alpha / rho)
            rho_bar, phi_bar = -cosine * alpha, sine * phi_bar
            # Of g, and of the zeros that damping puts below it.
            square = phi_bar**2 + psi_squares
            in_zeros = self.damping * (float(z.norm()) / scale) ** 2 if root else 0.0
            residuals.append(math.sqrt(max(0.0, square - in_zeros)))
            if residuals[-1] <= self.tolerance:
                status = Status.CONVERGED
                break
            largest = max(largest, rho)
            rounding = epsilon * largest * math.sqrt(square)
            if abs(phi_bar * rho_bar) <= max(self.tolerance * start, rounding):
                # The least-squares solution; if I − Jᵀ is singular, g may lie outside its range.
                small = max(self.tolerance, epsilon) ** 0.5
                solved = self.damping > 0 or residuals[-1] <= small
                status = Status.CONVERGED if solved else Status.BREAKDOWN
                break
        residuals[-1] = float((g - (z - jacobian.transposed(z))).norm()) / scale
        if not residuals[-1] < float("inf"):
            status = Status.NON_FINITE
        return Solution(z, residuals, status, products + 1)


def _unit(vector: Tensor) -> tuple[Tensor, float]:
    """The direction of a vector, and its norm."""
    norm = float(vector.norm())
    return (vector / norm if norm else vector), norm
