"""Every kind of hyperparameter at every grain: its place in θ, and its exact gradient."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from systems import VALUES, examples, run_of
from torch import nn
from torch.nn.functional import cross_entropy

from hyperrbp.data.batches import Batch, ListedBatches, ShuffledBatches
from hyperrbp.exceptions import UsageError
from hyperrbp.hypergradients import Averaging, hypergradient
from hyperrbp.hypergradients.bptt import Bptt
from hyperrbp.problems.training.hyperparameters import KINDS, Grain, Hyperparameters, Layout
from hyperrbp.problems.training.run import TrainingRun

GRAINS = [
    ("learning_rate", Grain("net")),
    ("learning_rate", Grain("layer", 2)),
    ("learning_rate", Grain("tensor", 3)),
    ("momentum", Grain("net", 3)),
    ("momentum", Grain("layer")),
    ("momentum", Grain("tensor", 2)),
    ("weight_decay", Grain("net")),
    ("weight_decay", Grain("layer")),
    ("weight_decay", Grain("tensor")),
    ("weight_decay", Grain("weight")),
    ("init_scale", Grain("net")),
    ("init_scale", Grain("layer")),
    ("init_scale", Grain("tensor")),
    ("example_weight", Grain("example")),
]
each_grain = pytest.mark.parametrize(
    ("kind", "grain"), GRAINS, ids=[f"{kind}-{g.by}-{g.segments}" for kind, g in GRAINS]
)
each_update = pytest.mark.parametrize("optimizer", ["maclaurin", "sgd"])
MIXED = {
    "learning_rate": Grain("tensor", 3),
    "momentum": Grain("layer", 2),
    "weight_decay": Grain("tensor"),
    "init_scale": Grain("layer"),
    "example_weight": Grain("example"),
}


def final_loss(problem: TrainingRun, theta: torch.Tensor) -> torch.Tensor:
    h = problem.run(theta, 0, problem.steps, problem.initial_state(theta))
    return problem.loss(h)


def derivative(problem: TrainingRun, theta: torch.Tensor, direction: torch.Tensor) -> float:
    """Richardson's combination of two central differences."""
    coarse, fine = (
        float(
            final_loss(problem, theta + e * direction) - final_loss(problem, theta - e * direction)
        )
        / (2 * e)
        for e in (2e-3, 1e-3)
    )
    return (4 * fine - coarse) / 3


def assert_same(found: torch.Tensor, expected: torch.Tensor, within: float = 1e-10) -> None:
    assert float(expected.norm()) > 1e-6, "nothing to tell apart"
    assert float((found - expected).norm() / expected.norm()) < within


@each_update
@each_grain
def test_the_exact_gradient_is_that_of_finite_differences(kind, grain, optimizer):
    """Every kind at every grain. Catches one blind to the start."""
    problem, theta = run_of({kind: grain}, optimizer=optimizer)
    gradient = hypergradient(problem, theta, "bptt").gradient
    source = torch.Generator().manual_seed(2)
    for _ in range(2):
        direction = torch.randn(len(theta), generator=source, dtype=torch.float64)
        direction /= direction.norm()
        along = derivative(problem, theta, direction)
        assert along == pytest.approx(float(gradient @ direction), rel=1e-6)


@each_update
@each_grain
def test_every_way_to_the_exact_gradient_is_the_same(kind, grain, optimizer):
    """Unrolled, by states, by checkpoints, forward. Catches one blind to the start."""
    problem, theta = run_of({kind: grain}, optimizer=optimizer)
    expected = hypergradient(problem, theta, "bptt").gradient
    whole = Averaging(minibatches=1)
    ways = [
        hypergradient(problem, theta, Bptt(keep="states")),
        hypergradient(problem, theta, Bptt(keep="checkpoints")),
        hypergradient(problem, theta, "tbptt", trunc=problem.steps, averaging=whole),
    ]
    if grain.by not in ("weight", "example"):
        ways.append(hypergradient(problem, theta, "forward"))
    for way in ways:
        assert_same(way.gradient, expected)


@each_update
def test_all_kinds_at_once(optimizer):
    problem, theta = run_of(MIXED, optimizer=optimizer)
    expected = hypergradient(problem, theta, "bptt").gradient
    assert_same(hypergradient(problem, theta, Bptt(keep="checkpoints")).gradient, expected)
    source = torch.Generator().manual_seed(4)
    direction = torch.randn(len(theta), generator=source, dtype=torch.float64)
    assert derivative(problem, theta, direction / direction.norm()) == pytest.approx(
        float(expected @ direction / direction.norm()), rel=1e-6
    )


