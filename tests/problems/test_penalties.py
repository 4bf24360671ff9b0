"""Each penalty against its formula on a Jacobian that autograd writes out by itself."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from hyperrbp.exceptions import UsageError
from hyperrbp.problems.penalties import (
    PENALTIES,
    ColumnPenalty,
    GershgorinPenalty,
    LocalJacobian,
    Penalty,
    Regularizer,
    SmallestEigenvaluePenalty,
)

N = 12


@dataclass
class System:
    """h ↦ tanh(W h + b) at h = C a: parameters act through J, and through where J is taken."""

    W: Tensor
    b: Tensor
    a: Tensor
    C: Tensor

    @property
    def parameters(self) -> list[Tensor]:
        return [self.W, self.b, self.a]

    def h(self) -> Tensor:
        return self.C @ self.a

    def update(self, h: Tensor) -> Tensor:
        return torch.tanh(self.W @ h.reshape(-1) + self.b).reshape(h.shape)

    def jacobian(self) -> Tensor:
        """With a graph, and by none of the products under test."""
        derivatives = 1 - torch.tanh(self.W @ self.h() + self.b).square()
        return derivatives[:, None] * self.W

    def at(self, which: int, value: Tensor) -> System:
        """A copy with another parameter, which needs no gradient."""
        given = [p.detach() for p in self.parameters]
        given[which] = value
        return System(*given, self.C)


def system(scale: float = 1.0, n: int = N, seed: int = 0) -> System:
    source = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=source, dtype=torch.float64)

    W = scale * normal(n, n) / n**0.5
    b, a, C = 0.3 * normal(n), 0.5 * normal(4), normal(n, 4)
    return System(W.requires_grad_(), b.requires_grad_(), a.requires_grad_(), C)


def columns(J: Tensor, eta: float) -> Tensor:
    return (J.abs().sum(0) - eta).clamp(min=0).square().max()


def gershgorin(J: Tensor) -> Tensor:
    eye = torch.eye(len(J), dtype=J.dtype)
    distance = torch.linalg.matrix_norm((eye - J).T @ (eye - J) - eye)
    return (len(J) ** 0.5 * distance - 1).clamp(min=0)


def smallest(J: Tensor, eta: float) -> Tensor:
    eye = torch.eye(len(J), dtype=J.dtype)
    return (eta - torch.linalg.eigvalsh((eye - J).T @ (eye - J))[0]).clamp(min=0)


def source(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gradients(value: Tensor, parameters: list[Tensor]) -> Tensor:
    return torch.cat([g.reshape(-1) for g in torch.autograd.grad(value, parameters)])


CASES: dict[str, tuple[Callable[[int], Regularizer], Callable[[Tensor], Tensor]]] = {
    "columns": (
        lambda up_to: ColumnPenalty(eta=0.7, starts=40, dense_up_to=up_to),
        lambda J: columns(J, 0.7),
    ),
    # Enough probes for the estimate to be good to a few per cent where it is used.
    "gershgorin": (lambda up_to: GershgorinPenalty(probes=400, dense_up_to=up_to), gershgorin),
    "smallest-eigenvalue": (
        lambda up_to: SmallestEigenvaluePenalty(eta=0.5, steps=N, dense_up_to=up_to),
        lambda J: smallest(J, 0.5),
    ),
}
NAMES = list(CASES)
SEARCHED = ["columns", "smallest-eigenvalue"]
"""Those whose matrix-free route finds the same as the dense one on a small system."""


def test_every_penalty_is_registered_and_tested():
    assert set(PENALTIES) == set(CASES)
    for name, penalty in PENALTIES.items():
        assert penalty.name == name
        assert penalty.__doc__
        assert isinstance(CASES[name][0](0), penalty)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", NAMES)
def test_dense_route_is_the_formula_and_so_is_its_gradient(name, seed):
    make, formula = CASES[name]
    given = system(1.3, seed=seed)
    truth = formula(given.jacobian())
    assert truth > 1e-3
    found = make(256)(given.update, given.h(), source())
    assert (found.exact, found.error) == (True, 0.0)
    assert found.value.shape == ()
    assert found.value.item() == pytest.approx(truth.item(), rel=1e-12)
    expected = gradients(truth, given.parameters)
    assert all(g.norm() > 1e-3 for g in torch.autograd.grad(formula(given.jacobian()), [given.a]))
    torch.testing.assert_close(
        gradients(found.value, given.parameters), expected, rtol=1e-9, atol=1e-10
    )


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", SEARCHED)
def test_matrix_free_route_finds_the_same(name, seed):
    make, formula = CASES[name]
    given = system(1.3, seed=seed)
    truth = formula(given.jacobian())
    found = make(0)(given.update, given.h(), source(seed))
    assert not found.exact
    assert found.value.item() == pytest.approx(truth.item(), rel=1e-10)
    torch.testing.assert_close(
        gradients(found.value, given.parameters),
        gradients(truth, given.parameters),
        rtol=1e-7,
        atol=1e-8,
    )


@pytest.mark.parametrize("which", range(3))
@pytest.mark.parametrize("up_to", [0, 256])
@pytest.mark.parametrize("name", NAMES)
def test_gradient_against_finite_differences(name, up_to, which):
    """Same draws at every point, so even an estimate has an exact derivative of its own."""
    given = system(1.3, seed=1)
    regularizer = (
        GershgorinPenalty(probes=3, dense_up_to=up_to)
        if name == "gershgorin"
        else CASES[name][0](up_to)
    )

    def value(parameter: Tensor) -> Tensor:
        there = given.at(which, parameter)
        return regularizer(there.update, there.h(), source()).value

    assert torch.autograd.gradcheck(value, [given.parameters[which].detach().requires_grad_()])


@pytest.mark.parametrize("up_to", [0, 256])
@pytest.mark.parametrize("name", NAMES)
def test_shape_of_the_state_makes_no_difference(name, up_to):
    given = system(1.3)
    regularizer = CASES[name][0](up_to)
    flat = regularizer(given.update, given.h(), source())
    shaped = regularizer(given.update, given.h().reshape(2, 3, 2), source())
    assert shaped.value.shape == ()
    assert shaped.quantity == pytest.approx(flat.quantity, rel=1e-13)
    torch.testing.assert_close(
        gradients(shaped.value, given.parameters), gradients(flat.value, given.parameters)
    )


@pytest.mark.parametrize("up_to", [0, 256])
@pytest.mark.parametrize("name", NAMES)
def test_quantity_is_what_the_value_is_made_of(name, up_to):
    given = system(1.3)
    found = CASES[name][0](up_to)(given.update, given.h(), source())
    value = {
        "columns": lambda q: max(0, q - 0.7) ** 2,
        "gershgorin": lambda q: max(0, q - 1),
        "smallest-eigenvalue": lambda q: max(0, 0.5 - q),
    }[name](found.quantity)
    assert value > 0
    assert found.value.item() == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("up_to", [0, 256])
@pytest.mark.parametrize(
    ("regularizer", "scale"),
    [
        (lambda up_to: ColumnPenalty(eta=0.9, dense_up_to=up_to), 0.1),
        (lambda up_to: GershgorinPenalty(probes=20, dense_up_to=up_to), 0.01),
        (lambda up_to: SmallestEigenvaluePenalty(eta=0.3, dense_up_to=up_to), 0.1),
    ],
    ids=NAMES,
)
def test_zero_with_zero_gradient_where_satisfied(regularizer, scale, up_to):
    given = system(scale)
    found = regularizer(up_to)(given.update, given.h(), source())
    assert found.value.item() == 0
    assert found.quantity > 0
    assert gradients(found.value, given.parameters).eq(0).all()


@pytest.mark.parametrize("up_to", [0, 256])
@pytest.mark.parametrize("name", NAMES)
def test_a_jacobian_of_zero(name, up_to):
    """A = I: breakdown at the first Lanczos step, and the root of zero."""
    given = system(0.0)
    found = CASES[name][0](up_to)(given.update, given.h(), source())
    assert found.value.item() == 0
    assert found.quantity == pytest.approx(1 if name == "smallest-eigenvalue" else 0, abs=1e-14)
    assert gradients(found.value, given.parameters).eq(0).all()
    assert not found.error or found.error < 1e-14


@pytest.mark.parametrize("up_to", [0, 256])
@pytest.mark.parametrize("name", NAMES)
def test_an_update_that_does_not_feel_the_state(name, up_to):
    b = torch.ones(N, dtype=torch.float64, requires_grad=True)
    h = torch.zeros(N, dtype=torch.float64)
    for update in (lambda h: torch.tanh(b), lambda h: torch.ones_like(h)):
        found = CASES[name][0](up_to)(update, h, source())
        assert found.value.item() == 0


@pytest.mark.parametrize("up_to", [0, 256])
@pytest.mark.parametrize("name", NAMES)
def test_one_number_is_a_state(name, up_to):
    w = torch.tensor(1.9, dtype=torch.float64, requires_grad=True)
    h = torch.zeros((), dtype=torch.float64)
    found = CASES[name][0](up_to)(lambda h: torch.tanh(w * h), h, source())
    value, derivative = {
        "columns": ((1.9 - 0.7) ** 2, 2 * (1.9 - 0.7)),
        "gershgorin": (0.0, 0.0),
        "smallest-eigenvalue": (0.0, 0.0),
    }[name]
    assert found.value.item() == pytest.approx(value)
    assert torch.autograd.grad(found.value, w)[0].item() == pytest.approx(derivative)


@pytest.mark.parametrize("up_to", [0, 256])
@pytest.mark.parametrize("name", NAMES)
def test_without_gradients_there_is_the_value_and_no_graph(name, up_to):
    given = system(1.3)
    kept = CASES[name][0](up_to)(given.update, given.h(), source())
    with torch.no_grad():
        found = CASES[name][0](up_to)(given.update, given.h(), source())
    assert kept.value.requires_grad
    assert not found.value.requires_grad
    with torch.no_grad():
        product = LocalJacobian(given.update, given.h()).transposed(given.b, graph=True)
    assert not product.requires_grad
    assert found.value.item() == pytest.approx(kept.value.item(), rel=1e-13)


@pytest.mark.parametrize("up_to", [0, 256])
@pytest.mark.parametrize("name", NAMES)
def test_hooks_on_the_state_see_its_gradient_and_no_product(name, up_to):
    """An implicit layer hooks its linear solve to its output."""
    given = system(1.3)
    plain = CASES[name][0](up_to)(given.update, given.h(), source())
    h, seen = given.h(), []
    h.register_hook(lambda g: seen.append(g) or 3 * g)
    hooked = CASES[name][0](up_to)(given.update, h, source())
    assert seen == []
    assert hooked.value.item() == plain.value.item()
    (expected,) = torch.autograd.grad(plain.value, given.a)
    (found,) = torch.autograd.grad(hooked.value, given.a)
    assert len(seen) == 1
    torch.testing.assert_close(found, 3 * expected)


@pytest.mark.parametrize("name", NAMES)
def test_what_else_is_computed_from_the_state_is_no_part_of_the_jacobian(name):
    given = system(1.3)
    h = given.h()
    also = 2 * h
    regularizer = CASES[name][0](256)
    found = regularizer(lambda point: given.update(point) + also, h, source())
    assert found.quantity == pytest.approx(
        regularizer(given.update, h, source()).quantity, rel=1e-12
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_loss_with_the_penalty_trains_the_parameters(name):
    given = system(1.3)
    found = CASES[name][0](0)(given.update, given.h(), source())
    (given.h().square().sum() + found.value).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in given.parameters)


@pytest.mark.parametrize("up_to", [0, 256])
@pytest.mark.parametrize("name", NAMES)
def test_not_a_number_comes_through_as_such(name, up_to):
    given = system(float("nan"))
    found = CASES[name][0](up_to)(given.update, given.h(), source())
    assert found.value.isnan()


def counted(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """One entry for each product asked for: whether it was to carry a graph."""
    calls: list[bool] = []
    for product in ("forward", "transposed"):
        method = getattr(LocalJacobian, product)

        def spy(self, u, graph=False, method=method):
            calls.append(graph)
            return method(self, u, graph)

        monkeypatch.setattr(LocalJacobian, product, spy)
    return calls


@pytest.mark.parametrize(
    ("name", "up_to", "products", "with_graph"),
    [
        ("columns", 256, N + 1, 1),
        ("gershgorin", 256, N, N),
        ("gershgorin", 0, 800, 800),
        ("smallest-eigenvalue", 256, N + 1, 1),
        ("smallest-eigenvalue", 0, 2 * N + 2, 1),
    ],
)
def test_products_are_counted_and_few_keep_a_graph(monkeypatch, name, up_to, products, with_graph):
    calls = counted(monkeypatch)
    given = system(1.3)
    found = CASES[name][0](up_to)(given.update, given.h(), source())
    assert found.products == len(calls) == products
    assert sum(calls) == with_graph


# --- columns


def test_a_column_below_eta_costs_nothing():
    """The printed formula would charge (0 − 0.9)² for the column of zeros."""
    J = torch.diag(torch.tensor([0.0, 0.95, 0.5], dtype=torch.float64))
    for up_to in (0, 256):
        found = ColumnPenalty(eta=0.9, dense_up_to=up_to)(lambda h: J @ h, J[0], source())
        assert found.value.item() == pytest.approx(0.05**2)
        assert found.quantity == pytest.approx(0.95)


def test_the_search_names_a_column_exactly_and_says_that_it_may_not_be_the_largest():
    given = system(1.3, n=40)
    norms = given.jacobian().detach().abs().sum(0)
    for seed in range(20):
        found = ColumnPenalty(eta=0.5, starts=1, dense_up_to=0)(
            given.update, given.h(), source(seed)
        )
        assert not found.exact
        assert found.error is None
        assert (norms - found.quantity).abs().min() < 1e-13
        assert found.quantity > 0.6 * norms.max()


def test_the_search_finds_a_column_that_stands_out_with_few_products():
    for seed in range(10):
        J = torch.randn(200, 200, generator=source(seed), dtype=torch.float64) / 200**0.5
        J[:, 17] *= 3
        norms = J.abs().sum(0)
        assert norms.argmax() == 17
        found = ColumnPenalty(dense_up_to=0)(lambda h, J=J: J @ h, J[0], source(seed))
        assert found.quantity == pytest.approx(float(norms[17]), rel=1e-12)
        assert found.products <= 40


def test_the_search_climbs():
    """The signs of the column that random ones point at are those of a longer one."""
    J = torch.zeros(50, 50, dtype=torch.float64)
    J[:, 7] = 1
    J[:40, 3] = 0.9
    J += 1e-3 * torch.randn(50, 50, generator=source(5), dtype=torch.float64)
    for seed in range(10):
        found = ColumnPenalty(eta=0.9, starts=1, dense_up_to=0)(lambda h: J @ h, J[0], source(seed))
        assert found.quantity == pytest.approx(float(J[:, 7].abs().sum()), rel=1e-12)
        assert found.products <= 8


def test_more_starts_never_find_less():
    given = system(1.3, n=60, seed=4)  # no column stands out: every one is a local maximum
    found = [
        ColumnPenalty(eta=0.5, starts=starts, dense_up_to=0)(given.update, given.h(), source(2))
        for starts in range(1, 8)
    ]
    quantities = [f.quantity for f in found]
    assert quantities == sorted(quantities)
    assert quantities[-1] > quantities[0]


# --- gershgorin


def samples(given: System, probes: int, count: int) -> list[Penalty]:
    regularizer = GershgorinPenalty(probes=probes, dense_up_to=0)
    with torch.no_grad():
        return [regularizer(given.update, given.h(), source(seed)) for seed in range(count)]


def test_the_probes_square_is_unbiased():
    given = system(1.3)
    truth = GershgorinPenalty()(given.update, given.h(), source()).quantity ** 2
    squares = torch.tensor([d.quantity**2 for d in samples(given, 4, 600)])
    deviation = float(squares.mean()) - truth
    assert abs(deviation) < 3 * float(squares.std()) / 600**0.5
    assert float(squares.std()) / 600**0.5 < 0.02 * truth


def test_the_standard_error_covers_and_shrinks():
    given = system(1.3)
    truth = GershgorinPenalty()(given.update, given.h(), source()).quantity
    found = samples(given, 50, 200)
    within = [abs(d.quantity - truth) < 2 * d.error for d in found]
    assert 0.88 < sum(within) / 200 < 0.995
    spread = float(torch.tensor([d.quantity for d in found]).std())
    mean_error = sum(d.error for d in found) / 200
    assert mean_error == pytest.approx(spread, rel=0.15)
    fourfold = samples(given, 200, 30)
    assert sum(d.error for d in fourfold) / 30 == pytest.approx(mean_error / 2, rel=0.1)


def test_the_gradient_of_many_probes_is_near_the_exact_one():
    given = system(1.3)
    truth = gradients(gershgorin(given.jacobian()), given.parameters)
    found = GershgorinPenalty(probes=800, dense_up_to=0)(given.update, given.h(), source())
    assert not found.exact
    difference = gradients(found.value, given.parameters) - truth
    assert difference.norm() < 0.1 * truth.norm()


def test_a_single_probe_has_no_standard_error():
    given = system(1.3)
    assert samples(given, 1, 1)[0].error is None
    assert samples(given, 2, 1)[0].error > 0


# --- the smallest eigenvalue


def spectrum(values: list[float], seed: int = 0) -> Tensor:
    """A J for which A has these eigenvalues, and that is not symmetric."""
    n = len(values)
    left, right = torch.linalg.qr(
        torch.randn(2, n, n, generator=source(seed), dtype=torch.float64)
    ).Q
    singular = torch.tensor(values, dtype=torch.float64).sqrt()
    return torch.eye(n, dtype=torch.float64) - left @ torch.diag(singular) @ right.T


def test_a_singular_operator_is_seen():
    J = spectrum([0.0] + [1.0] * 9)
    for up_to in (0, 256):
        found = SmallestEigenvaluePenalty(eta=0.1, dense_up_to=up_to)(
            lambda h: J @ h, J[0], source()
        )
        assert found.value.item() == pytest.approx(0.1, abs=1e-13)


def test_lanczos_stops_at_an_invariant_subspace():
    """Three distinct eigenvalues: three steps, whatever their multiplicity."""
    J = spectrum([0.2] * 4 + [1.0] * 10 + [2.0] * 6)
    found = SmallestEigenvaluePenalty(eta=0.5, steps=20, dense_up_to=0)(
        lambda h: J @ h, J[0], source()
    )
    assert found.quantity == pytest.approx(0.2, rel=1e-12)
    assert found.error < 1e-12
    assert found.products <= 2 * 4 + 2


@pytest.mark.parametrize("steps", [N, 10**9])
def test_as_many_steps_as_numbers_are_enough(steps):
    given = system(1.3, seed=2)
    exact = SmallestEigenvaluePenalty()(given.update, given.h(), source())
    found = SmallestEigenvaluePenalty(steps=steps, dense_up_to=0)(given.update, given.h(), source())
    assert found.quantity == pytest.approx(exact.quantity, rel=1e-10)
    assert found.products == 2 * N + 2


def test_the_basis_stays_orthogonal_where_the_plain_recurrence_loses_it():
    """The eigenvalues above converge in turn, and come back, long before the lowest is reached."""
    values = [0.01 * 1.3**i for i in range(60)]
    J = spectrum(values)
    found = SmallestEigenvaluePenalty(eta=0.5, steps=60, dense_up_to=0)(
        lambda h: J @ h, J[0], source()
    )
    assert found.quantity == pytest.approx(0.01, rel=1e-6)
    assert found.error < 1e-6


def test_the_estimate_is_an_upper_bound_and_its_residual_reaches_an_eigenvalue():
    given = system(1.0, n=80, seed=6)
    eye = torch.eye(80, dtype=torch.float64)
    M = eye - given.jacobian().detach()
    eigenvalues = torch.linalg.eigvalsh(M.T @ M)
    last = float("inf")
    for steps in (2, 5, 10, 20, 40):
        found = SmallestEigenvaluePenalty(steps=steps, dense_up_to=0)(
            given.update, given.h(), source()
        )
        assert found.products == 2 * steps + 2
        assert eigenvalues[0] - 1e-13 < found.quantity < last
        assert found.error > 1e-9
        assert (eigenvalues - found.quantity).abs().min() <= found.error
        last = found.quantity
    assert last < 1.2 * float(eigenvalues[0]) + 0.01


def test_the_derivative_of_an_eigenvalue_needs_its_eigenvector():
    """J = diag(d): λ_min = (1 − d_0)², so that only d_0 gets a gradient, 2(1 − d_0)."""
    d = torch.tensor([0.8, 0.3, -0.5], dtype=torch.float64, requires_grad=True)
    for up_to in (0, 256):
        found = SmallestEigenvaluePenalty(eta=0.1, dense_up_to=up_to)(
            lambda h: d * h, torch.zeros(3, dtype=torch.float64), source()
        )
        assert found.quantity == pytest.approx(0.04)
        (gradient,) = torch.autograd.grad(found.value, d)
        torch.testing.assert_close(gradient, gradient.new_tensor([0.4, 0, 0]), atol=1e-9, rtol=0)


# --- options and refusals


@pytest.mark.parametrize("name", NAMES)
def test_options_as_a_recipe_reads_them(name):
    adapter = TypeAdapter(PENALTIES[name])
    regularizer = PENALTIES[name]()
    options = {f.name: getattr(regularizer, f.name) for f in fields(regularizer)}
    assert adapter.validate_json(json.dumps(options)) == regularizer
    assert adapter.validate_json('{"dense_up_to": 0}').dense_up_to == 0
    with pytest.raises(ValidationError, match="nothing"):
        adapter.validate_json('{"nothing": 1}')


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("columns", "eta", 0.0),
        ("columns", "eta", 1.0),
        ("columns", "starts", 0),
        ("gershgorin", "probes", 0),
        ("gershgorin", "probes", "8"),
        ("gershgorin", "dense_up_to", -1),
        ("smallest-eigenvalue", "eta", -0.1),
        ("smallest-eigenvalue", "eta", 0.0),
        ("smallest-eigenvalue", "steps", 0),
        ("smallest-eigenvalue", "steps", 1.5),
    ],
)
def test_senseless_options_are_refused_in_a_recipe_and_in_python(name, option, value):
    with pytest.raises(ValidationError, match=option):
        TypeAdapter(PENALTIES[name]).validate_json(json.dumps({option: value}))
    with pytest.raises(UsageError, match=f"penalty '{name}': {option}: "):
        PENALTIES[name](**{option: value})


def test_a_state_that_is_none_is_refused():
    regularizer = ColumnPenalty()
    for h in (torch.zeros(0), torch.zeros(3, dtype=torch.int64), torch.zeros(3) + 0j):
        with pytest.raises(UsageError, match="real numbers"):
            regularizer(lambda h: h, h, source())
    with pytest.raises(UsageError, match=r"shape \(3,\) to one of shape \(2,\)"):
        regularizer(lambda h: h[:2], torch.zeros(3), source())


def test_the_names_and_options_are_read_without_numerics():
    script = (
        "import sys, hyperrbp.problems.penalties as p;"
        " p.PENALTIES['columns'](); print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    modules = done.stdout.split()
    assert "hyperrbp.problems.penalties" in modules, done.stderr
    assert not {"torch", "numpy"} & set(modules)
