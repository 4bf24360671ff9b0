"""What is measured of a gradient, against dense algebra on linear systems of known spectrum."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from functools import cache
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from systems import Linear, random_linear
from torch import Tensor

from hyperrbp import Averaging, hypergradient
from hyperrbp.exceptions import DivergedError
from hyperrbp.hypergradients.agreement import Agreement, agreement
from hyperrbp.hypergradients.diagnostics.examination import Scope, examine
from hyperrbp.hypergradients.diagnostics.finite_differences import finite_differences
from hyperrbp.hypergradients.diagnostics.last_state import LastState
from hyperrbp.hypergradients.diagnostics.linear_solve import SOLVED, Outcome, linear_solve
from hyperrbp.hypergradients.diagnostics.noise import ENOUGH, noise
from hyperrbp.hypergradients.diagnostics.series import growth_rate, neumann_series
from hyperrbp.hypergradients.diagnostics.short_horizon import ShortHorizon, short_horizon
from hyperrbp.hypergradients.diagnostics.smoothness import smoothness
from hyperrbp.hypergradients.diagnostics.spectrum import spectrum
from hyperrbp.hypergradients.diagnostics.steady_state import steady_state
from hyperrbp.hypergradients.diagnostics.verdict import ABOVE_NOISE, KEPT, Evidence, Verdict, judge
from hyperrbp.hypergradients.method import Gradient, Status
from hyperrbp.hypergradients.method_selection import (
    PRODUCT,
    Candidate,
    choose,
    evaluate,
    exact_candidate,
)
from hyperrbp.hypergradients.neumann import Neumann
from hyperrbp.hypergradients.settings import GradientSettings
from hyperrbp.runtime.documents import finite_or_null

RADII = (0.5, 0.99, 1.01, 1.5)
KINDS = ("symmetric", "skewed", "triangular", "momentum")
SMALL, LARGE = 24, 120  # up to the first, the spectrum is dense; beyond, ARPACK's
f64 = torch.float64


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=f64)


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=f64)


def rotation(n: int, seed: int = 1) -> Tensor:
    return torch.linalg.qr(normal(n, n, seed=seed))[0]


@cache
def known(kind: str, radius: float, n: int) -> tuple[Tensor, np.ndarray]:
    """A matrix, and its eigenvalues by construction, the largest of modulus ``radius``."""
    Q, values = rotation(n), radius * torch.linspace(-0.8, 0.79, n, dtype=f64)
    values[0] = radius
    if kind == "symmetric":
        return Q @ values.diag() @ Q.T, values.numpy() + 0j
    if kind == "skewed":  # V diag V⁻¹, V of condition 100
        V = Q @ torch.logspace(0, -2, n, dtype=f64).diag() @ rotation(n, 2)
        return V @ values.diag() @ V.inverse(), values.numpy() + 0j
    if kind == "triangular":
        return values.diag() + (0.9 * radius) * torch.ones(n - 1).diag(1), values.numpy() + 0j
    # Heavy ball, momentum m on curvature λ: a pair of modulus √m and angle φ.
    root, angle = values[: n // 2].abs(), torch.linspace(0.3, 2.8, n // 2, dtype=f64)
    P, eye = rotation(n // 2, 3), torch.eye(n // 2, dtype=f64)
    M, H = P @ (root**2).diag() @ P.T, P @ (1 + root**2 - 2 * root * angle.cos()).diag() @ P.T
    pair = (root * torch.exp(1j * angle)).numpy()
    A = torch.cat([torch.cat([eye - H, M], 1), torch.cat([-H, M], 1)])
    return A, np.concatenate([pair, pair.conj()])


def dense(A: Tensor) -> Mock:
    """Products with a matrix, counted."""
    return Mock(**{"transposed.side_effect": A.T.__matmul__, "forward.side_effect": A.__matmul__})


@dataclass
class System(Linear):
    """h' = x A h + B θ + c with an x for each update; the loss is ⟨q, h⟩ if ``flat``."""

    flat: bool = False
    factors: tuple[float, ...] = (1.0,)
    transient = frozenset({"rate"})
    runs = 0

    def initial_state(self, theta=None):
        self.runs += 1
        return super().initial_state()

    def step(self, h, theta, x):
        return x * (self.A @ h) + self.B @ theta + self.c

    def input(self, t):
        return self.factors[t % len(self.factors)]

    def population(self):
        return [(1 / len(self.factors), x) for x in self.factors]

    def loss_and_gradient(self, h):
        return (self.q @ h, self.q.clone()) if self.flat else super().loss_and_gradient(h)

    def by_name(self, values):
        kinds = {"rate": values[: len(values) // 2], "goal": values[len(values) // 2 :]}
        return {kind: {f"w{i}": x for i, x in enumerate(v.tolist())} for kind, v in kinds.items()}

    def in_precision(self, dtype):
        return replace(self, **{name: getattr(self, name).to(dtype) for name in "ABcq"})


def system(kind: str, radius: float, steps: int, n: int = 12, **given) -> tuple[System, Tensor]:
    parts = {"B": normal(n, 4, seed=7), "c": normal(n, seed=8), "q": normal(n, seed=9)} | given
    return System(known(kind, radius, n)[0], steps=steps, **parts), normal(4, seed=10)


def halving(steps: int = 20, **given) -> tuple[System, Tensor]:
    return system("symmetric", 0.5, steps, **given)


def flipping(steps: int = 200) -> tuple[System, Tensor]:
    """Its gradient is (s − 3, s) with s = Σ_{k≤K} 0.9ᵏ, whose first sign changes after K = 2."""
    A, B = torch.diag(vector(0.9, 0)), torch.tensor([[1.0, 1], [1, 0]], dtype=f64)
    return System(A, B, vector(0, 0), vector(1, -3), steps, flat=True), vector(0, 0)


def terms(A: Tensor, g: Tensor, count: int) -> Tensor:
    """(Aᵀ)ᵏ g for k < count, by rows, from dense powers."""
    powers = [np.eye(len(A))]
    for _ in range(count - 1):
        powers.append(powers[-1] @ A.T.numpy())
    return torch.from_numpy(np.stack(powers) @ g.numpy())


# --- the spectrum ---------------------------------------------------------------------------------


def krylov_condition(A: np.ndarray, g: Tensor, steps: int) -> tuple[float, float]:
    """(σ_min, σ_max/σ_min) of I − Aᵀ on the space of (I − A)(I − Aᵀ) and (I − A) g: that of CG."""
    left = np.eye(len(A)) - A
    basis = np.linalg.qr((left @ g.numpy())[:, None])[0]
    for _ in range(steps - 1):
        basis = np.linalg.qr(np.column_stack([basis, left @ (left.T @ basis[:, -1])]))[0]
    values = np.linalg.svd(left.T @ basis, compute_uv=False)
    return values[-1], values[0] / values[-1]


@pytest.mark.parametrize("n", [SMALL, LARGE])
@pytest.mark.parametrize("radius", RADII)
@pytest.mark.parametrize("kind", KINDS)
def test_the_spectrum_is_that_of_the_dense_matrix(kind, radius, n):
    matrix, eigenvalues = known(kind, radius, n)
    operator, A, g, K, eye = dense(matrix), matrix.numpy(), normal(n, seed=5), 8, np.eye(n)
    norm, close = np.linalg.norm(A, 2), 1e-9 if n == SMALL else 1e-3
    found = spectrum(operator, g, K)
    assert found.products == len(operator.mock_calls) < 600
    assert found.norm == pytest.approx(norm, rel=close)
    assert found.largest_singular_value == pytest.approx(np.linalg.norm(eye - A, 2), rel=close)
    assert not found.singular
    if (kind, n) == ("triangular", LARGE):  # an eigenvalue of a matrix as near as the tolerance
        for value in found.eigenvalues:
            away = np.linalg.svd(A - value * eye, compute_uv=False)[-1]
            assert away <= 1e-2 * abs(value)
    else:
        assert found.radius == pytest.approx(radius, rel=close)
        largest = np.sort(np.abs(eigenvalues))[::-1][: len(found.eigenvalues)]
        assert np.abs(found.eigenvalues) == pytest.approx(largest, rel=close)
        imaginary = max(abs(v.imag) for v in eigenvalues if abs(v) > 0.999 * radius)
        assert abs(found.eigenvalues[0].imag) == pytest.approx(imaginary, rel=close)
    # On the Krylov space, which may be the whole one:
    assert found.krylov_dimension == len(found.ritz_values) == min(30, n)
    on_space = pytest.approx(krylov_condition(A, g, min(30, n)), rel=1e-4)
    assert (found.krylov_smallest, found.krylov_condition) == on_space
    assert found.cg_condition == found.krylov_condition**2
    if n == SMALL:
        assert found.krylov_condition == pytest.approx(np.linalg.cond(eye - A), rel=1e-4)
        gaps = np.abs(np.array(found.ritz_values)[:, None] - eigenvalues[None])
        assert kind == "triangular" or max(gaps.min(0).max(), gaps.min(1).max()) < 1e-6
    # Proposition 2:
    assert (found.bound is None) == (norm >= 1)
    if norm < 1:
        assert found.bound == pytest.approx(norm ** (K + 1) / (1 - norm), rel=1e-6)
        error = sum(np.linalg.matrix_power(A, k) for k in range(K + 1)) - np.linalg.inv(eye - A)
        assert found.bound * (1 + 1e-6) >= np.linalg.norm(error, 2) > 0


def test_ritz_values_are_what_the_loss_gradient_can_see_in_float32_too():
    A, eigenvalues = known("symmetric", 0.99, LARGE)
    seen, g = eigenvalues.real[[3, 50, 110]], rotation(LARGE)[:, [3, 50, 110]].sum(1)
    for dtype, close in ((f64, 1e-8), (torch.float32, 1e-4)):
        found = spectrum(dense(A.to(dtype)), g.to(dtype), 8)
        ritz = sorted(value.real for value in found.ritz_values)
        assert ritz == pytest.approx(sorted(seen), rel=close)
        assert found.krylov_dimension == 3
        assert found.radius == pytest.approx(0.99, rel=1e-3)
    nothing = spectrum(dense(A), 0 * g, 8)
    assert (nothing.ritz_values, nothing.krylov_dimension) == ([], 0)


@pytest.mark.parametrize("where", ["inside", "outside"])
@pytest.mark.parametrize("n", [SMALL, LARGE])
@pytest.mark.parametrize("kind", ["symmetric", "skewed"])
def test_an_eigenvalue_at_one_is_singular(kind, n, where):
    A, g = known(kind, 1.0, n)[0], normal(n, seed=5)
    values, null = torch.linalg.svd(torch.eye(n, dtype=f64) - A)[1:]
    g -= (null[-1] @ g) * null[-1] if where == "inside" else 0  # the range of I − Jᵀ
    found = spectrum(dense(A), g, 8)
    assert found.singular
    assert replace(found, norm=0.9).bound is None
    assert found.krylov_dimension == min(30, n - 1)
    truth = krylov_condition(A.numpy(), g, min(30, n - 1))[1]
    assert found.krylov_condition == pytest.approx(truth, rel=1e-4)
    assert n == LARGE or truth == pytest.approx(float(values[0] / values[-2]), rel=1e-4)


@pytest.mark.parametrize("n", [SMALL, LARGE])
@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, None])
def test_the_spectrum_of_a_multiple_of_the_identity_or_on_a_null_space(scale, n):
    A = known("symmetric", 1.0, n)[0] if scale is None else scale * torch.eye(n, dtype=f64)
    found = spectrum(dense(A), rotation(n)[:, 0], 8)
    for value in (found.radius, found.norm):
        assert value is None or value == pytest.approx(1 if scale is None else scale, abs=1e-12)
    solvable = scale in (0.0, 0.5)
    assert found.krylov_dimension == solvable
    assert found.krylov_condition == pytest.approx(1 if solvable else math.inf)


