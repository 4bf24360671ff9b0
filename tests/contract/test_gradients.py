"""The contract of every registered gradient method: each is held against an independent truth."""

from __future__ import annotations

import gc
import random
from functools import cache

import numpy as np
import pytest
import torch
from systems import (
    Linear,
    WithRidge,
    cross_entropy_and_ridge,
    random_linear,
    small_training_run,
)

from hyperrbp import Averaging, hypergradient
from hyperrbp.data.batches import Batch, ListedBatches, ShuffledBatches
from hyperrbp.exceptions import UsageError
from hyperrbp.hypergradients import METHODS, method_class
from hyperrbp.hypergradients.implicit import ImplicitMethod
from hyperrbp.hypergradients.method import Status
from hyperrbp.problems.base import Linearization, MeanLinearization, Sensitivity
from hyperrbp.problems.training.run import TrainingRun

ALL = sorted(METHODS)
SOLVERS = [name for name in ALL if issubclass(method_class(name), ImplicitMethod)]
UNROLLED = [name for name in ALL if name not in SOLVERS]


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def test_the_five_methods_of_the_paper_are_registered():
    assert {"bptt", "tbptt", "rbp", "cg", "neumann"} <= set(ALL)


@pytest.mark.parametrize("name", ALL)
def test_a_registered_name_is_the_methods_own(name):
    assert method_class(name).name == name
    assert method_class(name).__doc__


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("seed", range(3))
def test_closed_form_on_a_contraction(name, seed):
    """Relatively to 1e-10, in float64, on Jacobians that are not symmetric.

    Catches J in the place of Jᵀ, and an error of 1e-9.
    """
    problem, theta = random_linear(norm=0.6, steps=80, seed=seed)
    assert not torch.allclose(problem.A, problem.A.T)
    truth = problem.closed_form(theta)
    assert truth.norm() > 1
    found = hypergradient(problem, theta, name, trunc=min(79, problem.steps))
    assert relative(found.gradient, truth) < 1e-10
    assert found.loss == pytest.approx(float(problem.loss_and_gradient(found.state)[0]), rel=1e-15)
    assert found.gradient.shape == (5,)


@pytest.mark.parametrize("name", ALL)
def test_agrees_with_bptt_where_the_series_has_converged(name):
    """Each method against BPTT, relatively to 1e-8, on a gradient far from zero.

    Catches a loss of 1e-7 an update.
    """
    problem, theta = random_linear(n=20, p=7, norm=0.6, steps=120, seed=9)
    exact = hypergradient(problem, theta, "bptt").gradient
    assert exact.norm() > 1
    assert 0.6**60 < 1e-12
    assert relative(hypergradient(problem, theta, name, trunc=60).gradient, exact) < 1e-8


@pytest.mark.parametrize("name", SOLVERS)
def test_a_solution_solves_the_linear_system(name):
    problem, theta = random_linear(seed=4)
    h = problem.fixed_point(theta)
    jacobian = Linearization(problem, h, theta, None)
    g = problem.q
    kept = g.clone()
    solution = method_class(name)().solve(jacobian, g, 70, torch.Generator().manual_seed(0))
    assert torch.equal(g, kept), "the loss gradient was changed"
    assert relative(solution.z - jacobian.transposed(solution.z), g) < 1e-11
    assert solution.status is Status.CONVERGED
    assert solution.residuals[-1] < 1e-11


@pytest.mark.parametrize("name", SOLVERS)
def test_products_are_counted(name):
    problem, theta = random_linear()
    calls = 0

    class Counting:
        def __init__(self, inner):
            self.inner = inner

        def transposed(self, u):
            nonlocal calls
            calls += 1
            return self.inner.transposed(u)

        def forward(self, v):
            nonlocal calls
            calls += 1
            return self.inner.forward(v)

    jacobian = Counting(Linearization(problem, problem.initial_state(), theta, None))
    solution = method_class(name)().solve(jacobian, problem.q, 7, torch.Generator())
    assert solution.products == calls
    assert calls <= 2 * 7 + 2
    assert solution.status is Status.TRUNCATED


@pytest.mark.parametrize("name", SOLVERS)
def test_a_vanishing_loss_gradient_costs_nothing(name):
    problem, theta = random_linear()
    problem.q = -problem.fixed_point(theta)
    problem.h0 = problem.fixed_point(theta)
    problem.steps = 1
    jacobian = Linearization(problem, problem.h0, theta, None)
    solution = method_class(name)().solve(
        jacobian, torch.zeros_like(problem.q), 5, torch.Generator()
    )
    assert solution.products == 0
    assert not solution.z.any()


