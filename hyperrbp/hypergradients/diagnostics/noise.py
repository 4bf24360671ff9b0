"""What the minibatches that a hypergradient happens to be averaged over do to it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from hyperrbp.hypergradients.method import Gradient

ENOUGH = 4
"""Fewer samples say too little about their own spread to judge by."""
SIGNIFICANT = 2.0
"""Standard errors that a mean must be away from zero to be told apart from it."""


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
        """Of the components, those that can be told from zero."""
        return sum(self.distinguishable) / len(self.distinguishable)

    @property
    def above_noise(self) -> float | None:
        """The same, where there are samples enough to judge by."""
        return None if self.samples < ENOUGH else self.share


def noise(found: Gradient) -> Noise | None:
    """Of a gradient that is a mean; None where there is a single sample, and nothing is known."""
    error = found.standard_error
    if error is None:
        return None
    away = found.gradient.abs() > SIGNIFICANT * error
    return Noise(error, found.samples, away.tolist())
