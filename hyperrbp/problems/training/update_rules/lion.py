"""Lion, the sign of an interpolated momentum (Chen et al. 2023, Algorithm 2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hyperrbp.problems.training.update_rules.adam import Betas
from hyperrbp.problems.training.update_rules.base import Rates, UpdateRule

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Lion(UpdateRule):
    """w' = w − α (sign(β₁ m + (1 − β₁) g) + λ w), m' = β₂ m + (1 − β₂) g.

    The derivative of the sign is zero almost everywhere. A run by it can be trained and searched,
    but no derivative says how its end depends on β₁, β₂ or the path before it.
    """

    name = "lion"
    slots = ("exp_avg",)
    kinds = ("learning_rate", "beta1", "beta2", "weight_decay")
    differentiable = False
    learning_rate_range = (1e-6, 0.01)

    betas: Betas = (0.9, 0.99)
    """β₁ and β₂, fixed or at the start."""

    def defaults(self) -> dict[str, float]:
        """Return its options, and the learning rate of its authors' code."""
        beta1, beta2 = self.betas
        return {"learning_rate": 1e-4, "beta1": beta1, "beta2": beta2, "weight_decay": 0.0}

    def update(
        self, w: Tensor, slots: Sequence[Tensor], g: Tensor, rates: Rates, t: Tensor
    ) -> tuple[Tensor, Sequence[Tensor]]:
        """Return (w', (m',))."""
        beta1, beta2 = rates["beta1"], rates["beta2"]
        sign = (beta1 * slots[0] + (1 - beta1) * g).sign()
        moved = w - rates["learning_rate"] * (sign + rates["weight_decay"] * w)
        return moved, (beta2 * slots[0] + (1 - beta2) * g,)
