"""Short-horizon bias (Wu et al. 2018): whether a longer truncation gives another gradient."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hyperrbp.hypergradients import chosen_method
from hyperrbp.hypergradients.agreement import agreement
from hyperrbp.hypergradients.diagnostics.last_state import LastState
from hyperrbp.hypergradients.settings import GradientSettings

SETTLED = 0.95
"""The cosine between K and 4 K from which the direction counts as settled."""
BIASED = 0.05
"""The share of a gradient in components of the wrong sign that is worth a word."""


@dataclass(frozen=True)
class ShortHorizon:
    """The same gradient at longer truncations."""

    truncs: list[int]
    """K, 2 K and 4 K, as far as the run is long enough."""
    cosines: list[float | None]
    """Of the gradient at K with each."""
    flipped: list[list[int]]
    """The components whose sign at each differs from that at K."""
    bias: float
    """The share of Σ|gradient| at the longest that those components have."""

    @property
    def settled(self) -> bool:
        """Return whether the longest points where K does."""
        last = self.cosines[-1]
        return len(self.truncs) > 1 and last is not None and last >= SETTLED


def short_horizon(at: LastState, settings: GradientSettings, seed: int = 0) -> ShortHorizon | None:
    """Differentiate with K, 2 K and 4 K.

    None for a method that has no use for K, or a run that is too short for it.
    """
    method = chosen_method(settings.method, settings.options)
    if not method.uses_trunc:
        return None
    truncs = [
        trunc
        for trunc in (settings.trunc, 2 * settings.trunc, 4 * settings.trunc)
        if method.steps_needed(trunc, settings.averaging) <= at.problem.steps
    ]
    if not truncs:
        return None
    found = [at.gradient(replace(settings, trunc=K), seed=seed).gradient.tolist() for K in truncs]
    flipped = [
        [
            i
            for i, (a, b) in enumerate(zip(longer, found[0], strict=True))
            if (a < 0 < b) or (b < 0 < a)
        ]
        for longer in found
    ]
    whole = sum(map(abs, found[-1]))
    return ShortHorizon(
        truncs=truncs,
        cosines=[agreement(longer, found[0]).cosine for longer in found],
        flipped=flipped,
        bias=sum(abs(found[-1][i]) for i in flipped[-1]) / whole if whole else 0.0,
    )
