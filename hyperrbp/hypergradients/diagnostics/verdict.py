"""The verdict: whether a hypergradient can be trusted, from all that is known, and why."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from hyperrbp.hypergradients.agreement import Agreement
from hyperrbp.hypergradients.method import Status

if TYPE_CHECKING:
    from hyperrbp.hypergradients.diagnostics.short_horizon import ShortHorizon

KEPT = 0.5
"""The share of the steepest decrease that a trusted gradient keeps; see Agreement.descent."""
ABOVE_NOISE = 0.5
"""The share of the components that must stand out of the minibatch noise."""


class Verdict(StrEnum):
    """What can be said of a gradient."""

    EXACT = "exact"
    AGREES = "agrees"
    CONVERGED = "converged"
    SETTLED = "settled"
    UNDECIDED = "undecided"
    DISAGREES = "disagrees"
    NOISY = "noisy"
    NOT_CONVERGED = "not converged"
    GROWING = "growing"
    ZERO = "zero"
    STRUCTURALLY_ZERO = "structurally zero"
    NON_FINITE = "non-finite"
    NOT_THE_DERIVATIVE = "not the derivative"

    @property
    def trusted(self) -> bool:
        """Return whether to follow it."""
        return self in (Verdict.EXACT, Verdict.AGREES, Verdict.CONVERGED, Verdict.SETTLED)

    @property
    def usable(self) -> bool:
        """Return whether nothing speaks against it; an undecided one may be followed with care."""
        return self.trusted or self is Verdict.UNDECIDED

    @property
    def sentence(self) -> str:
        """Return the reason in a sentence."""
        return SENTENCES[self]

    @property
    def advice(self) -> str:
        """Return what to do about it; empty where nothing has to be done."""
        return _ADVICE.get(self, "")


SENTENCES = {
    Verdict.EXACT: "every update of the run was differentiated",
    Verdict.AGREES: "it was held against the exact gradient: it points downhill, and a step by its"
    " signs keeps at least half of the steepest decrease",
    Verdict.CONVERGED: "the linear system is solved; nothing was held against the exact gradient",
    Verdict.SETTLED: "four times the truncation points the same way; nothing was held against the"
    " exact gradient",
    Verdict.UNDECIDED: "the truncation ended it before it converged; only a comparison can tell",
    Verdict.DISAGREES: "it was held against the exact gradient: it points uphill, or a step by its"
    " signs loses more than half of the steepest decrease",
    Verdict.NOISY: "most of its components cannot be told from the minibatch noise",
    Verdict.NOT_CONVERGED: "a longer truncation points elsewhere",
    Verdict.GROWING: "the terms of the series grow: the longer the truncation, the larger it is",
    Verdict.ZERO: "it is zero: the loss gradient vanishes at the last state",
    Verdict.STRUCTURALLY_ZERO: "the update does not feel the parameters at the last state: a zero"
    " that says nothing about them",
    Verdict.NON_FINITE: "a term overflowed or was not a number",
    Verdict.NOT_THE_DERIVATIVE: "finite differences of the whole run disagree with the exact"
    " gradient: somewhere in the model or the loss, backward is not the derivative of forward",
}
"""The documented list."""

_ADVICE = {
    Verdict.UNDECIDED: "hold it against the exact gradient: hyperrbp check",
    Verdict.DISAGREES: "use the exact gradient (bptt, keep: checkpoints; or forward)",
    Verdict.NOISY: "average more: a larger averaging.series or averaging.minibatches",
    Verdict.NOT_CONVERGED: "a larger trunc, or the exact gradient (bptt, keep: checkpoints)",
    Verdict.GROWING: "a smaller trunc, --cut-growing, or the exact gradient (bptt, keep:"
    " checkpoints)",
    Verdict.ZERO: "nothing is left to descend",
    Verdict.STRUCTURALLY_ZERO: "a shorter run, or the exact gradient (bptt, keep: checkpoints)",
    Verdict.NON_FINITE: "a smaller learning rate, a smaller trunc, or float64",
    Verdict.NOT_THE_DERIVATIVE: "look for an autograd function of your own, detach(), rounding"
    " with a gradient passed straight through, a hook on gradients, or a step exactly on a kink; no"
    " gradient method is right before that is gone",
}


@dataclass(frozen=True)
class Evidence:
    """What is known of a gradient; None is unknown."""

    gradient: Sequence[float]
    """Of length p."""
    structurally_zero: Sequence[bool]
    """Of length p."""
    status: Status
    agreement: Agreement | None = None
    """With the exact gradient."""
    horizon: ShortHorizon | None = None
    above_noise: float | None = None
    """The share of components that stand out of the minibatch noise."""
    refuted: bool = False
    """Whether finite differences of the whole run contradict the exact gradient."""


def judge(known: Evidence) -> Verdict:
    """Judge a gradient; where the exact one is known, it alone decides, unless it is zero.

    In order: what is no gradient, of anything or of this loss, what agrees or disagrees with the
    exact one, and without that what the solve itself, the noise and longer truncations tell.
    """
    if known.status is Status.NON_FINITE or not all(map(math.isfinite, known.gradient)):
        return Verdict.NON_FINITE
    if known.refuted:
        return Verdict.NOT_THE_DERIVATIVE
    exact = known.status is Status.EXACT and any(known.gradient)
    if all(known.structurally_zero) and not exact:
        return Verdict.STRUCTURALLY_ZERO
    if known.status is Status.EXACT:
        return Verdict.EXACT
    if known.agreement is not None and known.agreement.descent is not None:
        return _against_exact(known.agreement)
    if not any(known.gradient):
        return Verdict.ZERO
    if known.status is Status.GROWING:
        return Verdict.GROWING
    if known.above_noise is not None and known.above_noise < ABOVE_NOISE:
        return Verdict.NOISY
    if known.status is Status.CONVERGED:
        return Verdict.CONVERGED
    if known.horizon is None or len(known.horizon.truncs) < 2:
        return Verdict.UNDECIDED
    return Verdict.SETTLED if known.horizon.settled else Verdict.NOT_CONVERGED


def _against_exact(found: Agreement) -> Verdict:
    downhill = found.cosine is not None and found.cosine > 0
    kept = found.descent is not None and found.descent >= KEPT
    return Verdict.AGREES if downhill and kept else Verdict.DISAGREES
