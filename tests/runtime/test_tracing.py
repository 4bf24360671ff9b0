"""A traced function gives the bits of the function that it was traced from."""

from __future__ import annotations

import contextlib
import copy
import itertools
import pickle

import pytest
import torch
from systems import small_training_run
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from hyperrbp import Averaging, TrainingRun, hypergradient
from hyperrbp.data.batches import Batch
from hyperrbp.problems.base import Linearization
from hyperrbp.runtime.tracing import TRACE_AFTER, TracedFunction


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def derivative(x, y):
    leaf = x.detach().requires_grad_()
    with torch.enable_grad():
        value = ((leaf @ y).tanh() * 1.0).sum()
        return torch.autograd.grad(value, leaf)


def test_the_program_has_the_bits_of_the_function():
    function = TracedFunction(derivative)
    x, y = normal(4, 3), normal(3, 5)
    function.trace(x, y)
    assert function.traced
    assert function.refusal is None
    for seed in range(3):
        there = normal(4, 3, seed=seed), normal(3, 5, seed=seed + 9)
        found, expected = function(*there), derivative(*there)
        assert torch.equal(found[0], expected[0])
        assert not found[0].requires_grad


def test_it_is_traced_once_it_has_been_called_often_enough_for_tensors_of_one_kind():
    calls = []

    def counted(x):
        calls.append(x.shape)
        return (x * 2 + 1,)

    function = TracedFunction(counted, trace_after=3)
    for _ in range(3):
        function(normal(4))
        function(normal(5))
    assert len(calls) == 6
    assert not function.traced
    function(normal(4))  # traced, run, and held against the function
    assert function.traced
    assert len(calls) == 8
    for _ in range(5):
        assert torch.equal(function(normal(4))[0], normal(4) * 2 + 1)
    assert len(calls) == 8, "the program is not in use"
    function(normal(4).float())
    function(normal(4, 2)[:, 0])
    assert len(calls) == 10, "a program was used for tensors of another kind"


def test_equal_tensors_at_the_tracing_do_not_stand_in_for_each_other():
    function = TracedFunction(lambda x, y: (x * x.sum() + y,))
    x, y = normal(4), normal(4, seed=1)
    function.trace(x, x)
    assert function.traced
    assert torch.equal(function(x, y)[0], x * x.sum() + y)


def branches(x):
    return (x * 2 if x.sum() > 0 else x * 3,)


def sampling(x):
    return (x + torch.rand(4, dtype=torch.float64),)


def test_what_branches_on_a_value_is_called_as_it_is():
    function = TracedFunction(branches, trace_after=0)
    for x in (normal(4).abs(), -normal(4).abs()):
        assert torch.equal(function(x)[0], branches(x)[0])
    assert not function.traced
    assert function.refusal


def test_what_gives_other_bits_is_called_as_it_is():
    calls = itertools.count()
    function = TracedFunction(lambda x: (x + next(calls),), trace_after=0)
    function(normal(4))
    assert not function.traced
    assert function.refusal == "the traced operations give other bits"


def draws(function, calls=4):
    torch.manual_seed(0)
    return [function(normal(4))[0] for _ in range(calls)], torch.rand(3)


@pytest.mark.parametrize(
    "random",
    [
        sampling,
        lambda x: (nn.functional.dropout(x, 0.5) * torch.randn_like(x),),
        lambda x: (nn.functional.rrelu(x, training=True), torch.randperm(5)),
        lambda x: (x, torch.rand(3))[:1],  # drawn for nothing, and yet the generator moves
        lambda x: (x * 2, torch.manual_seed(5))[:1],  # which no program does
    ],
)
def test_tracing_and_checking_draw_nothing(random):
    """The same draws, and the generator where it would be, with a program and without one."""
    expected, then = draws(random)
    for function, prepare in (
        (TracedFunction(random, trace_after=2), None),
        (TracedFunction(random), "trace"),
        (TracedFunction(random, trace_after=0), "recheck"),
    ):
        if prepare:
            torch.manual_seed(0)
            start = torch.get_rng_state()
            function.trace(normal(4))
            assert torch.equal(torch.get_rng_state(), start)
        if prepare == "recheck":
            function.recheck()
        found, after = draws(function)
        assert all(map(torch.equal, found, expected))
        assert torch.equal(after, then)
        assert function.traced or function.refusal == "the traced operations give other bits"


def test_draws_are_traced_and_new_at_every_call():
    function = TracedFunction(sampling, trace_after=0)
    first, second = function(normal(4))[0], function(normal(4))[0]
    assert function.traced
    assert not torch.equal(first, second)


@contextlib.contextmanager
def default(setting, value, before):
    setting(value)
    try:
        yield
    finally:
        setting(before)


