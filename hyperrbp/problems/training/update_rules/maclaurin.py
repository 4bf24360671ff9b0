"""SGD with momentum as the paper has it (Maclaurin et al. 2015, Algorithm 1)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hyperrbp.problems.training.update_rules.base import TorchForm
from hyperrbp.problems.training.update_rules.heavy_ball import HeavyBall

if TYPE_CHECKING:
    from torch import Tensor


_CARRY_VELOCITY = """\
if now["momentum"] != group["momentum"]:
    # The velocity goes on: v = −(1 − momentum) buffer, with another momentum from here on.
    for parameter in group["params"]:
        buffer = optimizer.state[parameter].get("momentum_buffer")
        if buffer is not None:
            buffer.mul_((1 - group["momentum"]) / (1 - now["momentum"]))
"""


@dataclass(frozen=True)
class Maclaurin(HeavyBall):
    """v' = β v − (1 − β) g, w' = w + α v'.

    In exact arithmetic this is ``torch.optim.SGD`` with learning rate α(1 − β) and momentum β,
    whose buffer is −v / (1 − β).
    """

    name = "maclaurin"
    gain_derivative = 1.0
    sign = 1.0
    in_torch = TorchForm(
        "torch.optim.SGD",
        "The run used v' = βv − (1−β)g, w' = w + αv'; here lr = α(1−β) and momentum = β,\n"
        "which is the same training in exact arithmetic (the buffer is −v/(1−β)).",
        before_change=_CARRY_VELOCITY,
    )

    @staticmethod
    def gain(beta: Tensor) -> Tensor:
        """Return β − 1."""
        return beta - 1

    def defaults(self) -> dict[str, float]:
        """Return the paper's."""
        return {"learning_rate": math.exp(-1), "momentum": 0.5, "weight_decay": 0.0}

    def torch_settings(self, rates: Mapping[str, float]) -> dict[str, Any]:
        """Return what the class of ``in_torch`` is given for one parameter tensor."""
        rate = rates["learning_rate"] * (1 - rates["momentum"])
        return super().torch_settings(rates) | {"lr": rate, "dampening": 0.0}
