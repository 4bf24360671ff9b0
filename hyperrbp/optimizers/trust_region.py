"""The meta loop that looks before it steps: screen, then leave the best along its gradient, or by a
local model of the loss; every run that is not promising is given up on its way.

1. Screen: points of a Sobol sequence in the box, and the recipe's start; all are run to T/9, the
   best third goes on to T/3, the best third of that to T. A paused run goes on from its state.
2. Gradient steps, from every new best: of a length that doubles when the loss falls and halves when
   it does not, along the hypergradient of the log loss; it is not computed again after a failure.
3. Where these fail, or are not asked for: proposals of a :class:`~hyperrbp.optimizers.surrogate.Surrogate`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from hyperrbp.exceptions import DivergedError
from hyperrbp.hypergradients.diagnostics.last_state import LastState
from hyperrbp.hypergradients.method import Gradient
from hyperrbp.hypergradients.settings import GradientSettings
from hyperrbp.optimizers.adam import MetaStep
from hyperrbp.optimizers.surrogate import WORST, Surrogate, height
from hyperrbp.problems.base import Problem, loss_where_finite
from hyperrbp.runtime.callbacks import Told
from hyperrbp.runtime.metering import PhaseMeter
from hyperrbp.runtime.randomness import generator

log = logging.getLogger(__name__)

REDUCTION = 3
GIVEN_UP = math.inf
FRUITLESS = 100
"""Attempts in a row without a run to the end, after which there is nothing left to try."""


def rungs(steps: int) -> list[int]:
    """The training steps after which runs of so many are looked at; the last one is the end."""
    return sorted({max(1, steps // REDUCTION**2), max(1, steps // REDUCTION), steps})


def screening_steps(steps: int, screened: int) -> int:
    """Training steps of a screening until the last rung, all runs together."""
    field, before, total = screened, 0, 0
    for rung in rungs(steps)[:-1]:
        total += field * (rung - before)
        field, before = math.ceil(field / REDUCTION), rung
    return total


@dataclass(frozen=True)
class TrustRegionSettings:
    """How to walk; lengths are in units of the box."""

    steps: int = 100
    """Whole runs, screening included."""
    screened: int = 81
    """Points that are screened, the start among them; 1: the start alone."""
    gradient: bool = True
    surrogate: bool = True
    first_step: float = 0.1
    """Of the gradient."""
    misses: int = 2
    """Gradient steps that may fail from one best point, if the surrogate takes over then."""
    shortest: float = 1e-4
    """A gradient step below this ends the walk, if there is nothing else to try."""
    radius: float = 0.4
    """Half the side of the surrogate's trust region: ×1.5 after two successes, /1.5 after six
    failures, set back below ``smallest``."""
    smallest: float = 0.1
    largest: float = 0.8
    patience: int | None = None
    """Whole runs without a better one, after the screening, that end the walk."""


@dataclass
class TrustRegionState:
    """Where the walk stands: all that is needed to go on, bit for bit."""

    rollbacks: ClassVar[Sequence[Mapping[str, Any]]] = ()
    """None, and no choice of a method: those are of the descent by Adam."""
    choice: ClassVar[None] = None
    theta: Tensor
    """The last that was run to the end."""
    meta_step: int = 0
    best_step: int = 0
    best_loss: float = math.inf
    best_theta: Tensor = field(init=False)
    points: list[list[float]] = field(default_factory=list)
    """What was tried, in the unit cube."""
    heights: list[float] = field(default_factory=list)
    """log10 of the losses; inf for what was given up."""
    midway: list[tuple[float, float]] = field(default_factory=list)
    """(height at T, height at T/3) of whole runs."""
    survivors: list[list[float]] | None = None
    """Of the screening, still to be run to the end; None before it."""
    screened: int = 0
    """Whole runs of the screening that have ended."""
    slope: list[float] | None = None
    """Of the log loss at the best, of unit length; None if it is yet to be found."""
    gradient_information: Mapping[str, Any] | None = None
    """How that went: at which meta step, with which status, residual, products and norm."""
    step: float = 0.0
    misses: int = 0
    radius: float = 0.0
    won: int = 0
    lost: int = 0
    turns: int = 0
    """Proposals of the surrogate so far."""
    fruitless: int = 0
    """Attempts in a row, after the screening, that gave no run to the end."""
    logs: list[float] = field(default_factory=list)
    """The surrogate's scales."""
    stopped: bool = False
    """Whether there was nothing left to try."""

    def __post_init__(self) -> None:
        self.best_theta = self.theta.clone()

    @property
    def given_up(self) -> int:
        """Runs that were not taken to their end, or turned non-finite there."""
        return len(self.points) - self.meta_step

    def to_json(self) -> dict[str, Any]:
        """Plain numbers."""
        plain = {**vars(self), "theta": self.theta.tolist(), "best_theta": self.best_theta.tolist()}
        plain["best_loss"] = None if math.isinf(self.best_loss) else self.best_loss
        plain["heights"] = [None if math.isinf(h) else h for h in self.heights]
        return plain

    @classmethod
    def from_json(cls, content: Mapping[str, Any], like: Tensor) -> TrustRegionState:
        """What :meth:`to_json` wrote, in the dtype and on the device of ``like``."""
        state = cls(like.new_tensor(content["theta"]))
        for name in vars(state):
            setattr(state, name, content[name])
        state.theta = like.new_tensor(content["theta"])
        state.best_theta = like.new_tensor(content["best_theta"])
        state.best_loss = math.inf if state.best_loss is None else state.best_loss
        state.heights = [GIVEN_UP if h is None else h for h in content["heights"]]
        state.midway = [(end, middle) for end, middle in content["midway"]]
        return state