class Doubling(TorchDispatchMode):
    """Whatever is multiplied is multiplied by twice as much."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        return found * 2 if func is torch.ops.aten.mul.Tensor else found


def context_of(name):
    return {
        "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
        "autocast half": lambda: torch.autocast("cpu", torch.float16),
        "default dtype": lambda: default(
            torch.set_default_dtype, torch.float64, torch.get_default_dtype()
        ),
        "default device": lambda: torch.device("meta"),
        "deterministic": lambda: default(torch.use_deterministic_algorithms, True, False),
        "inference mode": torch.inference_mode,
        "dispatch mode": Doubling,
    }[name]()


NAMES = ["autocast", "autocast half", "default dtype", "default device", "deterministic"]
NAMES += ["inference mode", "dispatch mode"]


def context_dependent(x):
    """Depend on whatever surrounds a call."""
    settings = torch.are_deterministic_algorithms_enabled(), torch.is_inference_mode_enabled()
    third = torch.tensor([1 / 3])
    scale = 1.0 if third.is_meta else third.double()
    return ((x @ x).double() * scale * (1 + sum(settings)),)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("traced_inside", [False, True])
def test_a_program_answers_only_in_the_context_it_was_traced_in(name, traced_inside):
    x = normal(40, 40).float()
    function = TracedFunction(context_dependent)
    inside, outside = context_of(name), contextlib.nullcontext()
    with torch.no_grad():
        with context_of(name):
            expected = context_dependent(x)[0]
        assert not torch.equal(expected, context_dependent(x)[0]), "nothing depends on it"
    with inside if traced_inside else outside:
        function.trace(x)
    assert function.traced == (not traced_inside or name != "dispatch mode")
    with context_of(name):
        assert torch.equal(function(x)[0], expected)
    assert torch.equal(function(x)[0], context_dependent(x)[0])


def test_under_autocast_it_is_traced_too():
    x = normal(40, 40).float()
    function = TracedFunction(derivative)
    with torch.autocast("cpu", torch.bfloat16):
        function.trace(x, x)
        assert function.traced
        assert torch.equal(function(x, -x)[0], derivative(x, -x)[0])
    with torch.autocast("cpu", torch.float16):
        assert torch.equal(function(x, -x)[0], derivative(x, -x)[0])
    assert torch.equal(function(x, -x)[0], derivative(x, -x)[0])


def test_transforms_of_functions_reach_the_function():
    function = TracedFunction(lambda x: (x.square().sum(),))
    function.trace(normal(3))
    function.recheck()  # bits cannot be compared there
    rows = normal(5, 3)
    found = torch.func.vmap(lambda row: function(row)[0])(rows)
    torch.testing.assert_close(found, rows.square().sum(1))


class Scaling:
    """An owner of a traced method."""

    def __init__(self) -> None:
        self.scale = 2.0
        self.function = TracedFunction(self.scaled, trace_after=3)

    def scaled(self, x):
        return (x * self.scale,)


def test_a_recheck_finds_what_has_changed_beside_the_tensors():
    owner = Scaling()
    function, x, other = owner.function, normal(4), normal(5)
    function.trace(x)
    function.trace(other)
    owner.scale = 3.0
    function.recheck()
    for _ in range(3):
        assert torch.equal(function(x)[0], x * 3)
    assert torch.equal(function(other)[0], other * 3)
    assert not function.traced
    assert torch.equal(function(x)[0], x * 3)
    assert function.traced, "it was called often enough again"
    assert function.refusal is None


def test_a_recheck_costs_one_call_of_the_function_for_each_program():
    calls = []

    def counted(x):
        calls.append(x.shape)
        return (x * 2,)

    function = TracedFunction(counted)
    for size in (4, 5):
        function.trace(normal(size))
    calls.clear()
    function.recheck()
    for _ in range(3):
        assert torch.equal(function(normal(4))[0], normal(4) * 2)
    function(normal(5))
    assert [len(torch.empty(shape)) for shape in calls] == [4, 5]
    assert function.traced


def test_a_recheck_survives_what_the_program_or_the_function_cannot_do():
    owner = Scaling()
    owner.function.trace(normal(4))
    owner.scale = normal(5)
    owner.function.recheck()
    for _ in range(2):  # and is still due after the first failure
        with pytest.raises(RuntimeError, match="size of tensor"):
            owner.function(normal(4))
    owner.scale = torch.ones(4)
    assert torch.equal(owner.function(normal(4))[0], normal(4))
    owner.function.trace(normal(4))
    owner.function.recheck()
    owner.scale = torch.tensor(1j)
    assert owner.function(normal(4))[0].is_complex()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda owner: pickle.loads(pickle.dumps(owner))])
def test_a_copy_of_the_owner_traces_its_own_method(copied):
    owner, x = Scaling(), normal(4)
    owner.function.trace(x)
    other = copied(owner)
    other.scale = 5.0
    assert not other.function.traced
    for _ in range(5):
        assert torch.equal(other.function(x)[0], x * 5)
        assert torch.equal(owner.function(x)[0], x * 2)
    assert other.function.traced


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_a_copy_has_no_programs(copied):
    function = TracedFunction(derivative, trace_after=0)
    function(normal(4, 3), normal(3, 5))
    other = copied(function)
    assert function.traced
    assert not other.traced
    other(normal(4, 3), normal(3, 5))
    assert other.traced


def test_not_a_number_is_the_same_bits():
    function = TracedFunction(lambda x: (x.log(),), trace_after=0)
    assert function(-normal(4).abs())[0].isnan().all()
    assert function.traced


def trace(problem: TrainingRun, theta: torch.Tensor) -> None:
    problem.run(theta, 0, problem.steps, problem.initial_state())
    hypergradient(problem, theta, "neumann", trunc=TRACE_AFTER + 1)
    hypergradient(problem, theta, "bptt", options={"keep": "states"})
    functions = problem.objective.traced_functions
    for function in (functions[name] for name in ("gradient", "hessian_product", "curvature")):
        assert function.traced
        assert function.refusal is None


@pytest.mark.parametrize("optimizer", ["maclaurin", "sgd"])
def test_a_training_run_and_its_gradients_keep_their_bits(optimizer):
    """Before it is traced, and after: the very same hypergradient, by every method that uses it."""
    methods = [
        ("neumann", {}, Averaging("resampled", minibatches=5, series=2)),
        ("rbp", {}, Averaging("resampled", minibatches=3)),
        ("bptt", {"keep": "states"}, Averaging()),
        ("bptt", {"keep": "checkpoints"}, Averaging()),
    ]

    def gradients(problem, theta):
        return [
            hypergradient(problem, theta, name, trunc=12, averaging=averaging, options=options)
            for name, options, averaging in methods
        ]

    eager, theta = small_training_run(steps=20, optimizer=optimizer)
    before = gradients(eager, theta)
    assert not eager.objective.traced_functions["hessian_product"].traced
    traced, theta = small_training_run(steps=TRACE_AFTER + 20, optimizer=optimizer)
    trace(traced, theta)
    traced.steps = 20
    for a, b in zip(before, gradients(traced, theta), strict=True):
        assert torch.equal(a.state, b.state)
        assert torch.equal(a.gradient, b.gradient)


class Odd(nn.Module):
    """Shared, frozen and linear parameters; views, and an operation in place."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Linear(5, 5)
        self.unused = nn.Linear(2, 2).requires_grad_(False)
        self.last = nn.Linear(5, 3, bias=False)

    def forward(self, inputs):
        hidden = self.shared(inputs).relu_()
        hidden = self.shared(hidden).unflatten(1, (5, 1)).flatten(1).sigmoid()
        return self.last(hidden)


