"""Benchmarks of optimizers in which nothing is run."""

from __future__ import annotations

import json

from factories import tuning_text

from hyperrbp.experiments import optimizer_runs
from hyperrbp.experiments.optimizer_runs import (
    OURS,
    Start,
    spend,
)
from hyperrbp.experiments.results.benchmark import Box, RunStatus
from hyperrbp.experiments.results.document import to_json
from hyperrbp.optimizers.base import Evaluation

TINY = tuning_text(
    name="tiny", seed=7, data__train_examples=200, inner__batch_size=20, gradient__trunc=2
)
FIELD = [OURS, "random", "tpe"]


class Clock:
    """Shows the times that it is given."""

    def __init__(self, *times):
        self.times = iter(times)

    def __call__(self):
        return next(self.times)


def evaluation(loss, theta=None, pruned=False):
    return Evaluation(0, loss, theta, None, 6, pruned)


class Machine:
    """Answers for the other processes."""

    def __init__(self, finals=None, fails=None):
        self.finals, self.fails, self.turns = finals or {}, fails or {}, []

    def __call__(self, function, recipe, data_root, *arguments, on_message=None):
        assert data_root is None
        if function is optimizer_runs.measure_start:
            if "opening" in self.fails:
                raise self.fails["opening"]
            low = {"learning_rate": {"w": 0.1}, "momentum": {"w": 0.1}}
            return Start(
                recipe=recipe,
                environment={"threads": 1, "machine": "m", "torch": "t"},
                box=Box(low=low, high=low),
                start_loss=2.0,
                evaluation_seconds=0.5,
            )
        assert function is optimizer_runs.run_optimizer
        name, budget = arguments
        self.turns.append((name, recipe, budget))
        trials = [evaluation(2.0), evaluation(self.finals.get(name, 1.0))]
        score = spend(iter(trials), budget, on_message, Clock(0, budget / 4, budget / 2))
        if name in self.fails:
            raise self.fails[name]
        score.status, score.message = RunStatus.DONE, None
        known = {"hyperparameters": {}, "in_box": True, "heldout_accuracy": 0.9}
        return score.to_run(name, recipe.seed, **known)


def pretend(monkeypatch, **options):
    """Let a :class:`Machine` answer for the other processes of a benchmark."""
    fake = Machine(**options)
    monkeypatch.setattr("hyperrbp.experiments.benchmark.call", fake)
    return fake


def as_json(report):
    """Return the document that ``--json`` prints."""
    return json.loads(to_json(report))