def minimize(
    problem: Problem | Callable[[int], Problem],
    state: TrustRegionState,
    box: tuple[Tensor, Tensor],
    gradient: GradientSettings,
    settings: TrustRegionSettings | None = None,
    *,
    tied: Sequence[int] | None = None,
    seed: int = 0,
    told: Told = lambda *_: None,
) -> Iterator[MetaStep]:
    """Walk in a box of θ, yielding one evaluation for every whole run: ``settings.steps`` + 1.

    Args:
        problem: what is run, or a function from the meta step to what is run there.
        state: the start, updated in place: when an evaluation is yielded, it can be saved.
        box: the lowest and the highest θ, shape (p,) each.
        gradient: how to differentiate at a new best.
        settings: how to walk.
        tied: for each coordinate, the number of the draw that it has in the screening: those of the
            segments of a run share one. A draw for each if not given.
        seed: of what is drawn.
        told: told how the screening goes.

    Raises:
        DivergedError: if no point that was screened has a finite loss.
    """
    settings = settings or TrustRegionSettings()
    yield from _TrustRegion(problem, state, box, gradient, settings, tied, seed, told).steps()


class _TrustRegion:
    def __init__(
        self,
        problem: Problem | Callable[[int], Problem],
        state: TrustRegionState,
        box: tuple[Tensor, Tensor],
        gradient: GradientSettings,
        settings: TrustRegionSettings,
        tied: Sequence[int] | None,
        seed: int,
        told: Told,
    ) -> None:
        self._problem_at = (lambda _: problem) if isinstance(problem, Problem) else problem
        self._state, (self._low, self._high) = state, box
        self._span = self._high - self._low
        self._gradient, self._settings, self._seed = gradient, settings, seed
        self._tied, self._told = tied, told
        self._surrogate = Surrogate(len(self._low))
        if state.logs:
            self._surrogate.logs = list(state.logs)
        self._best_h: Tensor | None = None  # at the best θ, if this process has run it
        self._paused: dict[tuple[float, ...], Tensor] = {}
        self._paused_at, self._screened_on = 0, self._problem
        self._meter = PhaseMeter(self._low.device)

    def steps(self) -> Iterator[MetaStep]:
        """Everything, from where the state stands."""
        state, settings = self._state, self._settings
        if state.survivors is None:
            with self._meter.phase("screening"):
                self._screen()
        while state.meta_step <= settings.steps and not state.stopped:
            if state.survivors:
                found = self._evaluated(state.survivors.pop(0), "screening")
                state.screened = state.meta_step
            elif self._out_of_patience():
                return
            elif math.isinf(state.best_loss):
                raise DivergedError("no run of the screening has a finite loss")
            elif state.fruitless >= FRUITLESS:
                state.stopped = True
                return
            elif settings.gradient and self._worth_a_gradient():
                found = self._gradient_step()
            elif settings.surrogate:
                found = self._surrogate_step()
            else:
                state.stopped = True
                return
            ended = found is not None or state.survivors
            state.fruitless = 0 if ended else state.fruitless + 1
            if found is not None:
                yield found
                self._meter = PhaseMeter(self._low.device)

    def _out_of_patience(self) -> bool:
        patience, state = self._settings.patience, self._state
        better = max(state.best_step + 1, state.screened)
        return patience is not None and state.meta_step - better >= patience

    # --- screening --------------------------------------------------------------------------------

    def _screen(self) -> None:
        """Successive halving (Jamieson and Talwalkar 2016) up to the last rung."""
        state, problem = self._state, self._problem
        start = ((state.theta - self._low) / self._span).clamp(0, 1).double().tolist()
        field = [start, *self._drawn(self._settings.screened - 1)]
        states: dict[int, Tensor] = {}
        before, done, steps = 0, 0, screening_steps(problem.steps, len(field))
        for rung in rungs(problem.steps)[:-1] if len(field) > 1 else []:
            keep = math.ceil(len(field) / REDUCTION)
            heights: list[float] = []
            for i, u in enumerate(field):
                self._told("screening", done, steps)
                done += rung - before
                theta = self._theta(u)
                h = states[i] if before else problem.initial_state(theta)
                states[i] = problem.run(theta, before, rung, h).clone()
                heights.append(self._height(states[i]))
                if not before and len(states) > keep:  # as few as can be: networks may be large
                    del states[max(states, key=lambda j: (heights[j], j))]
            order = sorted(range(len(field)), key=heights.__getitem__)
            for i in order[keep:]:
                self._tell(field[i], GIVEN_UP)
            field, before = [field[i] for i in order[:keep]], rung
            states = {new: states[old] for new, old in enumerate(order[:keep])}
            if min(heights) == WORST:
                field = []
                break
        state.survivors = field
        self._paused = {tuple(u): states[i] for i, u in enumerate(field)} if before else {}
        self._paused_at, self._screened_on = before, problem

    def _drawn(self, count: int) -> list[list[float]]:
        """Points of a Sobol sequence; where it has too few coordinates, of chance."""
        from scipy.stats import qmc

        if count == 0:
            return []
        tied = self._tied or range(len(self._low))
        dimensions = max(tied) + 1
        draw = np.random.default_rng(generator(self._seed, "screening").initial_seed() % 2**32)
        if dimensions <= qmc.Sobol.MAXDIM:
            sobol = qmc.Sobol(dimensions, rng=draw)
            points = sobol.random_base2(count.bit_length())[:count]
        else:
            points = draw.random((count, dimensions))
        return [[point[i] for i in tied] for point in points.tolist()]

    # --- whole runs -------------------------------------------------------------------------------

    def _evaluated(self, u: list[float], source: str) -> MetaStep | None:
        """Run to the end, unless it is given up at T/3, worse there than all of the good half."""
        state, problem = self._state, self._problem
        theta = self._theta(u)
        with self._meter.phase("inner run"):
            h, done = problem.initial_state(theta), 0
            # What is paused goes on, unless this meta step has other initial weights and batches.
            paused = self._paused.pop(tuple(u), None)
            if paused is not None and problem is self._screened_on:
                h, done = paused, self._paused_at
            middle = GIVEN_UP
            for stop in rungs(problem.steps)[-2:]:
                if stop > done:
                    h = problem.run(theta, done, stop, h).clone()
                if stop < problem.steps:
                    middle = self._height(h)
                    good = sorted(state.midway)[: max(8, len(state.midway) // 2)]
                    if (
                        source != "screening"
                        and len(good) >= 8
                        and middle > max(m for _, m in good)
                    ):
                        self._tell(u, GIVEN_UP)
                        return None
                done = max(stop, done)
            loss = loss_where_finite(problem, h)
        self._tell(u, height(loss))
        if math.isfinite(middle):
            state.midway.append((height(loss), middle))
        n, better = state.meta_step, loss < state.best_loss
        state.theta = theta
        if better:
            state.best_step, state.best_loss, state.best_theta = n, loss, theta.clone()
            state.slope, state.misses, self._best_h = None, 0, h
        if not math.isfinite(loss):  # a record is of a run that ended
            return None
        state.meta_step = n + 1
        measured = self._meter.seconds, self._meter.peak_bytes
        return MetaStep(n, loss, theta, None, None, problem, *measured, source)

    def _tell(self, u: list[float], value: float) -> None:
        self._state.points.append(list(u))
        self._state.heights.append(value)

    # --- where to go next -------------------------------------------------------------------------

    def _worth_a_gradient(self) -> bool:
        state, settings = self._state, self._settings
        if state.slope is None:
            return True
        if settings.surrogate:
            return state.misses < settings.misses
        return state.step >= settings.shortest

    def _gradient_step(self) -> MetaStep | None:
        """A step from the best along the gradient there; the next is longer, or shorter."""
        state = self._state
        if state.slope is None:
            with self._meter.phase("meta-gradient"):
                state.slope = self._slope()
            state.step = state.step or self._settings.first_step
        at = ((state.best_theta - self._low) / self._span).double()
        slope = at.new_tensor(state.slope)
        leaning = ((at <= 0) & (slope > 0)) | ((at >= 1) & (slope < 0))
        downhill = torch.where(leaning, 0.0, -slope)
        norm = float(downhill.norm())
        if norm == 0:  # it is not finite, or every coordinate leans on a wall
            state.misses, state.step = self._settings.misses, 0.0
            return None
        before = state.best_loss
        target = (at + state.step * downhill / norm).clamp(0, 1)
        found = self._evaluated(target.tolist(), "gradient")
        better = state.best_loss < before
        state.step = min(2 * state.step, 0.5 * len(at) ** 0.5) if better else state.step / 2
        state.misses += not better
        return found

    def _slope(self) -> list[float]:
        """Of the loss at the best point, in units of the box; zero where it is not finite."""
        state = self._state
        problem = self._problem_at(state.best_step)
        if self._best_h is None:
            at = LastState.of_run(problem, state.best_theta)
        else:
            at = LastState(problem, state.best_theta, self._best_h)
        found: Gradient = at.gradient(self._gradient, seed=self._seed, step=state.best_step)
        slope = (found.gradient * self._span).double()
        state.gradient_information = {
            "meta_step": state.best_step,
            "status": str(found.status),
            "residual": found.residual,
            "products": found.products,
            "norm": float(found.gradient.norm()),
        }
        if not slope.isfinite().all():
            log.warning("meta step %d: the hypergradient is not finite", state.best_step)
            slope = torch.zeros_like(slope)
        # Half-way between the gradient and its signs: a few steep coordinates would take it all.
        slope = slope.sign() * slope.abs().sqrt()
        return [float(x) for x in slope / slope.norm().clamp_min(1e-300)]

    def _surrogate_step(self) -> MetaStep | None:
        state, settings = self._state, self._settings
        with self._meter.phase("proposal"):
            state.radius = state.radius or settings.radius
            draw = generator(self._seed, "proposal", state.turns).initial_seed() % 2**63
            u = self._surrogate.proposal(
                state.points,
                state.heights,
                state.radius,
                state.turns,
                np.random.default_rng(draw),
            )
            state.logs, state.turns = list(self._surrogate.logs), state.turns + 1
        before = state.best_loss
        found = self._evaluated(u.tolist(), "surrogate")
        better = state.best_loss < before
        state.won, state.lost = (state.won + 1, 0) if better else (0, state.lost + 1)
        if state.won == 2:
            state.radius, state.won = min(1.5 * state.radius, settings.largest), 0
        if state.lost == 6:
            state.radius, state.lost = state.radius / 1.5, 0
            if state.radius < settings.smallest:
                state.radius = settings.radius
        return found

    # --- in the box -------------------------------------------------------------------------------

    @property
    def _problem(self) -> Problem:
        return self._problem_at(self._state.meta_step)

    def _theta(self, u: list[float]) -> Tensor:
        theta = self._low + self._span * torch.tensor(u, dtype=torch.float64).to(self._low)
        return theta.clamp(self._low, self._high)

    def _height(self, h: Tensor) -> float:
        return height(loss_where_finite(self._problem, h))
