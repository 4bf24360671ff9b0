"""Compares tuned hyperparameters with the start on replicates: the same run from other seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from torch import Tensor

from hyperrbp.experiments.experiment import Experiment
from hyperrbp.experiments.results.tune import ReplicateComparison, ReplicateMeasures, Spread
from hyperrbp.problems.training.run import TrainingRun
from hyperrbp.runtime.callbacks import Progress, Report, ignore

TASK = "test on the held-out examples"

Measures = dict[str, float | None]
"""By name; None stands for a number that was not finite."""


def compare_on_replicates(
    experiment: Experiment, tuned: Tensor, untuned: Tensor, report: Report = ignore
) -> ReplicateComparison | None:
    """Train at the tuned θ and at the start from other seeds, and measure on held-out examples.

    There are ``record.test_seeds`` replicates. Their initial weights and minibatches are the same
    at both θ, and are those of no meta step.

    Args:
        experiment: what was tuned.
        tuned: θ, shape (p,).
        untuned: θ, shape (p,).
        report: receives the progress, in training steps.

    Returns:
        None for no replicates.
    """
    seeds, steps = experiment.recipe.record.test_seeds, experiment.recipe.inner.steps
    if not seeds:
        return None

    def at(done: int) -> Progress:
        return Progress(TASK, done * steps, 2 * seeds * steps, "training steps")

    found: tuple[list[Measures], list[Measures]] = ([], [])
    for number in range(seeds):
        problem = experiment.replicate(number)
        for which, theta in enumerate((tuned, untuned)):
            report(at(2 * number + which))
            found[which].append(_finite_measures(experiment, problem, theta))
    report(at(2 * seeds))
    of_tuned, of_untuned = map(summarize_replicates, found)
    return ReplicateComparison(seeds=seeds, tuned=of_tuned, untuned=of_untuned)


def _finite_measures(experiment: Experiment, problem: TrainingRun, theta: Tensor) -> Measures:
    """Return the held-out measures of one run; all None if anything of it is not finite."""
    h = problem.last_state(theta)
    found = experiment.heldout_measures(problem, h)
    # Outputs that are not finite have a largest one too: an accuracy would be a number.
    finite = bool(h.isfinite().all()) and all(map(math.isfinite, found.values()))
    return {name: value if finite else None for name, value in found.items()}


def summarize_replicates(runs: Sequence[Measures]) -> ReplicateMeasures:
    """Return mean and deviation of each measure of several runs, and how many diverged."""
    by_measure = {name: _spread([run.get(name) for run in runs]) for name in runs[0]}
    return ReplicateMeasures(**by_measure, diverged=sum(None in run.values() for run in runs))


def _spread(values: list[float | None]) -> Spread:
    known = [value for value in values if value is not None]
    return Spread(
        mean=statistics.fmean(known) if known else None,
        deviation=statistics.stdev(known) if len(known) > 1 else None,
        values=values,
    )
