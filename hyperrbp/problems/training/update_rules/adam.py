"""Adam, as ``torch.optim.Adam`` has it (Kingma and Ba 2015)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from hyperrbp.problems.training.update_rules.base import Rates, TorchForm, UpdateRule

if TYPE_CHECKING:
    from torch import Tensor

Share = Annotated[float, Field(ge=0, lt=1)]
Betas = tuple[Share, Share] | Annotated[list[Share], Field(min_length=2, max_length=2)]


@dataclass(frozen=True)
class Adam(UpdateRule):
    """Moments of the gradient, m' = β₁ m + (1 − β₁) g and v' = β₂ v + (1 − β₂) g².

    w' = w − α m̂ / (√v̂ + ε) with m̂ = m' / (1 − β₁ᵗ⁺¹) and v̂ = v' / (1 − β₂ᵗ⁺¹). A weight decay is
    added to the gradient.
    """

    name = "adam"
    slots = ("exp_avg", "exp_avg_sq")
    kinds = ("learning_rate", "beta1", "beta2", "eps", "weight_decay")
    in_torch = TorchForm("torch.optim.Adam")

    betas: Betas = (0.9, 0.999)
    """β₁ and β₂, fixed or at the start."""
    eps: Annotated[float, Field(ge=0)] = 1e-8
    """ε, fixed or at the start."""

    def defaults(self) -> dict[str, float]:
        """Return its options, and those of torch.optim."""
        beta1, beta2 = self.betas
        return {
            "learning_rate": 1e-3,
            "beta1": beta1,
            "beta2": beta2,
            "eps": self.eps,
            "weight_decay": 0.0,
        }

    def update(
        self, w: Tensor, slots: Sequence[Tensor], g: Tensor, rates: Rates, t: Tensor
    ) -> tuple[Tensor, Sequence[Tensor]]:
        """Return (w', (m', v'))."""
        return self.moved(w, slots, g + rates["weight_decay"] * w, rates, t)

    @staticmethod
    def moved(
        w: Tensor, slots: Sequence[Tensor], g: Tensor, rates: Rates, t: Tensor
    ) -> tuple[Tensor, Sequence[Tensor]]:
        """Return (w', (m', v')) for a gradient with all that is added to it."""
        beta1, beta2 = rates["beta1"], rates["beta2"]
        m = beta1 * slots[0] + (1 - beta1) * g
        v = beta2 * slots[1] + (1 - beta2) * g * g
        corrected = 1 - beta1 ** (t + 1)
        root = differentiable_sqrt(v) / (1 - beta2 ** (t + 1)).sqrt()
        return w - rates["learning_rate"] / corrected * m / (root + rates["eps"]), (m, v)

    def torch_settings(self, rates: Mapping[str, float]) -> dict[str, Any]:
        """Return what the class of ``in_torch`` is given for one parameter tensor."""
        return with_betas(super().torch_settings(rates))

    def not_differentiable(self, slots: Sequence[Tensor]) -> Tensor | None:
        """Return where the second moment is zero: √v has no derivative there."""
        return slots[1] <= 0


def with_betas(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with β₁ and β₂ in a pair, as torch.optim takes them."""
    found = {"lr": settings["lr"], "betas": (settings["beta1"], settings["beta2"])}
    return found | {key: of for key, of in settings.items() if key not in ("beta1", "beta2")}


def differentiable_sqrt(v: Tensor) -> Tensor:
    """Return √v, with the derivative 0 where v = 0.

    A weight whose gradient has been zero so far has v = 0. What its update passes on along m has
    the factor 1/ε there, which is right; along v it would be 0 · ∞.
    """
    import torch

    positive = v > 0
    return torch.where(positive, torch.where(positive, v, 1.0).sqrt(), 0.0)
