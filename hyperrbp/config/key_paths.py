"""Keys of a recipe, as they stand in messages."""

from __future__ import annotations

from hyperrbp.runtime.suggestions import shown

KeyPath = tuple[str | int, ...]
"""Where a value stands: the keys, and the places in lists, from the top."""

KeyFault = tuple[KeyPath, str]
"""A key, and what was expected there."""


def dotted(at: KeyPath) -> str:
    """Return a key for a message; a part that would not print as it stands is quoted."""
    parts = map(str, at)
    return ".".join(p if p.strip() and p.isprintable() else shown(p) for p in parts)
