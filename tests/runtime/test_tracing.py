"""A traced function gives the bits of the function that it was traced from."""

from __future__ import annotations

import pytest
import torch
from systems import small_training_run
from torch import nn

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
    function = TracedFunction(sampling, trace_after=0)
    torch.manual_seed(0)
    function(normal(4))
    assert not function.traced
    assert function.refusal == "the traced operations give other bits"


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


@pytest.mark.parametrize("update", ["maclaurin", "pytorch"])
def test_a_training_run_and_its_gradients_keep_their_bits(update):
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

    eager, theta = small_training_run(steps=20, update=update)
    before = gradients(eager, theta)
    assert not eager.objective.traced_functions["hessian_product"].traced
    traced, theta = small_training_run(steps=TRACE_AFTER + 20, update=update)
    trace(traced, theta)
    traced.steps = 20
    for a, b in zip(before, gradients(traced, theta), strict=True):
        assert torch.equal(a.state, b.state)
        assert torch.equal(a.gradient, b.gradient)


class Odd(nn.Module):
    """Shared, unused and linear parameters; views, and an operation in place."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Linear(5, 5)
        self.unused = nn.Linear(2, 2)
        self.last = nn.Linear(5, 3, bias=False)

    def forward(self, inputs):
        hidden = self.shared(inputs).relu_()
        hidden = self.shared(hidden).unflatten(1, (5, 1)).flatten(1).sigmoid()
        return self.last(hidden)


@pytest.mark.parametrize("update", ["maclaurin", "pytorch"])
@pytest.mark.parametrize("often", [False, True])
@pytest.mark.parametrize(
    ("model", "loss"),
    [
        (Odd(), nn.functional.cross_entropy),
        (nn.Linear(5, 3), lambda outputs, targets: outputs.square().mean()),
        (nn.Linear(5, 3), lambda outputs, targets: outputs.mean()),  # no curvature at all
    ],
)
def test_products_without_a_graph_are_those_of_the_linearization(model, loss, often, update):
    inputs, targets = normal(12, 5), torch.arange(12) % 3
    problem = TrainingRun(
        model.double(), [(inputs, targets)], steps=TRACE_AFTER + 1, loss=loss, update=update
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
