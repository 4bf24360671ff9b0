"""AdamW, as ``torch.optim.AdamW`` has it (Loshchilov and Hutter 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hyperrbp.problems.training.update_rules.adam import Adam
from hyperrbp.problems.training.update_rules.base import Rates, TorchForm

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with the weights shrunk by 1 − α λ before each update, apart from the gradient."""

    name = "adamw"
    in_torch = TorchForm("torch.optim.AdamW", decoupled_decay=True)

    def defaults(self) -> dict[str, float]:
        """Return its options, and those of torch.optim."""
        return super().defaults() | {"weight_decay": 0.01}

    def update(
        self, w: Tensor, slots: Sequence[Tensor], g: Tensor, rates: Rates, t: Tensor
    ) -> tuple[Tensor, Sequence[Tensor]]:
        """Return (w', (m', v'))."""
        shrunk = w * (1 - rates["learning_rate"] * rates["weight_decay"])
        return self.moved(shrunk, slots, g, rates, t)
