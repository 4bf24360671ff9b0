"""Lion, the sign of an interpolated momentum (Chen et al. 2023, Algorithm 2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hyperrbp.problems.training.update_rules.adam import Betas, with_betas
from hyperrbp.problems.training.update_rules.base import Rates, TorchForm, UpdateRule

if TYPE_CHECKING:
    from torch import Tensor


_OPTIMIZER = '''\
class Lion(torch.optim.Optimizer):
    """w' = w − lr (sign(β₁ m + (1 − β₁) g) + weight_decay w), m' = β₂ m + (1 − β₂) g."""

    def __init__(self, params, lr=1e-4, betas=(0.9, 0.99), weight_decay=0.0):
        if not lr >= 0:
            raise ValueError(f"invalid learning rate: {lr}")
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"invalid betas: {betas}")
        if not weight_decay >= 0:
            raise ValueError(f"invalid weight decay: {weight_decay}")
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for parameter in group["params"]:
                gradient = parameter.grad
                if gradient is None:
                    continue
                if gradient.is_sparse:
                    raise RuntimeError("Lion does not take sparse gradients")
                state = self.state[parameter]
                if not state:
                    state["exp_avg"] = torch.zeros_like(parameter)
                mean = state["exp_avg"]
                direction = mean.mul(beta1).add_(gradient, alpha=1 - beta1).sign_()
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(direction, alpha=-group["lr"])
                mean.mul_(beta2).add_(gradient, alpha=1 - beta2)
        return loss
'''


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
    in_torch = TorchForm(
        "Lion",
        "torch.optim has no Lion: the one below makes the very updates of the run.",
        source=_OPTIMIZER,
        decoupled_decay=True,
    )
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

    def torch_settings(self, rates: Mapping[str, float]) -> dict[str, Any]:
        """Return what the class of ``in_torch`` is given for one parameter tensor."""
        return with_betas(super().torch_settings(rates))
