"""RMSprop, as ``torch.optim.RMSprop`` has it (Hinton 2012; centered: Graves 2013)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from hyperrbp.problems.training.update_rules.adam import Share, differentiable_sqrt
from hyperrbp.problems.training.update_rules.base import Rates, TorchForm, UpdateRule

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class RMSprop(UpdateRule):
    """v' = a v + (1 − a) g², b' = β b + g / (√v' + ε), w' = w − α b'.

    Centered, v' less the square of a mean gradient is under the root.
    """

    name = "rmsprop"
    slots = ("square_avg", "momentum_buffer", "grad_avg")
    kinds = ("learning_rate", "momentum", "alpha", "eps", "weight_decay")
    in_torch = TorchForm("torch.optim.RMSprop")

    alpha: Share = 0.99
    """The smoothing constant a, fixed or at the start."""
    eps: Annotated[float, Field(ge=0)] = 1e-8
    """ε, fixed or at the start."""
    centered: bool = False
    """Whether the square of the mean gradient is subtracted under the root."""

    def defaults(self) -> dict[str, float]:
        """Return its options, and those of torch.optim."""
        return {
            "learning_rate": 1e-2,
            "momentum": 0.0,
            "alpha": self.alpha,
            "eps": self.eps,
            "weight_decay": 0.0,
        }

    def update(
        self, w: Tensor, slots: Sequence[Tensor], g: Tensor, rates: Rates, t: Tensor
    ) -> tuple[Tensor, Sequence[Tensor]]:
        """Return (w', (v', b', ḡ')); ḡ' is zero unless centered."""
        square, buffer, mean = slots
        alpha = rates["alpha"]
        g = g + rates["weight_decay"] * w
        square = alpha * square + (1 - alpha) * g * g
        under = square
        if self.centered:
            mean = alpha * mean + (1 - alpha) * g
            under = square - mean * mean
        else:  # kept as it is, it would be a direction in which the map never contracts
            mean = 0.0 * mean
        buffer = rates["momentum"] * buffer + g / (differentiable_sqrt(under) + rates["eps"])
        return w - rates["learning_rate"] * buffer, (square, buffer, mean)

    def torch_settings(self, rates: Mapping[str, float]) -> dict[str, Any]:
        """Return what the class of ``in_torch`` is given for one parameter tensor."""
        return super().torch_settings(rates) | {"centered": self.centered}

    def not_differentiable(self, slots: Sequence[Tensor]) -> Tensor | None:
        """Return where what is under the root is zero: it has no derivative there."""
        under = slots[0] - slots[2] * slots[2] if self.centered else slots[0]
        return under <= 0