@pytest.mark.parametrize("n", [SMALL, LARGE])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("entry", [math.inf, math.nan])
def test_the_spectrum_of_a_jacobian_that_overflowed_is_unknown(entry, n):
    A = known("symmetric", 0.5, n)[0].clone()
    A[0, 0] = entry
    found = spectrum(dense(A), normal(n, seed=5), 8)
    assert found.radius is found.norm is found.largest_singular_value is found.bound is None
    assert not found.singular


# --- the series and the solve ---------------------------------------------------------------------


@pytest.mark.parametrize("radius", RADII)
@pytest.mark.parametrize("kind", KINDS)
def test_the_series_takes_dense_powers(kind, radius):
    """Norms and growth of the terms by dense powers, for radius 0.5, 0.99, 1.01, 1.5.

    Catches a growth that is told from two terms.
    """
    A, B, g = known(kind, radius, 12)[0], normal(12, 4, seed=7), normal(12, seed=5)
    found = neumann_series(lambda u: A.T @ u, g, lambda u: B.T @ u, 40)
    every = terms(A, g, 41)
    norms = every.norm(dim=1)
    assert found.norms == pytest.approx((norms / g.norm()).tolist(), rel=1e-9)
    torch.testing.assert_close(found.gradients, every.cumsum(0) @ B, rtol=1e-9, atol=1e-9)
    assert found.last_share == pytest.approx(float(norms[-1] / every.sum(0).norm()), rel=1e-9)
    line = np.polyfit(range(21), np.log(np.asarray(norms[20:41])), 1)
    assert found.growth_rate == pytest.approx(math.exp(line[0]), rel=1e-9)
    assert found.smallest_term == int(norms.argmin())
    assert torch.equal(g, normal(12, seed=5)), "the loss gradient was changed"
    longer = neumann_series(A.T.__matmul__, g, lambda u: u, 300)
    assert kind != "symmetric" or longer.growth_rate == pytest.approx(radius, rel=1e-6)