@pytest.mark.parametrize("optimizer", ["maclaurin", "sgd"])
@pytest.mark.parametrize("often", [False, True])
@pytest.mark.parametrize(
    ("model", "loss"),
    [
        (Odd(), nn.functional.cross_entropy),
        (nn.Linear(5, 3), lambda outputs, targets: outputs.square().mean()),
        (nn.Linear(5, 3), lambda outputs, targets: outputs.mean()),  # no curvature at all
    ],
)
def test_products_without_a_graph_are_those_of_the_linearization(model, loss, often, optimizer):
    inputs, targets = normal(12, 5), torch.arange(12) % 3
    problem = TrainingRun(
        model.double(), [(inputs, targets)], steps=TRACE_AFTER + 1, loss=loss, optimizer=optimizer
    )
    theta = problem.initial_theta(0.3, 0.6) + 0.1 * normal(2 * len(problem.tensors))
    h = problem.run(theta, 0, 3, problem.initial_state())
    u, x = normal(len(h), seed=4), Batch(inputs, targets)
    truth = Linearization(problem, h, theta, x)
    for _ in range(TRACE_AFTER + 2 if often else 1):
        transposed = problem.transposed_at(h, theta)(x, u)
        along_h, along_theta = problem.pullback_at(theta)(h, x, u)
    curvature = problem.objective.traced_functions["curvature"]
    assert curvature.traced == often
    assert curvature.refusal is None
    torch.testing.assert_close(transposed, truth.transposed(u), rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(along_h, truth.transposed(u), rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(along_theta, truth.theta_transposed(u), rtol=1e-11, atol=1e-15)
