"""The residuals of (I − Jᵀ) z = ∂L/∂h (eq. 9), measured on z itself."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from torch import Tensor

from hyperrbp.problems.base import Jacobian, Sensitivity

SOLVED = 1e-2
"""The objective-aware residual up to which a solve counts as converged."""


class Outcome(StrEnum):
    """What a small or strange gradient can come from."""

    STRUCTURALLY_ZERO = "structurally zero"
    NOT_CONVERGED = "did not converge"
    CONVERGED = "converged"

    @property
    def sentence(self) -> str:
        """Return the outcome in a sentence."""
        return _SENTENCES[self]


_SENTENCES = {
    Outcome.STRUCTURALLY_ZERO: "F does not feel the parameters at the last state: whatever z is, "
    "the gradient is 0, and that says nothing about them",
    Outcome.NOT_CONVERGED: "the linear system is not solved: more products would change the "
    "gradient",
    Outcome.CONVERGED: "the linear system is solved: more products would change nothing",
}


@dataclass(frozen=True)
class LinearSolve:
    """Two residuals of r = g − (I − Jᵀ) z."""

    residual: float
    """‖r‖ / ‖g‖."""
    objective_residual: float
    """‖(∂F/∂θ)ᵀ r‖ / ‖(∂F/∂θ)ᵀ z‖: by how much one further term would move the gradient."""
    outcome: Outcome


def linear_solve(
    jacobian: Jacobian, g: Tensor, z: Tensor, sensitivity: Sensitivity, all_zero: bool
) -> LinearSolve:
    """Measure how well z solves the system, with one product.

    Args:
        jacobian: the operator that z was, or should have been, solved with.
        g: ∂L/∂h, shape (n,).
        z: what a solver made of it, shape (n,).
        sensitivity: ∂F/∂θ.
        all_zero: whether F feels none of the parameters.
    """
    r = g - z + jacobian.transposed(z)
    scale = float(g.norm())
    residual = float(r.norm()) / scale if scale else float(r.norm())
    change = float(sensitivity.theta_transposed(r).norm())
    length = float(sensitivity.theta_transposed(z).norm())
    felt = change / length if length else (float("inf") if change else 0.0)
    outcome = Outcome.NOT_CONVERGED
    if all_zero:
        outcome = Outcome.STRUCTURALLY_ZERO
    elif max(felt, residual) <= SOLVED:
        outcome = Outcome.CONVERGED
    return LinearSolve(residual, felt, outcome)