def test_a_series_stops_where_nothing_more_can_come():
    nothing = neumann_series(lambda u: u, vector(0, 0), lambda u: u, 9)
    assert (nothing.norms, nothing.last_share, nothing.growth_rate) == ([0.0], 0.0, 0.0)
    assert (nothing.gradients.tolist(), nothing.smallest_term) == ([[0, 0]], 0)
    shift = torch.diag(vector(1, 1), 1)
    assert neumann_series(shift.__matmul__, vector(0, 0, 1), lambda u: u, 9).norms == [1, 1, 1, 0]
    over = neumann_series(lambda u: 1e200 * u, vector(1, 0), lambda u: u, 9)
    assert len(over.norms) == len(over.gradients) <= 4
    assert over.norms[-1] == over.growth_rate == math.inf
    assert growth_rate([4.0, 1.0, 2.0, 9.0]) == pytest.approx(3)
    # A trough at the middle, a peak at the end: two points alone would say that it grows.
    swinging = [0.98**k * (1 + 0.9 * math.cos((k - 101) * math.tau * 4.5 / 51)) for k in range(102)]
    assert swinging[101] > swinging[50]
    assert growth_rate(swinging) < 1
    assert growth_rate([1.0]) == growth_rate([1.0, 0.0]) == 0


@pytest.mark.parametrize(
    ("largest", "start", "smallest"), [(1.2, 1e-3, 5), (1.2, 1, 0), (0.9, 1, 20)]
)
def test_a_series_is_cut_at_its_smallest_term_only_if_it_grows(largest, start, smallest):
    A, g = torch.diag(vector(largest, 0.3, -0.2)), vector(start, 0.5, 0.3)
    cut, plain = (Neumann(cut_growing=c).solve(dense(A), g, 20, None) for c in (True, False))
    every = terms(A, g, 21)
    assert neumann_series(A.__matmul__, g, lambda u: u, 20).smallest_term == smallest
    torch.testing.assert_close(cut.z, every[: smallest + 1].sum(0), rtol=1e-12, atol=0)
    torch.testing.assert_close(plain.z, every.sum(0), rtol=1e-12, atol=0)
    assert cut.status is plain.status is (Status.GROWING if largest > 1 else Status.TRUNCATED)
    assert torch.equal(cut.z, plain.z) == (largest < 1)
    assert (cut.residuals, cut.products) == (plain.residuals, plain.products)
    over = Neumann(cut_growing=True).solve(dense(1e120 * A), g, 9, None)
    assert (over.status, over.z.tolist()) == (Status.GROWING, g.tolist())


