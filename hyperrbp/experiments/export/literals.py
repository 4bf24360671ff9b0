"""Python source of nested numbers, to the last digit."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


def literal(value: Any, levels: int, indent: int = 0) -> str:
    """Return source that makes a value again.

    Args:
        value: a number, or a tuple, list or dictionary with strings as keys, of such values.
        levels: how many levels of it have a line for every entry.
        indent: of the line that it begins in, in spaces.
    """
    if isinstance(value, Mapping):
        entries = [
            f"{json.dumps(key)}: {literal(each, levels - 1, indent + 4)}"
            for key, each in value.items()
        ]
        opening, closing = "{", "}"
    elif isinstance(value, list | tuple):
        entries = [literal(each, levels - 1, indent + 4) for each in value]
        opening, closing = "[]" if isinstance(value, list) else "()"
    else:
        return _number(value)
    if levels > 0:
        rows = "".join(f"{' ' * (indent + 4)}{entry},\n" for entry in entries)
        return f"{opening}\n{rows}{' ' * indent}{closing}"
    alone = "," if isinstance(value, tuple) and len(value) == 1 else ""
    return f"{opening}{', '.join(entries)}{alone}{closing}"


def _number(value: float) -> str:
    return repr(value) if math.isfinite(value) else f'float("{value}")'