def diagonal(radius: float, steps: int = 3) -> tuple[Linear, torch.Tensor]:
    spectrum = torch.tensor([radius, 0.3, -0.2], dtype=torch.float64)
    return Linear(
        torch.diag(spectrum),
        torch.eye(3, dtype=torch.float64),
        torch.zeros(3, dtype=torch.float64),
        torch.ones(3, dtype=torch.float64),
        steps,
    ), torch.zeros(3, dtype=torch.float64)


@pytest.mark.parametrize(
    ("radius", "trunc", "status"),
    [
        (0.5, 60, Status.CONVERGED),
        (0.5, 10, Status.TRUNCATED),
        (0.99, 50, Status.TRUNCATED),
        (1.01, 50, Status.GROWING),
        (1.5, 50, Status.GROWING),
        (1e30, 50, Status.NON_FINITE),
    ],
)
@pytest.mark.parametrize("name", ["neumann", "rbp"])
def test_a_series_says_how_it_ended(name, radius, trunc, status):
    """Spectral radius 0.5, 0.99, 1.01, 1.5 and one that overflows: converged, truncated, growing.

    Catches a slow growth that is taken for a slow decay, and a truncation for an end.
    """
    problem, theta = diagonal(radius)
    found = hypergradient(problem, theta, name, trunc=trunc)
    assert found.status is status
    if status is Status.NON_FINITE:
        assert found.products < trunc, "it went on after it had overflowed"


def test_neumann_keeps_the_norms_of_its_terms():
    problem, theta = random_linear(seed=2)
    h = problem.run(theta, 0, 80, problem.initial_state())
    _, g = problem.loss_and_gradient(h)
    (trace,) = hypergradient(problem, theta, "neumann", trunc=9).residuals
    truth = [torch.linalg.matrix_power(problem.A.T, k) @ g for k in range(10)]
    assert trace == pytest.approx([float(v.norm() / g.norm()) for v in truth], rel=1e-12)


def test_cg_solves_where_the_series_grows():
    problem, theta = diagonal(1.5)
    problem.steps = 1
    found = hypergradient(problem, theta, "cg", trunc=10)
    h = problem.run(theta, 0, 1, problem.initial_state())
    eye = torch.eye(3, dtype=torch.float64)
    truth = problem.B.T @ torch.linalg.solve((eye - problem.A).T, h + problem.q)
    assert found.status is Status.CONVERGED
    assert relative(found.gradient, truth) < 1e-10


def test_cg_damping_is_on_the_diagonal_of_the_normal_equations():
    problem, theta = random_linear(seed=5)
    h = problem.run(theta, 0, 80, problem.initial_state())
    _, g = problem.loss_and_gradient(h)
    eye = torch.eye(12, dtype=torch.float64)
    left = (eye - problem.A) @ (eye - problem.A.T) + 0.1 * eye
    truth = problem.B.T @ torch.linalg.solve(left, (eye - problem.A) @ g)
    found = hypergradient(problem, theta, "cg", trunc=50, options={"damping": 0.1})
    assert relative(found.gradient, truth) < 1e-10
    assert found.status is Status.CONVERGED
    plain = hypergradient(problem, theta, "cg", trunc=50).gradient
    assert relative(found.gradient, plain) > 1e-3


def test_cg_says_that_an_inconsistent_system_broke_down():
    problem, theta = diagonal(1.0)  # I − J is singular, and g has a part in its null space
    problem.steps = 1
    found = hypergradient(problem, theta, "cg", trunc=20)
    assert found.status is Status.BREAKDOWN
    h = problem.run(theta, 0, 1, problem.initial_state())
    _, g = problem.loss_and_gradient(h)
    assert found.residual == pytest.approx(float(g[0].abs() / g.norm()), rel=1e-10)


def test_cg_recomputes_its_last_residual_from_the_solution():
    problem, theta = random_linear(norm=0.999, seed=6)
    jacobian = Linearization(problem, problem.initial_state(), theta, None)
    solution = method_class("cg")().solve(jacobian, problem.q, 8, torch.Generator())
    true = problem.q - (solution.z - jacobian.transposed(solution.z))
    assert solution.residuals[-1] == float(true.norm()) / float(problem.q.norm())


