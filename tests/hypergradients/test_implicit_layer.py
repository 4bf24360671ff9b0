"""The steady state as a layer: it is a function like any other to autograd, or says why not."""

from __future__ import annotations

import gc
from dataclasses import fields
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from hyperrbp.exceptions import UsageError
from hyperrbp.hypergradients import METHODS, method_class
from hyperrbp.hypergradients.implicit import ImplicitMethod
from hyperrbp.hypergradients.implicit_layer import Diagnosis, steady_state
from hyperrbp.hypergradients.neumann import Neumann
from hyperrbp.runtime.metering import LiveBytes, SavedBytes

ALL = sorted(METHODS)
SOLVERS = [name for name in ALL if issubclass(method_class(name), ImplicitMethod)]
LONG = {"steps": 40, "updates": 40}


def normal(*shape: int, seed: int = 0, std: float = 1.0, dtype=torch.float64) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    return (std * torch.randn(*shape, generator=source, dtype=torch.float64)).to(dtype)


class Parts(NamedTuple):
    drive: Tensor
    bias: Tensor


class Carrier:
    """Something that F understands and the layer does not."""

    def __init__(self, drive: Tensor) -> None:
        self.drive = drive


PARAMS = {
    "mapping": (lambda W, b: {"W": W, "b": b}, lambda p: (p["W"], p["b"])),
    "list": (lambda W, b: [W, b], lambda p: (p[0], p[1])),
    "tuple": (lambda W, b: (W, b), lambda p: (p[0], p[1])),
    "tensor": (lambda W, b: torch.cat([W, b[None]]), lambda p: (p[:2], p[2])),
}
"""How two tensors are given to the layer, and what F makes of what it gets."""

INPUTS = {
    "tensor": (lambda u, c: u + c, lambda x: x),
    "tuple": (lambda u, c: (u, c), lambda x: x[0] + x[1]),
    "list": (lambda u, c: [u, c], lambda x: x[0] + x[1]),
    "namedtuple": (lambda u, c: Parts(u, c), lambda x: x.drive + x.bias),
    "mapping": (lambda u, c: {"c": c, "u": u}, lambda x: x["u"] + x["c"]),
    "object": (lambda u, c: Carrier((u + c).detach()), lambda x: x.drive),
    "none": (lambda u, c: None, lambda x: 0.3),
}


def tensors() -> dict[str, Tensor]:
    """The leaves of the small system below; all are to have a gradient."""
    leaves = {
        "W": normal(2, 2, seed=1, std=0.25),
        "b": normal(2, seed=2),
        "u": normal(3, 2, seed=3),
        "c": normal(2, seed=4),
    }
    return {name: leaf.requires_grad_() for name, leaf in leaves.items()}


def start() -> Tensor:
    return normal(3, 2, seed=5)


def simple(h: Tensor, p: Tensor, x: Tensor) -> Tensor:
    return torch.tanh(h @ p + x)


def unrolled(F, h0: Tensor, params, x, updates: int) -> Tensor:
    for _ in range(updates):
        h0 = F(h0, params, x)
    return h0


@pytest.mark.parametrize("inputs", INPUTS)
@pytest.mark.parametrize("params", [form for form in PARAMS if form != "tuple"])
@pytest.mark.parametrize(
    "method",
    [
        name
        if name in ("bptt", "forward", "neumann")
        else pytest.param(name, marks=pytest.mark.slow)
        for name in ALL
    ],
)
def test_gradcheck_of_every_form(method, params, inputs):
    """By one method of each way back at first: the forms are the layer's, not the method's."""
    (pack_p, unpack_p), (pack_x, unpack_x) = PARAMS[params], INPUTS[inputs]
    leaves = tensors()
    wanted = ["W", "b"] if inputs in ("object", "none") else list(leaves)

    def F(h, p, x):
        W, b = unpack_p(p)
        return torch.tanh(h @ W + b + unpack_x(x))

    def layer(*given: Tensor) -> Tensor:
        leaf = leaves | dict(zip(wanted, given, strict=True))
        p, x = pack_p(leaf["W"], leaf["b"]), pack_x(leaf["u"], leaf["c"])
        return steady_state(F, start(), p, x, method, steps=40, updates=40)

    given = tuple(leaves[name] for name in wanted)
    assert torch.autograd.gradcheck(layer, given, rtol=1e-6, atol=1e-8, fast_mode=True)


