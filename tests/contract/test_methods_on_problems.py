"""One contract for every gradient method on every problem, against autograd and dense algebra."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from systems import (
    WithRidge,
    cross_entropy_and_ridge,
    random_linear,
    small_graph_net,
    small_memory,
    small_training_run,
)
from torch import Tensor

from hyperrbp import TrainingRun, hypergradient
from hyperrbp.exceptions import UsageError
from hyperrbp.hypergradients import METHODS, method_class
from hyperrbp.hypergradients.implicit import ImplicitMethod
from hyperrbp.problems.base import Linearization, MeanLinearization, Problem, Sensitivity
from hyperrbp.problems.fixed_point import FixedPoint, Flattened

ALL = sorted(METHODS)
SOLVERS = [name for name in ALL if issubclass(method_class(name), ImplicitMethod)]
UNROLLED = [name for name in ALL if name not in SOLVERS]


def ridge_training(steps: int = 25) -> tuple[TrainingRun, Tensor]:
    """Full-batch training that would converge to a point, and has not yet."""
    source = torch.Generator().manual_seed(0)
    examples = torch.randn(30, 4, generator=source, dtype=torch.float64)
    problem = TrainingRun(
        WithRidge(4, 3).double(),
        [(examples, torch.randint(0, 3, (30,), generator=source))],
        steps=steps,
        loss=cross_entropy_and_ridge,
        initial_weights=0.5 * torch.randn(15, generator=source, dtype=torch.float64),
    )
    return problem, problem.initial_theta(1.0, 0.3)


CONVERGENT: dict[str, Callable[..., tuple[Problem, Tensor]]] = {
    "linear": random_linear,
    "memory": small_memory,
    "memory-leaky": lambda **steps: small_memory(
        **{"steps": 150} | steps, a=2.0, b=1.5, readout="activation", init_std=0.15
    ),
    "memory-squared": lambda **steps: small_memory(**steps, a=0.8, loss="squared"),
    "graph-sum": small_graph_net,
    "graph-mean": lambda **steps: small_graph_net(**steps, aggregation="mean", scale=0.5),
}
FIXED_POINTS = [name for name in CONVERGENT if name != "linear"]
TRAINING = {"training": small_training_run, "training-full-batch": ridge_training}
PROBLEMS = CONVERGENT | TRAINING


@dataclass
class Point:
    """A problem at its last state, with dense Jacobians of its last update there."""

    problem: Problem
    theta: Tensor
    h: Tensor
    along_h: Tensor
    along_theta: Tensor
    g: Tensor

    @property
    def x(self):
        return self.problem.input(self.problem.steps - 1)


@cache
def point(name: str) -> Point:
    problem, theta = PROBLEMS[name]()
    h = problem.run(theta, 0, problem.steps, problem.initial_state()).clone()
    x = problem.input(problem.steps - 1)
    along_h, along_theta = torch.autograd.functional.jacobian(
        lambda h, theta: problem.step(h, theta, x), (h, theta)
    )
    return Point(problem, theta, h, along_h, along_theta, problem.loss_and_gradient(h)[1])


@cache
def unrolled_gradient(name: str) -> Tensor:
    """By autograd through a plain loop."""
    problem, theta = PROBLEMS[name]()
    theta = theta.clone().requires_grad_()
    h = problem.initial_state()
    for t in range(problem.steps):
        h = problem.step(h, theta, problem.input(t))
    _, g = problem.loss_and_gradient(h.detach())
    return torch.autograd.grad(h, theta, g)[0]


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def random_rows(count: int, n: int, seed: int = 0) -> Tensor:
    return torch.randn(count, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- the systems are what the contract needs ------------------------------------------------------


@pytest.mark.parametrize("name", CONVERGENT)
def test_the_system_contracts_to_a_fixed_point_and_is_not_trivial(name):
    at = point(name)
    radius = float(torch.linalg.eigvals(at.along_h).abs().max())
    assert 0.3 < radius < 0.9
    assert relative(at.problem.step(at.h, at.theta, at.x), at.h) < 1e-10
    assert at.g.norm() > 0.05
    # One product more or less would be seen.
    assert (at.along_h.T @ at.g).norm() > 0.1 * at.g.norm()


# --- (a) gradients --------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ALL)
@pytest.mark.parametrize("name", CONVERGENT)
def test_at_a_fixed_point_every_method_finds_the_unrolled_gradient(name, method):
    """Each method on each convergent system against a plain loop, relatively to 1e-8.

    Catches an error of 1e-7, and a sign.
    """
    at = point(name)
    assert relative(at.problem.step(at.h, at.theta, at.x), at.h) < 1e-10
    truth = unrolled_gradient(name)
    assert truth.norm() > 1e-2
    found = hypergradient(at.problem, at.theta, method, trunc=at.problem.steps)
    assert found.steady_state_residual < 1e-10
    assert torch.equal(found.state, at.h)
    assert relative(found.gradient, truth) < 1e-8
    # A short truncation would not have done: the agreement is that of the whole series.
    short = hypergradient(at.problem, at.theta, method, trunc=1).gradient
    assert not method_class(method).uses_trunc or relative(short, truth) > 1e-3


@pytest.mark.parametrize("method", SOLVERS)
@pytest.mark.parametrize("name", [*CONVERGENT, "training-full-batch"])
def test_an_implicit_method_solves_the_dense_system_at_the_last_state(name, method):
    """Each solver against dense algebra with autograd's Jacobians.

    Catches an error of 1e-6.
    """
    at = point(name)
    eye = torch.eye(len(at.h), dtype=torch.float64)
    truth = at.along_theta.T @ torch.linalg.solve((eye - at.along_h).T, at.g)
    assert truth.norm() > 1e-9
    problem, theta = PROBLEMS[name](steps=at.problem.steps)
    found = hypergradient(problem, theta, method, trunc=700)
    assert found.status == "converged"
    assert relative(found.gradient, truth) < 1e-7


@pytest.mark.parametrize("method", UNROLLED)
@pytest.mark.parametrize("name", TRAINING)
def test_away_from_a_fixed_point_unrolling_methods_find_the_unrolled_gradient(name, method):
    """The methods that unroll, on training that has not converged, relatively to 1e-10.

    Catches a loss of 1e-7 an update.
    """
    problem, theta = PROBLEMS[name]()
    truth = unrolled_gradient(name)
    assert truth.norm() > 1e-4
    found = hypergradient(problem, theta, method, trunc=problem.steps)
    assert found.status == "exact"
    assert relative(found.gradient, truth) < 1e-10


@pytest.mark.parametrize("keep", ["states", "checkpoints"])
@pytest.mark.parametrize("name", PROBLEMS)
def test_recomputing_bptt_finds_the_unrolled_gradient(name, keep):
    problem, theta = PROBLEMS[name]()
    found = hypergradient(problem, theta, "bptt", options={"keep": keep}).gradient
    assert relative(found, unrolled_gradient(name)) < 1e-10


@cache
def converged_weights() -> Tensor:
    problem, theta = ridge_training()
    return problem.run(theta, 0, 1000, problem.initial_state())[: problem.weights].clone()


@pytest.mark.parametrize("method", ALL)
def test_where_training_has_converged_no_rate_is_felt_by_any_method(method):
    problem, theta = ridge_training(steps=100)
    problem._initial_weights = converged_weights()
    found = hypergradient(problem, theta, method, trunc=100)
    assert found.steady_state_residual < 1e-10
    assert found.gradient.norm() < 1e-12
    assert found.structurally_zero.all()


# --- (b), (c) products ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROBLEMS)
def test_products_agree_with_dense_jacobians_and_are_adjoint(name):
    at = point(name)
    map_ = Linearization(at.problem, at.h, at.theta, at.x)
    mean = MeanLinearization(at.problem, at.h, at.theta, [(1.0, at.x)])
    mixed = MeanLinearization(at.problem, at.h, at.theta, [(0.25, at.x), (0.75, at.x)])
    assert at.along_h.norm() > 0.1
    assert at.along_theta.norm() > 1e-3
    close = {"rtol": 1e-11, "atol": 1e-13}
    torch.testing.assert_close(map_.image, at.problem.step(at.h, at.theta, at.x), **close)
    for u, v in zip(random_rows(3, len(at.h)), random_rows(3, len(at.h), 1), strict=True):
        kept = u.clone(), v.clone()
        for product in (map_, mean, mixed):
            transposed, forward = product.transposed(u), product.forward(v)
            torch.testing.assert_close(transposed, at.along_h.T @ u, **close)
            torch.testing.assert_close(forward, at.along_h @ v, **close)
            assert float(u @ forward) == pytest.approx(float(transposed @ v), rel=1e-10, abs=1e-12)
        torch.testing.assert_close(map_.theta_transposed(u), at.along_theta.T @ u, **close)
        assert torch.equal(u, kept[0])
        assert torch.equal(v, kept[1])
    rows = random_rows(4, len(at.h), 2)
    along_h, along_theta = map_.both_transposed(rows)
    torch.testing.assert_close(along_h, rows @ at.along_h, **close)
    torch.testing.assert_close(along_theta, rows @ at.along_theta, **close)


@pytest.mark.parametrize("name", PROBLEMS)
def test_dense_jacobians_agree_with_finite_differences(name):
    """Autograd of the step is no truth for a step that lies to autograd."""
    at = point(name)

    def difference(along_h: Tensor, along_theta: Tensor, size: float) -> Tensor:
        ends = (
            at.problem.step(at.h + s * along_h, at.theta + s * along_theta, at.x)
            for s in (size, -size)
        )
        return next(ends).sub(next(ends)) / (2 * size)

    for seed in range(2):
        along_h = random_rows(1, len(at.h), seed)[0]
        along_theta = random_rows(1, len(at.theta), seed + 9)[0]
        for h, theta, truth in (
            (along_h, 0 * along_theta, at.along_h @ along_h),
            (0 * along_h, along_theta, at.along_theta @ along_theta),
        ):
            found = (4 * difference(h, theta, 5e-4) - difference(h, theta, 1e-3)) / 3
            assert relative(found, truth) < 1e-8


# --- (e) the products that problems may do in their own way ---------------------------------------


@pytest.mark.parametrize("name", PROBLEMS)
def test_own_products_agree_with_the_linearization(name):
    at = point(name)
    problem, close = at.problem, {"rtol": 1e-10, "atol": 1e-13}
    map_ = Linearization(problem, at.h, at.theta, at.x)
    transposed_at = problem.transposed_at(at.h, at.theta)
    pullback = problem.pullback_at(at.theta)
    image, theta_product = problem.mean_theta_pullback(at.h, at.theta, [(1.0, at.x)])
    torch.testing.assert_close(image, map_.image, **close)
    assert not image.requires_grad
    for u in random_rows(3, len(at.h)):
        torch.testing.assert_close(transposed_at(at.x, u), map_.transposed(u), **close)
        along_h, along_theta = pullback(at.h, at.x, u)
        torch.testing.assert_close(along_h, map_.transposed(u), **close)
        torch.testing.assert_close(along_theta, map_.theta_transposed(u), **close)
        torch.testing.assert_close(theta_product(u), map_.theta_transposed(u), **close)


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_population_is_the_mean_of_its_chunks(name):
    at = point(name)
    problem, chunks = at.problem, list(at.problem.population())
    assert sum(weight for weight, _ in chunks) == pytest.approx(1)
    maps = [(weight, Linearization(problem, at.h, at.theta, x)) for weight, x in chunks]
    sensitivity = Sensitivity(problem, at.h, at.theta)
    image, _ = problem.mean_theta_pullback(at.h, at.theta)
    close = {"rtol": 1e-10, "atol": 1e-13}
    torch.testing.assert_close(image, sum(weight * map_.image for weight, map_ in maps), **close)
    u = random_rows(1, len(at.h))[0]
    truth = sum(weight * map_.theta_transposed(u) for weight, map_ in maps)
    torch.testing.assert_close(sensitivity.theta_transposed(u), truth, **close)
    inputs = [problem.input(t) for t in range(2)]
    merged = sum(weight * problem.step(at.h, at.theta, x) for weight, x in problem.merge(inputs))
    mean = sum(problem.step(at.h, at.theta, x) for x in inputs) / 2
    torch.testing.assert_close(merged, mean, **close)


# --- (d) runs -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROBLEMS)
def test_a_run_is_step_after_step(name):
    problem, theta = PROBLEMS[name](steps=14)
    start = problem.initial_state()
    kept, h, looped = start.clone(), start, []
    with torch.no_grad():
        for t in range(14):
            h = problem.step(h, theta, problem.input(t))
            looped.append(h)
    states = [state.clone() for state in problem.states(theta, 0, 14, start)]
    assert torch.equal(torch.stack(states), torch.stack(looped))
    assert torch.equal(problem.run(theta, 0, 14, start), looped[-1])
    assert torch.equal(problem.run(theta, 5, 9, looped[4]), looped[8])
    assert torch.equal(problem.run(theta, 5, 5, looped[4]), looped[4])
    assert torch.equal(start, kept), "a run changed what it began with"
    with torch.enable_grad():
        wanted = theta.clone().requires_grad_()
        assert not problem.run(wanted, 0, 3, start).requires_grad


@pytest.mark.parametrize("name", FIXED_POINTS)
def test_a_settled_run_differs_within_its_tolerance(name, monkeypatch):
    exact, theta = PROBLEMS[name](steps=60)
    early, _ = PROBLEMS[name](steps=60)
    early._settled = 1e-3
    done = 0

    def update(h, parameters, x):
        nonlocal done
        done += 1
        return exact._update(h, parameters, x)

    monkeypatch.setattr(early, "_update", update)
    start = exact.initial_state()
    truth = torch.stack([h.clone() for h in exact.states(theta, 0, 60, start)])
    found = torch.stack([h.clone() for h in early.states(theta, 0, 60, start)])
    assert 3 < done < 50
    assert len(found) == 60, "the remaining states are not there"
    changes = torch.cat([start[None], truth]).diff(dim=0).norm(dim=1) / truth.norm(dim=1)
    first = int((changes <= 1e-3).nonzero()[0])
    assert done == first + 1, "it did not stop at the first small change"
    assert torch.equal(found[:done], truth[:done])
    assert (found[done:] == found[done - 1]).all()
    assert 0 < relative(found[-1], truth[-1]) < 1e-2


@pytest.mark.parametrize("method", SOLVERS)
@pytest.mark.parametrize("name", FIXED_POINTS)
def test_settling_changes_a_gradient_by_no_more_than_its_tolerance(name, method):
    settled, theta = PROBLEMS[name]()
    settled._settled = 1e-9
    found = hypergradient(settled, theta, method, trunc=150)
    assert 0 < found.steady_state_residual < 1e-9
    assert relative(found.gradient, unrolled_gradient(name)) < 1e-6


@pytest.mark.parametrize("name", FIXED_POINTS)
def test_changes_of_the_state(name):
    problem, theta = PROBLEMS[name](steps=6)
    h, truth = problem.initial_state(), []
    for _ in range(6):
        new = problem.step(h, theta, None)
        truth.append(float((new - h).norm()))
        h = new
    assert problem.changes(theta) == pytest.approx(truth, rel=1e-14)


# --- (f) finite differences -----------------------------------------------------------------------


@pytest.mark.parametrize("name", PROBLEMS)
def test_bptt_agrees_with_finite_differences(name):
    """BPTT in 8 random directions on every problem, relatively to 1e-6.

    Catches an error of three in a million.
    """
    problem, theta = PROBLEMS[name](steps=25)
    gradient = hypergradient(problem, theta, "bptt").gradient
    assert gradient.norm() > 1e-3

    def loss(at: Tensor) -> float:
        h = problem.run(at, 0, problem.steps, problem.initial_state())
        return float(problem.loss_and_gradient(h)[0])

    for direction in random_rows(8, len(theta), 2):
        # Half along the gradient, so that there is something to be relative to.
        along = direction / direction.norm() + gradient / gradient.norm()
        coarse, fine = (
            (loss(theta + e * along) - loss(theta - e * along)) / (2 * e) for e in (2e-3, 1e-3)
        )
        assert (4 * fine - coarse) / 3 == pytest.approx(float(gradient @ along), rel=1e-6)


@pytest.mark.parametrize("name", CONVERGENT)
def test_the_loss_gradient_is_that_of_the_loss(name):
    at = point(name)
    loss, g = at.problem.loss_and_gradient(at.h)
    assert loss.shape == ()
    assert not any(tensor.requires_grad for tensor in (loss, g))
    for direction in random_rows(3, len(at.h)):
        up, down = (at.problem.loss_and_gradient(at.h + s * direction)[0] for s in (1e-4, -1e-4))
        assert float((up - down) / 2e-4) == pytest.approx(float(g @ direction), rel=1e-6, abs=1e-7)


# --- the door -------------------------------------------------------------------------------------


def test_parameters_keep_their_form_and_order():
    a, b = torch.arange(6.0).reshape(2, 3), torch.tensor(7.0)
    for form, names in (({"a": a, "b": b}, ["a", "b"]), ([a, b], ["0", "1"]), ((a, b), ["0", "1"])):
        flattened = Flattened(form)
        assert flattened.names == names
        assert flattened.vector().tolist() == [0, 1, 2, 3, 4, 5, 7]
        arranged = flattened.arrange(flattened.split(flattened.vector() + 1))
        assert type(arranged) is type(form)
        parts = list(arranged.values()) if isinstance(form, dict) else list(arranged)
        assert torch.equal(parts[0], a + 1)
        assert torch.equal(parts[1], b + 1)
        assert parts[1].shape == ()


@pytest.mark.parametrize(
    "parameters",
    [[], {}, [1.0], {"a": None}, [torch.zeros(2), torch.zeros(2, dtype=torch.float64)]],
)
def test_parameters_that_are_no_vector_are_refused(parameters):
    with pytest.raises(UsageError, match="parameters"):
        Flattened(parameters)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"updates": 0}, "at least 1 update, not 0"),
        ({"updates": 3, "settled": -0.1}, "at least 0, not -0.1"),
    ],
)
def test_a_fixed_point_that_makes_no_sense_is_refused(arguments, words):
    with pytest.raises(UsageError, match=words):
        FixedPoint(lambda h, p, x: h, torch.zeros(2), torch.zeros(2), **arguments)


def test_a_fixed_point_without_a_loss_says_so():
    problem = FixedPoint(lambda h, p, x: h, torch.zeros(2), torch.zeros(2), updates=1)
    with pytest.raises(UsageError, match="without a loss"):
        problem.loss_and_gradient(torch.zeros(2))


def test_a_fixed_point_describes_its_parameters():
    named = {"w": torch.tensor([3.0, 4.0]), "b": torch.tensor(2.0)}
    problem = FixedPoint(lambda h, p, x: h, torch.zeros(2), named, updates=1)
    assert problem.describe(problem.initial_theta()) == {"norm": {"w": 5.0, "b": 2.0}}
