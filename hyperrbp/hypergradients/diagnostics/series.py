"""The terms of the Neumann series, one by one (eq. 18), and what each adds to the gradient."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import linear_regression

import torch
from torch import Tensor


@dataclass(frozen=True)
class Series:
    """Σ_{k≤K} (Jᵀ)ᵏ g as it grows."""

    norms: list[float]
    """‖(Jᵀ)ᵏ g‖ / ‖g‖ for k = 0 … K."""
    gradients: Tensor
    """(∂F/∂θ)ᵀ of the sum after each term, shape (K + 1, p)."""
    last_share: float
    """The last term's norm over that of the sum: what the truncation leaves undecided."""

    @property
    def growth_rate(self) -> float:
        """By how much a term is larger than the one before, over the second half of them."""
        return growth_rate(self.norms)

    @property
    def smallest_term(self) -> int:
        """The k of the smallest term, where a growing series is best cut."""
        return min(range(len(self.norms)), key=self.norms.__getitem__)


def growth_rate(norms: Sequence[float]) -> float:
    """By how much successive norms grow, from a line through the logarithms of the second half.

    All of the half counts, since the terms of complex pairs swing. 0 if a term vanished, infinity
    or NaN if the last is.
    """
    half = norms[(len(norms) - 1) // 2 :]
    if not math.isfinite(half[-1]):
        return half[-1]
    if len(half) < 2 or 0 in half:
        return 0.0
    slope = linear_regression(range(len(half)), [math.log(norm) for norm in half]).slope
    return math.exp(slope)


def walk_series(
    transposed: Callable[[Tensor], Tensor],
    g: Tensor,
    theta_transposed: Callable[[Tensor], Tensor],
    trunc: int,
) -> Series:
    """The series to its term K = ``trunc``, or to the first that is zero or not finite.

    Args:
        transposed: u ↦ Jᵀu.
        g: ∂L/∂h, shape (n,).
        theta_transposed: u ↦ (∂F/∂θ)ᵀu, shape (p,).
        trunc: K.
    """
    scale = float(g.norm()) or 1.0
    term, z = g, g.clone()
    norms, gradients = [float(g.norm()) / scale], [theta_transposed(z)]
    for _ in range(trunc):
        if not 0 < norms[-1] < float("inf"):
            break
        term = transposed(term)
        z.add_(term)
        norms.append(float(term.norm()) / scale)
        gradients.append(theta_transposed(z))
    total = float(z.norm())
    share = norms[-1] * scale / total if total else 0.0
    return Series(norms, torch.stack(gradients), share)
