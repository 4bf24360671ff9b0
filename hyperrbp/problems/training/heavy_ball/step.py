"""The map F of a training run by SGD with momentum."""

from __future__ import annotations

import torch
from torch import Tensor

from hyperrbp.problems.training.heavy_ball.coefficients import CoefficientSchedule
from hyperrbp.problems.training.heavy_ball.products import HeavyBallAt
from hyperrbp.problems.training.hyperparameters import Layout
from hyperrbp.problems.training.network_loss import flat
from hyperrbp.problems.training.objective import Objective
from hyperrbp.problems.training.products import Place
from hyperrbp.problems.training.update_rules.heavy_ball import HeavyBall


class HeavyBallStep:
    """F(h, θ, x) with h = (w, v), at constant rates within a segment of the run.

    Args:
        objective: the loss of the network, for its gradient and Hessian products.
        rule: the update rule.
        layout: where in θ everything stands.
    """

    def __init__(self, objective: Objective, rule: HeavyBall, layout: Layout) -> None:
        self._objective, self._rule, self._layout = objective, rule, layout
        self._schedule = CoefficientSchedule(layout, rule, objective.shapes)

    def with_objective(self, objective: Objective) -> HeavyBallStep:
        """Return the same step with the loss of another network of the same shapes."""
        return HeavyBallStep(objective, self._rule, self._layout)

    def recheck(self) -> None:
        """Do nothing: all that is traced here is the objective's."""

    def step(self, h: Tensor, theta: Tensor, at: Place) -> Tensor:
        """Return F(h, θ, x), shape (2N,), with graphs to h and θ where they require a gradient."""
        w, v = torch.split(h, self._objective.weights)
        weights = at.x.weights
        if torch.is_grad_enabled() and (
            h.requires_grad or (weights is not None and weights.requires_grad)
        ):
            g = self._objective.differentiable_gradient(w, at.x)
        else:
            g = flat(self._objective.gradient(self._objective.pieces(w.detach()), at.x))
        segment = self._layout.segment(at.step, at.steps)
        alpha, beta, decay = self._schedule.of_weights(theta, segment)
        if self._schedule.decays:
            g = torch.addcmul(g, decay, w)
        return self._rule.apply(w, v, g, alpha, beta)

    def at(self, theta: Tensor) -> HeavyBallAt:
        """Return what a step at one θ is made of: its states and its products."""
        return HeavyBallAt(self._objective, self._rule, self._schedule, self._layout, theta)