@pytest.mark.parametrize("K", [5, 16, 80])
@pytest.mark.parametrize("kind", KINDS)
def test_a_series_that_does_not_grow_is_not_cut(kind, K):
    A, g = known(kind, 0.5, 12)[0], normal(12, seed=5)
    cut, plain = (Neumann(cut_growing=c).solve(dense(A), g, K, None) for c in (True, False))
    assert torch.equal(cut.z, plain.z)
    assert cut.status is plain.status is (Status.CONVERGED if K == 80 else Status.TRUNCATED)


def solved(problem: System, z: Tensor, all_zero: bool = False):
    at = LastState.of_run(problem, torch.zeros(problem.B.shape[1], dtype=f64))
    return linear_solve(at.jacobian(1), at.g, z, at.sensitivity, all_zero)


def test_a_solve_has_converged_only_if_both_residuals_are_small():
    problem, z = system("skewed", 0.99, 5, flat=True)[0], normal(12, seed=31)
    left, B, g = torch.eye(12, dtype=f64) - problem.A.T, problem.B, problem.q
    r, found = g - left @ z, solved(problem, z)
    assert found.residual == pytest.approx(float(r.norm() / g.norm()), rel=1e-12)
    change = float((B.T @ r).norm() / (B.T @ z).norm())
    assert found.objective_residual == pytest.approx(change, rel=1e-12)
    assert found.outcome is Outcome.NOT_CONVERGED
    exact = solved(problem, torch.linalg.solve(left, g))
    assert exact.outcome is Outcome.CONVERGED
    assert max(exact.residual, exact.objective_residual) < 1e-10
    assert solved(problem, z, all_zero=True).outcome is Outcome.STRUCTURALLY_ZERO
    # J = 0, so r = g − z; F feels its parameter in the first component only.
    q, B = vector(1e-3, 1), vector(1, 0)[:, None]
    problem = System(torch.zeros(2, 2, dtype=f64), B, vector(0, 0), q, 3, flat=True)
    unfelt, felt = solved(problem, vector(1e-3, 0.5)), solved(problem, vector(5e-4, 1))
    assert unfelt.objective_residual == 0 < SOLVED < unfelt.residual
    assert felt.residual < SOLVED < felt.objective_residual == pytest.approx(1)
    lost = solved(problem, vector(0, 1))
    assert lost.objective_residual == math.inf
    assert {unfelt.outcome, felt.outcome, lost.outcome} == {Outcome.NOT_CONVERGED}
    none = solved(replace(problem, q=vector(0, 0)), vector(0, 0))
    assert (none.residual, none.objective_residual, none.outcome) == (0, 0, Outcome.CONVERGED)


# --- the steady state, noise, longer truncations --------------------------------------------------


def test_the_distance_from_a_steady_state():
    problem, theta = system("skewed", 0.5, 8, factors=(0.4, 1.0, 0.7))  # the last x is 1
    at = LastState.of_run(problem, theta)
    found = steady_state(at)
    for residual, x in ((found.residual, 0.7), (found.minibatch_residual, 1.0)):
        gap = x * problem.A @ at.h + problem.B @ theta + problem.c - at.h
        assert residual == pytest.approx(float(gap.norm() / at.h.norm()), rel=1e-12)
    assert found.norms == {"state": float(at.h.norm())}
    assert found.structurally_zero == {"rate": [], "goal": []}


def test_what_an_implicit_gradient_is_about():
    problem, theta = halving(100)
    meaning = steady_state(LastState.of_run(problem, theta)).meaning
    assert "fades as the run converges" in meaning["rate"]
    assert meaning["goal"].endswith("the run has reached it")
    early = steady_state(LastState.of_run(replace(problem, steps=3), theta)).meaning
    assert early["rate"] == meaning["rate"]
    assert early["goal"].endswith("the run has not reached")
    problem.B[:, [0, 1, 3]] = 0.0
    unfelt = steady_state(LastState.of_run(problem, theta))
    assert unfelt.structurally_zero == {"rate": ["w0", "w1"], "goal": ["w1"]}
    assert "does not feel it" in unfelt.meaning["rate"]
    assert unfelt.meaning["goal"] == meaning["goal"], "one that is felt remains"


