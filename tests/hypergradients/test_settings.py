"""Settings of a gradient: all of them reach the method."""

from __future__ import annotations

from contextlib import contextmanager

import torch
from systems import small_training_run

from hyperrbp import Averaging, hypergradient
from hyperrbp.hypergradients.settings import GradientSettings


def test_settings_differentiate_as_their_arguments_do():
    problem, theta = small_training_run(steps=12)
    settings = GradientSettings("rbp", 7, Averaging("frozen", minibatches=3), {"tolerance": 3.0})
    expected = hypergradient(
        problem,
        theta,
        "rbp",
        trunc=7,
        averaging=Averaging("frozen", minibatches=3),
        options={"tolerance": 3.0},
        seed=3,
        step=2,
    )
    phases = []

    @contextmanager
    def phase(name):
        phases.append(name)
        yield

    found = settings.hypergradient(problem, theta, seed=3, step=2, phase=phase)
    assert torch.equal(found.gradient, expected.gradient)
    assert found.samples == 3
    assert found.products == expected.products < 3 * 7
    assert phases == ["inner run", "meta-gradient"]
    first = settings.hypergradient(problem, theta, seed=3).gradient
    assert torch.equal(first, settings.hypergradient(problem, theta, seed=3, step=0).gradient)
    assert not torch.equal(first, found.gradient)


def test_settings_are_those_of_the_function_unless_they_are_given():
    problem, theta = small_training_run(steps=60)
    found = GradientSettings().hypergradient(problem, theta, seed=0).gradient
    assert torch.equal(found, hypergradient(problem, theta).gradient)
    short = GradientSettings(trunc=4).hypergradient(problem, theta, seed=0).gradient
    assert torch.equal(short, hypergradient(problem, theta, trunc=4).gradient)
    assert not torch.equal(short, found)
