"""GMRES: the smallest residual over a Krylov space (Saad and Schultz 1986)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import NonNegativeFloat, PositiveInt

from hyperrbp.hypergradients.implicit import ImplicitMethod
from hyperrbp.hypergradients.method import Solution, Status

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from hyperrbp.problems.base import Jacobian


@dataclass(frozen=True)
class Gmres(ImplicitMethod):
    """Minimizes ‖(I − Jᵀ) z − g‖ over span{g, Jᵀg, (Jᵀ)²g, …}, with transposed products only.

    Among all methods that take sums of the terms of the Neumann series, none has a smaller
    residual after as many products. The price is memory: an orthonormal basis of as many vectors
    as there are products between restarts, and their orthogonalization (classical Gram-Schmidt,
    done twice).

    Residual i is ‖g − (I − Jᵀ) z_i‖ / ‖g‖ as the recurrence has it; at a restart and at the end it
    is computed anew from z, at the price of one product.
    """

    name = "gmres"
    fixed_operator = True
    estimators = ("mean", "frozen")
    restart: PositiveInt | None = None
    """Start anew from the residual after so many products: memory is as many vectors. None: K."""
    tolerance: NonNegativeFloat = 1e-12
    """Stop when the relative residual is this small."""

    def _iterate(
        self, jacobian: Jacobian, g: Tensor, scale: float, trunc: int, generator: torch.Generator
    ) -> Solution:
        """Return the iterate after at most ``trunc`` products, and one for the last residual."""
        import torch

        z = g.new_zeros(g.shape)
        r, residuals, products = g, [1.0], 0
        status = Status.TRUNCATED
        while status is Status.TRUNCATED and products < trunc:
            steps = min(self.restart or trunc, trunc - products, len(g))
            correction, norms, status = _cycle(jacobian, r, steps, self.tolerance * scale)
            z.add_(correction)
            r = g - (z - jacobian.transposed(z))
            products += len(norms) + 1
            residuals += [norm / scale for norm in norms]
            residuals[-1] = float(r.norm()) / scale
            if not residuals[-1] < float("inf"):
                status = Status.NON_FINITE
            elif status is Status.TRUNCATED and residuals[-1] <= self.tolerance:
                status = Status.CONVERGED
        if status in (Status.CONVERGED, Status.BREAKDOWN):
            # The recurrence came to its end: whether the system is solved, the residual says.
            small = max(self.tolerance, torch.finfo(g.dtype).eps) ** 0.5
            status = Status.CONVERGED if residuals[-1] <= small else Status.BREAKDOWN
        return Solution(z, residuals, status, products)


def _cycle(
    jacobian: Jacobian, r: Tensor, steps: int, goal: float
) -> tuple[Tensor, list[float], Status]:
    """Return the correction for a residual r, the norm left after each product, and a status."""
    import torch

    epsilon = torch.finfo(r.dtype).eps
    basis = r.new_empty(steps + 1, len(r))
    triangle = torch.zeros(steps, steps, dtype=torch.float64)
    right = [float(r.norm())]
    rotations: list[tuple[float, float]] = []
    norms: list[float] = []
    status = Status.TRUNCATED
    basis[0] = r / right[0]
    for k in range(steps):
        spanned = basis[: k + 1]
        w = basis[k] - jacobian.transposed(basis[k])
        size = float(w.norm())
        column = spanned @ w
        w.sub_(column @ spanned)
        again = spanned @ w  # the second time: orthogonal to rounding
        w.sub_(again @ spanned)
        fresh = float(w.norm())
        h = [*column.add_(again).tolist(), fresh]
        for i, (cosine, sine) in enumerate(rotations):
            h[i], h[i + 1] = cosine * h[i] + sine * h[i + 1], cosine * h[i + 1] - sine * h[i]
        diagonal = math.hypot(h[k], fresh)
        if not epsilon * size < diagonal < float("inf"):
            # It is no less than the smallest singular value: I − Jᵀ is singular to rounding.
            status = Status.BREAKDOWN if diagonal < float("inf") else Status.NON_FINITE
            norms.append(abs(right[-1]))
            break
        cosine, sine = h[k] / diagonal, fresh / diagonal
        rotations.append((cosine, sine))
        triangle[: k + 1, k] = torch.tensor([*h[:k], diagonal], dtype=torch.float64)
        right[k:] = [cosine * right[k], -sine * right[k]]
        norms.append(abs(right[-1]))
        if fresh <= 10 * epsilon * size:  # the Krylov space is exhausted
            status = Status.BREAKDOWN
            break
        if norms[-1] <= goal:
            status = Status.CONVERGED
            break
        basis[k + 1] = w / fresh
    used = len(rotations)
    if not used:
        return torch.zeros_like(r), norms, status
    # Directions that rounding alone made are left out.
    y = torch.linalg.lstsq(
        triangle[:used, :used],
        torch.tensor(right[:used], dtype=torch.float64)[:, None],
        rcond=epsilon,
        driver="gelsd",
    ).solution
    return y[:, 0].to(basis) @ basis[:used], norms, status