def test_components_are_above_noise_from_two_standard_errors():
    error = torch.full((5,), 0.5)
    mean = Gradient(vector(1, -1, 0.9, -3, 0), error, ENOUGH, [], Status.TRUNCATED, 1)
    found = noise(mean)
    assert found.distinguishable == [False, False, False, True, False]
    assert found.share == found.above_noise == 0.2
    assert found.standard_error is error
    assert noise(replace(mean, samples=ENOUGH - 1)).above_noise is None
    assert noise(replace(mean, standard_error=None)) is None


@pytest.mark.parametrize(
    ("method", "trunc", "steps", "minibatches", "truncs"),
    [
        ("tbptt", 3, 12, 1, [3, 6, 12]),
        ("tbptt", 3, 11, 1, [3, 6]),
        ("tbptt", 3, 12, 2, [3, 6]),
        ("tbptt", 3, 5, 3, [3]),
        ("neumann", 9, 3, 1, [9, 18, 36]),
        ("bptt", 9, 20, 1, None),
        ("forward", 9, 20, 1, None),
    ],
)
def test_longer_truncations_go_as_far_as_the_run(method, trunc, steps, minibatches, truncs):
    settings = GradientSettings(method, trunc, Averaging(minibatches=minibatches))
    found = short_horizon(LastState.of_run(*halving(steps)), settings)
    assert (found and found.truncs) == truncs
    assert truncs != [3] or not found.settled, "nothing was compared"


@pytest.mark.parametrize(("method", "counts"), [("neumann", (2, 3, 5)), ("tbptt", (2, 4, 8))])
def test_a_component_whose_sign_flips_is_short_horizon_bias(method, counts):
    problem, theta = flipping()
    settings = GradientSettings(method, 1 if method == "neumann" else 2)
    found = short_horizon(LastState.of_run(problem, theta), settings)
    first, middle, last = (
        problem.B.T @ terms(problem.A, problem.q, count).sum(0) for count in counts
    )
    cosines = [torch.cosine_similarity(first, each, 0).item() for each in (first, middle, last)]
    assert found.cosines == pytest.approx(cosines, rel=1e-12)
    assert found.flipped == [[], [0] if method == "tbptt" else [], [0]]
    assert found.bias == pytest.approx(float(last[0] / last.abs().sum()), rel=1e-12)
    assert not found.settled
    for cosine, settled in ((0.95, True), (0.949, False), (None, False)):
        assert replace(found, cosines=[1.0, 0.1, cosine]).settled is settled


# --- the loss itself ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("directions", [1, 5])
def test_central_differences_of_a_quadratic_loss_are_exact(dtype, directions):
    problem, theta = system("skewed", 0.1, 30)
    problem, theta = problem.in_precision(dtype), theta.to(dtype)
    exact = hypergradient(problem, theta, "bptt").gradient
    problem.runs = 0
    found = finite_differences(problem, theta, exact, directions)
    assert len(found.measured) == len(found.predicted) == directions == problem.runs / 2
    assert f"torch.{found.dtype}" == str(dtype)
    gaps = np.abs(np.subtract(found.measured, found.predicted))
    assert found.error == gaps.max() / np.abs(found.measured + found.predicted).max()
    assert found.error < (1e-8 if dtype is f64 else 1e-3)
    for wrong, error in ((2, 0.5), (-1, 2)):
        found = finite_differences(problem, theta, wrong * exact, directions)
        assert found.error == pytest.approx(error, rel=1e-2)


def test_a_difference_that_is_no_number_is_not_hidden():
    problem, theta = halving()
    right = finite_differences(problem, theta, vector(1, 1, 1, 1), 1).predicted[0]
    losses = iter([2e-4 * right, 0.0, math.nan, math.nan])  # of the second direction
    problem.loss_and_gradient = lambda h: (next(losses), h)
    assert not finite_differences(problem, theta, vector(1, 1, 1, 1), 2).error < 0.5


def test_the_loss_along_a_step():
    problem, theta = system("skewed", 0.5, 9, flat=True)
    at = LastState.of_run(problem, theta)
    exact, start = at.exact_gradient(), float(at.loss)
    found = smoothness(problem, theta, start, exact, 0.05)
    falls = [start - f * 0.05 * float(exact.abs().sum()) for f in (0.25, 0.5, 1, 2)]
    assert found.losses == pytest.approx(falls, rel=1e-9)
    assert found.predicted == pytest.approx(falls, rel=1e-9)
    assert (found.falls, found.ratio) == (True, pytest.approx(1, rel=1e-9))
    uphill = smoothness(problem, theta, start, -exact, 0.05)
    assert (uphill.falls, uphill.ratio) == (False, pytest.approx(-1, rel=1e-9))
    assert smoothness(problem, theta, start, 0 * exact, 0.05).ratio is None
    lost = smoothness(problem, theta * math.nan, start, exact, 0.05)
    assert (lost.falls, lost.ratio) == (False, None)
    # ½θ² at 1: a step of 1.2 goes to −0.2, twice that to −1.4.
    problem = System(0 * vector(1)[None], vector(1)[None], vector(0), vector(0), 1)
    for rate, falls, ratio in ((1.2, True, 0.4), (2.1, False, -0.05)):
        found = smoothness(problem, vector(1), 0.5, vector(1), rate)
        assert (found.falls, found.losses[-1] > 0.5) == (falls, True)
        assert found.ratio == pytest.approx(ratio)