@pytest.mark.parametrize("method", ALL)
def test_gradcheck_of_every_entry(method):
    leaves = tensors()

    def layer(W: Tensor, u: Tensor) -> Tensor:
        return steady_state(simple, start(), W, u, method, **LONG)

    assert torch.autograd.gradcheck(layer, (leaves["W"], leaves["u"]), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("form", sorted({*PARAMS, *INPUTS}))
def test_what_comes_in_by_a_door_keeps_its_form(form):
    leaves, seen = tensors(), []
    params = PARAMS[form][0](leaves["W"], leaves["b"]) if form in PARAMS else leaves["W"]
    x = INPUTS[form][0](leaves["u"], leaves["c"]) if form in INPUTS else None

    def F(h, p, x):
        seen.append((p, x))
        W = p if isinstance(p, Tensor) else next(iter(p.values())) if "W" in p else p[0]
        return torch.tanh(h @ W[:2])

    steady_state(F, start(), params, x, updates=2).sum().backward()
    for p_seen, x_seen in seen:
        assert type(p_seen) is (Tensor if isinstance(params, Tensor) else type(params))
        assert type(x_seen) is type(x)
        if isinstance(x, dict):
            assert list(x_seen) == list(x)
        if isinstance(x, Carrier):
            assert x_seen is x


@pytest.mark.parametrize("options", [{}, {"keep": "states"}, {"keep": "checkpoints"}])
def test_bptt_is_the_unrolled_gradient_wherever_the_run_stands(options):
    leaves = tensors()
    wanted = [leaves["W"], leaves["u"]]
    direction = normal(3, 2, seed=9)
    truth_h = unrolled(simple, start(), *wanted, 7)
    truth = torch.autograd.grad((truth_h * direction).sum(), wanted)
    h = steady_state(simple, start(), *wanted, "bptt", updates=7, options=options)
    found = torch.autograd.grad((h * direction).sum(), wanted)
    torch.testing.assert_close(h, truth_h, rtol=0, atol=0)
    for one, other in zip(found, truth, strict=True):
        assert other.norm() > 0.1
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-15)


def test_tbptt_is_the_gradient_of_the_last_updates():
    leaves = tensors()
    wanted = [leaves["W"], leaves["u"]]
    with torch.no_grad():
        h = unrolled(simple, start(), *wanted, 5)
    truth = torch.autograd.grad(unrolled(simple, h, *wanted, 3).sum(), wanted)
    h = steady_state(simple, start(), *wanted, "tbptt", steps=3, updates=8)
    for one, other in zip(torch.autograd.grad(h.sum(), wanted), truth, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-15)


