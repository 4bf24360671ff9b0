"""SGD with momentum in the form v' = β v + gain(β) g, w' = w + sign · α v'.

Here g = ∇L(w) + λ w with a weight decay λ. The derivatives of this form are constants, and the
paper's experiments live on it: ``hyperrbp.problems.training.heavy_ball`` has its products written
out by hand.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from hyperrbp.problems.training.update_rules.base import Rates, UpdateRule

if TYPE_CHECKING:
    from torch import Tensor


class HeavyBall(UpdateRule):
    """An update rule of this form."""

    slots = ("momentum_buffer",)
    kinds = ("learning_rate", "momentum", "weight_decay")
    affine = True
    learning_rate_range = (math.exp(-4), math.exp(3))
    gain_derivative: ClassVar[float]
    """The derivative of ``gain``, which is a constant."""
    sign: ClassVar[float]
    """1 where velocities point downhill, −1 where they point uphill."""

    @staticmethod
    @abstractmethod
    def gain(beta: Tensor) -> Tensor:
        """Return the factor of the gradient for β."""

    @property
    def plain(self) -> bool:
        """Whether the options leave it in this form."""
        return True

    def update(
        self, w: Tensor, slots: Sequence[Tensor], g: Tensor, rates: Rates, t: Tensor
    ) -> tuple[Tensor, Sequence[Tensor]]:
        """Return (w', (v',))."""
        beta = rates["momentum"]
        g = g + rates["weight_decay"] * w
        v = beta * slots[0] + self.gain(beta) * g
        return w + self.sign * rates["learning_rate"] * v, (v,)

    def apply(self, w: Tensor, v: Tensor, g: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
        """Return (w', v') as one vector, with a graph; all arguments are flat, shape (N,)."""
        import torch

        v = torch.addcmul(beta * v, self.gain(beta), g)
        return torch.cat([torch.addcmul(w, self.sign * alpha, v), v])
