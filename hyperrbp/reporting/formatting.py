"""Numbers, durations, bytes and curves as text for a reader."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from hyperrbp.experiments.summary_statistics import summary

ROWS = 24
"""Rows of a table, or curves of a figure: more values are shown by their summary statistics."""


def number(value: float | None, digits: int = 3) -> str:
    """Return a number of so many digits; ``unknown`` for None."""
    return "unknown" if value is None else f"{value:.{digits}g}"


def words(key: str) -> str:
    """Return a key with spaces for underscores."""
    return key.replace("_", " ")


def human_bytes(count: float) -> str:
    """Return bytes in powers of 1000, three digits."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def duration(seconds: float) -> str:
    """Return a duration in seconds, or in minutes or hours."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02} min"


def sparkline(values: Sequence[float], width: int = 48) -> str:
    """Return a curve in one line of text, on a logarithmic scale where all values are positive."""
    if len(values) > width:
        values = [values[round(i * (len(values) - 1) / (width - 1))] for i in range(width)]
    heights = [math.log(v) for v in values] if min(values) > 0 else list(values)
    low, high = min(heights), max(heights)
    scale = (high - low) or 1.0
    return "".join("▁▂▃▄▅▆▇█"[min(7, int(8 * (h - low) / scale))] for h in heights)


def value_range(values: Mapping[str, float | None]) -> str:
    """Return the smallest and the largest of some values, or of their summary."""
    known = summary(values)
    return f"{number(known['min'])} … {number(known['max'])}"
