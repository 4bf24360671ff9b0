"""Averaging an implicit hypergradient over the minibatches of the last M updates (section 5.3).

A training run has a different input at every step, so the steady state holds in expectation only
and the Jacobian at h_T is known through minibatches. With F_b the update on minibatch b, J_b its
Jacobian at h_T and F̄ the mean over all inputs, three estimators:

``frozen``     one series a minibatch, (∂F_b/∂θ)ᵀ Σ_k (J_bᵀ)ᵏ g, and the mean of the M of them: the
               paper's sentence read literally. One minibatch stands on both sides of each product.
``resampled``  each product of a series on the next minibatch, J_{b+k}ᵀ … J_bᵀ g, several series
               starting at different ones; then (∂F̄/∂θ)ᵀ on all inputs, none of which is tied to
               the noise in z.
``mean``       one series on the mean Jacobian of the M minibatches, then (∂F̄/∂θ)ᵀ on all inputs;
               with M covering the training set this is what the authors' release computes.

Taking ∂F/∂θ on the minibatches that made z is what makes ``frozen`` fail on a training run: the
noise of a minibatch's gradient and of its Jacobian are correlated, and the sign can flip.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from hyperrbp.exceptions import UsageError
from hyperrbp.hypergradients.method import Solution, Status, Task
from hyperrbp.problems.base import (
    Jacobian,
    Linearization,
    MeanLinearization,
    Sensitivity,
)


@dataclass(frozen=True)
class _Setting:
    task: Task
    h: Tensor
    everywhere: Sensitivity
    solve: Callable[[Jacobian], Solution]

    @property
    def steps(self) -> range:
        """Return the last M steps: inputs are fetched one at a time, when needed."""
        return range(self.task.problem.steps)[-self.task.averaging.minibatches :]

    def linearized_at(self, t: int) -> Linearization:
        """Linearize the update on the minibatch of step t, at h."""
        problem = self.task.problem
        return Linearization(problem, self.h, self.task.theta, problem.input(t))


class _Resampled:
    """A Jacobian that moves on to the next minibatch at every product."""

    def __init__(self, setting: _Setting, start: int) -> None:
        self._problem, self._steps = setting.task.problem, setting.steps
        self._product = self._problem.transposed_at(setting.h, setting.task.theta)
        self._next = start

    def transposed(self, u: Tensor) -> Tensor:
        t = self._steps[self._next % len(self._steps)]
        self._next += 1
        return self._product(self._problem.input(t), u)

    def forward(self, v: Tensor) -> Tensor:
        raise UsageError("a Jacobian that is resampled at every product has no J v")


class Sample(NamedTuple):
    """One hypergradient, and how the solve behind it went."""

    gradient: Tensor
    residuals: list[float]
    status: Status
    products: int


def _sample(solution: Solution, theta_transposed: Callable[[Tensor], Tensor]) -> Sample:
    """Return (∂F/∂θ)ᵀz, and let z go."""
    gradient = theta_transposed(solution.z)
    return Sample(gradient, solution.residuals, solution.status, solution.products)


def _frozen(s: _Setting) -> list[Sample]:
    samples = []
    for t in s.steps:
        update = s.linearized_at(t)
        samples.append(_sample(s.solve(update), update.theta_transposed))
    return samples


def _resampled(s: _Setting) -> list[Sample]:
    series = min(s.task.averaging.series, s.task.averaging.minibatches)
    starts = [i * len(s.steps) // series for i in range(series)]
    return [
        _sample(s.solve(_Resampled(s, start)), s.everywhere.theta_transposed) for start in starts
    ]


def _mean(s: _Setting) -> list[Sample]:
    problem, theta = s.task.problem, s.task.theta
    chunks = list(problem.merge([problem.input(t) for t in s.steps]))
    solution = s.solve(MeanLinearization(problem, s.h, theta, chunks))
    return [_sample(solution, s.everywhere.theta_transposed)]


ESTIMATORS: dict[str, Callable[[_Setting], list[Sample]]] = {
    "frozen": _frozen,
    "resampled": _resampled,
    "mean": _mean,
}


def estimate(
    estimator: str,
    task: Task,
    h: Tensor,
    everywhere: Sensitivity,
    solve: Callable[[Jacobian], Solution],
) -> list[Sample]:
    """Return the hypergradients at h that an estimator averages, with how each was found.

    Args:
        estimator: a name in ESTIMATORS.
        task: what was run, and over how many minibatches and series to average.
        h: its last state, shape (n,).
        everywhere: ∂F̄/∂θ at h, over all inputs.
        solve: solves (I − Jᵀ) z = ∂L/∂h for a given Jacobian.
    """
    return ESTIMATORS[estimator](_Setting(task, h, everywhere, solve))


def mean_and_standard_error(samples: list[Tensor]) -> tuple[Tensor, Tensor | None]:
    """Return the mean of the samples and its standard error (None for one), shape (p,) each."""
    if len(samples) == 1:
        return samples[0], None
    stacked = torch.stack(samples)
    return stacked.mean(0), stacked.std(0) / len(samples) ** 0.5
