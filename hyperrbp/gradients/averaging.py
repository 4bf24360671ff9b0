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

from hyperrbp.dynamics import (
    Jacobian,
    Linearization,
    MeanLinearization,
    Problem,
    Sensitivity,
)
from hyperrbp.errors import UsageError
from hyperrbp.gradients.method import Averaging, Solution, Status


@dataclass(frozen=True)
class _Setting:
    problem: Problem
    theta: Tensor
    h: Tensor
    steps: range
    """The last M: their inputs are fetched when needed, so that one is held at a time."""
    everywhere: Sensitivity
    series: int
    solve: Callable[[Jacobian], Solution]


class _Resampled:
    """A Jacobian that moves on to the next minibatch at every product."""

    def __init__(self, setting: _Setting, start: int) -> None:
        self._setting = setting
        self._product = setting.problem.transposed_at(setting.h, setting.theta)
        self._next = start

    def transposed(self, u: Tensor) -> Tensor:
        s = self._setting
        t = s.steps[self._next % len(s.steps)]
        self._next += 1
        return self._product(s.problem.input(t), u)

    def forward(self, v: Tensor) -> Tensor:
        raise UsageError("a Jacobian that is resampled at every product has no J v")


class Sample(NamedTuple):
    """One hypergradient, and how the solve behind it went."""

    gradient: Tensor
    residuals: list[float]
    status: Status
    products: int


def _sample(solution: Solution, theta_transposed: Callable[[Tensor], Tensor]) -> Sample:
    """(∂F/∂θ)ᵀz; z itself is let go."""
    gradient = theta_transposed(solution.z)
    return Sample(gradient, solution.residuals, solution.status, solution.products)


def _frozen(s: _Setting) -> list[Sample]:
    samples = []
    for t in s.steps:
        update = Linearization(s.problem, s.h, s.theta, s.problem.input(t))
        samples.append(_sample(s.solve(update), update.theta_transposed))
    return samples


def _resampled(s: _Setting) -> list[Sample]:
    starts = [i * len(s.steps) // s.series for i in range(s.series)]
    return [
        _sample(s.solve(_Resampled(s, start)), s.everywhere.theta_transposed) for start in starts
    ]


def _mean(s: _Setting) -> list[Sample]:
    chunks = list(s.problem.merge([s.problem.input(t) for t in s.steps]))
    solution = s.solve(MeanLinearization(s.problem, s.h, s.theta, chunks))
    return [_sample(solution, s.everywhere.theta_transposed)]


ESTIMATORS: dict[str, Callable[[_Setting], list[Sample]]] = {
    "frozen": _frozen,
    "resampled": _resampled,
    "mean": _mean,
}


def estimate(
    estimator: str,
    averaging: Averaging,
    everywhere: Sensitivity,
    problem: Problem,
    theta: Tensor,
    h: Tensor,
    solve: Callable[[Jacobian], Solution],
) -> list[Sample]:
    """The hypergradients at h that one of ESTIMATORS would average, and where each came from.

    Args:
        estimator: a name in ESTIMATORS.
        averaging: over how many minibatches and series.
        everywhere: ∂F̄/∂θ at h, over all inputs.
        problem: what was run.
        theta: at what, shape (p,).
        h: its last state, shape (n,).
        solve: solves (I − Jᵀ) z = ∂L/∂h for a given Jacobian.
    """
    setting = _Setting(
        problem=problem,
        theta=theta,
        h=h,
        steps=range(problem.steps)[-averaging.minibatches :],
        everywhere=everywhere,
        series=min(averaging.series, averaging.minibatches),
        solve=solve,
    )
    return ESTIMATORS[estimator](setting)


def mean_and_standard_error(samples: list[Tensor]) -> tuple[Tensor, Tensor | None]:
    """The mean of the samples and its standard error (None for a single one), shape (p,) each."""
    if len(samples) == 1:
        return samples[0], None
    stacked = torch.stack(samples)
    return stacked.mean(0), stacked.std(0) / len(samples) ** 0.5
