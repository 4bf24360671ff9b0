"""Solvers of (I − Jᵀ) z = g on dense systems: against dense algebra, and against one another."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from systems import random_linear
from torch import Tensor

from hyperrbp import Averaging, hypergradient
from hyperrbp.exceptions import UsageError
from hyperrbp.hypergradients.anderson import Anderson
from hyperrbp.hypergradients.cg import ConjugateGradient
from hyperrbp.hypergradients.gmres import Gmres
from hyperrbp.hypergradients.implicit import series_status
from hyperrbp.hypergradients.lsqr import Lsqr
from hyperrbp.hypergradients.method import Solution, Status
from hyperrbp.hypergradients.neumann import Neumann
from hyperrbp.hypergradients.rbp import Rbp
from hyperrbp.runtime.metering import LiveBytes

KRYLOV = {
    "cg": ConjugateGradient(),
    "lsqr": Lsqr(),
    "gmres": Gmres(),
    "gmres-restarted": Gmres(restart=4),
    "anderson": Anderson(),
    "anderson-mixing": Anderson(memory=4, mixing=0.7),
}
NEW = [name for name in KRYLOV if name != "cg"]
ALL = KRYLOV | {"rbp": Rbp(z0="zero"), "neumann": Neumann()}
BOTH = pytest.mark.parametrize("dtype", [torch.float64, torch.float32])


class Dense:
    """A Jacobian as a matrix that counts its products."""

    def __init__(self, J: Tensor) -> None:
        self.J, self.products = J, 0

    def transposed(self, u: Tensor) -> Tensor:
        return self._counted("transposed", self.J.T @ u)

    def forward(self, v: Tensor) -> Tensor:
        return self._counted("forward", self.J @ v)

    def _counted(self, kind: str, product: Tensor) -> Tensor:
        self.products += 1
        return product


class Ill(Dense):
    """After ``healthy`` products, those of one kind, or both, are full of ``poison``."""

    def __init__(self, J: Tensor, healthy: int, kind: str, poison: float, once: bool) -> None:
        super().__init__(J)
        self._healthy, self._kind, self._poison, self._once = healthy, kind, poison, once

    def _counted(self, kind: str, product: Tensor) -> Tensor:
        super()._counted(kind, product)
        since = self.products - self._healthy
        if since < 1 or self._kind not in (kind, "both") or (self._once and since > 1):
            return product
        return torch.full_like(product, self._poison)


def normal(*shape: int, seed: int = 0) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=source, dtype=torch.float64)


def contraction(n: int = 20, norm: float = 0.7, seed: int = 0) -> Tensor:
    J = normal(n, n, seed=seed)
    return J * norm / torch.linalg.matrix_norm(J, 2)


def left(J: Tensor) -> Tensor:
    """I − Jᵀ in float64."""
    return torch.eye(len(J), dtype=torch.float64) - J.double().T


def solved(method, J: Tensor, g: Tensor, trunc: int) -> Solution:
    """The solution, after what holds of every one of them."""
    jacobian, kept = Dense(J), g.clone()
    solution = method.solve(jacobian, g, trunc, torch.Generator().manual_seed(0))
    assert torch.equal(g, kept), "the loss gradient was changed"
    assert solution.z.dtype == g.dtype
    assert solution.z.isfinite().all()
    assert solution.products == jacobian.products <= budget(method, trunc)
    return solution


def budget(method, trunc: int) -> int:
    """The most products that a truncation K stands for."""
    if method.name in ("cg", "lsqr"):
        return 2 * trunc + 2
    return trunc + 1 if method.name == "gmres" else trunc


def true_residual(J: Tensor, g: Tensor, z: Tensor) -> float:
    return float((g.double() - left(J) @ z.double()).norm() / g.double().norm())


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


# --- all of them ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("seed", range(3))
def test_a_solver_agrees_with_dense_algebra(name, seed):
    J, g = contraction(seed=seed), normal(20, seed=seed + 9)
    assert relative(J, J.T) > 0.5
    found = solved(ALL[name], J, g, 100)
    assert found.status is Status.CONVERGED
    assert relative(found.z, torch.linalg.solve(left(J), g)) < 1e-10


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("trunc", [1, 2, 5, 6, 9])
def test_a_truncated_solver_spends_what_its_truncation_stands_for(name, trunc):
    method, J, g = ALL[name], contraction(), normal(20, seed=1)
    found = solved(method, J, g, trunc)
    assert found.status is Status.TRUNCATED
    # A restart at the very end would find its product already spent on the last residual.
    assert found.products == budget(method, trunc) - (name == "gmres-restarted" and trunc == 5)


@pytest.mark.parametrize("name", KRYLOV)
@pytest.mark.parametrize("trunc", [1, 4, 7, 13, 200])
def test_the_last_residual_is_the_true_one_and_the_first_that_of_zero(name, trunc):
    J, g = contraction(norm=0.95, seed=2), normal(20, seed=3)
    found = solved(KRYLOV[name], J, g, trunc)
    assert found.residuals[0] == 1
    assert abs(found.residuals[-1] - true_residual(J, g, found.z)) < 1e-12
    assert found.residuals[-1] > 1e-3 or trunc > 4


@pytest.mark.parametrize("name", KRYLOV)
def test_a_residual_is_that_of_the_shorter_truncation(name):
    J, g = contraction(norm=0.9, seed=2), normal(20, seed=3)
    trace = solved(KRYLOV[name], J, g, 9).residuals
    for trunc in range(1, 9):
        found = solved(KRYLOV[name], J, g, trunc)
        if len(found.residuals) == trunc + 1:  # Anderson: the last is the best so far
            assert abs(trace[trunc] - true_residual(J, g, found.z)) < 1e-12


@pytest.mark.parametrize("name", ALL)
def test_a_vanishing_right_side_costs_nothing(name):
    found = solved(ALL[name], contraction(), torch.zeros(20, dtype=torch.float64), 5)
    assert found.products == 0
    assert found.residuals == [0.0]
    assert found.status is Status.CONVERGED
    assert not found.z.any()


@pytest.mark.parametrize("name", ALL)
def test_single_precision_is_solved_to_its_rounding(name):
    J, g = contraction().float(), normal(20, seed=1).float()
    found = solved(ALL[name], J, g, 60)
    assert true_residual(J, g, found.z) < 1e-6
    assert found.residuals[-1] < 1e-6
    assert relative(found.z.double(), torch.linalg.solve(left(J), g.double())) < 1e-6


@pytest.mark.parametrize("name", ["cg", "lsqr", "gmres", "gmres-restarted"])
def test_the_last_residual_is_computed_anew_where_the_recurrence_has_lost_it(name):
    J, g = ill_conditioned(1e4, torch.float32, levels=12)
    found = solved(KRYLOV[name], J, g, 400)
    anew = float((g - (found.z - J.T @ found.z)).norm()) / float(g.norm())
    assert found.residuals[-1] == pytest.approx(anew, rel=1e-6)
    assert found.residuals[-2] < 0.8 * anew or name == "gmres-restarted"


@pytest.mark.parametrize("name", ALL)
def test_a_solver_stops_at_its_tolerance(name):
    J, g = contraction(norm=0.9), normal(20, seed=1)
    loose = solved(replace(ALL[name], tolerance=1e-5), J, g, 150)
    tight = solved(replace(ALL[name], tolerance=1e-9), J, g, 150)
    assert loose.products < tight.products < 150
    assert loose.status is tight.status is Status.CONVERGED
    assert loose.residuals[-2] > 1e-5
    # Of cg and lsqr that of the normal equations may come first.
    assert loose.residuals[-1] <= (2e-5 if name in ("cg", "lsqr") else 1e-5)


@pytest.mark.parametrize("name", ALL)
def test_a_tolerance_of_zero_is_met_where_nothing_is_left(name):
    found = solved(
        replace(ALL[name], tolerance=0.0), torch.zeros(4, 4, dtype=torch.float64), normal(4), 50
    )
    assert found.status is Status.CONVERGED
    assert found.products <= 4
    assert found.residuals[-1] < 1e-15


@pytest.mark.parametrize("name", ALL)
def test_a_truncation_that_is_not_reached_costs_nothing(name):
    found = solved(ALL[name], contraction(), normal(20, seed=1), 10**7)
    assert found.status is Status.CONVERGED
    assert found.products < 200


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((name, "both") for name in KRYLOV),
        *((name, kind) for name in ("cg", "lsqr") for kind in ("transposed", "forward")),
    ],
)
@pytest.mark.parametrize("poison", [math.nan, math.inf])
@pytest.mark.parametrize("healthy", [0, 1, 2, 6])
def test_what_is_not_finite_ends_a_solver(name, kind, poison, healthy):
    J, g = contraction(), normal(20, seed=1)
    # Of a single product it is not known which kind it will be; cg may end before it is felt.
    single = {False, kind == "both" and name != "cg"}
    for dtype, once in itertools.product((torch.float64, torch.float32), single):
        jacobian = Ill(J.to(dtype), healthy, kind, poison, once)
        found = KRYLOV[name].solve(jacobian, g.to(dtype), 50, torch.Generator())
        assert found.products == jacobian.products <= healthy + 6, "it went on"
        assert found.status is Status.NON_FINITE


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_last_product_that_is_not_finite_is_not_passed_over(name, poison):
    J, g = contraction(), normal(20, seed=1)
    healthy = solved(ALL[name], J, g, 100).products - 1
    found = ALL[name].solve(Ill(J, healthy, "both", poison, False), g, 100, torch.Generator())
    assert found.status is Status.NON_FINITE
    assert found.products == healthy + 1


@pytest.mark.parametrize("name", NEW)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_right_side_that_is_not_finite_ends_a_solver(name, value):
    g = normal(20)
    g[3] = value
    found = KRYLOV[name].solve(Dense(contraction()), g, 50, torch.Generator())
    assert found.status is Status.NON_FINITE
    assert found.products <= 5


@pytest.mark.parametrize("size", [1e-140, 1e140])
@pytest.mark.parametrize("name", KRYLOV)
def test_the_scale_of_the_right_side_makes_no_difference(name, size):
    J, g = contraction(), normal(20, seed=1)
    expected = solved(KRYLOV[name], J, g, 8)
    found = solved(KRYLOV[name], J, g * size, 8)
    assert relative(found.z / size, expected.z) < 1e-12
    assert found.residuals == pytest.approx(expected.residuals, rel=1e-9)


# --- where the series does not converge -----------------------------------------------------------


@pytest.mark.parametrize("name", ["cg", "lsqr", "gmres", "anderson"])
def test_a_krylov_solver_needs_no_contraction(name):
    J, g = contraction(12, norm=4.0), normal(12, seed=1)
    assert torch.linalg.eigvals(J).abs().max() > 1.5
    assert torch.linalg.cond(left(J)) < 1e3
    method = Anderson(memory=20) if name == "anderson" else KRYLOV[name]
    found = solved(method, J, g, 100)
    assert found.status is Status.CONVERGED
    assert relative(found.z, torch.linalg.solve(left(J), g)) < 1e-9
    assert solved(Neumann(), J, g, 100).status is Status.GROWING


def test_anderson_with_too_short_a_window_says_that_it_grows():
    J, g = 3.0 * contraction(30, norm=1.0), normal(30)
    found = solved(Anderson(memory=1), J, g, 60)
    assert found.status is Status.GROWING
    # What is returned is the best, and not the last.
    assert found.residuals[-1] == min(found.residuals[1:]) < 1e-2 * found.residuals[-2]
    assert len(found.residuals) == 60 + 2


def singular(normal_null: bool, n: int = 30) -> Tensor:
    """J with one eigenvalue 1, and the others in a disc of radius 0.6."""
    block = torch.zeros(n, n, dtype=torch.float64)
    block[0, 0] = 1
    block[1:, 1:] = contraction(n - 1, norm=0.6)
    basis = normal(n, n, seed=2)
    if normal_null:
        basis = torch.linalg.qr(basis)[0]
    else:
        basis = torch.eye(n, dtype=torch.float64) + 0.5 * basis / n**0.5
    return basis @ block @ torch.linalg.inv(basis)


@pytest.mark.parametrize("name", KRYLOV)
@pytest.mark.parametrize("normal_null", [True, False])
@BOTH
def test_a_singular_system_is_solved_where_it_has_a_solution(name, normal_null, dtype):
    J = singular(normal_null)
    assert torch.linalg.svdvals(left(J))[-1] < 1e-14
    g = left(J) @ normal(30, seed=3)
    found = solved(KRYLOV[name], J.to(dtype), g.to(dtype), 100)
    assert true_residual(J, g, found.z) < (1e-11 if dtype == torch.float64 else 1e-6)
    assert found.z.norm() < 3 * g.norm()
    if dtype == torch.float64 or name != "gmres-restarted":  # it goes on to its truncation
        assert found.status is Status.CONVERGED


@pytest.mark.parametrize("name", ["cg", "lsqr", "gmres", "anderson"])
@pytest.mark.parametrize("normal_null", [True, False])
@BOTH
def test_a_system_without_a_solution_breaks_down(name, normal_null, dtype):
    if name == "cg" and dtype == torch.float32:
        pytest.skip("it goes on below rounding, and z grows along the null space")
    J, g = singular(normal_null), normal(30, seed=4)
    least = torch.linalg.lstsq(left(J), g[:, None], rcond=1e-13, driver="gelsd").solution[:, 0]
    smallest = true_residual(J, g, least)
    assert smallest > 0.01
    found = solved(KRYLOV[name], J.to(dtype), g.to(dtype), 100)
    assert found.status is Status.BREAKDOWN
    # Anderson's iterates go astray, but what is returned is not of those.
    assert found.z.norm() < (10 if name == "anderson" else 2) * g.norm()
    if name == "anderson":
        assert found.residuals[-1] < 2 * smallest
        return
    assert found.residuals[-1] == pytest.approx(
        smallest, rel=1e-6 if dtype == torch.float64 else 1e-2
    )
    if name != "gmres":  # which has another solution of as small a residual
        assert relative(found.z.double(), least) < (1e-6 if dtype == torch.float64 else 1e-2)


@pytest.mark.parametrize("name", ["cg", "lsqr", "gmres", "gmres-restarted", "anderson"])
@BOTH
def test_the_identity_leaves_nothing_to_solve(name, dtype):
    found = solved(KRYLOV[name], torch.eye(4, dtype=dtype), torch.ones(4, dtype=dtype), 50)
    assert found.status is Status.BREAKDOWN
    assert found.products <= 4


def test_a_residual_that_rises_below_that_of_zero_is_not_growing():
    found = solved(Anderson(memory=3), singular(True), normal(30, seed=4), 100)
    trace = found.residuals[:101]
    assert 0.01 < trace[50] < trace[100] < 0.1
    assert found.status is Status.TRUNCATED


@pytest.mark.parametrize(
    ("norms", "status"),
    [
        ([1.0, 0.5, 0.4, 0.1, 0.2, 0.3], Status.GROWING),
        ([1.0, 0.1, 0.2, 0.5, 0.4, 0.3], Status.TRUNCATED),
        ([1.0, 1.0, 1.0, 1.0], Status.TRUNCATED),
        ([1.0, 0.5, 1e-3], Status.CONVERGED),
        ([1.0, math.inf, 0.5], Status.NON_FINITE),
    ],
)
def test_the_second_half_of_a_series_says_whether_it_grows(norms, status):
    assert series_status(norms, tolerance=1e-3) is status


@pytest.mark.parametrize("name", KRYLOV)
@pytest.mark.parametrize("n", [1, 4])
def test_without_feedback_the_right_side_is_the_solution(name, n):
    g = normal(n)
    found = solved(KRYLOV[name], torch.zeros(n, n, dtype=torch.float64), g, 50)
    assert found.status is Status.CONVERGED
    torch.testing.assert_close(found.z, g, rtol=1e-11, atol=0)


# --- lsqr -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("damping", [0.0, 1e-2, 1.0])
@pytest.mark.parametrize("trunc", range(1, 11))
def test_lsqr_takes_the_steps_of_cg(damping, trunc):
    J, g = contraction(40, norm=0.6), normal(40, seed=1)
    assert torch.linalg.cond(left(J)) < 5
    ours = solved(Lsqr(damping=damping), J, g, trunc)
    theirs = solved(ConjugateGradient(damping=damping), J, g, trunc)
    assert relative(ours.z, theirs.z) < 1e-8
    assert ours.residuals == pytest.approx(theirs.residuals, rel=1e-8)
    assert ours.products == theirs.products
    if not damping:
        assert relative(ours.z, torch.linalg.solve(left(J), g)) > 1e-6


@pytest.mark.parametrize("damping", [1e-5, 0.1])
@pytest.mark.parametrize("name", ["singular", "contraction"])
@BOTH
def test_damping_is_on_the_diagonal_of_the_normal_equations(damping, name, dtype):
    J, g = (singular(False), contraction(30))[name == "contraction"], normal(30, seed=4)
    A, eye = left(J), torch.eye(30, dtype=torch.float64)
    truth = torch.linalg.solve(A.T @ A + damping * eye, A.T @ g)
    found = solved(Lsqr(damping=damping), J.to(dtype), g.to(dtype), 100)
    assert found.status is Status.CONVERGED
    assert relative(found.z.double(), truth) < (1e-9 if dtype == torch.float64 else 2e-4)
    assert found.residuals[-1] == pytest.approx(true_residual(J, g, truth), rel=1e-2)
    # As the recurrence had it just before.
    assert found.residuals[-2] == pytest.approx(found.residuals[-1], rel=1e-2)


def test_damping_makes_nothing_of_what_no_step_can_reach():
    found = solved(Lsqr(damping=0.1), torch.eye(4, dtype=torch.float64), normal(4), 50)
    assert found.status is Status.CONVERGED  # zero is the damped solution
    assert not found.z.any()


# --- gmres ----------------------------------------------------------------------------------------


def krylov_least_squares(J: Tensor, g: Tensor, k: int) -> Tensor:
    """Of the smallest residual in span{g, Ag, …, Aᵏ⁻¹g}, with A = I − Jᵀ."""
    basis = [g]
    for _ in range(k - 1):
        basis.append(left(J) @ basis[-1])
    span = torch.linalg.qr(torch.stack(basis, 1))[0]
    return span @ torch.linalg.lstsq(left(J) @ span, g[:, None]).solution[:, 0]


@pytest.mark.parametrize("norm", [0.7, 0.98, 2.0])
def test_gmres_has_the_smallest_residual_in_the_krylov_space(norm):
    J, g = contraction(norm=norm, seed=5), normal(20, seed=6)
    trace = solved(Gmres(), J, g, 12).residuals
    for k in range(1, 13):
        best = krylov_least_squares(J, g, k)
        found = solved(Gmres(), J, g, k)
        assert found.residuals[-1] == pytest.approx(true_residual(J, g, best), rel=1e-9)
        assert trace[k] == pytest.approx(found.residuals[-1], rel=1e-9)
        assert relative(found.z, best) < 1e-8


def test_gmres_is_exact_once_the_space_is_exhausted():
    """A right side in an invariant subspace of three dimensions."""
    basis = torch.linalg.qr(normal(20, 20))[0]
    block = torch.block_diag(contraction(3, norm=0.9), contraction(17, norm=0.9, seed=1))
    J, g = basis @ block @ basis.T, basis[:, :3] @ normal(3)
    found = solved(Gmres(tolerance=0.0), J, g, 100)
    assert found.status is Status.CONVERGED
    assert found.products == 3 + 1
    assert relative(found.z, torch.linalg.solve(left(J), g)) < 1e-13


def test_a_restart_solves_for_the_residual_that_is_left():
    J, g = contraction(norm=0.95, seed=2), normal(20, seed=3)
    z = torch.zeros_like(g)
    for _ in range(3):
        z += solved(Gmres(), J, g - left(J) @ z, 5).z
    found = solved(Gmres(restart=5), J, g, 18)  # three times five, and the residuals between
    assert found.products == 18
    assert relative(found.z, z) < 1e-12
    assert len(found.residuals) == 15 + 1
    whole = solved(Gmres(), J, g, 15)
    assert found.residuals[:6] == pytest.approx(whole.residuals[:6])
    assert found.residuals[-1] > 1.2 * whole.residuals[-1]
    assert solved(Gmres(restart=5), J, g, 500).status is Status.CONVERGED


def test_nothing_left_at_a_restart_ends_it():
    class Lucky(Dense):
        def transposed(self, u):
            product = super().transposed(u)
            return u - g if self.products == 3 else product

    g = normal(20)
    jacobian = Lucky(contraction())
    found = Gmres(restart=2).solve(jacobian, g, 50, torch.Generator())
    assert found.status is Status.CONVERGED
    assert jacobian.products == 3


@pytest.mark.parametrize(
    ("method", "vectors"),
    [(Gmres(restart=5), 5), (Gmres(), 50), (Anderson(memory=5), 10), (Lsqr(), 0)],
)
def test_memory_is_what_is_promised(method, vectors):
    n = 30_000
    scale = torch.linspace(-0.99, 0.99, n, dtype=torch.float64)

    class Diagonal:
        def transposed(self, u):
            return scale * u

        forward = transposed

    g = torch.ones_like(scale)
    with LiveBytes() as live:
        method.solve(Diagonal(), g, 50, torch.Generator())
    # A step of Anderson factors its window, which takes a copy or two.
    spare = 8 + (10 if method.name == "anderson" else 0)
    assert vectors <= live.peak / g.nbytes <= vectors + spare


# --- anderson -------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", [0.7, 0.98])
@pytest.mark.parametrize("mixing", [1.0, 0.6])
def test_anderson_with_a_long_window_is_gmres_and_one_step_more(norm, mixing):
    """Walker and Ni, theorem 2.2: iterate i + 1 is x + βr, x the iterate i of GMRES, r its rest."""
    J, g = contraction(norm=norm, seed=2), normal(20, seed=3)
    for k in range(1, 15):
        found = solved(Anderson(memory=20, mixing=mixing), J, g, k + 1)
        x = solved(Gmres(), J, g, k).z
        expected = x + mixing * (g - left(J) @ x)
        if mixing == 1:
            torch.testing.assert_close(expected, J.T @ x + g)
        assert found.residuals[k + 1] == pytest.approx(true_residual(J, g, expected), rel=1e-7)
        if len(found.residuals) == k + 2:  # the last was the best
            assert relative(found.z, expected) < 1e-8
    short = solved(Anderson(memory=2, mixing=mixing), J, g, 15)
    assert short.residuals[-1] > 2 * found.residuals[-1]


def test_anderson_of_a_single_product_is_the_right_side():
    J, g = contraction(), normal(20, seed=1)
    found = solved(Anderson(), J, g, 1)
    assert torch.equal(found.z, g)
    assert found.residuals == pytest.approx([1.0, float((J.T @ g).norm() / g.norm())], rel=1e-12)


def test_anderson_stops_where_gmres_stagnates():
    """On a cyclic shift GMRES gets nowhere for n − 1 steps, which Anderson cannot leave."""
    J = torch.eye(6, dtype=torch.float64) - torch.eye(6, dtype=torch.float64).roll(1, 0)
    g = torch.eye(6, dtype=torch.float64)[0]
    assert solved(Gmres(), J, g, 50).residuals[:6] == pytest.approx([1.0] * 6)
    found = solved(Anderson(), J, g, 50)
    assert found.status is Status.BREAKDOWN
    assert found.products == 2


# --- ill-conditioned systems ----------------------------------------------------------------------


def ill_conditioned(condition: float, dtype: torch.dtype, levels: int = 120) -> tuple[Tensor, ...]:
    """J of spectral radius below one with the given cond(I − J), not normal, and g; n = 120.

    I − Jᵀ = P W with P symmetric, its eigenvalues log-spaced up to one, and W a rotation by half
    a radian at most: eigenvalues of the product are in the right half plane, within |λ − 1| < 1.
    """
    n = 120
    Q = torch.linalg.qr(normal(n, n))[0]
    singular_values = torch.logspace(-math.log10(condition), 0, levels, dtype=torch.float64)
    skew = normal(n, n, seed=1)
    skew = skew - skew.T
    rotation = torch.linalg.matrix_exp(0.5 * skew / torch.linalg.matrix_norm(skew, 2))
    A = (Q * singular_values.repeat_interleave(n // levels)) @ Q.T @ rotation
    J = torch.eye(n, dtype=torch.float64) - A.T
    return J.to(dtype), normal(n, seed=2).to(dtype)


CONDITIONS = pytest.mark.parametrize("condition", [1e4, 1e6])


@CONDITIONS
def test_the_ill_conditioned_systems_are_what_the_tests_need(condition):
    J, _ = ill_conditioned(condition, torch.float64)
    assert torch.linalg.cond(left(J)) == pytest.approx(condition, rel=1e-6)
    assert 1 - 2 / condition < torch.linalg.eigvals(J).abs().max() < 1
    assert (J @ J.T - J.T @ J).norm() > 0.005 * J.norm() ** 2


@CONDITIONS
@BOTH
def test_lsqr_attains_the_residual_that_cg_attains(condition, dtype):
    """What both can attain is of the order of ε ‖z‖ (Björck, Elfving and Strakoš 1998).

    Over seeds the ratio of the two was between 0.2 and 1.6, where the rounding of z itself is all
    that is left. There are only twelve different singular values, so that they get there in
    hundreds of steps.
    """
    J, g = ill_conditioned(condition, dtype, levels=12)
    attained = {
        method.name: min(
            true_residual(J, g, solved(method, J, g, trunc).z) for trunc in (50, 100, 300, 1000)
        )
        for method in (ConjugateGradient(tolerance=0.0), Lsqr(tolerance=0.0))
    }
    rounding = torch.finfo(dtype).eps * condition
    assert attained["lsqr"] < 2 * attained["cg"]
    assert attained["lsqr"] < 2 * rounding
    # The same without tuning the tolerance, which is on the residual of the normal equations.
    assert true_residual(J, g, solved(Lsqr(), J, g, 1000).z) < max(10 * rounding, 1e-7)


def test_lsqr_begins_again_from_the_true_residual_within_its_truncation():
    J, g = ill_conditioned(1e5, torch.float64, levels=12)
    # The recurrence first ends after some 45 steps; 1.5e-10 is what is left in truth.
    assert solved(Lsqr(), J, g, 300).residuals[-1] < 5e-11
    found = solved(Lsqr(), J, g, 60)
    assert found.status is Status.TRUNCATED
    assert found.products == budget(Lsqr(), 60)


@CONDITIONS
@BOTH
@pytest.mark.parametrize("products", [40, 121, 600])
def test_gmres_and_anderson_are_ahead_of_the_plain_iteration(condition, dtype, products):
    J, g = ill_conditioned(condition, dtype)
    plain = true_residual(J, g, solved(Rbp(z0="zero"), J, g, products).z)
    for method, ahead in ((Gmres(), 0.8), (Gmres(restart=30), 0.9), (Anderson(), 0.9)):
        found = solved(method, J, g, products - (method.name == "gmres"))
        assert found.products <= products
        residual = true_residual(J, g, found.z)
        assert residual < ahead * plain
        if method == Gmres() and products > 120:
            assert residual < torch.finfo(dtype).eps * condition


# --- as methods -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KRYLOV)
@pytest.mark.parametrize("estimator", ["auto", "mean", "frozen"])
def test_a_solver_finds_the_gradient_of_a_problem(name, estimator):
    problem, theta = random_linear()
    averaging = Averaging(estimator, minibatches=2)
    found = hypergradient(problem, theta, KRYLOV[name], trunc=60, averaging=averaging)
    assert relative(found.gradient, problem.closed_form(theta)) < 1e-10
    assert found.status is Status.CONVERGED
    assert found.samples == (2 if estimator == "frozen" else 1)


@pytest.mark.parametrize("name", KRYLOV)
def test_a_krylov_solver_needs_one_jacobian(name):
    problem, theta = random_linear()
    with pytest.raises(UsageError, match="needs one fixed Jacobian"):
        hypergradient(problem, theta, KRYLOV[name], averaging=Averaging("resampled"))


@pytest.mark.parametrize(
    ("method", "options", "words"),
    [
        (Lsqr, {"damping": -1.0}, "'lsqr': damping"),
        (Lsqr, {"tolerance": -1.0}, "'lsqr': tolerance"),
        (Gmres, {"restart": 0}, "'gmres': restart"),
        (Gmres, {"restart": 2.5}, "'gmres': restart"),
        (Anderson, {"memory": 0}, "'anderson': memory"),
        (Anderson, {"mixing": 0.0}, "'anderson': mixing"),
    ],
)
def test_options_that_make_no_sense_are_refused(method, options, words):
    with pytest.raises(UsageError, match=words):
        method(**options)
