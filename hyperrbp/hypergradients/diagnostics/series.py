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
        """Return the factor from a term to the next, over the second half of them."""
        return growth_rate(self.norms)

    @property
    def smallest_term(self) -> int:
        """Return the k of the smallest term, where a growing series is best cut."""
        return min(range(len(self.norms)), key=self.norms.__getitem__)


def growth_rate(norms: Sequence[float]) -> float:
    """Return the factor between successive norms, by regression on the logs of the second half.

    All of the half counts, since the terms of complex pairs swing. 0 if a term vanished, infinity
    or NaN if the last is.
    """
    half = norms[(len(norms) - 1) // 2 :]
    if not math.isfinite(half[-1]):
        return half[-1]
    if len(half) < 2 or 0 in half:
        return 0.0
    line = linear_regression(range(len(half)), [math.log(norm) for norm in half])
    return math.exp(line.slope)


def neumann_series(
    transposed: Callable[[Tensor], Tensor],
    g: Tensor,
    theta_transposed: Callable[[Tensor], Tensor],
    trunc: int,
) -> Series:
    """Return the series to its term K = ``trunc``, or to the first that is zero or not finite.

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
