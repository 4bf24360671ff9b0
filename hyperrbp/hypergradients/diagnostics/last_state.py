"""Where a run ended, with what every question about its gradient starts from."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from hyperrbp.hypergradients import chosen_method, make_task
from hyperrbp.hypergradients.implicit import ImplicitMethod
from hyperrbp.hypergradients.method import Gradient, Run
from hyperrbp.hypergradients.settings import GradientSettings
from hyperrbp.problems.base import MeanLinearization, Problem, Sensitivity


@dataclass
class LastState:
    """h_T of one run at θ; all that is derived from it is computed once, when first asked for."""

    problem: Problem
    theta: Tensor
    """Shape (p,)."""
    h: Tensor
    """Shape (n,)."""

    @classmethod
    def of_run(cls, problem: Problem, theta: Tensor) -> LastState:
        """Run the problem."""
        return cls(problem, theta, problem.last_state(theta).clone())

    @cached_property
    def _loss_and_gradient(self) -> tuple[Tensor, Tensor]:
        return self.problem.loss_and_gradient(self.h)

    @property
    def loss(self) -> Tensor:
        """L(h_T), shape ()."""
        return self._loss_and_gradient[0]

    @property
    def g(self) -> Tensor:
        """∂L/∂h at h_T, shape (n,)."""
        return self._loss_and_gradient[1]

    @cached_property
    def sensitivity(self) -> Sensitivity:
        """∂F/∂θ at h_T, F averaged over its whole population of inputs."""
        return Sensitivity(self.problem, self.h, self.theta)

    def jacobian(self, minibatches: int) -> MeanLinearization:
        """The mean Jacobian at h_T over the inputs of the last updates."""
        inputs = [self.problem.input(t) for t in range(self.problem.steps)[-minibatches:]]
        return MeanLinearization(self.problem, self.h, self.theta, list(self.problem.merge(inputs)))

    def gradient(self, settings: GradientSettings, *, seed: int = 0, step: int = 0) -> Gradient:
        """The gradient by these settings; an implicit method needs no run of its own for it.

        Raises:
            UsageError: see :func:`hyperrbp.hypergradient`.
        """
        method = chosen_method(settings.method, settings.options)
        if not isinstance(method, ImplicitMethod):
            return settings.hypergradient(self.problem, self.theta, seed=seed, step=step)
        task = make_task(
            self.problem, self.theta, method, settings.trunc, settings.averaging, seed, step
        )
        return method.differentiate(task, Run(self.h), self.g, self.sensitivity)

    def exact_gradient(self) -> Tensor:
        """Of the whole run, in memory for 2√T states; shape (p,)."""
        return self.gradient(EXACT).gradient


EXACT = GradientSettings(method="bptt", options={"keep": "checkpoints"})
"""The referee."""
