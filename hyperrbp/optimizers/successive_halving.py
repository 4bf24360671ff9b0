"""Successive halving (Jamieson and Talwalkar 2016): many runs begin, and the best go on.

All runs are taken to T/9; the best third goes on to T/3, and the best third of that is left to be
run to its end. A run that goes on does so from its paused state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from hyperrbp.problems.base import Problem, loss_where_finite
from hyperrbp.runtime.callbacks import Progress, Report, ignore

REDUCTION = 3
"""One in so many goes on at a rung, and the next rung is so many times as far."""

Point = list[float]
"""A point of the unit cube, one coordinate for each hyperparameter."""


def rungs(steps: int) -> list[int]:
    """Return the training steps after which runs of so many are compared; the last is the end."""
    return sorted({max(1, steps // REDUCTION**2), max(1, steps // REDUCTION), steps})


def screening_steps(steps: int, screened: int) -> int:
    """Return the training steps until the last rung, all runs together."""
    running, before, total = screened, 0, 0
    for rung in rungs(steps)[:-1]:
        total += running * (rung - before)
        running, before = math.ceil(running / REDUCTION), rung
    return total


@dataclass(frozen=True)
class Screening:
    """What a screening leaves."""

    survivors: list[Point]
    """The points that are left, the best first."""
    states: list[Tensor]
    """Where their runs are paused."""
    steps: int
    """After how many training steps."""
    pruned: list[Point]
    """The others, in the order in which they were given up."""


def screen(
    problem: Problem,
    points: Sequence[Point],
    theta_at: Callable[[Point], Tensor],
    score: Callable[[float], float],
    report: Report = ignore,
) -> Screening:
    """Take the runs at some points to the last rung before their end, as far as they are good.

    Args:
        problem: what is run.
        points: where it is run, the first of equals being preferred.
        theta_at: θ at a point, shape (p,).
        score: of a loss, also of one that is not finite: lower is better. Where all of a rung have
            the worst there is, ``score(inf)``, nothing survives.
        report: receives the progress, in training steps.
    """
    running, states = list(points), dict[int, Tensor]()
    pruned: list[Point] = []
    before, done, steps = 0, 0, screening_steps(problem.steps, len(running))
    for rung in rungs(problem.steps)[:-1] if len(running) > 1 else []:
        keep = math.ceil(len(running) / REDUCTION)
        scores: list[float] = []
        for i, point in enumerate(running):
            report(Progress("screening", done, steps, "training steps"))
            done += rung - before
            theta = theta_at(point)
            h = states[i] if before else problem.initial_state(theta)
            states[i] = problem.run(theta, before, rung, h).clone()
            scores.append(score(loss_where_finite(problem, states[i])))
            if not before and len(states) > keep:  # as few as can be: networks may be large
                del states[max(states, key=lambda j: (scores[j], j))]
        order = sorted(range(len(running)), key=scores.__getitem__)
        pruned += [running[i] for i in order[keep:]]
        running, before = [running[i] for i in order[:keep]], rung
        states = {new: states[old] for new, old in enumerate(order[:keep])}
        if min(scores) == score(math.inf):
            return Screening([], [], before, pruned)
    return Screening(running, [states[i] for i in sorted(states)], before, pruned)
