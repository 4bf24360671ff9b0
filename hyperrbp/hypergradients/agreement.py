"""How far a gradient agrees with the exact one: direction, signs and length."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Agreement:
    """Direction, signs and length of a gradient against the exact one."""

    cosine: float | None
    """Of the angle between them; None if one of them is zero or not finite."""
    sign_agreement: float
    """The share of components that have the same sign."""
    descent: float | None
    """Σ eᵢ sign(fᵢ) / Σ |eᵢ|, f the one found and e the exact one: how much of the steepest
    decrease a step by the signs of f keeps, from 1 to −1; Adam's first step is one. None if e is
    zero or not finite."""
    norm_ratio: float | None
    """‖found‖ / ‖exact‖; None if that is not a finite number."""


def agreement(found: Sequence[float], exact: Sequence[float]) -> Agreement:
    """Compare two gradients of the same, positive length p."""
    length, truth = math.hypot(*found), math.hypot(*exact)
    finite = math.isfinite(length) and math.isfinite(truth)
    cosine = None
    if finite and length > 0 and truth > 0:
        # Scaled first, so that no product overflows or vanishes.
        cosine = math.fsum((a / length) * (b / truth) for a, b in zip(found, exact, strict=True))
    same = sum(_sign(a) == _sign(b) for a, b in zip(found, exact, strict=True))
    kept = None
    if finite and truth > 0:
        # By a power of two, which rounds nothing.
        scaled = [math.ldexp(b, -math.frexp(truth)[1]) for b in exact]
        decrease = math.fsum(b * _sign(a) for a, b in zip(found, scaled, strict=True))
        kept = decrease / math.fsum(map(abs, scaled))
    ratio = length / truth if finite and truth > 0 else math.inf
    return Agreement(
        cosine=cosine,
        sign_agreement=same / len(exact),
        descent=kept,
        norm_ratio=ratio if math.isfinite(ratio) else None,
    )


def by_kind(
    found: Mapping[str, Mapping[str, float]], exact: Mapping[str, Mapping[str, float]]
) -> dict[str, Agreement]:
    """Compare for each kind of hyperparameter: ``{kind: {name: value}}`` each."""
    return {
        kind: agreement(list(found[kind].values()), list(exact[kind].values())) for kind in exact
    }


def overall(
    found: Mapping[str, Mapping[str, float]], exact: Mapping[str, Mapping[str, float]]
) -> Agreement:
    """Compare over all hyperparameters: ``{kind: {name: value}}`` each."""
    return agreement(
        [value for kind in exact for value in found[kind].values()],
        [value for kind in exact for value in exact[kind].values()],
    )


def _sign(value: float) -> float:
    return math.nan if math.isnan(value) else (value > 0) - (value < 0)
