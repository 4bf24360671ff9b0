"""Finite differences: a gradient against central differences of the loss, in random directions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hyperrbp.hypergradients.diagnostics.last_state import LastState
from hyperrbp.problems.base import Problem
from hyperrbp.runtime.randomness import generator

STEP = {torch.float32: 2e-2, torch.float64: 1e-4}
"""ε of (L(θ + εd) − L(θ − εd)) / 2ε: where its error in ε² meets the rounding of L."""


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
    source = generator(seed, "directions of differences")
    for _ in range(directions):
        d = torch.randn(len(theta), generator=source, dtype=torch.float64).to(theta)
        d /= d.norm()
        above, below = (
            float(LastState.of_run(problem, theta + sign * step * d).loss) for sign in (1, -1)
        )
        measured.append((above - below) / (2 * step))
        predicted.append(float(gradient @ d))
    scale = max(map(abs, [*measured, *predicted]), default=0.0) or 1.0
    gaps = torch.tensor([m - p for m, p in zip(measured, predicted, strict=True)])
    error = float(gaps.abs().max()) / scale  # a NaN stays one
    return FiniteDifferences(str(theta.dtype).removeprefix("torch."), measured, predicted, error)