@pytest.mark.parametrize("z0", ["uniform", "zero", "gradient"])
def test_rbp_first_guesses(z0):
    problem, theta = random_linear()
    jacobian = Linearization(problem, problem.initial_state(), theta, None)
    solution = method_class("rbp")(z0=z0).solve(
        jacobian, problem.q, 1, torch.Generator().manual_seed(8)
    )
    start = {
        "uniform": torch.rand(12, generator=torch.Generator().manual_seed(8), dtype=torch.float64),
        "zero": torch.zeros(12, dtype=torch.float64),
        "gradient": problem.q,
    }[z0]
    torch.testing.assert_close(solution.z, problem.A.T @ start + problem.q, rtol=1e-12, atol=0)


def test_rbp_stops_at_its_tolerance():
    problem, theta = random_linear()
    loose = hypergradient(problem, theta, "rbp", trunc=200, options={"tolerance": 1e-3})
    tight = hypergradient(problem, theta, "rbp", trunc=200, options={"tolerance": 1e-9})
    assert loose.products < tight.products < 200
    assert loose.status is tight.status is Status.CONVERGED


# --- the training run ----------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["maclaurin", "sgd"])
def test_bptt_of_a_training_run_agrees_with_finite_differences(optimizer):
    """In 8 random directions, relatively to 1e-6, for both forms of SGD.

    Catches an error of three in a million.
    """
    problem, theta = small_training_run(steps=40, optimizer=optimizer)
    theta = theta + 0.1 * torch.randn(
        len(theta), generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    gradient = hypergradient(problem, theta, "bptt").gradient

    def loss(at: torch.Tensor) -> float:
        h = problem.run(at, 0, problem.steps, problem.initial_state())
        return float(problem.loss_and_gradient(h)[0])

    source = torch.Generator().manual_seed(2)
    for _ in range(8):
        direction = torch.randn(len(theta), generator=source, dtype=torch.float64)
        direction /= direction.norm()
        # Richardson's combination of two central differences: the error is of fourth order.
        coarse, fine = (
            (loss(theta + e * direction) - loss(theta - e * direction)) / (2 * e)
            for e in (2e-3, 1e-3)
        )
        assert (4 * fine - coarse) / 3 == pytest.approx(float(gradient @ direction), rel=1e-6)


def test_tbptt_over_the_whole_run_is_bptt():
    problem, theta = small_training_run(steps=25)
    exact = hypergradient(problem, theta, "bptt")
    found = hypergradient(problem, theta, "tbptt", trunc=25)
    assert relative(found.gradient, exact.gradient) < 1e-12
    assert found.status is Status.EXACT
    assert torch.equal(found.state, exact.state)


@pytest.mark.parametrize(("trunc", "ends"), [(6, 3), (3, 6), (5, 5), (1, 4), (20, 6)])
def test_tbptt_is_the_mean_over_its_end_points(trunc, ends):
    problem, theta = small_training_run(steps=25)
    singles = []
    for end in range(25 - ends + 1, 26):
        shorter, _ = small_training_run(steps=end)
        singles.append(hypergradient(shorter, theta, "tbptt", trunc=trunc).gradient)
    stacked = torch.stack(singles)
    found = hypergradient(
        problem, theta, "tbptt", trunc=trunc, averaging=Averaging(minibatches=ends)
    )
    torch.testing.assert_close(found.gradient, stacked.mean(0), rtol=1e-11, atol=1e-15)
    error = stacked.std(0) / ends**0.5
    torch.testing.assert_close(found.standard_error, error, rtol=1e-9, atol=1e-15)
    assert found.products == trunc * ends
    assert found.loss == hypergradient(problem, theta, "bptt").loss


class StartsAtTheta(Linear):
    """A linear problem whose first state depends on θ."""

    def initial_state(self, theta=None):
        return self.B @ theta


def unrolled(problem, theta, first: int, stop: int) -> torch.Tensor:
    """The gradient of the loss on h_stop through the updates from h_first on, by autograd."""
    at = theta.clone().requires_grad_()
    h = problem.initial_state(at if first == 0 else theta)
    for t in range(stop):
        h = problem.step(h, at if t >= first else theta, problem.input(t))
    problem.loss_and_gradient(h)[0].backward()
    return at.grad


@pytest.mark.parametrize(
    ("name", "options", "products"),
    [
        ("forward", {}, 7 * 5),
        ("tbptt", {}, 7),
        *(("bptt", {"keep": keep}, 7) for keep in ("graph", "states", "checkpoints")),
    ],
)
def test_a_start_that_depends_on_theta_is_differentiated(name, options, products):
    linear, theta = random_linear(norm=1.0, steps=7)
    problem = StartsAtTheta(linear.A, linear.B, linear.c, linear.q, linear.steps)
    truth = unrolled(problem, theta, 0, 7)
    assert relative(truth, unrolled(problem, theta, 1, 7)) > 0.01
    found = hypergradient(problem, theta, name, trunc=7, options=options)
    torch.testing.assert_close(found.gradient, truth, rtol=1e-11, atol=0)
    assert found.products == products
    assert (found.status, found.samples, found.residuals) == (Status.EXACT, 1, [])
    assert found.standard_error is None


def test_tbptt_that_is_truncated_leaves_the_start_out():
    linear, theta = random_linear(norm=1.0, steps=7)
    problem = StartsAtTheta(linear.A, linear.B, linear.c, linear.q, linear.steps)
    last, before = unrolled(problem, theta, 1, 7), unrolled(problem, theta, 1, 6)
    found = hypergradient(problem, theta, "tbptt", trunc=6)
    torch.testing.assert_close(found.gradient, last, rtol=1e-11, atol=0)
    assert found.status is Status.TRUNCATED
    # The first update from the start, but not the start itself, is in the window of h_6.
    h = problem.initial_state(theta)
    adjoint = torch.linalg.matrix_power(problem.A.T, 5) @ (problem.run(theta, 0, 6, h) + problem.q)
    before = before + problem.B.T @ adjoint
    found = hypergradient(problem, theta, "tbptt", trunc=6, averaging=Averaging(minibatches=2))
    torch.testing.assert_close(found.gradient, (last + before) / 2, rtol=1e-11, atol=0)
    assert (found.status, found.samples, found.residuals) == (Status.TRUNCATED, 2, [])


def adjoint_gap(map_, n: int) -> float:
    source = torch.Generator().manual_seed(0)
    gap = 0.0
    for _ in range(5):
        u, v = torch.randn(2, n, generator=source, dtype=torch.float64)
        forward, transposed = u @ map_.forward(v), map_.transposed(u) @ v
        scale = max(float(forward.abs()), float(map_.forward(v).norm() * u.norm()))
        gap = max(gap, float((forward - transposed).abs()) / scale)
    return gap


@pytest.mark.parametrize("optimizer", ["maclaurin", "sgd"])
def test_forward_and_transposed_products_are_adjoint(optimizer):
    problem, theta = small_training_run(steps=10, optimizer=optimizer)
    h = problem.run(theta, 0, 10, problem.initial_state())
    n = len(h)
    assert adjoint_gap(Linearization(problem, h, theta, problem.input(9)), n) < 1e-12
    for chunks in (1, 3):
        inputs = [(1 / chunks, problem.input(t)) for t in range(chunks)]
        assert adjoint_gap(MeanLinearization(problem, h, theta, inputs), n) < 1e-12
    linear, theta = random_linear()
    assert adjoint_gap(Linearization(linear, linear.c, theta, None), 12) < 1e-12


def test_products_agree_with_a_dense_jacobian():
    problem, theta = small_training_run(steps=5, hidden=3)
    h = problem.run(theta, 0, 5, problem.initial_state())
    x = problem.input(4)
    at_h = torch.autograd.functional.jacobian(
        lambda s: problem.step(s, theta, x), h, create_graph=False
    )
    source = torch.Generator().manual_seed(0)
    u, v = torch.randn(2, len(h), generator=source, dtype=torch.float64)
    map_ = Linearization(problem, h, theta, x)
    torch.testing.assert_close(map_.transposed(u), at_h.T @ u, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(map_.forward(v), at_h @ v, rtol=1e-10, atol=1e-12)
    # ∂F/∂θ by central differences: it is smooth, and five digits tell a wrong formula.
    columns = []
    for j in range(len(theta)):
        e = torch.zeros_like(theta)
        e[j] = 1e-6
        columns.append((problem.step(h, theta + e, x) - problem.step(h, theta - e, x)) / 2e-6)
    truth = torch.stack(columns, 1).T @ u
    torch.testing.assert_close(map_.theta_transposed(u), truth, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(
        Sensitivity(problem, h, theta, [(1.0, x)]).theta_transposed(u), truth, rtol=1e-6, atol=1e-9
    )
    for rows in (u[None], torch.stack([u, v])):
        for row, one_h, one_theta in zip(rows, *map_.both_transposed(rows), strict=True):
            torch.testing.assert_close(one_h, map_.transposed(row), rtol=1e-12, atol=1e-14)
            torch.testing.assert_close(one_theta, map_.theta_transposed(row), rtol=1e-11, atol=0)


def ridge_training(initial_weights, steps):
    source = torch.Generator().manual_seed(0)
    inputs = torch.randn(30, 4, generator=source, dtype=torch.float64)
    targets = torch.randint(0, 3, (30,), generator=source)
    problem = TrainingRun(
        WithRidge(4, 3).double(),
        ListedBatches([(inputs, targets)]),
        steps=steps,
        loss=cross_entropy_and_ridge,
        initial_weights=initial_weights,
    )
    return problem, problem.initial_theta(1.0, 0.3)


@cache
def converged_weights():
    problem, theta = ridge_training(torch.zeros(15, dtype=torch.float64), steps=1900)
    return problem.last_state(theta)[: problem.weights]


@pytest.mark.parametrize("name", ALL)
def test_at_a_fixed_point_learning_rate_and_momentum_are_structurally_zero(name):
    problem, theta = ridge_training(converged_weights(), steps=60)
    found = hypergradient(problem, theta, name, trunc=50)
    assert found.steady_state_residual < 1e-13
    assert found.structurally_zero.all()
    # Away from the fixed point the same hyperparameters are felt.
    problem, theta = ridge_training(torch.ones(15, dtype=torch.float64), steps=60)
    found = hypergradient(problem, theta, name, trunc=50)
    assert found.steady_state_residual > 1e-9
    assert not found.structurally_zero.any()
    assert (found.gradient != 0).all()


@pytest.mark.parametrize("name", ALL)
def test_an_unused_parameter_is_structurally_zero(name):
    """What F does not feel, exactly or but for rounding, is told from what it feels a little.

    Catches a floor of zero, and one that hides a small sensitivity.
    """
    problem, theta = random_linear()
    problem.B[:, 2] = 0
    found = hypergradient(problem, theta, name, trunc=70)
    assert found.structurally_zero.tolist() == [False, False, True, False, False]
    assert found.gradient[2] == 0
    for size, unfelt in ((1e-18, True), (1e-9, False)):  # next to a state of norm 5 or so
        problem.B[:, 2] = size
        found = hypergradient(problem, theta, name, trunc=70)
        assert bool(found.structurally_zero[2]) is unfelt


@pytest.mark.parametrize("name", ALL)
def test_global_generators_stand_as_they_stood(name):
    """Those of PyTorch, Python and NumPy, around each method; the same seed gives the same bits.

    Catches numbers from a global generator, and a seed or a step that does not count.
    """
    problem, theta = small_training_run(steps=12)

    def states() -> list[str]:
        numbers = torch.get_rng_state().tolist(), np.random.get_state()[1].tolist()
        return [str(random.getstate()), str(np.random.get_state()[2:]), *map(str, numbers)]

    before = states()
    first = hypergradient(problem, theta, name, trunc=5, seed=1)
    assert states() == before
    again = hypergradient(problem, theta, name, trunc=5, seed=1)
    assert torch.equal(first.gradient, again.gradient)
    if name == "rbp":  # the only one that draws: another seed, or meta step, other numbers
        for other in ({"seed": 2}, {"seed": 1, "step": 1}):
            drawn = hypergradient(problem, theta, name, trunc=5, **other).gradient
            assert not torch.equal(first.gradient, drawn)


# --- averaging -----------------------------------------------------------------------------------


def test_frozen_is_the_mean_of_one_series_a_minibatch():
    problem, theta = small_training_run(steps=20)
    h = problem.run(theta, 0, 20, problem.initial_state())
    _, g = problem.loss_and_gradient(h)
    samples = []
    for t in (17, 18, 19):
        map_ = Linearization(problem, h, theta, problem.input(t))
        term, z = g, g.clone()
        for _ in range(4):
            term = map_.transposed(term)
            z = z + term
        samples.append(map_.theta_transposed(z))
    stacked = torch.stack(samples)
    found = hypergradient(
        problem, theta, "neumann", trunc=4, averaging=Averaging("frozen", minibatches=3)
    )
    torch.testing.assert_close(found.gradient, stacked.mean(0), rtol=1e-12, atol=1e-16)
    torch.testing.assert_close(found.standard_error, stacked.std(0) / 3**0.5, rtol=1e-9, atol=0)
    assert found.samples == 3
    assert found.products == 12


def whole(problem) -> list:
    return list(problem.population())


def test_resampled_takes_the_next_minibatch_at_every_term():
    problem, theta = small_training_run(steps=20)
    h = problem.run(theta, 0, 20, problem.initial_state())
    _, g = problem.loss_and_gradient(h)
    samples = []
    for start in (0, 2):
        term, z = g, g.clone()
        for k in range(6):
            x = problem.input(16 + (start + k) % 4)
            term = Linearization(problem, h, theta, x).transposed(term)
            z = z + term
        samples.append(Sensitivity(problem, h, theta, whole(problem)).theta_transposed(z))
    stacked = torch.stack(samples)
    found = hypergradient(
        problem,
        theta,
        "neumann",
        trunc=6,
        averaging=Averaging("resampled", minibatches=4, series=2),
    )
    torch.testing.assert_close(found.gradient, stacked.mean(0), rtol=1e-12, atol=1e-16)
    torch.testing.assert_close(found.standard_error, stacked.std(0) / 2**0.5, rtol=1e-9, atol=0)
    assert found.products == 12


def test_mean_over_an_epoch_is_the_full_batch():
    problem, theta = small_training_run(steps=20, batch=8)  # 5 minibatches an epoch
    h = problem.run(theta, 0, 20, problem.initial_state())
    _, g = problem.loss_and_gradient(h)
    map_ = MeanLinearization(problem, h, theta, whole(problem))
    term, z = g, g.clone()
    for _ in range(6):
        term = map_.transposed(term)
        z = z + term
    truth = Sensitivity(problem, h, theta, whole(problem)).theta_transposed(z)
    found = hypergradient(
        problem, theta, "neumann", trunc=6, averaging=Averaging("mean", minibatches=5)
    )
    torch.testing.assert_close(found.gradient, truth, rtol=1e-10, atol=1e-16)
    assert found.standard_error is None


def test_products_over_chunks_are_those_over_the_whole():
    problem, theta = small_training_run(steps=6)
    h = problem.run(theta, 0, 6, problem.initial_state())
    ((_, everything),) = problem.population()
    one, many = [(1.0, everything)], list(everything.chunks(size=15))
    assert [len(x) for _, x in many] == [15, 15, 10]
    u = torch.randn(len(h), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for build, products in (
        (Sensitivity, ["theta_transposed"]),
        (MeanLinearization, ["transposed", "forward"]),
    ):
        for product in products:
            whole = getattr(build(problem, h, theta, one), product)(u)
            summed = getattr(build(problem, h, theta, many), product)(u)
            torch.testing.assert_close(summed, whole, rtol=1e-11, atol=1e-14)
    residuals = [
        Sensitivity(problem, h, theta, chunks).steady_state_residual() for chunks in (one, many)
    ]
    assert residuals[0] == pytest.approx(residuals[1], rel=1e-11)
    moved = (problem.step(h, theta, everything) - h).norm() / h.norm()
    assert residuals[0] == pytest.approx(float(moved), rel=1e-12)


def test_merged_minibatches_have_the_mean_update():
    problem, theta = small_training_run(steps=10)
    h = problem.run(theta, 0, 10, problem.initial_state())
    inputs = [problem.input(t) for t in range(3)]
    truth = sum(problem.step(h, theta, x) for x in inputs) / 3
    merged = sum(weight * problem.step(h, theta, x) for weight, x in problem.merge(inputs))
    torch.testing.assert_close(merged, truth, rtol=1e-13, atol=1e-15)
    uneven = [Batch(*(part[:3] for part in inputs[0][:2])), inputs[1]]
    truth = sum(problem.step(h, theta, x) for x in uneven) / 2
    merged = sum(weight * problem.step(h, theta, x) for weight, x in problem.merge(uneven))
    torch.testing.assert_close(merged, truth, rtol=1e-13, atol=1e-15)


def test_a_krylov_method_refuses_resampling_by_name():
    problem, theta = small_training_run()
    with pytest.raises(UsageError, match=r"cg cannot take the 'resampled'.*one fixed Jacobian"):
        hypergradient(problem, theta, "cg", trunc=3, averaging=Averaging("resampled"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"method": "newmann"}, "did you mean neumann"),
        ({"trunc": 0}, "at least 1"),
        ({"method": "tbptt", "trunc": 31}, "at least 31 steps, not 30"),
        ({"averaging": Averaging(minibatches=31)}, "at least 31 steps"),
        ({"options": {"z00": 1}}, "z00"),
        ({"averaging": Averaging("men")}, "'men'"),
    ],
)
def test_impossible_requests_are_refused(arguments, words):
    problem, theta = small_training_run(steps=30)
    with pytest.raises(UsageError, match=words):
        hypergradient(problem, theta, **arguments)


def test_shuffled_batches_cover_every_epoch_once():
    examples = Batch(torch.arange(10.0).reshape(10, 1), torch.arange(10))
    batches = ShuffledBatches(examples, 5, seed=1)
    epochs = [
        sorted(torch.cat([batches(t).targets, batches(t + 1).targets]).tolist()) for t in (0, 2, 4)
    ]
    assert epochs == [list(range(10))] * 3
    assert batches(0).targets.tolist() != batches(2).targets.tolist()
    again = ShuffledBatches(examples, 5, seed=1)
    assert torch.equal(again(3).targets, batches(3).targets), "it depends on what was asked before"
    other = ShuffledBatches(examples, 5, seed=2)
    assert not torch.equal(other(0).targets, batches(0).targets)


@pytest.mark.parametrize("keep", ["states", "checkpoints"])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 9, 10, 16, 17, 31])
@pytest.mark.parametrize("system", ["linear", "training"])
def test_bptt_that_recomputes_is_bptt(system, steps, keep):
    """The same steps bit for bit, the same gradient to rounding, and so many states kept."""
    problem, theta = (
        random_linear(steps=steps) if system == "linear" else small_training_run(steps=steps)
    )
    exact = hypergradient(problem, theta, "bptt")
    found = hypergradient(problem, theta, "bptt", options={"keep": keep})
    assert torch.equal(found.state, exact.state)
    assert torch.equal(found.loss, exact.loss)
    torch.testing.assert_close(found.gradient, exact.gradient, rtol=1e-11, atol=1e-15)
    assert found.status == "exact"
    assert exact.trajectory_bytes == 0
    root = next(n for n in range(1, 40) if n * n >= steps)
    stretches = -(-steps // root)
    last = steps - (stretches - 1) * root
    most = max(stretches - 1 + last, stretches - 2 + root if stretches > 1 else 0)
    kept = steps if keep == "states" else most
    assert found.trajectory_bytes == kept * problem.initial_state().nbytes
    if keep == "checkpoints" and steps > 4:
        assert kept <= 2 * root


def test_bptt_holds_as_many_states_as_it_says(monkeypatch):
    problem, theta = random_linear(steps=31)
    states = []

    def alive() -> set[int]:
        gc.collect()
        return {
            t.untyped_storage().data_ptr()
            for t in gc.get_objects()
            if issubclass(type(t), torch.Tensor) and t.shape == problem.c.shape
        }

    others = alive() - {tensor.untyped_storage().data_ptr() for tensor in (problem.c, problem.q)}

    def pullback_at(theta):
        pullback = Linear.pullback_at(problem, theta)

        def counting(h, x, u):
            states.append(len(alive() - others))
            return pullback(h, x, u)

        return counting

    monkeypatch.setattr(problem, "pullback_at", pullback_at)
    most = {}
    for keep in ("states", "checkpoints"):
        states.clear()
        found = hypergradient(problem, theta, "bptt", options={"keep": keep})
        most[keep] = max(states), found.trajectory_bytes // h_bytes(problem)
    # Besides them ∂L/∂h, an adjoint, a constant and the like; ∂L/∂h is there on the way back only,
    # which is where the checkpoints have their peak.
    besides = {keep: alive - said for keep, (alive, said) in most.items()}
    assert most["states"][1] == 31
    assert most["checkpoints"][1] == 10
    assert 0 <= besides["states"] <= besides["checkpoints"] <= besides["states"] + 2 <= 6


def h_bytes(problem):
    return problem.initial_state().nbytes