def test_neumann_is_a_series_of_as_many_products_as_steps():
    leaves = tensors()
    wanted = [leaves["W"], leaves["u"]]
    found = torch.autograd.grad(
        steady_state(simple, start(), *wanted, steps=3, updates=60).sum(), wanted
    )
    with torch.no_grad():
        h = unrolled(simple, start(), *wanted, 60)
    truth = torch.autograd.grad(unrolled(simple, h, *wanted, 4).sum(), wanted)
    for one, other in zip(found, truth, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("method", ALL)
def test_the_value_is_the_last_state(method):
    leaves = tensors()
    truth = unrolled(simple, start(), leaves["W"], leaves["u"], 6)
    given = (simple, start(), leaves["W"], leaves["u"], method)
    h = steady_state(*given, steps=3, updates=6)
    assert torch.equal(h, truth)
    assert h.requires_grad
    early = steady_state(*given, steps=3, updates=200, settled=1e-6)
    exact = steady_state(*given, steps=3, updates=200)
    assert float((early - exact).detach().norm() / exact.detach().norm()) < 1e-5
    if method in SOLVERS:
        assert not torch.equal(early, exact)


@pytest.mark.parametrize("method", ALL)
def test_a_module_is_trained_through_its_named_parameters(method):
    torch.manual_seed(0)
    cell = nn.RNNCell(2, 3).double()
    with torch.no_grad():
        cell.weight_hh.mul_(0.5)
    x = normal(4, 2, seed=1).requires_grad_()

    def F(h, p, x):
        return torch.func.functional_call(cell, p, (x, h))

    h0 = torch.zeros(4, 3, dtype=torch.float64)
    params = dict(cell.named_parameters())
    truth = torch.autograd.grad(
        unrolled(F, h0, params, x, 60).square().sum(), [*params.values(), x]
    )
    steady_state(F, h0, params, x, method, steps=60, updates=60).square().sum().backward()
    for tensor, other in zip([*params.values(), x], truth, strict=True):
        assert other.norm() > 1e-2
        torch.testing.assert_close(tensor.grad, other, rtol=1e-8, atol=1e-12)


# --- where gradients go ---------------------------------------------------------------------------


def test_the_gradient_passes_through_what_params_and_x_are_made_of():
    """One tensor in both, seen by F thrice, and computed from another."""
    seed = tensors()["W"]

    def layer(made: Tensor, solve) -> Tensor:
        W = 0.5 * made.sin()
        return solve(lambda h, p, x: torch.tanh(h @ p[0] + h @ x + p[1]), [W, W[0]], W)

    def by_layer(F, p, x):
        return steady_state(F, start(), p, x, steps=60, updates=60)

    def by_loop(F, p, x):
        return unrolled(F, start(), p, x, 60)

    found, truth = (
        torch.autograd.grad(layer(seed, solve).square().sum(), seed)[0]
        for solve in (by_layer, by_loop)
    )
    assert truth.norm() > 0.1
    torch.testing.assert_close(found, truth, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", ALL)
def test_only_what_requires_a_gradient_gets_one(method):
    leaves = tensors()
    leaves["b"].requires_grad_(False)
    leaves["c"].requires_grad_(False)

    def F(h, p, x):
        return torch.tanh(h @ p["W"] + p["b"] + x[0] + x[1])

    h0 = start()
    params, x = {"b": leaves["b"], "W": leaves["W"]}, (leaves["c"], leaves["u"])
    steady_state(F, h0, params, x, method, **LONG).sum().backward()
    truth = torch.autograd.grad(unrolled(F, h0, params, x, 40).sum(), [leaves["W"], leaves["u"]])
    torch.testing.assert_close(leaves["W"].grad, truth[0], rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(leaves["u"].grad, truth[1], rtol=1e-8, atol=1e-12)
    assert leaves["b"].grad is None
    assert leaves["c"].grad is None
    assert h0.grad is None


@pytest.mark.parametrize("method", ALL)
def test_a_wanted_tensor_that_is_not_used_gets_zeros(method):
    leaves = tensors()
    h = steady_state(
        lambda h, p, x: torch.tanh(h @ p[0]), start(), [leaves["W"], leaves["b"]], leaves["u"],
        method, **LONG,
    )  # fmt: skip
    h.sum().backward()
    assert leaves["W"].grad.any()
    assert torch.equal(leaves["b"].grad, torch.zeros(2, dtype=torch.float64))
    assert torch.equal(leaves["u"].grad, torch.zeros(3, 2, dtype=torch.float64))


def test_an_initial_state_that_wants_a_gradient_is_refused():
    leaves, h0 = tensors(), start().requires_grad_()
    with pytest.raises(UsageError, match=r"h0 requires a gradient.*h0\.detach\(\)"):
        steady_state(simple, h0, leaves["W"], leaves["u"])
    with torch.no_grad():  # nothing would be lost
        assert steady_state(simple, h0, leaves["W"], leaves["u"]).shape == (3, 2)


@pytest.mark.parametrize("method", ALL)
def test_a_hidden_tensor_is_refused(method):
    leaves = tensors()

    def F(h, p, x):
        return torch.tanh(h @ p + leaves["b"])

    with pytest.raises(UsageError, match=r"neither in params nor in x.*pass it in params"):
        steady_state(F, start(), leaves["W"], None, method, **LONG)
    with torch.no_grad():  # nothing would be lost
        assert not steady_state(F, start(), leaves["W"], None, method, **LONG).requires_grad
    leaves["b"].requires_grad_(False)
    assert steady_state(F, start(), leaves["W"], None, method, **LONG).requires_grad


def test_a_hidden_tensor_is_refused_where_nothing_else_requires_a_gradient():
    leaves = tensors()
    with pytest.raises(UsageError, match="neither in params nor in x"):
        steady_state(lambda h, p, x: torch.tanh(h @ leaves["W"] + p), start(), start(), None)


@pytest.mark.parametrize("kind", ["tuple", "mapping"])
def test_an_input_may_have_tensors_of_several_dtypes(kind):
    leaves, nodes = tensors(), torch.tensor([2, 0, 1])
    x = (leaves["u"], nodes) if kind == "tuple" else {0: leaves["u"], 1: nodes}

    def F(h, p, x):
        return torch.tanh(h @ p + x[0][x[1]])

    wanted = [leaves["W"], leaves["u"]]
    truth = torch.autograd.grad(unrolled(F, start(), leaves["W"], x, 40).sum(), wanted)
    found = torch.autograd.grad(steady_state(F, start(), leaves["W"], x, **LONG).sum(), wanted)
    for one, other in zip(found, truth, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("method", ALL)
def test_without_a_wish_for_gradients_it_is_a_plain_value(method):
    leaves = tensors()
    truth = unrolled(simple, start(), leaves["W"], leaves["u"], 40)
    given = (simple, start(), leaves["W"], leaves["u"], method)
    with torch.no_grad():
        assert torch.equal(h := steady_state(*given, **LONG), truth)
    assert not h.requires_grad
    with SavedBytes() as saved:
        plain = (simple, start(), leaves["W"].detach(), leaves["u"].detach(), method)
        h = steady_state(*plain, **LONG)
    assert torch.equal(h, truth)
    assert h.grad_fn is None
    assert saved.peak == 0


# --- more than one way back, and things changed in between ----------------------------------------


@pytest.mark.parametrize(
    ("method", "options"),
    [(name, {}) for name in ALL] + [("bptt", {"keep": k}) for k in ("states", "checkpoints")],
)
def test_a_retained_graph_gives_the_same_bits_again(method, options):
    leaves = tensors()
    wanted = [leaves["W"], leaves["u"]]
    h = steady_state(simple, start(), *wanted, method, steps=4, updates=9, options=options)
    loss = h.square().sum()
    passes = [torch.autograd.grad(loss, wanted, retain_graph=True) for _ in range(3)]
    passes.append(torch.autograd.grad(loss, wanted))
    for found in passes[1:]:
        for one, other in zip(found, passes[0], strict=True):
            assert torch.equal(one, other)
    assert passes[0][0].norm() > 0.1


@pytest.mark.parametrize("method", SOLVERS)
def test_a_second_way_back_does_not_run_again(method):
    leaves, updates = tensors(), 0

    def F(h, p, x):
        nonlocal updates
        updates += 1
        return simple(h, p, x)

    loss = steady_state(F, start(), leaves["W"], leaves["u"], method, updates=50).sum()
    for _ in range(2):
        updates = 0
        loss.backward(retain_graph=True)
        assert updates < 5


@pytest.mark.parametrize("method", ALL)
def test_the_value_may_be_changed_in_place(method):
    leaves = tensors()
    h = steady_state(simple, start(), leaves["W"], leaves["u"], method, **LONG)
    truth = torch.autograd.grad((3 * h).sum(), leaves["W"], retain_graph=True)[0]
    h.mul_(3)
    assert torch.equal(torch.autograd.grad(h.sum(), leaves["W"])[0], truth)


@pytest.mark.parametrize("method", ALL)
def test_two_ways_back_from_one_graph_add_up(method):
    leaves = tensors()
    h = steady_state(simple, start(), leaves["W"], leaves["u"], method, **LONG)
    both, first = normal(3, 2, seed=7), normal(3, 2, seed=8)
    whole = torch.autograd.grad((h * both).sum(), leaves["W"], retain_graph=True)[0]
    one = torch.autograd.grad((h * first).sum(), leaves["W"], retain_graph=True)[0]
    other = torch.autograd.grad((h * (both - first)).sum(), leaves["W"])[0]
    torch.testing.assert_close(one + other, whole, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("method", ALL)
def test_a_second_way_back_through_a_freed_graph_fails_as_elsewhere(method):
    leaves = tensors()
    loss = steady_state(simple, start(), leaves["W"], leaves["u"], method, **LONG).sum()
    loss.backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()


@pytest.mark.parametrize("changed", ["W", "u"])
@pytest.mark.parametrize("method", ALL)
def test_parameters_changed_before_the_way_back_are_refused(method, changed):
    leaves = tensors()
    loss = steady_state(simple, start(), leaves["W"], leaves["u"], method, **LONG).sum()
    with torch.no_grad():
        leaves[changed].mul_(1.5)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("changed", ["params", "x"])
@pytest.mark.parametrize("method", SOLVERS)
def test_constants_changed_before_the_way_back_are_refused_or_do_not_matter(method, changed):
    leaves = tensors()
    constants = {"params": leaves["b"].detach(), "x": leaves["u"].detach()}

    def F(h, p, x):
        return torch.tanh(h @ p[0] + p[1] + x)

    params = [leaves["W"], constants["params"]]
    loss = steady_state(F, start(), params, constants["x"], method, **LONG).sum()
    (before,) = torch.autograd.grad(loss, leaves["W"], retain_graph=True)
    constants[changed].add_(1)
    try:
        (after,) = torch.autograd.grad(loss, leaves["W"])
    except RuntimeError as error:
        assert "inplace" in str(error)  # noqa: PT017
    else:
        assert torch.equal(before, after)


@pytest.mark.parametrize("method", ALL)
def test_a_second_derivative_is_refused(method):
    leaves = tensors()
    h = steady_state(simple, start(), leaves["W"], leaves["u"], method, **LONG)
    with pytest.raises(UsageError, match="once, not twice"):
        torch.autograd.grad(h.square().sum(), leaves["W"], create_graph=True)


def test_a_second_derivative_of_a_linear_loss_is_refused_too():
    leaves = tensors()
    h = steady_state(simple, start(), leaves["W"], leaves["u"], **LONG)
    loss = h.sum()  # its gradient with respect to h is a constant: PyTorch would see no second pass
    with pytest.raises(UsageError, match="once, not twice"):
        torch.autograd.grad(loss, leaves["W"], create_graph=True)


# --- what is drawn, and what is told --------------------------------------------------------------


@pytest.mark.parametrize("method", ALL)
def test_global_generators_stand_as_they_stood_and_only_rbp_draws(method):
    leaves = tensors()

    def gradient(seed: int) -> Tensor:
        h = steady_state(
            simple, start(), leaves["W"], leaves["u"], method, steps=3, updates=9, seed=seed
        )
        return torch.autograd.grad(h.sum(), leaves["W"])[0]

    before = torch.get_rng_state()
    first = gradient(1)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(17)
    assert torch.equal(gradient(1), first)
    assert torch.equal(gradient(2), first) is (method != "rbp")


@pytest.mark.parametrize("method", ALL)
def test_a_diagnosis_is_filled_by_the_way_back(method):
    leaves, diagnosis = tensors(), Diagnosis()
    given = (simple, start(), leaves["W"], leaves["u"], method)
    h = steady_state(*given, steps=5, updates=6, diagnosis=diagnosis)
    assert diagnosis == Diagnosis()
    assert (diagnosis.status, diagnosis.residual, diagnosis.products) == (None, None, 0)
    h.sum().backward()
    with torch.no_grad():
        moved = float((simple(h, leaves["W"], leaves["u"]) - h).norm() / h.norm())
    assert diagnosis.steady_state_residual == pytest.approx(moved, rel=1e-10)
    assert moved > 1e-6
    exact = not method_class(method).uses_trunc
    assert diagnosis.status == ("exact" if exact else "truncated")
    others = {  # than one each time
        "bptt": 6,
        "cg": 1 + 2 * 5 + 1,
        "lsqr": 1 + 2 * 5 + 1,
        "gmres": 5 + 1,
        "forward": 6 * sum(t.numel() for t in (leaves["W"], leaves["u"])),
    }
    assert diagnosis.products == others.get(method, 5)
    if method in SOLVERS:
        (trace,) = diagnosis.residuals
        assert len(trace) == 5 if method == "rbp" else 6
        assert diagnosis.residual == trace[-1] > 0
        h = steady_state(*given, steps=80, updates=80, diagnosis=diagnosis)
        h.sum().backward()
        assert diagnosis.status == "converged"
        assert diagnosis.residual < 1e-11
        assert diagnosis.steady_state_residual < 1e-10
    else:
        assert diagnosis.residuals == []
        assert diagnosis.residual is None


def test_a_diagnosis_tells_of_a_map_that_does_not_contract():
    diagnosis, scale = Diagnosis(), torch.tensor([1.5], requires_grad=True)
    h = steady_state(
        lambda h, p, x: p * h + 1, torch.zeros(1), scale, updates=20, steps=20, diagnosis=diagnosis
    )
    h.sum().backward()
    assert diagnosis.status == "growing"
    assert diagnosis.steady_state_residual > 0.1


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"method": "newmann"}, "unknown gradient method 'newmann'.*did you mean neumann"),
        ({"options": {"tol": 1}}, "'neumann'.*'tol'"),
        ({"options": {"keep": "states"}}, "'neumann'.*'keep'"),
        ({"updates": 0}, "at least 1 update, not 0"),
        ({"settled": -1.0}, "at least 0, not -1"),
        ({"steps": 0}, "at least 1"),
        ({"method": "tbptt", "steps": 10, "updates": 9}, "10 updates; there are only 9"),
        ({"params": []}, "non-empty list or mapping of tensors"),
        ({"params": {}}, "non-empty list or mapping of tensors"),
        ({"params": {"W": 1.0}}, "non-empty list or mapping of tensors"),
        ({"F": lambda h, p, x: h.float()}, "of torch.float64 into torch.float32"),
        ({"F": lambda h, p, x: h[:1]}, r"of shape \(3, 2\) into \(1, 2\)"),
        ({"F": lambda h, p, x: (h @ p).sum()}, r"of shape \(3, 2\) into \(\)"),
        ({"F": lambda h, p, x: h.T}, r"of shape \(3, 2\) into \(2, 3\)"),
    ],
)
@pytest.mark.parametrize("graph", [True, False])
def test_arguments_that_make_no_sense_are_refused(arguments, words, graph):
    leaves = tensors()
    usual = {"F": simple, "h0": start(), "params": leaves["W"], "x": leaves["u"]}
    with torch.set_grad_enabled(graph), pytest.raises(UsageError, match=words):
        steady_state(**usual | arguments)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("rbp", {"z0": "unifrom"}),
        ("bptt", {"keep": "chekpoints"}),
        ("neumann", {"tolerance": "1e-3"}),
        ("neumann", {"tolerance": -1.0}),
        ("cg", {"damping": -1.0}),
    ],
)
def test_values_of_options_that_make_no_sense_are_refused(method, options):
    leaves = tensors()
    with pytest.raises(UsageError, match=next(iter(options))):
        steady_state(simple, start(), leaves["W"], leaves["u"], method, options=options)


