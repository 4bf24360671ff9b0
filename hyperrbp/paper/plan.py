"""The size of a reproduction, and what it runs on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Plan:
    """The size of a reproduction, and what it runs on."""

    quick: bool = False
    seeds: int | None = None
    """How many; the artifact's own number if not given."""
    device: str = "auto"
    data_root: Path | None = None
    inexact_resume: bool = False
    """Go on with interrupted runs also where versions, threads or device have changed."""

    def number_of_seeds(self, quick: int, full: int) -> int:
        """Return the number that was asked for, or the artifact's own."""
        if self.seeds is not None:
            return self.seeds
        return quick if self.quick else full