@each_update
@each_grain
def test_the_products_written_out_are_those_of_the_graph(kind, grain, optimizer):
    """Jᵀu, (∂F/∂θ)ᵀu and the mean of the latter against the plain graph of one step."""
    problem, theta = run_of({kind: grain, "learning_rate": Grain()}, optimizer=optimizer)
    h = problem.run(theta, 0, 5, problem.initial_state(theta))
    h = h.clone()
    u = torch.randn(len(h), generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def by_graph(x: Batch) -> tuple[torch.Tensor, ...]:
        at, of = h.clone().requires_grad_(), theta.clone().requires_grad_()
        return torch.autograd.grad(problem.step(at, of, x), [at, of], u, materialize_grads=True)

    for t in range(problem.steps):
        x = problem.input(t)
        expected = by_graph(x)
        for found, other in zip(problem.pullback_at(theta)(h, x, u), expected, strict=True):
            assert torch.allclose(found, other, rtol=1e-10, atol=1e-13)
        found = problem.transposed_at(h, theta)(x, u)
        assert torch.allclose(found, expected[0], rtol=1e-10, atol=1e-13)
    chunks = list(problem.population())
    _, product = problem.mean_theta_pullback(h, theta)
    expected = sum(share * by_graph(x)[1] for share, x in chunks)
    assert torch.allclose(product(u), expected, rtol=1e-10, atol=1e-13)


@each_update
@each_grain
def test_a_run_in_place_has_the_bits_of_its_steps(kind, grain, optimizer):
    problem, theta = run_of({kind: grain}, optimizer=optimizer)
    h = problem.initial_state(theta)
    for t, state in enumerate(problem.states(theta, 0, problem.steps, h)):
        h = problem.step(h, theta, problem.input(t))
        assert torch.equal(state, h)


@each_update
def test_a_run_in_segments_is_torch_sgd_with_the_buffer_rescaled(optimizer):
    """Where β changes, the buffer of torch.optim.SGD is multiplied by (1 − β)/(1 − β')."""
    tuned = {
        "learning_rate": Grain("tensor", 3),
        "momentum": Grain("tensor", 3),
        "weight_decay": Grain("layer"),
    }
    problem, theta = run_of(tuned, optimizer=optimizer)
    model = problem.objective.model
    nn.utils.vector_to_parameters(
        problem.initial_state(theta)[: problem.weights].clone(), model.parameters()
    )
    of = problem.describe(theta)
    groups = [{"params": [p], "name": name} for name, p in model.named_parameters()]
    sgd = torch.optim.SGD(groups, lr=1.0)
    before: dict[str, float] = {}
    for t in range(problem.steps):
        for group in sgd.param_groups:
            name = group["name"]
            entry = f"{name}.s{t * 3 // problem.steps + 1}"
            alpha, beta = of["learning_rate"][entry], of["momentum"][entry]
            group["lr"] = alpha * (1 - beta) if optimizer == "maclaurin" else alpha
            group["momentum"] = beta
            group["weight_decay"] = of["weight_decay"][name.split(".")[0]]
            buffer = sgd.state[group["params"][0]].get("momentum_buffer")
            if optimizer == "maclaurin" and buffer is not None:
                buffer *= (1 - before[name]) / (1 - beta)
            before[name] = beta
        x = problem.input(t)
        sgd.zero_grad()
        cross_entropy(model(x.inputs), x.targets).backward()
        sgd.step()
    found = nn.utils.parameters_to_vector(model.parameters()).detach()
    h = problem.run(theta, 0, problem.steps, problem.initial_state(theta))
    assert torch.allclose(h[: problem.weights], found, rtol=1e-10, atol=1e-12)


def test_at_convergence_the_implicit_gradient_of_a_weight_decay_is_the_exact_one():
    """Of every weight, in full batches: the fixed point moves with it, and h_0 is forgotten."""
    source = torch.Generator().manual_seed(8)
    data = examples(24, source)
    problem = TrainingRun(
        nn.Linear(5, 3).double(),
        ShuffledBatches(data, 24, 0),
        steps=600,
        meta_examples=examples(30, source),
        hyperparameters=Hyperparameters(
            {"weight_decay": Grain("weight")}, {"learning_rate": 1.0, "momentum": 0.5}
        ),
    )
    theta = problem.initial_theta(**VALUES)
    expected = hypergradient(problem, theta, Bptt(keep="checkpoints")).gradient
    implicit = hypergradient(problem, theta, "neumann", trunc=600)
    assert_same(implicit.gradient, expected, within=1e-6)


def test_at_convergence_the_implicit_gradient_of_example_weights_is_the_exact_one():
    """Its ∂F/∂θ covers all 24 examples, though a product sees a minibatch of them."""
    source = torch.Generator().manual_seed(8)
    data = examples(24, source)
    problem = TrainingRun(
        nn.Linear(5, 3).double(),
        ListedBatches([(data.inputs[:9], data.targets[:9]), (data.inputs[9:], data.targets[9:])]),
        steps=400,
        loss=partial(cross_entropy, reduction="none"),
        meta_examples=examples(30, source),
        hyperparameters=Hyperparameters(
            {"example_weight": Grain("example")},
            {"learning_rate": 0.1, "momentum": 0.01, "weight_decay": 0.1},
        ),
    )
    theta = problem.initial_theta(**VALUES)
    expected = hypergradient(problem, theta, Bptt(keep="checkpoints")).gradient
    averaging = Averaging("mean", 2)
    implicit = hypergradient(problem, theta, "neumann", trunc=400, averaging=averaging).gradient
    # The two lists weigh their examples by 1/9 and 1/15 in a step each, not by 1/12.
    cosine = float(implicit @ expected / implicit.norm() / expected.norm())
    assert cosine > 0.97
    assert (implicit != 0).all()


def test_theta_is_described_by_kind_segment_and_part():
    problem, theta = run_of(MIXED)
    of = problem.describe(theta)
    assert list(of) == [kind for kind in KINDS if kind in MIXED]
    assert list(of["learning_rate"])[:5] == [
        "0.weight.s1",
        "0.bias.s1",
        "2.weight.s1",
        "2.bias.s1",
        "0.weight.s2",
    ]
    assert list(of["momentum"]) == ["0.s1", "2.s1", "0.s2", "2.s2"]
    assert list(of["init_scale"]) == ["0", "2"]
    assert len(of["example_weight"]) == 24
    assert len(theta) == sum(map(len, of.values())) == 12 + 4 + 4 + 2 + 24
    assert torch.allclose(problem.theta_of(of), theta, rtol=1e-12)
    start = problem.describe(problem.initial_theta(**VALUES))
    for kind, value in VALUES.items():
        assert list(start[kind].values()) == pytest.approx([value] * len(start[kind]))


def test_what_is_fixed_is_as_if_tuned_at_that_value():
    tuned, theta = run_of({"learning_rate": Grain(), "weight_decay": Grain("net")})
    with torch.no_grad():
        theta[-1] = math.log(0.02)
    fixed, _ = run_of({"learning_rate": Grain()}, fixed={"weight_decay": 0.02})
    assert torch.allclose(
        final_loss(tuned, theta), final_loss(fixed, theta[:-1]), rtol=1e-12, atol=0
    )
    other, _ = run_of({"learning_rate": Grain()}, fixed={"momentum": 0.9})
    assert not torch.allclose(final_loss(fixed, theta[:-1]), final_loss(other, theta[:-1]))


@pytest.mark.parametrize(
    ("hyperparameters", "words"),
    [
        (lambda: Hyperparameters({}), "no hyperparameter is tuned"),
        (lambda: Hyperparameters(fixed={"momentum": 1.0}), "momentum: expected a number between"),
        (lambda: Hyperparameters(fixed={"weight_decay": -1.0}), "weight decay: expected a number"),
    ],
)
def test_what_cannot_be_is_refused(hyperparameters, words):
    with pytest.raises(UsageError, match=words):
        Layout(hyperparameters(), ["w"], [3], 0)


def test_example_weights_need_other_examples_and_the_loss_of_each():
    source = torch.Generator().manual_seed(8)
    data = examples(24, source)
    weights = Hyperparameters({"example_weight": Grain("example")})
    model = nn.Linear(5, 3).double()
    with pytest.raises(UsageError, match="falls as they vanish"):
        TrainingRun(model, ShuffledBatches(data, 8, 0), steps=3, hyperparameters=weights)
    problem = TrainingRun(
        model,
        ShuffledBatches(data, 8, 0),
        steps=3,
        hyperparameters=weights,
        meta_examples=data,
        loss=cross_entropy,
    )
    theta = problem.initial_theta(**VALUES)
    with pytest.raises(UsageError, match="the loss of each"):
        problem.run(theta, 0, 3, problem.initial_state(theta))


def test_forward_mode_refuses_a_tangent_for_every_weight():
    problem, theta = run_of({"weight_decay": Grain("weight")})
    with pytest.raises(UsageError, match="tangent for every weight_decay"):
        hypergradient(problem, theta, "forward")