# --- the verdict ----------------------------------------------------------------------------------

GOOD, BAD = Agreement(0.9, 1.0, KEPT, 1.0), Agreement(0.9, 0.5, KEPT - 0.01, 1.0)
UPHILL, VOID = Agreement(-0.1, 0.5, 0.9, 1.0), Agreement(None, 0.0, None, None)
NEAR = ShortHorizon([1, 4], [1.0, 0.96], [[], []], 0)
FAR = ShortHorizon([1, 4], [1.0, 0.9], [[], []], 0)
CLEAR, LOST, ALONE = ABOVE_NOISE, ABOVE_NOISE - 0.01, ShortHorizon([3], [1.0], [[]], 0)


@pytest.mark.parametrize(
    ("verdict", "gradient", "zeros", "status", "known"),
    [  # in order of precedence; each with what would decide if it did not
        ("non-finite", [1.0, math.nan], 2, "exact", {"agreement": GOOD}),
        ("non-finite", [1.0, -math.inf], 1, "converged", {"agreement": GOOD}),
        ("non-finite", [1.0, 1.0], 2, "non-finite", {"agreement": GOOD}),
        ("non-finite", [1.0, math.nan], 1, "exact", {"refuted": True}),
        ("not the derivative", [1.0, 1.0], 1, "exact", {"refuted": True, "agreement": GOOD}),
        ("not the derivative", [0.0, 0.0], 2, "converged", {"refuted": True}),
        ("structurally zero", [0.0, 0.0], 2, "exact", {"agreement": GOOD}),
        ("structurally zero", [0.0, 0.0], 2, "growing", {"agreement": BAD}),
        ("exact", [1.0, 1.0], 1, "exact", {"agreement": BAD, "above_noise": 0.0}),
        ("exact", [0.0, 0.0], 1, "exact", {}),
        ("agrees", [1.0, 1.0], 1, "growing", {"agreement": GOOD, "above_noise": LOST}),
        ("agrees", [1.0, 1.0], 1, "truncated", {"agreement": GOOD, "horizon": FAR}),
        ("disagrees", [1.0, 1.0], 1, "converged", {"agreement": BAD, "horizon": NEAR}),
        ("disagrees", [1.0, 1.0], 1, "converged", {"agreement": UPHILL}),
        ("disagrees", [0.0, 0.0], 1, "growing", {"agreement": replace(VOID, descent=0.0)}),
        ("zero", [0.0, 0.0], 1, "growing", {"agreement": VOID, "above_noise": LOST}),
        ("growing", [1.0, 0.0], 1, "growing", {"above_noise": LOST, "horizon": NEAR}),
        ("growing", [1.0, 1.0], 1, "growing", {"agreement": VOID}),
        ("noisy", [1.0, 1.0], 1, "converged", {"above_noise": LOST, "horizon": NEAR}),
        ("converged", [1.0, 1.0], 1, "converged", {"above_noise": CLEAR, "horizon": FAR}),
        ("undecided", [1.0, 1.0], 1, "truncated", {"above_noise": CLEAR}),
        ("undecided", [1.0, 1.0], 1, "breakdown", {"horizon": ALONE}),
        ("settled", [1.0, 1.0], 1, "truncated", {"above_noise": CLEAR, "horizon": NEAR}),
        ("settled", [1.0, 1.0], 1, "breakdown", {"horizon": NEAR}),
        ("not converged", [1.0, 1.0], 1, "truncated", {"horizon": FAR}),
    ],
)
def test_the_verdict_by_the_documented_order(verdict, gradient, zeros, status, known):
    evidence = Evidence(gradient, [True, zeros == 2], Status(status), **known)
    assert judge(evidence) is Verdict(verdict)


def test_every_verdict_has_words_and_says_whether_to_follow():
    trusted = {Verdict.EXACT, Verdict.AGREES, Verdict.CONVERGED, Verdict.SETTLED}
    assert {v for v in Verdict if v.trusted} == trusted
    assert {v for v in Verdict if v.usable} == trusted | {Verdict.UNDECIDED}
    assert len({v.sentence for v in Verdict}) == len(Verdict) == 13
    assert all(bool(v.advice) != v.trusted for v in Verdict)


# --- the whole examination ------------------------------------------------------------------------

WITH = Scope(meta_learning_rate=None, differences=0, double=False)
WITHOUT = replace(WITH, exact=False)
CHEAP = replace(WITHOUT, horizon=False, spectrum=False)


def plain_json(found) -> dict:
    return json.loads(json.dumps(finite_or_null(found.to_json()), allow_nan=False))


