"""The cost that a dry run promises."""

from __future__ import annotations

import pytest
from systems import small_training_run

from hyperrbp import Averaging, GradientSettings, hypergradient
from hyperrbp.hypergradients import METHODS, method_class
from hyperrbp.hypergradients.cost_model import predicted_cost
from hyperrbp.hypergradients.implicit import ImplicitMethod
from hyperrbp.runtime.metering import SavedBytes


@pytest.mark.parametrize("steps", [10, 80])
@pytest.mark.parametrize("name", sorted(METHODS))
def test_bytes_are_predicted(name, steps):
    problem, theta = small_training_run(steps=steps)
    averaging = Averaging(minibatches=5, series=2)
    trunc = 5 if steps == 10 else 30
    predicted = predicted_cost(problem, theta, GradientSettings(name, trunc, averaging))
    with SavedBytes() as saved:
        found = hypergradient(problem, theta, name, trunc=trunc, averaging=averaging)
    kept = saved.peak + found.trajectory_bytes
    if issubclass(method_class(name), ImplicitMethod) or steps == 10:
        assert predicted.saved_bytes == kept
    else:  # the shuffled copy of an epoch belongs to many steps of a graph
        assert predicted.saved_bytes == pytest.approx(kept, rel=0.02)
    assert predicted.process_bytes > saved.peak
    assert problem.steps == steps, "the probes shortened the problem itself"


def test_seconds_grow_with_what_is_asked_for():
    problem, theta = small_training_run(steps=400)
    short = predicted_cost(problem, theta, GradientSettings("bptt")).seconds
    problem.steps = 40_000
    assert predicted_cost(problem, theta, GradientSettings("bptt")).seconds > 20 * short > 0
