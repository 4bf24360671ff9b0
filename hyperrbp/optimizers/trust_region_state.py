"""Where a trust-region search stands, and how it is to search."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from torch import Tensor

from hyperrbp.optimizers.base import Evaluation, OptimizerState
from hyperrbp.optimizers.successive_halving import Point
from hyperrbp.problems.base import Problem
from hyperrbp.runtime.metering import PhaseMeter

GIVEN_UP = math.inf
"""The score of a run that was not taken to its end."""


@dataclass(frozen=True)
class TrustRegionSettings:
    """How to search; lengths are in units of the box."""

    steps: int = 100
    """Whole runs after the first, those of the screening included."""
    screened: int = 81
    """Points that are screened, the start among them; 1: the start alone."""
    gradient: bool = True
    surrogate: bool = True
    first_step: float = 0.1
    """The length of the first gradient step."""
    misses: int = 2
    """Gradient steps that may fail from one best point, if the surrogate takes over then."""
    shortest: float = 1e-4
    """A gradient step below this ends the search, if there is nothing else to try."""
    radius: float = 0.4
    """Half the side of the surrogate's trust region: ×1.5 after two successes, /1.5 after six
    failures, set back below ``smallest``."""
    smallest: float = 0.1
    largest: float = 0.8
    patience: int | None = None
    """Whole runs without a better one, after the screening, that end the search; None: never."""


@dataclass
class Cache:
    """What one process knows of a search besides its state, and may lose without consequence."""

    meter: PhaseMeter
    best_h: Tensor | None = None
    """h_T at the best θ."""
    paused: dict[tuple[float, ...], Tensor] = field(default_factory=dict)
    """States of the screening's survivors, by point."""
    paused_at: int = 0
    screened_on: Problem | None = None
    pruned: list[Evaluation] = field(default_factory=list)
    """Those of the screening that are still to be returned."""


@dataclass
class TrustRegionState(OptimizerState):
    """Where a search stands; ``meta_step`` runs have been taken to their end."""

    points: list[Point] = field(default_factory=list)
    """What was tried, in the unit cube."""
    scores: list[float] = field(default_factory=list)
    """Their log losses, by ``log_loss``; infinite for what was given up."""
    midway: list[tuple[float, float]] = field(default_factory=list)
    """(score at T, score at T/3) of whole runs."""
    survivors: list[Point] | None = None
    """Of the screening, still to be run to the end; None before it."""
    screened: int = 0
    """Whole runs of the screening that have ended."""
    direction: list[float] | None = None
    """The gradient at the best, of unit length, by ``TrustRegion._gradient_at_best``."""
    step: float = 0.0
    misses: int = 0
    radius: float = 0.0
    successes: int = 0
    failures: int = 0
    proposals: int = 0
    """Of the surrogate so far."""
    fruitless: int = 0
    """Attempts in a row, after the screening, that gave no run to the end."""
    scales: list[float] = field(default_factory=list)
    """Logarithms of the surrogate's scales."""
    stopped: bool = False
    """Whether there was nothing left to try."""
    cache: Cache | None = field(default=None, repr=False, metadata={"saved": False})

    @property
    def given_up(self) -> int:
        """The runs that were not taken to their end, or turned non-finite there."""
        return len(self.points) - self.meta_step

    @classmethod
    def from_state_dict(cls, content: Mapping[str, Any], like: Tensor) -> Self:
        """Restore what ``state_dict`` returned; see ``OptimizerState``."""
        state = super().from_state_dict(content, like)
        state.scores = [GIVEN_UP if score is None else score for score in state.scores]
        state.midway = [(end, middle) for end, middle in state.midway]
        return state

    def remember(self, point: Point, score: float) -> None:
        """Add what was tried."""
        self.points.append(list(point))
        self.scores.append(score)
