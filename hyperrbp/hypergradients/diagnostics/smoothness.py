"""Smoothness: whether the loss falls as its gradient predicts, along the step to be taken."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from hyperrbp.hypergradients.diagnostics.last_state import LastState
from hyperrbp.problems.base import Problem

FRACTIONS = (0.25, 0.5, 1.0, 2.0)


@dataclass(frozen=True)
class Smoothness:
    """The loss along Adam's first step: −lr · sign(gradient)."""

    fractions: list[float]
    """Of that step."""
    losses: list[float]
    """L there."""
    predicted: list[float]
    """L at θ, plus the gradient times the step."""
    start: float
    """L at θ."""

    @property
    def falls(self) -> bool:
        """Return whether the loss falls all the way to the full step."""
        return all(
            loss < self.start
            for fraction, loss in zip(self.fractions, self.losses, strict=True)
            if fraction <= 1
        )

    @property
    def ratio(self) -> float | None:
        """Return the change over the full step by the predicted one; 1 where the loss is linear."""
        full = self.fractions.index(1.0)
        predicted = self.predicted[full] - self.start
        change = self.losses[full] - self.start
        return change / predicted if predicted and math.isfinite(change) else None


def smoothness(
    problem: Problem, theta: Tensor, loss: float, gradient: Tensor, learning_rate: float
) -> Smoothness:
    """Run once for each of FRACTIONS of the step −lr · sign(gradient)."""
    step = -learning_rate * gradient.sign()
    losses = [
        float(LastState.of_run(problem, theta + fraction * step).loss) for fraction in FRACTIONS
    ]
    change = float(gradient @ step)
    return Smoothness(
        list(FRACTIONS), losses, [loss + fraction * change for fraction in FRACTIONS], loss
    )
