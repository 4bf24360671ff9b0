"""Minibatch noise: the standard error of a hypergradient that is a mean over minibatches."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from hyperrbp.hypergradients.method import Gradient

ENOUGH = 4
"""Fewer samples say too little about their own spread to judge by."""
SIGNIFICANT = 2.0
"""Standard errors that a mean must be away from zero to be distinguished from it."""


@dataclass(frozen=True)
class Noise:
    """The mean of several gradients against its standard error."""

    standard_error: Tensor
    """Shape (p,)."""
    samples: int
    distinguishable: list[bool]
    """Which components are more than two standard errors away from zero."""

    @property
    def share(self) -> float:
        """Return the share of components that are distinguishable from zero."""
        return sum(self.distinguishable) / len(self.distinguishable)

    @property
    def above_noise(self) -> float | None:
        """Return the share, where there are samples enough to judge by; else None."""
        return None if self.samples < ENOUGH else self.share


def noise(found: Gradient) -> Noise | None:
    """Return the noise of a gradient; None of a single sample, about which nothing is known."""
    error = found.standard_error
    if error is None:
        return None
    away = found.gradient.abs() > SIGNIFICANT * error
    return Noise(error, found.samples, away.tolist())
