"""Stochastic gradient descent, as ``torch.optim.SGD`` has it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from hyperrbp.problems.training.update_rules.base import Rates, TorchForm
from hyperrbp.problems.training.update_rules.heavy_ball import HeavyBall

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class SGD(HeavyBall):
    """v' = β v + (1 − dampening) g, w' = w − α v'; the first velocity is g, undamped.

    As in torch.optim, nothing is dampened where β = 0.

    With Nesterov's momentum (Sutskever et al. 2013), w' = w − α (g + β v').
    """

    name = "sgd"
    in_torch = TorchForm("torch.optim.SGD")
    gain_derivative = 0.0
    sign = -1.0

    dampening: Annotated[float, Field(ge=0, le=1)] = 0.0
    """How much of the gradient is left out of the velocity, where there is any momentum."""
    nesterov: bool = False
    """Whether the weights move along g + β v'; as in torch.optim, not with any dampening."""

    @staticmethod
    def gain(beta: Tensor) -> Tensor:
        """Return 1."""
        import torch

        return torch.ones_like(beta)

    @property
    def plain(self) -> bool:
        """Whether there is neither dampening nor Nesterov's momentum."""
        return not self.dampening and not self.nesterov

    def defaults(self) -> dict[str, float]:
        """Return those of torch.optim."""
        return {"learning_rate": 1e-3, "momentum": 0.0, "weight_decay": 0.0}

    def update(
        self, w: Tensor, slots: Sequence[Tensor], g: Tensor, rates: Rates, t: Tensor
    ) -> tuple[Tensor, Sequence[Tensor]]:
        """Return (w', (v',))."""
        beta = rates["momentum"]
        g = g + rates["weight_decay"] * w
        v = beta * slots[0] + (1 - self.dampening) * g
        if self.dampening:
            import torch

            v = torch.where((t == 0) | (beta == 0), g, v)
        along = g + beta * v if self.nesterov else v
        return w - rates["learning_rate"] * along, (v,)

    def torch_settings(self, rates: Mapping[str, float]) -> dict[str, Any]:
        """Return what the class of ``in_torch`` is given for one parameter tensor."""
        options = {"dampening": self.dampening, "nesterov": self.nesterov}
        return super().torch_settings(rates) | options
