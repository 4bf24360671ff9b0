"""Very many values, as the five numbers that a person can read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

NAMED_UP_TO = 200
"""So many values of a kind are told by name in a record; more of them in summary."""

_SHARES = {"min": 0.0, "q25": 0.25, "median": 0.5, "q75": 0.75, "max": 1.0}

Values = Mapping[str, float | None]
"""By name; None stands for a number that was not finite."""


def summary(values: Values) -> dict[str, float | None]:
    """Smallest, quartiles and largest of the values that are finite."""
    known = sorted(v for v in values.values() if v is not None and math.isfinite(v))
    return {name: _at(known, share) for name, share in _SHARES.items()}


def _at(known: list[float], share: float) -> float | None:
    if not known:
        return None
    place = share * (len(known) - 1)
    below = int(place)
    if place == below:
        return known[below]
    # As a weighted mean, which does not overflow where a difference might.
    return known[below] * (below + 1 - place) + known[below + 1] * (place - below)


def is_summary(values: Values) -> bool:
    """Whether these are the five numbers, and not values by name."""
    return values.keys() == _SHARES.keys()


def summarized(of: Mapping[str, Values]) -> dict[str, Values]:
    """By kind, the values by name, or their summary if there are too many."""
    return {
        kind: summary(values) if len(values) > NAMED_UP_TO else values
        for kind, values in of.items()
    }


def summarized_nested(document: Any) -> Any:
    """The same for every mapping of that many numbers, anywhere in a document."""
    if not isinstance(document, dict):
        return document
    if len(document) > NAMED_UP_TO and all(
        value is None or isinstance(value, float) for value in document.values()
    ):
        return summary(document)
    return {key: summarized_nested(value) for key, value in document.items()}
