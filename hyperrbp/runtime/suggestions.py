"""What a message says of an unknown name: the choices there are, and the nearest of them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


def shown(value: Any) -> str:
    """Return a value as a message shows it, on one line of at most 60 characters."""
    if value is None:
        return "nothing"
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


def nearest(got: Any, choices: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Return the choice that is most like what was given, or None if none is alike.

    ``cutoff`` is the least likeness, from 0 (any) to 1 (equal).
    """
    near = difflib.get_close_matches(str(got), list(choices), n=1, cutoff=cutoff)
    return near[0] if near else None


def did_you_mean(got: Any, choices: Iterable[str], cutoff: float = 0.6) -> str:
    """Return ``; did you mean NAME?`` with the ``nearest`` choice; nothing if there is none."""
    near = nearest(got, choices, cutoff)
    return "" if near is None else f"; did you mean {near}?"


def not_one_of(got: Any, choices: Iterable[str]) -> str:
    """Return which choices there are, what was given instead, and what may have been meant."""
    known = list(choices)
    expected = f"expected one of {', '.join(known)}, got {shown(got)}"
    return expected + did_you_mean(got, known, cutoff=0.5)
