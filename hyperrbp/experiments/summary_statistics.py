"""Five numbers that a person can read, in place of very many values."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from typing import Any

NAMED_UP_TO = 200
"""A record names so many values of a kind; of more it holds the summary statistics."""

STATISTICS = ("min", "q25", "median", "q75", "max")


def summary(values: Mapping[str, float | None]) -> dict[str, float | None]:
    """Return the smallest value, the quartiles and the largest, of those that are finite."""
    known = sorted(v for v in values.values() if v is not None and math.isfinite(v))
    if not known:
        return dict.fromkeys(STATISTICS)
    if len(known) == 1:
        return dict.fromkeys(STATISTICS, known[0])
    quartiles = statistics.quantiles(known, n=4, method="inclusive")
    return dict(zip(STATISTICS, [known[0], *quartiles, known[-1]], strict=True))


def is_summary(values: Mapping[str, float | None]) -> bool:
    """Whether these are summary statistics, and not values by name."""
    return values.keys() == set(STATISTICS)


def summarize(
    by_kind: Mapping[str, Mapping[str, float | None]],
) -> dict[str, dict[str, float | None]]:
    """Return, by kind, the values by name, or their summary if there are too many."""
    return {
        kind: summary(values) if len(values) > NAMED_UP_TO else dict(values)
        for kind, values in by_kind.items()
    }


def summarize_nested(document: Any) -> Any:
    """Summarize every mapping of too many numbers, anywhere in a JSON document."""
    if not isinstance(document, dict):
        return document
    if len(document) > NAMED_UP_TO and all(
        value is None or isinstance(value, float) for value in document.values()
    ):
        return summary(document)
    return {key: summarize_nested(value) for key, value in document.items()}
