"""What every method shares: statuses, residuals, the length of run that it needs."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from systems import random_linear

from hyperrbp import Averaging, hypergradient
from hyperrbp.hypergradients import METHODS, method_class
from hyperrbp.hypergradients.implicit import ImplicitMethod
from hyperrbp.hypergradients.method import Gradient, Status, largest_last

UNROLLED = ["bptt", "forward"]
SOLVERS = [name for name in METHODS if issubclass(method_class(name), ImplicitMethod)]


def test_the_worst_status_is_the_most_alarming():
    order = [
        *(Status.EXACT, Status.CONVERGED, Status.TRUNCATED),
        *(Status.GROWING, Status.BREAKDOWN, Status.NON_FINITE),
    ]
    assert {*order} == {*Status}
    for better, worse in itertools.combinations(order, 2):
        assert Status.worst([better, worse]) is Status.worst([worse, better]) is worse


def test_the_residual_is_the_largest_of_the_last():
    assert largest_last([[1.0, 0.2], [], [2.0, 0.5], [0.1]]) == 0.5
    assert largest_last([[]]) is largest_last([]) is None


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_says_so(bad):
    found = Gradient(torch.tensor([1.0, bad]), None, 1, [], Status.EXACT, 0)
    assert found.status is Status.NON_FINITE


@pytest.mark.parametrize("name", UNROLLED)
def test_what_averages_nothing_takes_any_averaging(name):
    method, averaging = method_class(name)(), Averaging(minibatches=9)
    assert method.estimator(averaging) == ""
    problem, theta = random_linear(steps=1)
    found = hypergradient(problem, theta, name, averaging=averaging)
    assert torch.equal(found.gradient, hypergradient(problem, theta, name).gradient)


@pytest.mark.parametrize("name", SOLVERS)
def test_a_method_that_solves_at_the_last_state_keeps_no_other(name):
    problem, theta = random_linear(steps=5)
    assert hypergradient(problem, theta, name, trunc=3).trajectory_bytes == 0
