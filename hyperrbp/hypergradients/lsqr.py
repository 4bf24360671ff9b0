"""LSQR: least squares by Golub-Kahan bidiagonalization (Paige and Saunders 1982)."""

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
class Lsqr(ImplicitMethod):
    """Minimizes ‖(I − Jᵀ) z − g‖² + δ ‖z‖² over a growing Krylov space.

    In exact arithmetic its iterates are those of ``cg`` (CGLS), and what differs is floating point:
    the vectors behind them are normalized at every step, and the residual, a product of sines,
    cannot grow.

    What floating point leaves between the residual of the recurrence and the true one is taken up
    by beginning again from the latter, as long as that halves it (without damping only).

    Residual i is ‖g − (I − Jᵀ) z_i‖ / ‖g‖ as the recurrence has it; where it ends or begins again,
    it is computed anew from z, at the price of one product.
    """

    name = "lsqr"
    fixed_operator = True
    estimators = ("mean", "frozen")
    damping: NonNegativeFloat = 0.0
    """δ, on the diagonal of the normal equations, as in ``cg``."""
    tolerance: NonNegativeFloat = 1e-12
    """Stop when the relative residual, or that of the normal equations, is this small, or the
    latter nothing but rounding."""

    def _iterate(
        self, jacobian: Jacobian, g: Tensor, scale: float, trunc: int, generator: torch.Generator
    ) -> Solution:
        """Return the iterate after at most ``trunc`` steps of two products each."""
        z = g.new_zeros(g.shape)
        residuals, products, left, r = [1.0], 0, trunc, g
        while True:
            before = residuals[-1]
            status, steps = self._descend(jacobian, z, r, scale, left, residuals)
            r = g - (z - jacobian.transposed(z))
            residuals[-1] = float(r.norm()) / scale
            products += 2 * steps + 2
            left -= steps + 1
            ended = status in (Status.TRUNCATED, Status.NON_FINITE) or self.damping > 0
            improved = self.tolerance < residuals[-1] <= before / 2
            if ended or left < 1 or not improved:
                break
        if not residuals[-1] < float("inf"):
            status = Status.NON_FINITE
        elif status is Status.CONVERGED and not self.damping:
            small = max(self.tolerance, _epsilon(g)) ** 0.5
            # The least-squares solution; if I − Jᵀ is singular, g may lie outside its range.
            status = Status.CONVERGED if residuals[-1] <= small else Status.BREAKDOWN
        return Solution(z, residuals, status, products)

    def _descend(
        self,
        jacobian: Jacobian,
        z: Tensor,
        r: Tensor,
        scale: float,
        trunc: int,
        residuals: list[float],
    ) -> tuple[Status, int]:
        """Correct z for its residual r in at most ``trunc`` steps; return how many there were."""
        epsilon, root = _epsilon(r), math.sqrt(self.damping)
        length = float(r.norm())
        u = r / length
        v, alpha = _unit(u - jacobian.forward(u))
        w = v
        start = rho_bar = largest = alpha
        phi_bar, psi_squares = 1.0, 0.0  # relative to ‖r‖
        for step in range(1, trunc + 1):
            u, beta = _unit((v - jacobian.transposed(v)).sub_(u, alpha=alpha))
            v, alpha = _unit((u - jacobian.forward(u)).sub_(v, alpha=beta))
            if root:  # the rotation that takes the damping in
                damped = math.hypot(rho_bar, root)
                psi_squares += (phi_bar * root / damped) ** 2
                rho_bar, phi_bar = damped, phi_bar * rho_bar / damped
            rho = math.hypot(rho_bar, beta)
            if not 0 < rho < float("inf"):
                return (Status.BREAKDOWN if rho == 0 else Status.NON_FINITE), step
            cosine, sine = rho_bar / rho, beta / rho
            z.add_(w, alpha=length * cosine * phi_bar / rho)
            w = v.sub(w, alpha=sine * alpha / rho)
            rho_bar, phi_bar = -cosine * alpha, sine * phi_bar
            # Of g, and of the zeros that damping puts below it.
            square = phi_bar**2 + psi_squares
            in_zeros = self.damping * (float(z.norm()) / length) ** 2 if root else 0.0
            residuals.append(math.sqrt(max(0.0, square - in_zeros)) * length / scale)
            if residuals[-1] <= self.tolerance:
                return Status.CONVERGED, step
            largest = max(largest, rho)
            rounding = epsilon * largest * math.sqrt(square)
            if abs(phi_bar * rho_bar) <= max(self.tolerance * start, rounding):
                return Status.CONVERGED, step
        return Status.TRUNCATED, trunc


def _epsilon(like: Tensor) -> float:
    import torch

    return torch.finfo(like.dtype).eps


def _unit(vector: Tensor) -> tuple[Tensor, float]:
    """Return the direction of a vector, and its norm."""
    norm = float(vector.norm())
    return (vector / norm if norm else vector), norm