def test_a_method_object_is_taken_as_it_is():
    leaves, diagnosis = tensors(), Diagnosis()
    method = Neumann(tolerance=1e-3)
    h = steady_state(simple, start(), leaves["W"], leaves["u"], method, **LONG, diagnosis=diagnosis)
    h.sum().backward()
    assert diagnosis.status == "converged"
    assert 1e-5 < diagnosis.residual < 1e-3
    by_name = Diagnosis()
    steady_state(
        simple, start(), leaves["W"], leaves["u"], "neumann", **LONG,
        options={"tolerance": 1e-3}, diagnosis=by_name,
    ).sum().backward()  # fmt: skip
    assert by_name == diagnosis


# --- precision, layout, training ------------------------------------------------------------------


@pytest.mark.parametrize("method", ALL)
def test_single_precision(method):
    W, u, h0 = (t.detach().float() for t in (tensors()["W"], tensors()["u"], start()))
    W.requires_grad_()
    h = steady_state(simple, h0, W, u, method, **LONG)
    h.sum().backward()
    assert h.dtype == W.grad.dtype == torch.float32
    exact = tensors()
    truth = unrolled(simple, start(), exact["W"], exact["u"], 40).sum()
    (gradient,) = torch.autograd.grad(truth, exact["W"])
    torch.testing.assert_close(W.grad.double(), gradient, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ALL)
