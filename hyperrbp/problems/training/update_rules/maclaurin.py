"""SGD with momentum as the paper has it (Maclaurin et al. 2015, Algorithm 1)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hyperrbp.problems.training.update_rules.heavy_ball import HeavyBall

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Maclaurin(HeavyBall):
    """v' = β v − (1 − β) g, w' = w + α v'.

    In exact arithmetic this is ``torch.optim.SGD`` with learning rate α(1 − β) and momentum β,
    whose buffer is −v / (1 − β).
    """

    name = "maclaurin"
    gain_derivative = 1.0
    sign = 1.0

    @staticmethod
    def gain(beta: Tensor) -> Tensor:
        """Return β − 1."""
        return beta - 1

    def defaults(self) -> dict[str, float]:
        """Return the paper's."""
        return {"learning_rate": math.exp(-1), "momentum": 0.5, "weight_decay": 0.0}
