"""A search in a box that screens first and then leaves the best, by gradient or by local model.

1. Screening: the start and points of a Sobol sequence, by ``.successive_halving``; then the
   survivors are run to their end.
2. Gradient steps, from every new best: of a length that doubles when the loss falls and halves
   when it does not, along the hypergradient of the log loss, which is not computed again after a
   failure.
3. Where these fail, or are not asked for: proposals of a ``.surrogate.Surrogate`` in a trust
   region around the best.

Every run that is not promising is given up on its way.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from hyperrbp.exceptions import DivergedError
from hyperrbp.hypergradients.diagnostics.last_state import LastState
from hyperrbp.hypergradients.settings import GradientSettings
from hyperrbp.optimizers.base import (
    Evaluation,
    Objective,
    Optimizer,
    inner_run,
)
from hyperrbp.optimizers.successive_halving import Point, Screening, rungs, screen
from hyperrbp.optimizers.surrogate import Surrogate, log_loss
from hyperrbp.optimizers.trust_region_state import (
    GIVEN_UP,
    Cache,
    TrustRegionSettings,
    TrustRegionState,
)
from hyperrbp.problems.base import Problem, loss_where_finite
from hyperrbp.runtime.callbacks import Report, ignore
from hyperrbp.runtime.metering import PhaseMeter
from hyperrbp.runtime.randomness import generator

log = logging.getLogger(__name__)

FRUITLESS = 100
"""Attempts in a row without a run to the end, after which there is nothing left to try."""
WHOLE_RUNS = 8
"""Runs are given up on their way only once so many good ones are there to compare with."""


class TrustRegion(Optimizer[TrustRegionState]):
    """Search a box of θ by screening, gradient steps and a local model.

    Args:
        box: the lowest and the highest θ, shape (p,) each.
        gradient: how to differentiate at a new best.
        settings: how to search.
        tied: for each coordinate, the number of the sample that it takes in the screening: the
            segments of a run share one. Each has its own if not given.
        seed: of what is sampled.
        report: receives the progress of the screening, in training steps.
    """

    state_class = TrustRegionState

    def __init__(
        self,
        box: tuple[Tensor, Tensor],
        gradient: GradientSettings | None = None,
        settings: TrustRegionSettings | None = None,
        *,
        tied: Sequence[int] | None = None,
        seed: int = 0,
        report: Report = ignore,
    ) -> None:
        self._low, self._high = box
        self._span = self._high - self._low
        self._gradient = gradient or GradientSettings()
        self._settings, self._seed = settings or TrustRegionSettings(), seed
        self._tied, self._report = tied or range(len(self._low)), report

    def step(self, objective: Objective, state: TrustRegionState) -> Evaluation | None:
        """Run once more, and return what came of it: pruned, diverged, or a run to its end.

        Raises:
            DivergedError: if no point that was screened has a finite loss.
        """
        cache = self._cache(state)
        if state.survivors is None:
            with cache.meter.phase("screening"):
                self._screen(inner_run(objective, state.meta_step), state)
        if cache.pruned:
            return cache.pruned.pop(0)
        while not self._ended(state):
            found = self._attempt(objective, state)
            whole = found is not None and found.complete
            state.fruitless = 0 if whole or state.survivors else state.fruitless + 1
            if found is not None:
                if whole:
                    cache.meter = PhaseMeter(self._low.device)
                return found
        return None

    def _cache(self, state: TrustRegionState) -> Cache:
        if state.cache is None:
            state.cache = Cache(PhaseMeter(self._low.device))
        return state.cache

    def _ended(self, state: TrustRegionState) -> bool:
        settings = self._settings
        if state.meta_step > settings.steps or state.stopped:
            return True
        if state.survivors:
            return False
        better = max(state.best_step + 1, state.screened)
        if settings.patience is not None and state.meta_step - better >= settings.patience:
            return True
        if math.isinf(state.best_loss):
            raise DivergedError("no run of the screening has a finite loss")
        worth_a_gradient = settings.gradient and self._worth_a_gradient(state)
        if state.fruitless >= FRUITLESS or not (worth_a_gradient or settings.surrogate):
            state.stopped = True
        return state.stopped

    def _attempt(self, objective: Objective, state: TrustRegionState) -> Evaluation | None:
        if state.survivors:
            found = self._evaluate(objective, state, state.survivors.pop(0), "screening")
            state.screened = state.meta_step
            return found
        if self._settings.gradient and self._worth_a_gradient(state):
            return self._gradient_step(objective, state)
        return self._surrogate_step(objective, state)

    # --- screening --------------------------------------------------------------------------------

    def _screen(self, problem: Problem, state: TrustRegionState) -> None:
        start = ((state.theta - self._low) / self._span).clamp(0, 1).double().tolist()
        points = [start, *self._samples(self._settings.screened - 1)]
        found = screen(problem, points, self._theta, log_loss, self._report)
        for point in found.pruned:
            state.remember(point, GIVEN_UP)
        state.survivors = found.survivors
        cache = self._cache(state)
        cache.paused = {
            tuple(point): h for point, h in zip(found.survivors, found.states, strict=False)
        }
        cache.paused_at, cache.screened_on = found.steps, problem
        cache.pruned = self._pruned(problem, found)

    def _pruned(self, problem: Problem, found: Screening) -> list[Evaluation]:
        return [
            Evaluation(0, math.nan, self._theta(point), problem, found.steps, True, "screening")
            for point in found.pruned
        ]

    def _samples(self, count: int) -> list[Point]:
        """Return points of a Sobol sequence; where it has too few coordinates, random ones."""
        from scipy.stats import qmc

        if count == 0:
            return []
        dimensions = max(self._tied) + 1
        source = np.random.default_rng(generator(self._seed, "screening").initial_seed() % 2**32)
        if dimensions <= qmc.Sobol.MAXDIM:
            sobol = qmc.Sobol(dimensions, rng=source)
            points = sobol.random_base2(count.bit_length())[:count]
        else:
            points = source.random((count, dimensions))
        return [[point[i] for i in self._tied] for point in points.tolist()]

    # --- one run ----------------------------------------------------------------------------------

    def _evaluate(
        self, objective: Objective, state: TrustRegionState, point: Point, source: str
    ) -> Evaluation:
        """Run to the end, unless the run is given up at T/3, worse there than all good ones."""
        problem, cache = inner_run(objective, state.meta_step), self._cache(state)
        theta, n = self._theta(point), state.meta_step
        with cache.meter.phase("inner run"):
            h, done = problem.initial_state(theta), 0
            # A paused run goes on, unless this meta step has other initial weights and batches.
            paused = cache.paused.pop(tuple(point), None)
            if paused is not None and problem is cache.screened_on:
                h, done = paused, cache.paused_at
            middle = GIVEN_UP
            for stop in rungs(problem.steps)[-2:]:
                if stop > done:
                    h = problem.run(theta, done, stop, h).clone()
                if stop < problem.steps:
                    midway_loss = loss_where_finite(problem, h)
                    middle = log_loss(midway_loss)
                    if source != "screening" and self._unpromising(state, middle):
                        state.remember(point, GIVEN_UP)
                        return Evaluation(n, midway_loss, theta, problem, stop, True, source)
                done = max(stop, done)
            loss = loss_where_finite(problem, h)
        self._learn(state, point, theta, loss, middle, h)
        return Evaluation(
            n,
            loss,
            theta,
            problem,
            problem.steps,
            source=source,
            seconds=cache.meter.seconds,
            peak_bytes=cache.meter.peak_bytes,
        )

    def _unpromising(self, state: TrustRegionState, middle: float) -> bool:
        good = sorted(state.midway)[: max(WHOLE_RUNS, len(state.midway) // 2)]
        return len(good) >= WHOLE_RUNS and middle > max(m for _, m in good)

    def _learn(
        self,
        state: TrustRegionState,
        point: Point,
        theta: Tensor,
        loss: float,
        middle: float,
        h: Tensor,
    ) -> None:
        state.remember(point, log_loss(loss))
        if math.isfinite(middle):
            state.midway.append((log_loss(loss), middle))
        state.theta = theta
        if loss < state.best_loss:
            state.best_step, state.best_loss = state.meta_step, loss
            state.best_theta = theta.clone()
            state.direction, state.misses, self._cache(state).best_h = None, 0, h
        if math.isfinite(loss):  # only a run that came to its end is a meta step
            state.meta_step += 1

    # --- where to go next -------------------------------------------------------------------------

    def _worth_a_gradient(self, state: TrustRegionState) -> bool:
        if state.direction is None:
            return True
        if self._settings.surrogate:
            return state.misses < self._settings.misses
        return state.step >= self._settings.shortest

    def _gradient_step(self, objective: Objective, state: TrustRegionState) -> Evaluation | None:
        """Step from the best along the gradient there; the next step is longer, or shorter."""
        if state.direction is None:
            with self._cache(state).meter.phase("meta-gradient"):
                state.direction = self._gradient_at_best(objective, state)
            state.step = state.step or self._settings.first_step
        at = ((state.best_theta - self._low) / self._span).double()
        gradient = at.new_tensor(state.direction)
        leaning = ((at <= 0) & (gradient > 0)) | ((at >= 1) & (gradient < 0))
        downhill = torch.where(leaning, 0.0, -gradient)
        norm = float(downhill.norm())
        if norm == 0:  # it is not finite, or every coordinate leans on a wall
            state.misses, state.step = self._settings.misses, 0.0
            return None
        before = state.best_loss
        target = (at + state.step * downhill / norm).clamp(0, 1)
        found = self._evaluate(objective, state, target.tolist(), "gradient")
        better = state.best_loss < before
        state.step = min(2 * state.step, 0.5 * len(at) ** 0.5) if better else state.step / 2
        state.misses += not better
        return found

    def _gradient_at_best(self, objective: Objective, state: TrustRegionState) -> list[float]:
        """Return the direction of the hypergradient, in units of the box; zero if not finite."""
        problem, h = inner_run(objective, state.best_step), self._cache(state).best_h
        if h is None:
            at = LastState.of_run(problem, state.best_theta)
        else:
            at = LastState(problem, state.best_theta, h)
        found = at.gradient(self._gradient, seed=self._seed, step=state.best_step)
        gradient = (found.gradient * self._span).double()
        state.gradient_information = {
            "meta_step": state.best_step,
            "status": str(found.status),
            "residual": found.residual,
            "products": found.products,
            "norm": float(found.gradient.norm()),
        }
        if not gradient.isfinite().all():
            log.warning("meta step %d: the hypergradient is not finite", state.best_step)
            gradient = torch.zeros_like(gradient)
        # Half-way between the gradient and its signs: a few steep coordinates would take it all.
        gradient = gradient.sign() * gradient.abs().sqrt()
        return [float(x) for x in gradient / gradient.norm().clamp_min(1e-300)]

    def _surrogate_step(self, objective: Objective, state: TrustRegionState) -> Evaluation:
        settings = self._settings
        with self._cache(state).meter.phase("proposal"):
            state.radius = state.radius or settings.radius
            seed = generator(self._seed, "proposal", state.proposals).initial_seed() % 2**63
            surrogate = Surrogate(len(self._low), state.scales)
            point = surrogate.proposal(
                state.points,
                state.scores,
                state.radius,
                state.proposals,
                np.random.default_rng(seed),
            )
            state.scales, state.proposals = list(surrogate.logs), state.proposals + 1
        before = state.best_loss
        found = self._evaluate(objective, state, point.tolist(), "surrogate")
        self._adapt_radius(state, better=state.best_loss < before)
        return found

    def _adapt_radius(self, state: TrustRegionState, *, better: bool) -> None:
        settings = self._settings
        state.successes = state.successes + 1 if better else 0
        state.failures = 0 if better else state.failures + 1
        if state.successes == 2:
            state.radius, state.successes = min(1.5 * state.radius, settings.largest), 0
        if state.failures == 6:
            state.radius, state.failures = state.radius / 1.5, 0
            if state.radius < settings.smallest:
                state.radius = settings.radius

    def _theta(self, point: Point) -> Tensor:
        theta = self._low + self._span * torch.tensor(point, dtype=torch.float64).to(self._low)
        return theta.clamp(self._low, self._high)