def test_tensors_need_not_be_contiguous(method):
    leaves = tensors()
    base, h0 = leaves["W"].detach().T.contiguous().requires_grad_(), start().T.contiguous().T
    assert not h0.is_contiguous()
    h = steady_state(simple, h0, base.T, leaves["u"], method, **LONG)
    (h.T * normal(2, 3, seed=1)).sum().backward()
    truth = unrolled(simple, start(), leaves["W"], leaves["u"], 40)
    (gradient,) = torch.autograd.grad((truth.T * normal(2, 3, seed=1)).sum(), leaves["W"])
    torch.testing.assert_close(base.grad.T, gradient, rtol=1e-8, atol=1e-12)
    # What comes back may be a broadcast number.
    loss = steady_state(simple, h0, leaves["W"], leaves["u"], method, **LONG).sum()
    loss.backward()
    truth = unrolled(simple, start(), leaves["W"], leaves["u"], 40).sum()
    (gradient,) = torch.autograd.grad(truth, leaves["W"])
    torch.testing.assert_close(leaves["W"].grad, gradient, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("shape", [(), (5,), (2, 1, 3)])
def test_a_state_has_any_shape(shape):
    p = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    h = steady_state(lambda h, p, x: p * h + 1, torch.zeros(shape, dtype=torch.float64), p, **LONG)
    assert h.shape == shape
    torch.testing.assert_close(h, torch.full_like(h, 1 / 0.6))
    h.sum().backward()
    assert float(p.grad) == pytest.approx(h.numel() / 0.36)


@pytest.mark.parametrize("method", ALL)
def test_a_network_with_a_convergent_part_is_trained_by_adam(method):
    torch.manual_seed(0)
    encoder, head = nn.Linear(4, 6), nn.Linear(6, 3)
    recurrent = nn.Parameter(0.1 * torch.randn(6, 6))
    inputs, targets = torch.randn(24, 4), torch.randint(0, 3, (24,))
    everything = [*encoder.parameters(), recurrent, *head.parameters()]
    before = [tensor.clone() for tensor in everything]
    adam = torch.optim.Adam(everything, 0.02)
    losses = []
    for _ in range(25):
        h = steady_state(
            simple, torch.zeros(24, 6), recurrent, encoder(inputs), method, 15, updates=20
        )
        loss = nn.functional.cross_entropy(head(h), targets)
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(loss.item())
    assert losses[-1] < 0.75 * losses[0]
    for tensor, old in zip(everything, before, strict=True):
        assert (tensor - old).abs().max() > 0.05


# --- memory ---------------------------------------------------------------------------------------


def bytes_of(method: str, updates: int, steps: int, options=None) -> tuple[int, int]:
    """The peaks of live and of saved bytes of a forward and a backward pass."""
    peaks = []
    for meter in (LiveBytes, SavedBytes):
        W, x = normal(16, 16, std=0.1).requires_grad_(), normal(20, 16).requires_grad_()
        h0 = torch.zeros(20, 16, dtype=torch.float64)
        gc.collect()
        with meter() as measured:
            h = steady_state(simple, h0, W, x, method, steps, updates=updates, options=options)
            h.square().sum().backward()
        assert W.grad.any()
        peaks.append(measured.peak)
    return peaks[0], peaks[1]


@pytest.mark.parametrize("method", SOLVERS)
def test_memory_of_an_implicit_method_is_constant_to_the_byte(method):
    # What a Krylov method and an acceleration remember is bounded by an option of theirs.
    window = {"gmres": {"restart": 4}, "anderson": {"memory": 4}}.get(method, {})
    names = {field.name for field in fields(method_class(method))}
    exhaustive = {name: 0.0 for name in ("tolerance",) if name in names} | window
    few, many = 20, 60  # the meter is slow
    base = bytes_of(method, few, 12, exhaustive)
    assert min(base) > 0
    assert bytes_of(method, many, 12, exhaustive) == base
    assert bytes_of(method, few, 20, exhaustive) == base


def test_memory_of_unrolling_grows():
    state = 20 * 16 * 8
    short, long = (bytes_of("bptt", updates, 5) for updates in (20, 80))
    few, many = (bytes_of("tbptt", 80, steps) for steps in (5, 25))
    assert bytes_of("tbptt", 200, 5) == few
    for at in (0, 1):
        assert long[at] - short[at] >= 60 * state
        assert many[at] - few[at] >= 20 * state
    assert bytes_of("neumann", 80, 5)[0] < long[0] / 5


def test_a_way_back_leaves_nothing_behind():
    W, x = normal(16, 16, std=0.1).requires_grad_(), normal(20, 16)
    for method in ALL:
        W.grad = torch.zeros_like(W)
        gc.collect()
        with LiveBytes() as live:
            h = steady_state(simple, torch.zeros(20, 16).double(), W, x, method, 5, updates=9)
            loss = h.square().sum()
            loss.backward()
            del h, loss
            assert live.now == 0, method
