"""The rates with which every step of a training run is made, as a function of θ and the step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hyperrbp.problems.training.hyperparameters import Layout
from hyperrbp.problems.training.update_rules import Rates, UpdateRule

_KINDS = ("learning_rate", "momentum", "weight_decay")


class RateSchedule:
    """ρ = R(θ, t): learning rate, momentum and weight decay, constant within a segment of the run.

    Args:
        layout: where in θ every rate stands.
        rule: the update rule, which turns hyperparameters into coefficients.
        shapes: those of the parameter tensors.
    """

    def __init__(self, layout: Layout, rule: UpdateRule, shapes: Sequence[torch.Size]) -> None:
        self._layout, self._rule, self._shapes = layout, rule, shapes
        self.decays = "weight_decay" in layout.grains or layout.fixed["weight_decay"] > 0
        """Whether there is any weight decay."""

    def rates(self, theta: Tensor) -> list[list[Rates]]:
        """Return the coefficients of every parameter tensor, for each segment of the run.

        They have no graph where gradients are disabled, and none that leads to θ.
        """
        theta = theta.detach()
        return [self._rates_in(theta, segment) for segment in range(self._layout.segments)]

    def of_weights(self, theta: Tensor, segment: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return (α, β, λ) of every weight in a segment, shape (N,) each, with a graph to θ."""
        alpha, beta, decay = (self._layout.by_weight(theta, kind, segment) for kind in _KINDS)
        return alpha, beta, decay

    def _rates_in(self, theta: Tensor, segment: int) -> list[Rates]:
        alpha, beta, decay = (self._layout.by_tensor(theta, kind, segment) for kind in _KINDS)
        return [
            self._rule.rates(a, b, c.view(shape if c.dim() else ()) if self.decays else None)
            for a, b, c, shape in zip(alpha, beta, decay, self._shapes, strict=True)
        ]
