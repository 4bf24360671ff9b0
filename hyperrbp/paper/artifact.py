"""What a table or figure of the paper is made from, and what it says in the end."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, ClassVar

from hyperrbp.paper.run_specs import Outcome, RunSpec


@dataclass(frozen=True)
class Plan:
    """At what size, and on what."""

    quick: bool = False
    seeds: int | None = None
    """How many; the artifact's own number if not given."""
    device: str = "auto"
    data_root: Path | None = None
    inexact_resume: bool = False
    """Go on with interrupted runs also where versions, threads or device have changed."""

    def number_of_seeds(self, quick: int, full: int) -> int:
        """What was asked for, or the artifact's own number."""
        if self.seeds is not None:
            return self.seeds
        return quick if self.quick else full


@dataclass
class Finding:
    """What was measured, beside what was published."""

    rows: list[dict[str, Any]]
    """For CSV and JSON: flat, with the paper's values in keys that begin with ``paper``."""
    held: bool | None
    """Whether the paper's claim held here; None if too little was run to say."""
    verdict: str
    """The same in one line."""
    columns: Sequence[str] = ()
    """Of the printed table."""
    lines: list[list[str]] = field(default_factory=list)
    """Its rows, as text."""


class Artifact(ABC):
    """A table or figure."""

    name: ClassVar[str]
    title: ClassVar[str]
    claim: ClassVar[str]
    """What the paper says of it, in our words."""

    @abstractmethod
    def scale(self, plan: Plan) -> str:
        """How large it is run, in words: what ``--quick`` scales down is named."""

    @abstractmethod
    def run_specs(self, plan: Plan) -> list[RunSpec]:
        """The runs that it needs."""

    @abstractmethod
    def finding(self, plan: Plan, outcomes: Mapping[str, Outcome], picture: Path) -> Finding:
        """What came of the runs, by the names of their run_specs; draws it into ``picture``."""


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean and the standard deviation (None of a single value, or of one not finite)."""
    spread = len(values) > 1 and all(map(math.isfinite, values))
    return fmean(values), stdev(values) if spread else None


def plus_minus(values: Sequence[float], digits: int = 1) -> str:
    """``mean ± deviation``."""
    mean, deviation = mean_and_deviation(values)
    text = f"{mean:.{digits}f}"
    return text if deviation is None else f"{text} ± {deviation:.{digits}f}"
