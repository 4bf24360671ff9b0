"""Finite differences: a gradient against central differences of the loss, in random directions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hyperrbp.hypergradients.diagnostics.last_state import LastState
from hyperrbp.problems.base import Problem
from hyperrbp.runtime.randomness import generator

STEP = {torch.float32: 2e-2, torch.float64: 1e-4}
"""ε of (L(θ + εd) − L(θ − εd)) / 2ε: where its error in ε² meets the rounding of L."""

OTHER_STEPS = {
    torch.float32: (5e-2, 1e-2),
    torch.float64: (1e-5, 1e-6, 1e-7, 1e-8, 1e-9, 1e-10, 1e-3, 1e-2),
}
"""Taken where that ε gives something else than the gradient: shorter than the distance of two
kinks, longer than what a model rounds to."""
CLOSE = {torch.float32: 0.25, torch.float64: 1e-2}
"""The error up to which differences and a gradient agree."""
_ALIKE = 0.1
"""Differences over three steps in a row agree up to this share of themselves, and of their
distance from the gradient."""
_ROUNDING = 1e3
"""What a loss is off by, at most, in units of its last place."""


@dataclass(frozen=True)
class FiniteDifferences:
    """Derivatives of the loss along unit vectors d."""

    dtype: str
    measured: list[float]
    """By central differences."""
    predicted: list[float]
    """⟨gradient, d⟩."""
    error: float
    """The largest |measured − predicted|, relative to the largest of them all."""


def finite_differences(
    problem: Problem, theta: Tensor, gradient: Tensor, directions: int = 2, seed: int = 0
) -> FiniteDifferences:
    """Compare a gradient, shape (p,), with central differences: two runs a direction."""
    step = STEP[theta.dtype]
    measured, predicted = [], []
    for d in _directions(theta, directions, seed):
        measured.append(_difference(problem, theta, d, step)[0])
        predicted.append(float(gradient @ d))
    scale = max(map(abs, [*measured, *predicted]), default=0.0) or 1.0
    gaps = torch.tensor([m - p for m, p in zip(measured, predicted, strict=True)])
    error = float(gaps.abs().max()) / scale  # a NaN stays one
    return FiniteDifferences(str(theta.dtype).removeprefix("torch."), measured, predicted, error)


def refute(problem: Problem, theta: Tensor, found: FiniteDifferences, seed: int = 0) -> bool:
    """Return whether a gradient is none of this loss, where ``found`` is not close to it.

    A difference alone does not tell: it is off where the loss has kinks within its step, and where
    rounding is divided by a short one. Over other steps, in the direction that is off the most, the
    gradient is refuted if three in a row agree with each other and none agrees with it.

    Args:
        problem: what is run, in the precision of ``found``.
        theta: where the gradient was taken, shape (p,).
        found: from ``finite_differences``.
        seed: the one that ``found`` was made with.
    """
    close = CLOSE[theta.dtype]
    if not close < found.error < math.inf:  # a NaN is for others to see
        return False
    gaps = [abs(m - p) for m, p in zip(found.measured, found.predicted, strict=True)]
    worst = gaps.index(max(gaps))
    predicted = found.predicted[worst]
    d = _directions(theta, len(gaps), seed)[worst]
    differences = list[tuple[float, float, float]]()  # (ε, difference, what rounding may be of it)
    for step in (STEP[theta.dtype], *OTHER_STEPS[theta.dtype]):
        measured, loss = _difference(problem, theta, d, step)
        if abs(measured - predicted) <= close * max(abs(measured), abs(predicted)):
            return False
        differences.append(
            (step, measured, _ROUNDING * torch.finfo(theta.dtype).eps * abs(loss) / step)
        )
    differences.sort()
    return any(
        _alike([(measured, noise) for _, measured, noise in differences[i : i + 3]], predicted)
        for i in range(len(differences) - 2)
    )


def _alike(differences: Sequence[tuple[float, float]], predicted: float) -> bool:
    measured, noise = [each for each, _ in differences], max(of for _, of in differences)
    gap = min(abs(each - predicted) for each in measured)
    # Of themselves: where a run is chaotic, they grow as the step shrinks, and a gradient may be
    # beyond all that a difference can be.
    spread = _ALIKE * min(gap, max(map(abs, measured)))
    return noise < gap and max(measured) - min(measured) <= max(spread, noise)


def _directions(theta: Tensor, count: int, seed: int) -> list[Tensor]:
    """Return random unit vectors of shape (p,)."""
    source = generator(seed, "directions of differences")
    found = []
    for _ in range(count):
        d = torch.randn(len(theta), generator=source, dtype=torch.float64).to(theta)
        found.append(d / d.norm())
    return found


def _difference(problem: Problem, theta: Tensor, d: Tensor, step: float) -> tuple[float, float]:
    """Return the central difference of the loss along d, and the loss itself beside it."""
    above, below = (
        float(LastState.of_run(problem, theta + sign * step * d).loss) for sign in (1, -1)
    )
    return (above - below) / (2 * step), (above + below) / 2
