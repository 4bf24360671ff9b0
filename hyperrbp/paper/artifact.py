"""The base of every table and figure of the paper: the runs that it needs, and what they show."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import ClassVar

from hyperrbp.paper.figures import Figure, Row
from hyperrbp.paper.plan import Plan
from hyperrbp.paper.run_specs import Outcome, RunSpec


@dataclass
class Finding:
    """What was measured, beside what was published."""

    rows: list[Row]
    """For CSV and JSON: flat, with the paper's values in keys that begin with ``paper``."""
    held: bool | None
    """Whether the paper's claim held here; None if too little was run to say."""
    verdict: str
    """The same in one line."""
    columns: Sequence[str] = ()
    """Of the printed table."""
    lines: list[list[str]] = field(default_factory=list)
    """Its rows, as text."""
    figure: Figure | None = None
    """What is drawn; the printed table if None."""


class Artifact(ABC):
    """A table or figure."""

    name: ClassVar[str]
    title: ClassVar[str]
    claim: ClassVar[str]
    """What the paper says of it, in our words."""

    @abstractmethod
    def scale(self, plan: Plan) -> str:
        """Return in words at what size it is run, and what ``--quick`` scales down."""

    @abstractmethod
    def run_specs(self, plan: Plan) -> list[RunSpec]:
        """Return the runs that it needs."""

    @abstractmethod
    def finding(self, plan: Plan, outcomes: Mapping[str, Outcome]) -> Finding:
        """Return what the runs show, given what came of each by the name of its spec."""


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """Return mean and standard deviation; None for that of a single value, or of infinite ones."""
    spread = len(values) > 1 and all(map(math.isfinite, values))
    return fmean(values), stdev(values) if spread else None


def plus_minus(values: Sequence[float], digits: int = 1) -> str:
    """Return ``mean ± deviation`` as text."""
    mean, deviation = mean_and_deviation(values)
    text = f"{mean:.{digits}f}"
    return text if deviation is None else f"{text} ± {deviation:.{digits}f}"


def or_nan(value: float | None) -> float:
    """Return a number, or NaN where a record has None for one that was not finite."""
    return math.nan if value is None else value
