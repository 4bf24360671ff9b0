"""Whoever is told how something long goes."""

from __future__ import annotations

from collections.abc import Callable

Told = Callable[[str, int, int], None]
"""Told (what, done, of how many) of something that goes on, in training steps."""


class Audience:
    """Told how it goes; does nothing by itself."""

    def expects(self, seconds: float) -> None:
        """About how long all of it should take."""

    def begins(self, what: str) -> None:
        """What is being done now."""

    def spent(self, seconds: float) -> None:
        """So much of what was expected is done."""

    def ended(self) -> None:
        """There is no more to tell."""
