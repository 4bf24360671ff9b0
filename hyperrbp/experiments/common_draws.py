"""Chooses the best θ of a run with ``inner.fresh``, on draws that all candidates have in common.

Each meta step of such a run has initial weights and minibatches of its own: the lowest of its
losses is that of a lucky draw as likely as that of a good θ. At the end, a few candidates are
therefore run again, all from the same new draws, and the lowest mean of the meta loss counts. The
held-out examples have no part in it.
"""

from __future__ import annotations

import heapq
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from hyperrbp.experiments.results.tune import Candidate, CommonDraws, Spread
from hyperrbp.problems.base import loss_where_finite
from hyperrbp.problems.training.run import TrainingRun
from hyperrbp.runtime.callbacks import Progress, Report, ignore

TASK = "choice of the best on common draws"
LAST = 10
"""θ that an average may be over: a third of those of the run, at least two and at most so many."""
LOWEST = 2
"""Candidates for the sake of their losses, each of which is of its own draw."""
DRAWS = (4, 16)
"""The fewest and the most draws. Between, there are as many runs in all as the run had losses."""


class Evaluated(NamedTuple):
    """A θ and its meta loss, on the draw of its meta step."""

    meta_step: int
    meta_loss: float
    theta: Tensor
    """Shape (p,)."""


@dataclass
class ThetaHistory:
    """What is remembered of the θ of a run until its end: the last ones, and the lowest."""

    last: list[Evaluated] = field(default_factory=list)
    lowest: list[Evaluated] = field(default_factory=list)

    def add(self, found: Evaluated) -> None:
        """Remember a θ, or forget it again if there are better ones."""
        self.last = [*self.last, found][-LAST:]
        self.lowest = heapq.nsmallest(LOWEST, [*self.lowest, found], key=_loss_and_step)

    def tensors(self) -> dict[str, Tensor]:
        """Return all of it by name, for a checkpoint."""
        found = {one.meta_step: one for one in (*self.last, *self.lowest)}
        thetas = {f"theta.{step}": one.theta for step, one in found.items()}
        return thetas | {
            f"meta_loss.{step}": torch.tensor([one.meta_loss], dtype=torch.float64)
            for step, one in found.items()
        }

    @classmethod
    def restored(cls, tensors: Mapping[str, Tensor], like: Tensor, before: int) -> ThetaHistory:
        """Return what was remembered of the meta steps before one, which is taken again.

        Raises:
            KeyError: if these are other tensors.
        """
        history = cls()
        steps = (int(name.partition(".")[2]) for name in tensors if name.startswith("theta."))
        for step in sorted(step for step in steps if step < before):
            loss = float(tensors[f"meta_loss.{step}"])
            history.add(Evaluated(step, loss, tensors[f"theta.{step}"].to(like)))
        return history


def _loss_and_step(found: Evaluated) -> tuple[float, int]:
    return found.meta_loss, found.meta_step


class _Named(NamedTuple):
    """A candidate, before it is run."""

    meta_step: int
    theta: Tensor
    averaged: int | None = None


def candidates(
    untuned: Tensor, history: ThetaHistory, losses: int, *, descended: bool
) -> Iterator[_Named]:
    """Yield the start, the last θ, the average of the last ones, and the lowest; each once.

    Args:
        untuned: θ of the start, shape (p,).
        history: of the run.
        losses: how many the run has.
        descended: whether θ moved in steps, so that its last ones mean more than others.
    """
    yield _Named(0, untuned)
    single = history.lowest
    if descended:
        tail = history.last[-min(LAST, max(2, losses // 3)) :]
        if len(tail) > 1:
            mean = torch.stack([found.theta.double() for found in tail]).mean(0)
            yield _Named(tail[-1].meta_step, mean.to(untuned), len(tail))
        single = [*history.last[-1:], *single]
    for meta_step, theta in {found.meta_step: found.theta for found in single}.items():
        if not torch.equal(theta, untuned):
            yield _Named(meta_step, theta)


def choose(
    draw: Callable[[int], TrainingRun],
    several: Sequence[_Named],
    losses: int,
    report: Report = ignore,
) -> tuple[Tensor, CommonDraws]:
    """Run all candidates from the same draws, and return the θ that is chosen, shape (p,).

    Args:
        draw: returns the inner run of a draw, by its number.
        several: the candidates; the start is the first one.
        losses: how many the run has, by which the number of draws goes.
        report: receives the progress, in training steps.

    Returns:
        the θ, and the measures of all candidates. The lowest mean is chosen, among those with the
        fewest runs that turned non-finite; of equal ones the first.
    """
    fewest, most = DRAWS
    draws = min(most, max(fewest, losses // len(several)))
    found: list[list[float]] = [[] for _ in several]
    for number in range(draws):
        problem = draw(number)
        for which, candidate in enumerate(several):
            done = number * len(several) + which
            report(_progress(done, draws * len(several), problem.steps))
            found[which].append(loss_where_finite(problem, problem.last_state(candidate.theta)))
    report(_progress(draws * len(several), draws * len(several), problem.steps))
    measured = [
        _measured(candidate, values, found[0])
        for candidate, values in zip(several, found, strict=True)
    ]
    chosen = min(range(len(several)), key=lambda which: _rank(measured[which]))
    return several[chosen].theta, CommonDraws(draws=draws, candidates=measured, chosen=chosen)


def _progress(done: int, total: int, steps: int) -> Progress:
    return Progress(TASK, done * steps, total * steps, "training steps")


def _measured(candidate: _Named, values: Sequence[float], of_untuned: Sequence[float]) -> Candidate:
    pairs = zip(values, of_untuned, strict=True)
    differences = [one - other for one, other in pairs if math.isfinite(one - other)]
    finite = [value for value in values if math.isfinite(value)]
    return Candidate(
        meta_step=candidate.meta_step,
        averaged=candidate.averaged,
        meta_loss=Spread(
            mean=statistics.fmean(finite) if finite else None,
            deviation=statistics.stdev(finite) if len(finite) > 1 else None,
            values=list(values),
        ),
        standard_error=_standard_error(finite),
        difference=statistics.fmean(differences) if differences else None,
        difference_error=_standard_error(differences),
    )


def _standard_error(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


def _rank(candidate: Candidate) -> tuple[int, float]:
    mean = candidate.meta_loss.mean
    return candidate.diverged, math.inf if mean is None else mean
