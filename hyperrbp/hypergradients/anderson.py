"""Anderson acceleration of the fixed-point iteration (Anderson 1965; Walker and Ni 2011)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from hyperrbp.hypergradients.implicit import ImplicitMethod, series_status
from hyperrbp.hypergradients.method import Solution, Status

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from hyperrbp.problems.base import Jacobian


@dataclass(frozen=True)
class Anderson(ImplicitMethod):
    """The iteration z ← Jᵀz + g from zero, every step corrected by least squares on those before.

    With f = Jᵀz + g − z, and the last m changes of z and f as the columns of ΔZ and ΔF, a step is
    z ← z + βf − (ΔZ + βΔF) γ, where γ minimizes ‖f − ΔF γ‖ (type II). As long as the window holds
    every change, and β = 1, iterate i + 1 is Jᵀx + g with x the iterate i of ``gmres``, unless
    that one stagnates (Walker and Ni, theorem 2.2).

    Residual i is ‖Jᵀz_i + g − z_i‖ / ‖g‖, the true one of z_i. It may rise for a while, so that z
    is returned whose residual is the smallest, rounding included; where it is not the last one,
    its residual stands once more at the end.
    """

    name = "anderson"
    fixed_operator = True
    estimators = ("mean", "frozen")
    memory: PositiveInt = 10
    """m, how many changes are kept, two vectors each."""
    mixing: PositiveFloat = 1.0
    """β, how far a step goes along the residual that the correction leaves."""
    tolerance: NonNegativeFloat = 1e-12
    """Stop when the relative residual is this small, or nothing but rounding."""

    def _iterate(
        self, jacobian: Jacobian, g: Tensor, scale: float, trunc: int, generator: torch.Generator
    ) -> Solution:
        """Return the best iterate of at most ``trunc`` products."""
        import torch

        z = g.new_zeros(g.shape)
        epsilon = torch.finfo(g.dtype).eps
        f, residuals = g, [1.0]  # at zero no product is needed
        best, bound, index = z, float("inf"), 0
        moves, changes = g.new_empty(2, min(self.memory, trunc), len(g))
        ended = False
        for count in range(trunc):
            z_before, f_before = z, f
            kept = min(count, len(moves))
            z = z + self._step(f, moves[:kept], changes[:kept])
            f = jacobian.transposed(z) + g - z
            residuals.append(float(f.norm()) / scale)
            rounding = epsilon * float(z.norm()) / scale
            # Where I − Jᵀ is singular z may grow until its rounding hides what is left.
            if count == 0 or residuals[-1] + 10 * rounding < bound:
                best, bound, index = z, residuals[-1] + 10 * rounding, count + 1
            if not residuals[-1] < float("inf"):
                break
            size = float((f - f_before).norm())
            ended = residuals[-1] <= max(self.tolerance, rounding) or size == 0
            if ended:
                break
            # Columns of length one, so that none is left out below for being short.
            moves[count % len(moves)] = (z - z_before) / size
            changes[count % len(moves)] = (f - f_before) / size
        products, status = len(residuals) - 1, series_status(residuals, self.tolerance)
        if ended:
            small = max(self.tolerance, epsilon) ** 0.5
            status = Status.CONVERGED if residuals[index] <= small else Status.BREAKDOWN
        elif status is Status.GROWING and residuals[-1] <= 1:
            status = Status.TRUNCATED  # it rose, but not above that of zero
        if best is not z:
            residuals.append(residuals[index])
        return Solution(best, residuals, status, products)

    def _step(self, f: Tensor, moves: Tensor, changes: Tensor) -> Tensor:
        """Return the step to the next iterate; the rows of ``moves`` and ``changes`` are ΔZ, ΔF."""
        import torch

        if not len(changes):
            return self.mixing * f
        directions, triangle = torch.linalg.qr(changes.T)
        left, right = (t.to("cpu", torch.float64) for t in (triangle, directions.T @ f))
        # Columns that depend on others to rounding are left out.
        solved = torch.linalg.lstsq(
            left, right[:, None], rcond=torch.finfo(f.dtype).eps, driver="gelsd"
        )
        gamma: Tensor = solved.solution[:, 0].to(f)
        return self.mixing * (f - gamma @ changes) - gamma @ moves
