"""What to say where a name is unknown: the choices, and the nearest of them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


def shown(value: Any) -> str:
    """Return a value for a message, on one line of at most 60 characters."""
    if value is None:
        return "nothing"
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


def did_you_mean(got: Any, choices: Iterable[str], cutoff: float = 0.6) -> str:
    """Return ``; did you mean NAME?`` for the nearest choice, or nothing if none is near."""
    near = difflib.get_close_matches(str(got), list(choices), n=1, cutoff=cutoff)
    return f"; did you mean {near[0]}?" if near else ""


def not_one_of(got: Any, choices: Iterable[str]) -> str:
    """Say which choices there are, what was given instead, and what may have been meant."""
    known = list(choices)
    expected = f"expected one of {', '.join(known)}, got {shown(got)}"
    return expected + did_you_mean(got, known, cutoff=0.5)
