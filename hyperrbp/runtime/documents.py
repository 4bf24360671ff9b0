"""Documents that any reader of JSON understands."""

from __future__ import annotations

import math
from typing import Any


def finite_or_null(value: Any) -> Any:
    """Return the document with None for every NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {key: finite_or_null(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite_or_null(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