def by_rule(first: Tensor, longest: Tensor, truth: Tensor | None, norms: Tensor) -> str:
    """The documented verdict on a series, from its dense sums and norms."""
    if truth is not None:
        kept = (truth * first.sign()).sum() / truth.abs().sum()
        return "agrees" if kept >= 0.5 and truth @ first > 0 else "disagrees"
    if norms.min() <= 1e-12 * norms[0]:
        return "converged"
    if norms[-1] > norms[len(norms) // 2]:
        return "growing"
    same = torch.cosine_similarity(first, longest, 0) >= 0.95
    return "settled" if same else "not converged"


@pytest.mark.parametrize(
    ("radius", "steps", "K", "with_exact", "without"),
    [
        (0.5, 80, 60, "agrees", "converged"),
        (0.99, 1000, 50, None, None),
        (1.01, 60, 200, None, "growing"),
        (1.5, 30, 200, None, "growing"),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_the_verdict_on_known_systems(kind, radius, steps, K, with_exact, without):
    """Spectral radius 0.5, 0.99, 1.01, 1.5 in four kinds of Jacobians: the verdict by dense sums.

    Catches a slow growth that is overlooked.
    """
    problem, theta = system(kind, radius, steps, flat=kind in ("skewed", "momentum"))
    for scope, obvious in ((WITH, with_exact), (WITHOUT, without)):
        found = examine(problem, theta, GradientSettings("neumann", K), scope)
        every = terms(problem.A, found.at.g, max(4 * K + 1, steps))
        first, last, truth = (every[:k].sum(0) @ problem.B for k in (K + 1, 4 * K + 1, steps))
        norms = every.norm(dim=1)
        truth = truth if scope.exact else None
        assert found.verdict == by_rule(first, last, truth, norms[: K + 1])
        assert found.verdict == (obvious or found.verdict)
        text, bias = " ".join(found.findings()), last[last * first < 0].abs().sum()
        slope = np.polyfit(range(K + 1), np.log(np.asarray(norms[K : 2 * K + 1])), 1)[0]
        assert ("terms of the series grow" in text) == bool(slope > 0)
        assert ("short-horizon bias" in text) == bool(bias >= 0.05 * last.abs().sum())
        assert "structurally" not in text
        assert plain_json(found)["trusted"] is found.verdict.trusted


def test_a_jacobian_of_norm_above_one_may_be_trusted_without_a_bound():
    problem, theta = system("skewed", 0.5, 80, LARGE)
    found = examine(problem, theta, GradientSettings("neumann", 80), Scope(exact=False))
    assert found.spectrum.norm > 5 > 1 > found.spectrum.radius
    assert found.spectrum.bound is None
    assert found.verdict is Verdict.CONVERGED
    assert found.solve.outcome is Outcome.CONVERGED
    assert found.findings() == []


def noisy() -> tuple[System, Tensor]:
    """The first term is not felt, and the sign of the second is drawn."""
    q, B = normal(12, seed=9), normal(12, 4, seed=1)
    signs = (1.0, -1.0, -1.0, 1.0, 1.0, -1.0, 1.0, -1.0)
    return halving(flat=True, factors=signs, q=q, B=B - torch.outer(q, q @ B) / (q @ q))


def unfelt() -> tuple[System, Tensor]:
    return halving(B=torch.zeros(12, 4, dtype=f64))


MADE = {
    "bptt": ("exact", halving, "bptt", 1, WITH),
    "forward": ("exact", halving, "forward", 1, WITH),
    "uphill": ("disagrees", flipping, "neumann", 1, WITH),
    "biased": ("not converged", flipping, "neumann", 1, WITHOUT),
    "cheap": ("undecided", flipping, "neumann", 1, CHEAP),
    "long": ("undecided", halving, "tbptt", 11, WITHOUT),
    "flat": ("zero", lambda: halving(flat=True, q=0 * normal(12, seed=0)), "neumann", 9, WITH),
    "unfelt": ("structurally zero", unfelt, "rbp", 9, WITH),
    "noisy": ("noisy", noisy, "neumann", 9, WITHOUT),
}


@pytest.mark.parametrize("name", MADE)
def test_the_verdict_on_systems_made_for_it(name):
    verdict, make, method, trunc, scope = MADE[name]
    settings = GradientSettings(method, trunc, Averaging(minibatches=8 if name == "noisy" else 1))
    found = examine(*make(), settings, scope)
    document, text = plain_json(found), " ".join(found.findings())
    assert found.verdict == document["verdict"] == verdict
    assert ("short-horizon bias" in text) == (name in ("uphill", "biased"))
    assert ("structurally zero" in text) == (name == "unfelt")
    assert ("minibatch noise" in text) == (name == "noisy")
    assert name != "unfelt" or document["solve"]["outcome"] == "structurally zero"
    assert name != "uphill" or document["horizon"]["flipped"] == [[], [], ["rate/w0"]]


def test_parameters_that_are_not_felt_are_named_and_no_others():
    """The one hyperparameter that is not used is named, and its zero is told to say nothing.

    Catches a zero that counts as information.
    """
    problem, theta = halving(80)
    problem.B[:, 2] = 0.0
    found = examine(problem, theta, GradientSettings("neumann", 60))
    assert found.findings() == ["structurally zero, which says nothing about them: goal of w0"]
    assert found.verdict is Verdict.AGREES


def test_a_zero_gradient_does_not_ask_for_a_smaller_step():
    (only,) = examine(*unfelt(), GradientSettings()).findings()
    assert only.endswith("rate of w0, rate of w1, goal of w0, goal of w1")


@pytest.mark.parametrize(
    ("steps", "verdict"), [(50, Verdict.AGREES), (90, Verdict.STRUCTURALLY_ZERO)]
)
def test_a_state_hides_what_is_felt_only_once_it_has_outgrown_its_rounding(steps, verdict):
    problem, theta = system("symmetric", 1.5, steps)
    found = examine(problem, theta, GradientSettings("neumann", 9), WITH)
    assert found.agreement.cosine > 0.99
    assert found.verdict is verdict


@pytest.mark.parametrize("scope", [WITH, CHEAP])
def test_a_run_that_overflows_has_no_gradient_and_a_gradient_that_does_is_not_finite(scope):
    problem, theta = halving(40, flat=True)
    problem.A = 1e20 * problem.A
    with pytest.raises(DivergedError, match="not finite at its end"):
        examine(problem, theta, GradientSettings("neumann", 9), scope)
    found = examine(replace(problem, steps=1), theta, GradientSettings("neumann", 20), scope)
    assert plain_json(found)["verdict"] == "non-finite"


def test_an_examination_is_repeatable_and_touches_nothing_global():
    problem, theta = system("skewed", 0.5, 30, LARGE)
    before = torch.get_rng_state(), str(np.random.get_state()), torch.is_grad_enabled()
    documents = [
        examine(problem, theta, GradientSettings("rbp", 9), seed=seed).to_json()
        for seed in (3, 3, 4)
    ]
    assert documents[0] == documents[1] != documents[2]
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (str(np.random.get_state()), torch.is_grad_enabled())


def test_the_exact_gradient_is_also_taken_in_float64():
    problem, theta = halving(30)
    single, short = problem.in_precision(torch.float32), theta.float()
    found = examine(single, short, GradientSettings("neumann", 40))
    truth = hypergradient(single.in_precision(f64), short.double(), "bptt").gradient
    assert found.exact.dtype is torch.float32
    torch.testing.assert_close(found.exact_double, truth, rtol=1e-12, atol=0)
    assert [each.dtype for each in found.differences] == ["float32", "float64"]
    assert found.differences[1].error < 1e-6
    assert found.to_json()["precision"]["cosine"] == pytest.approx(1, abs=1e-6)
    assert examine(problem, theta, GradientSettings("neumann", 9)).exact_double is None


# --- the choice of a method -----------------------------------------------------------------------


def candidate(work: int, verdict: str = "agrees", descent: float = 1.0, cosine: float = 1.0):
    held = Agreement(cosine, 1.0, descent, 1.0)
    return Candidate(GradientSettings(), Verdict(verdict), held, work, 1.0)


@pytest.mark.parametrize(
    ("field", "best", "why"),
    [
        ([candidate(400, descent=0.6), candidate(300, descent=0.9)], 1, "90%"),
        ([candidate(400), candidate(300, descent=0.9), candidate(260)], 2, "3.8× cheaper"),
        ([candidate(400), candidate(300, descent=0.9), candidate(270)], 0, "2.5× cheaper"),
        ([candidate(400), candidate(200, descent=0.99, cosine=0.6)], 0, "2.5× cheaper"),
        ([candidate(10, "disagrees"), candidate(500, descent=0.5), candidate(500)], 2, "2.0×"),
        ([candidate(501), candidate(500), candidate(490)], 2, "2.0× cheaper"),
        ([candidate(10, "undecided"), candidate(501)], None, "only 2.0×"),
        ([candidate(800), candidate(625)], None, "only 1.6×"),
        ([candidate(10, "growing")], None, "no other can be trusted"),
        ([], None, "no other can be trusted"),
    ],
)
def test_the_best_of_the_trusted_that_are_much_cheaper(field, best, why):
    exact = candidate(1000, "exact")
    choice = choose(field, exact)
    assert choice.chosen is (exact if best is None else field[best])
    assert why in choice.why


def test_what_does_not_fit_the_run_is_left_out_of_the_field():
    problem, theta = random_linear(steps=30)
    at = LastState.of_run(problem, theta)
    exact = at.exact_gradient()
    field = [
        GradientSettings("tbptt", 31),
        GradientSettings("neumann", 5),
        GradientSettings("cg", 5, Averaging("resampled", 3)),
        GradientSettings("neumann", 5, Averaging(minibatches=31)),
        GradientSettings("tbptt", 30),
    ]
    first, second = evaluate(at, field, exact, run_seconds=0.5)
    assert (first.settings, first.verdict) == (field[1], Verdict.AGREES)
    assert (second.settings, second.verdict) == (field[4], Verdict.EXACT)
    found = hypergradient(problem, theta, "neumann", trunc=5).gradient
    assert first.agreement == agreement(found.tolist(), exact.tolist())
    assert first.work == 30 + PRODUCT * 5
    assert first.merit == first.agreement.descent * first.agreement.cosine / first.work
    reference = exact_candidate(at, exact, 1.0)
    assert (reference.work, reference.verdict) == ((2 + PRODUCT) * 30, Verdict.EXACT)
    assert choose([first, second], reference).chosen is first
