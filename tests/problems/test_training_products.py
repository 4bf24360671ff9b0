"""The products written out for SGD with momentum, against those of the general algebra."""

from __future__ import annotations

import pytest
import torch
from systems import run_of
from torch import Tensor

from hyperrbp.problems.training.heavy_ball.step import HeavyBallStep
from hyperrbp.problems.training.hyperparameters import Grain
from hyperrbp.problems.training.products import Place, TrainingStep
from hyperrbp.problems.training.rates import RateSchedule
from hyperrbp.problems.training.run import TrainingRun
from hyperrbp.problems.training.schedules import Schedule
from hyperrbp.problems.training.terms import row_numbers, terms

STEPS = 9
GRAINS: dict[str, dict[str, Grain]] = {
    "net": {"learning_rate": Grain("net"), "momentum": Grain("net")},
    "tensors in segments": {
        "learning_rate": Grain("tensor", 3),
        "momentum": Grain("layer", 2),
        "weight_decay": Grain("tensor"),
    },
    "a decay of every weight": {"learning_rate": Grain(), "weight_decay": Grain("weight")},
    "a scaled start": {"learning_rate": Grain("net", 3), "init_scale": Grain("layer")},
    "weights of examples": {
        "learning_rate": Grain("tensor"),
        "momentum": Grain("net"),
        "example_weight": Grain("example"),
    },
}
each_rule = pytest.mark.parametrize("rule", ["sgd", "maclaurin"])


def both(rule: str, grains: str) -> tuple[HeavyBallStep, TrainingStep, TrainingRun, Tensor]:
    problem, theta = run_of(GRAINS[grains], optimizer=rule, steps=STEPS)
    rates = RateSchedule(problem.layout, problem.rule, Schedule())
    parts = problem.objective, problem.rule
    by_hand = HeavyBallStep(*parts, problem.layout)
    return by_hand, TrainingStep(*parts, rates, problem.layout), problem, theta


def place(problem: TrainingRun, theta: Tensor, t: int) -> Place:
    weights, x = problem.layout.example_weights(theta), problem.input(t)
    return Place(terms(x, weights), None if weights is None else row_numbers(x), t, STEPS)


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(6), dtype=torch.float64)


def assert_close(found: Tensor, expected: Tensor) -> None:
    assert float(expected.norm()) > 1e-6, "nothing to tell apart"
    assert float((found - expected).norm() / expected.norm()) < 1e-12


@each_rule
@pytest.mark.parametrize("grains", GRAINS)
def test_steps_and_products_are_the_same(rule, grains):
    """At a state with velocities, in every segment. Catches a sign, a gain or a rate elsewhere."""
    by_hand, general, problem, theta = both(rule, grains)
    h, u = random(2 * problem.weights), random(2 * problem.weights)
    ways = by_hand.at(theta), general.at(theta)
    for t in range(STEPS):
        at = place(problem, theta, t)
        assert_close(general.step(h, theta, at), by_hand.step(h, theta, at))
        expected, found = (way.pullback(h, at, u) for way in ways)
        assert_close(found[0], expected[0])
        assert_close(found[1], expected[1])
        assert_close(ways[1].transposed(h, at, u), ways[0].transposed(h, at, u))
        assert_close(ways[1].transposed(h, at, u), expected[0])


@each_rule
@pytest.mark.parametrize("grains", GRAINS)
def test_runs_are_the_same(rule, grains):
    by_hand, general, problem, theta = both(rule, grains)
    start = problem.initial_state(theta)
    places = [place(problem, theta, t) for t in range(STEPS)]
    states = (
        [h.clone() for h in way.at(theta).states(start, places)] for way in (by_hand, general)
    )
    for expected, found in zip(*states, strict=True):
        assert_close(found, expected)


@each_rule
@pytest.mark.parametrize("grains", GRAINS)
def test_graphs_to_state_and_hyperparameters_are_the_same(rule, grains):
    by_hand, general, problem, theta = both(rule, grains)
    u = random(2 * problem.weights)
    for t in (0, STEPS - 1):
        products = []
        for way in (by_hand, general):
            h = random(2 * problem.weights).requires_grad_()
            of = theta.clone().requires_grad_()
            image = way.step(h, of, place(problem, of, t))
            products.append(torch.autograd.grad(image, [h, of], u, materialize_grads=True))
        for expected, found in zip(*products, strict=True):
            assert_close(found, expected)


@each_rule
@pytest.mark.parametrize("optimizer", ["by hand", "general"])
def test_updates_of_several_steps_have_a_mean_with_weights_of_examples(rule, optimizer):
    """Of no one segment, it comes from graphs that lead to θ alone."""
    grains = GRAINS["weights of examples"]
    general = {} if optimizer == "by hand" else {"clip_norm": 100.0}
    problem, theta = run_of(grains, optimizer=rule, steps=STEPS, **general)
    h, u = random(2 * problem.weights), random(2 * problem.weights)
    chunks = [(0.3, problem.input(0)), (0.7, problem.input(8))]
    image, product = problem.mean_theta_pullback(h, theta, chunks)
    pullback = problem.pullback_at(theta)
    assert_close(image, sum(share * problem.step(h, theta, x) for share, x in chunks))
    assert_close(product(u), sum(share * pullback(h, x, u)[1] for share, x in chunks))


@each_rule
@pytest.mark.parametrize("grains", ["net", "tensors in segments", "a scaled start"])
def test_tangents_are_the_same(rule, grains):
    by_hand, general, problem, theta = both(rule, grains)
    h = random(2 * problem.weights)
    for t in range(STEPS):
        at, tangents = place(problem, theta, t), random(len(theta), 2 * problem.weights)
        expected = by_hand.at(theta).pushforward(h, at, tangents.clone())
        found = general.at(theta).pushforward(h, at, tangents.clone())
        assert_close(found[0], expected[0])
        assert_close(found[1], expected[1])


@each_rule
@pytest.mark.parametrize("grains", [name for name in GRAINS if name != "weights of examples"])
def test_mean_updates_are_the_same(rule, grains):
    """Over minibatches of different sizes and shares, at the last step of the run."""
    by_hand, general, problem, theta = both(rule, grains)
    h, u = random(2 * problem.weights), random(2 * problem.weights)
    ((_, everything),) = problem.population()
    places = [(share, Place(terms(x), None, STEPS - 1, STEPS)) for share, x in everything.chunks(7)]
    assert len(places) == 4
    expected, along_expected = by_hand.at(theta).mean_pullback(h, places)
    found, along_found = general.at(theta).mean_pullback(h, places)
    assert_close(found, expected)
    assert_close(along_found(u), along_expected(u))
