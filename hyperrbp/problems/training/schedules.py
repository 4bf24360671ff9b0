"""Schedules of the learning rate: the factor of its peak at every step.

With T steps, a warm-up of W = a T of them and the share p = max(0, t − W) / (T − W) of what comes
after it, the factor of step t is min(1, (t + 1) / (W + 1)) times the shape at p. The warm-up and
the cosine are those of nanoGPT's ``get_lr``, with a number W that need not be whole, so that the
factor has a derivative by the warm-up share a as well as by the share of the peak at the end. Where
W is a whole number it has a kink there; the derivative is the one towards a shorter warm-up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hyperrbp.exceptions import UsageError
from hyperrbp.runtime.suggestions import did_you_mean

if TYPE_CHECKING:
    from torch import Tensor

Shape = Callable[["Tensor", "Tensor", "Tensor"], "Tensor"]
"""(p, end share, knots) → the factor after the warm-up; shapes (), () and (S,)."""


def constant(p: Tensor, end: Tensor, knots: Tensor) -> Tensor:
    """Return 1."""
    import torch

    return torch.ones_like(p)


def linear(p: Tensor, end: Tensor, knots: Tensor) -> Tensor:
    """Return 1 − (1 − end) p."""
    return 1 - (1 - end) * p


def cosine(p: Tensor, end: Tensor, knots: Tensor) -> Tensor:
    """Return end + (1 − end) (1 + cos πp) / 2 (Loshchilov and Hutter 2017, eq. 5)."""
    import torch

    return end + (1 - end) * (1 + torch.cos(math.pi * p)) / 2


def piecewise_linear(p: Tensor, end: Tensor, knots: Tensor) -> Tensor:
    """Return what stands at p between knots that are evenly spaced from 0 to 1."""
    import torch

    if len(knots) == 1:
        return knots[0] * torch.ones_like(p)
    at = p * (len(knots) - 1)
    # Weights of a hat function on each knot: no index depends on p.
    hats = (1 - (at - torch.arange(len(knots), dtype=p.dtype, device=p.device)).abs()).clamp(min=0)
    return torch.dot(hats, knots)


SHAPES: dict[str, Shape] = {
    "constant": constant,
    "linear": linear,
    "cosine": cosine,
    "knots": piecewise_linear,
}
"""The shapes by the name that a recipe gives them."""

IN_PYTHON: dict[str, str] = {
    "linear": "1 - (1 - END_SHARE) * p",
    "cosine": "END_SHARE + (1 - END_SHARE) * (1 + math.cos(math.pi * p)) / 2",
    "knots": "sum(max(0, 1 - abs(p * (len(KNOTS) - 1) - k)) * of for k, of in enumerate(KNOTS))",
}
"""The shapes as expressions of p and the hyperparameters, for code that is exported."""


KINDS_OF: dict[str, tuple[str, ...]] = {
    "linear": ("end_share",),
    "cosine": ("end_share",),
    "knots": ("knots",),
}
"""The kinds of hyperparameters of a shape, besides the share of the warm-up, which all have."""


@dataclass(frozen=True)
class Schedule:
    """A shape with its warm-up, fixed or at the start of a tuning.

    Raises:
        UsageError: for an unknown shape, or a value out of its range.
    """

    shape: str = "constant"
    """constant | linear | cosine | knots."""
    warmup_share: float = 0.0
    """The share of the steps in which the rate rises to its peak."""
    end_share: float = 0.0
    """The share of the peak that is left at the end, for linear and cosine."""
    knots: Sequence[float] = (1.0,)
    """Factors between which the shape ``knots`` is linear."""

    def __post_init__(self) -> None:
        if self.shape not in SHAPES:
            raise UsageError(
                f"unknown schedule '{self.shape}'; there are {', '.join(SHAPES)}"
                f"{did_you_mean(self.shape, SHAPES)}"
            )
        for what, share in (("warm-up", self.warmup_share), ("end", self.end_share)):
            if not 0 <= share <= 1:
                raise UsageError(f"{what} share: expected a number from 0 to 1, got {share:g}")
        if not self.knots or not all(0 < knot < math.inf for knot in self.knots):
            raise UsageError(f"knots: expected numbers above 0, got {list(self.knots)}")

    @property
    def constant(self) -> bool:
        """Whether the rate never changes, as long as no warm-up share is tuned."""
        return self.shape == "constant" and self.warmup_share == 0

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of hyperparameters that it has."""
        return ("warmup_share", *KINDS_OF.get(self.shape, ()))

    def factor(
        self, t: Tensor, steps: int, warmup_share: Tensor, end_share: Tensor, knots: Tensor
    ) -> Tensor:
        """Return the factor of the peak at step t of a run of so many steps, shape ()."""
        import torch

        length = warmup_share * steps
        left = steps - length
        warming = torch.where(t < length, (t + 1) / (length + 1), torch.ones_like(length))
        after = torch.where(t >= length, t - length, torch.zeros_like(length))
        p = torch.where(left > 0, after / torch.where(left > 0, left, 1.0), 0.0)
        return warming * SHAPES[self.shape](p, end_share, knots)
