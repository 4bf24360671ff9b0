"""The terms of the Neumann series, one by one (eq. 18), and what each adds to the gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

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
        """The geometric mean of ‖term k+1‖ / ‖term k‖ over the second half of the terms."""
        return growth_rate(self.norms)

    @property
    def smallest_term(self) -> int:
        """The k of the smallest term, where a growing series is best cut."""
        return min(range(len(self.norms)), key=self.norms.__getitem__)


def growth_rate(norms: Sequence[float]) -> float:
    """The geometric mean of the ratios of successive norms over the second half of them.

    0 if a term vanished, infinity or NaN if one overflowed.
    """
    middle = (len(norms) - 1) // 2
    first, last, steps = norms[middle], norms[-1], len(norms) - 1 - middle
    if first == 0 or steps == 0:
        return 0.0
    return float((last / first) ** (1 / steps))


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
