"""The last state of a run, and what is derived from it once for all diagnostics."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from hyperrbp.hypergradients import chosen_method, make_task, refuse_blind
from hyperrbp.hypergradients.implicit import ImplicitMethod
from hyperrbp.hypergradients.method import Gradient, Run
from hyperrbp.hypergradients.settings import GradientSettings
from hyperrbp.problems.base import MeanLinearization, Problem, Sensitivity


@dataclass
class LastState:
    """h_T of one run at θ; what is derived from it is computed once, when first needed."""

    problem: Problem
    theta: Tensor
    """Shape (p,)."""
    h: Tensor
    """Shape (n,)."""

    @classmethod
    def of_run(cls, problem: Problem, theta: Tensor) -> LastState:
        """Run the problem at θ."""
        return cls(problem, theta, problem.last_state(theta).clone())

    @cached_property
    def _loss_and_gradient(self) -> tuple[Tensor, Tensor]:
        return self.problem.loss_and_gradient(self.h)

    @property
    def loss(self) -> Tensor:
        """Return L(h_T), shape ()."""
        return self._loss_and_gradient[0]

    @property
    def g(self) -> Tensor:
        """Return ∂L/∂h at h_T, shape (n,)."""
        return self._loss_and_gradient[1]

    @cached_property
    def sensitivity(self) -> Sensitivity:
        """Return ∂F/∂θ at h_T, F averaged over its whole population of inputs."""
        return Sensitivity(self.problem, self.h, self.theta)

    def jacobian(self, minibatches: int) -> MeanLinearization:
        """Return the mean Jacobian at h_T over the inputs of the last updates."""
        inputs = [self.problem.input(t) for t in range(self.problem.steps)[-minibatches:]]
        return MeanLinearization(self.problem, self.h, self.theta, list(self.problem.merge(inputs)))

    def gradient(self, settings: GradientSettings, *, seed: int = 0, step: int = 0) -> Gradient:
        """Differentiate by these settings; an implicit method needs no run of its own for it.

        Raises:
            UsageError: see ``hyperrbp.hypergradient``.
        """
        method = chosen_method(settings.method, settings.options)
        if not isinstance(method, ImplicitMethod):
            return settings.hypergradient(self.problem, self.theta, seed=seed, step=step)
        task = make_task(
            self.problem, self.theta, method, settings.trunc, settings.averaging, seed, step
        )
        refuse_blind(method, task)
        refuse_blind(method, task, self.h)
        return method.differentiate(task, Run(self.h), self.g, self.sensitivity)

    def exact_gradient(self) -> Tensor:
        """Return the exact gradient, shape (p,), in memory for 2√T states."""
        return self.gradient(EXACT).gradient


EXACT = GradientSettings(method="bptt", options={"keep": "checkpoints"})
"""The exact gradient that all others are compared with."""
