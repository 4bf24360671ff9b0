"""What tuned hyperparameters are worth on the held-out examples, from draws of their own."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from hyperrbp.experiments.experiment import Experiment
from hyperrbp.runtime.callbacks import Told

WHAT = "test on the held-out examples"


def evaluate_replicates(
    experiment: Experiment, thetas: Mapping[str, torch.Tensor], told: Told
) -> dict[str, Any] | None:
    """Train at every θ from ``record.test_seeds`` draws, and test on the held-out examples.

    The draws (initial weights and batches) are the same for every θ, and none of a meta step's.

    Args:
        experiment: what was tuned.
        thetas: by name.
        told: told how it goes.

    Returns:
        ``{"seeds": n, name of θ: {measure: {"mean", "deviation", "values"}, "diverged": k}}``, with
        null where a run turned non-finite; None for no seeds.
    """
    seeds = experiment.recipe.record.test_seeds
    if not seeds:
        return None
    found: dict[str, list[dict[str, float | None]]] = {name: [] for name in thetas}
    steps = experiment.recipe.inner.steps
    runs = seeds * len(thetas)
    for number in range(seeds):
        problem = experiment.unseen(number)
        for name, theta in thetas.items():
            told(WHAT, sum(map(len, found.values())) * steps, runs * steps)
            h = problem.last_state(theta)
            measures = experiment.heldout_measures(problem, h)
            # Outputs that are not finite have a largest one too: an accuracy would be a number.
            finite = bool(h.isfinite().all()) and all(map(math.isfinite, measures.values()))
            found[name].append({key: value if finite else None for key, value in measures.items()})
    told(WHAT, runs * steps, runs * steps)
    return {"seeds": seeds, **{name: _collected(measures) for name, measures in found.items()}}


def _collected(runs: Sequence[Mapping[str, float | None]]) -> dict[str, Any]:
    of = {measure: [run.get(measure) for run in runs] for measure in runs[0]}
    diverged = sum(None in run.values() for run in runs)
    return {
        **{measure: _statistics(values) for measure, values in of.items()},
        "diverged": diverged,
    }


def _statistics(values: Sequence[float | None]) -> dict[str, Any]:
    known = [value for value in values if value is not None]
    return {
        "mean": statistics.fmean(known) if known else None,
        "deviation": statistics.stdev(known) if len(known) > 1 else None,
        "values": list(values),
    }
