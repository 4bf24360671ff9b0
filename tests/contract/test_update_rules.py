"""The contract of every registered update rule, which a new one inherits.

Its runs are those of torch.optim, and its gradients those of finite differences of the whole run.
Pairs of a rule, a schedule and a network that are like others run with the slow tests.
"""

from __future__ import annotations

import math
from dataclasses import fields
from functools import cache, partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from training_runs import (
    DIFFERENTIABLE,
    DOUBLE,
    RULES,
    SCHEDULES,
    SEGMENTS,
    differences,
    directions_of,
    learning_rate,
    network,
    reported,
    run_of_rule,
    tuned_kinds,
)

from hyperrbp.data.batches import Batch, ShuffledBatches
from hyperrbp.exceptions import UsageError
from hyperrbp.hypergradients import METHODS, hypergradient, method_class
from hyperrbp.hypergradients.bptt import Bptt
from hyperrbp.hypergradients.cost_model import cost_model
from hyperrbp.hypergradients.diagnostics.last_state import LastState
from hyperrbp.hypergradients.implicit import ImplicitMethod
from hyperrbp.hypergradients.method import Method
from hyperrbp.hypergradients.settings import GradientSettings
from hyperrbp.problems.training.hyperparameters import Grain, Hyperparameters
from hyperrbp.problems.training.run import TrainingRun
from hyperrbp.problems.training.update_rules import UPDATE_RULES
from hyperrbp.runtime.randomness import generator, seeded

SOLVERS = sorted(name for name in METHODS if issubclass(method_class(name), ImplicitMethod))
WAYS: dict[str, Method | str] = {
    "graph": Bptt(keep="graph"),
    "states": Bptt(keep="states"),
    "checkpoints": Bptt(keep="checkpoints"),
    "forward": "forward",
    "tbptt, K = T": "tbptt",
}
THREE = ("constant", "cosine", SEGMENTS)


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


# --- gradients of the whole run -------------------------------------------------------------------


def assert_all_ways_are_the_derivative(
    problem: TrainingRun,
    theta: Tensor,
    directions: int = 8,
    ways: dict[str, Method | str] = WAYS,
    fine: bool = False,
) -> None:
    """Relatively to 1e-10 among each other, and to 1e-6 along each direction."""
    assert len(theta) <= 12
    assert problem.weights <= 5000
    expected = hypergradient(problem, theta, ways["graph"]).gradient
    assert float(expected.norm()) > 1e-3, "nothing to tell apart"
    for name, way in ways.items():
        found = hypergradient(problem, theta, way, trunc=problem.steps).gradient
        assert relative(found, expected) < 1e-10, name
    along = directions_of(theta, directions)
    truth = differences(problem, theta, along, fine)
    # A direction that happens to be nearly level is held against a twentieth of the slope.
    scale = truth.abs().clamp(min=0.05 * float(expected.norm()))
    assert float(((along @ expected - truth).abs() / scale).max()) < 1e-6


@pytest.mark.parametrize(
    ("rule", "schedule"),
    [
        *[(rule, "cosine") for rule in DIFFERENTIABLE],
        *[(rule, SEGMENTS) for rule in DIFFERENTIABLE if rule in UPDATE_RULES],
        # With constant rates, the products of these are written out.
        *[(rule, "constant") for rule in ("sgd", "maclaurin")],
    ],
)
def test_every_way_to_the_gradient_is_that_of_finite_differences(rule, schedule):
    """A network with dropout. Catches a rate, a moment or a bias correction left out."""
    problem, theta = run_of_rule(rule, "mlp", schedule, steps=10)
    assert_all_ways_are_the_derivative(problem, theta, 3)


@pytest.mark.parametrize(
    ("of_network", "rule", "schedule"),
    [
        ("batch-norm", "adamw", "cosine"),
        ("batch-norm", "sgd", SEGMENTS),
        ("gpt", "adamw", "cosine"),
        ("gpt", "sgd", "constant"),
        ("mlp", "adam", "linear"),
        ("mlp", "sgd", "knots"),
    ],
)
def test_on_every_network_and_schedule(of_network, rule, schedule):
    """Clipped, too. Catches statistics, a mask or a tied weight taken for a constant."""
    problem, theta = run_of_rule(rule, of_network, schedule, steps=10, clip_norm=0.4)
    assert_all_ways_are_the_derivative(problem, theta, 2)
    unclipped, _ = run_of_rule(rule, of_network, schedule, steps=10)
    assert reported(problem, theta) != reported(unclipped, theta), "no gradient was clipped"


@pytest.mark.slow
@pytest.mark.parametrize("steps", [20, 40])
@pytest.mark.parametrize("schedule", THREE)
@pytest.mark.parametrize("rule", DIFFERENTIABLE)
@pytest.mark.parametrize("of_network", ["mlp", "batch-norm", "gpt"])
def test_every_rule_on_every_network_and_schedule(of_network, rule, schedule, steps):
    """Along eight directions each. Traced, too: there are more calls than it takes."""
    clip_norm = 0.4 if of_network == "gpt" else None
    problem, theta = run_of_rule(rule, of_network, schedule, steps=steps, clip_norm=clip_norm)
    assert_all_ways_are_the_derivative(problem, theta, fine=True)


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["linear", "knots"])
@pytest.mark.parametrize("rule", DIFFERENTIABLE)
def test_every_rule_on_the_other_schedules(rule, schedule):
    problem, theta = run_of_rule(rule, "mlp", schedule, steps=40)
    assert_all_ways_are_the_derivative(problem, theta, fine=True)


@pytest.mark.parametrize("rule", DIFFERENTIABLE)
def test_weights_of_examples_and_the_scale_of_the_start(rule):
    """Through the loss and h_0; ``forward`` would carry a tangent for every example."""
    model, examples = network("mlp")
    tuned = {
        "learning_rate": Grain("net"),
        "init_scale": Grain("layer"),
        "example_weight": Grain("example"),
    }
    problem = TrainingRun(
        model,
        ShuffledBatches(Batch(examples.inputs[:8], examples.targets[:8]), 4, 3),
        steps=10,
        optimizer=RULES[rule],
        meta_examples=Batch(examples.inputs[40:], examples.targets[40:]),
        loss=partial(cross_entropy, reduction="none"),
        hyperparameters=Hyperparameters(tuned, {"eps": 1e-3, "weight_decay": 0.1}),
    )
    theta = problem.initial_theta(learning_rate(RULES[rule]), init_scale=0.9)
    ways = {name: way for name, way in WAYS.items() if name != "forward"}
    assert_all_ways_are_the_derivative(problem, theta, 2, ways)
    with pytest.raises(UsageError, match="forward mode cannot carry a tangent"):
        hypergradient(problem, theta, "forward")


# --- weights whose gradient is zero ---------------------------------------------------------------

ADAPTIVE = [
    name
    for name in DIFFERENTIABLE
    if RULES[name].not_differentiable([torch.zeros(1)] * len(RULES[name].slots)) is not None
]
"""Rules that divide by the root of a second moment."""


def with_dead_units(rule: str, eps: float, steps: int = 6) -> tuple[TrainingRun, Tensor]:
    """A run in which three of six units are never above zero, and the others always."""
    _, examples = network("mlp")
    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    source = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.copy_(0.3 * torch.randn(tensor.shape, generator=source, dtype=DOUBLE))
        model[0].bias.copy_(torch.tensor([-9.0, 9, -9, 9, -9, 9]))
    return _without_decay(rule, model, examples, eps, steps)


def with_a_head_of_zeros(rule: str, eps: float, steps: int = 6) -> tuple[TrainingRun, Tensor]:
    """A run whose first layer has no gradient in the first step, and one in all others."""
    model, examples = network("mlp")
    with torch.no_grad():
        model[3].weight.zero_()
    return _without_decay(rule, model, examples, eps, steps)


def _without_decay(
    rule: str, model: nn.Module, examples: Batch, eps: float, steps: int
) -> tuple[TrainingRun, Tensor]:
    tuned = {"eps": Grain("net")} | {
        kind: Grain("net")
        for kind in RULES[rule].kinds
        # A decay that is added to the gradient would leave none of it zero.
        if kind != "weight_decay" or rule == "adamw"
    }
    problem = TrainingRun(
        model,
        ShuffledBatches(Batch(*[part[:40] for part in examples[:2]]), 8, 3),
        steps=steps,
        optimizer=RULES[rule],
        meta_examples=Batch(*[part[40:] for part in examples[:2]]),
        hyperparameters=Hyperparameters(tuned, {"weight_decay": 0.0}),
    )
    given = {"momentum": 0.5} if "momentum" in tuned else {}
    given |= {"weight_decay": 0.02} if "weight_decay" in tuned else {}
    return problem, problem.initial_theta(0.003, eps=eps, **given)


@pytest.mark.parametrize("make", [with_dead_units, with_a_head_of_zeros])
@pytest.mark.parametrize(("rule", "eps"), [*[(rule, 1e-8) for rule in ADAPTIVE], ("adam", 1e-3)])
def test_where_a_gradient_is_zero_derivatives_are_finite_and_right(rule, make, eps):
    """At v = 0, √v has the slope 0 and m the factor 1/ε. Catches 0 · ∞, and a lost 1/ε."""
    problem, theta = make(rule, eps)
    assert_all_ways_are_the_derivative(problem, theta, 2)


@pytest.mark.parametrize("method", SOLVERS)
@pytest.mark.parametrize("rule", ADAPTIVE)
def test_an_implicit_method_refuses_a_second_moment_of_zero(rule, method):
    problem, theta = with_dead_units(rule, 1e-8)
    words = (
        rf"^{method}: the update of {RULES[rule].name} has no derivative at the last state in"
        r" 0\.weight, whose second moment is zero for 15 of 30; 0\.bias, .* for 3 of 6;"
        r" 2\.weight, .* for 9 of 18 weights: .*; expected bptt or forward$"
    )
    with pytest.raises(UsageError, match=words):
        hypergradient(problem, theta, method, trunc=3)
    with pytest.raises(UsageError, match=words):
        LastState.of_run(problem, theta).gradient(GradientSettings(method, trunc=3))


# --- implicit methods -----------------------------------------------------------------------------


@cache
def contractive(rule: str) -> tuple[TrainingRun, Tensor, Tensor]:
    """A run of full batches to where its map contracts, and the solution of the dense system."""
    model, examples = network("mlp")
    model = nn.Linear(5, 3).double()
    nn.utils.vector_to_parameters(torch.linspace(-0.5, 0.5, 18, dtype=DOUBLE), model.parameters())
    of_rule = RULES[rule]
    fixed = {"learning_rate": 0.2, "eps": 0.3, "momentum": 0.5, "beta1": 0.5, "beta2": 0.7}
    problem = TrainingRun(
        model,
        [(examples.inputs[:40], examples.targets[:40])],
        steps=8,
        optimizer=of_rule,
        meta_examples=Batch(*[part[40:] for part in examples[:2]]),
        hyperparameters=Hyperparameters(
            {kind: Grain("tensor") for kind in of_rule.kinds if kind == "weight_decay"}
            | {kind: Grain("net") for kind in of_rule.kinds if kind != "weight_decay"}
        ),
    )
    theta = problem.initial_theta(
        **{kind: value for kind, value in fixed.items() if kind in of_rule.kinds},
        weight_decay=0.8,
        **({"alpha": 0.7} if "alpha" in of_rule.kinds else {}),
    )
    h = problem.last_state(theta).clone()
    x = problem.input(problem.steps - 1)
    along_h, along_theta = torch.autograd.functional.jacobian(
        lambda h, theta: problem.step(h, theta, x), (h, theta)
    )
    radius = float(torch.linalg.eigvals(along_h).abs().max())
    assert 0.3 < radius < 0.96, radius
    _, g = problem.loss_and_gradient(h)
    eye = torch.eye(len(h), dtype=DOUBLE)
    return problem, theta, along_theta.T @ torch.linalg.solve(eye - along_h.T, g)


@pytest.mark.parametrize("method", SOLVERS)
@pytest.mark.parametrize("rule", DIFFERENTIABLE)
def test_an_implicit_method_solves_the_dense_system_of_a_rule(rule, method):
    """At a state of full batches that is not steady: Jᵀ has all of its blocks there.

    Catches a block of Jᵀ that is left out, and a rate that is not felt.
    """
    problem, theta, truth = contractive(rule)
    found = hypergradient(problem, theta, method, trunc=600)
    assert float(truth.norm()) > 1e-3
    assert relative(found.gradient, truth) < 1e-8
    once = hypergradient(problem, theta, method, trunc=1)
    assert relative(once.gradient, truth) > 1e-3, "one product would have done"


# --- refusals -------------------------------------------------------------------------------------

NOT_DIFFERENTIABLE = [name for name in RULES if name not in DIFFERENTIABLE]


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("rule", NOT_DIFFERENTIABLE)
def test_every_method_refuses_a_rule_without_derivatives(rule, method):
    problem, theta = run_of_rule(rule)
    words = rf"^{method}: the update of {RULES[rule].name} has a derivative of zero .*; expected"
    with pytest.raises(UsageError, match=words):
        hypergradient(problem, theta, method, trunc=2)
    with pytest.raises(UsageError, match=words):
        LastState.of_run(problem, theta).gradient(GradientSettings(method, trunc=2))


def learning_rate_alone(schedule: str) -> dict:
    grain = Grain("net", 3 if schedule == SEGMENTS else 1)
    return {"schedule": schedule, "tuned": {"learning_rate": grain}}


UNSEEN = {
    "a rate on a schedule": (
        learning_rate_alone("cosine"),
        "learning_rate",
        "a schedule leaves no trace in the last state",
        "nothing of the steps before",
    ),
    "segments": (
        learning_rate_alone(SEGMENTS),
        "learning_rate",
        "early segments leave no trace in the last state",
        "nothing of the segments before",
    ),
    "knots": (
        {"schedule": "knots", "tuned": {"knots": Grain("net", 3)}},
        "knots",
        "a schedule leaves no trace in the last state",
        "nothing of the steps before",
    ),
    "a warm-up": (
        {"schedule": "cosine", "tuned": {"warmup_share": Grain("net")}},
        "warmup_share",
        "a schedule leaves no trace in the last state",
        "nothing of the steps before",
    ),
    "the share at the end": (
        {"schedule": "linear", "tuned": {"end_share": Grain("net")}},
        "end_share",
        "a schedule leaves no trace in the last state",
        "nothing of the steps before",
    ),
    "the start": (
        {"tuned": {"init_scale": Grain("layer")}},
        "init_scale",
        "a steady state has forgotten its start",
        "nothing of the start",
    ),
}


@pytest.mark.parametrize("rule", ["sgd", "adamw"])
@pytest.mark.parametrize("unseen", UNSEEN)
def test_what_the_last_updates_do_not_tell_is_refused(unseen, rule):
    arguments, kind, of_state, of_window = UNSEEN[unseen]
    problem, theta = run_of_rule(rule, **arguments)
    at = LastState.of_run(problem, theta)
    for method in SOLVERS:
        words = f"^{method} cannot see {kind}: {of_state}; expected bptt or forward$"
        with pytest.raises(UsageError, match=words):
            hypergradient(problem, theta, method, trunc=problem.steps)
        with pytest.raises(UsageError, match=words):
            at.gradient(GradientSettings(method, trunc=2))
    words = f"^tbptt cannot see {kind}: the last 19 steps tell {of_window}; expected bptt or"
    with pytest.raises(UsageError, match=words):
        hypergradient(problem, theta, "tbptt", trunc=19)
    whole = hypergradient(problem, theta, "tbptt", trunc=20).gradient
    assert relative(whole, hypergradient(problem, theta, "bptt").gradient) < 1e-10


def test_other_kinds_are_seen_on_a_schedule():
    problem, theta = run_of_rule("sgd", "mlp", "cosine", tuned={"weight_decay": Grain("net")})
    for method in (*SOLVERS, "tbptt"):
        assert hypergradient(problem, theta, method, trunc=2).gradient.any()


def test_what_is_refused_can_still_be_costed():
    """A comparison of methods predicts all costs first, and marks those that fail."""
    problem, theta = run_of_rule("sgd", "mlp", SEGMENTS, steps=6)
    settings = GradientSettings("tbptt", trunc=6)
    assert cost_model(problem, theta, settings).at(6, 6).seconds > 0


# --- training beside torch.optim ------------------------------------------------------------------

T = 100


def torch_optimizer(rule: str, rates: dict[str, float]) -> type[torch.optim.Optimizer]:
    """Return the class of torch.optim with the options of a rule, to be called with weights."""
    of_rule = RULES[rule]
    classes = {name.lower(): of for name, of in vars(torch.optim).items() if isinstance(of, type)}
    given = {
        field.name: getattr(of_rule, field.name)
        for field in fields(of_rule)
        if field.name not in (*of_rule.kinds, "betas")
    }
    given |= {kind: value for kind, value in rates.items() if kind in of_rule.kinds}
    given["lr"] = given.pop("learning_rate")
    if "beta1" in given:
        given["betas"] = given.pop("beta1"), given.pop("beta2")
    return partial(classes[of_rule.name], **given)


def maclaurin(parameters, *, rates):
    """The stated change of variables: its velocity is −(1 − β) times the buffer of SGD."""
    lr = rates["learning_rate"] * (1 - rates["momentum"])
    return torch.optim.SGD(
        parameters, lr=lr, momentum=rates["momentum"], weight_decay=rates["weight_decay"]
    )


class LionAsPublished(torch.optim.Optimizer):
    """Chen et al. 2023, Algorithm 2, line by line."""

    def __init__(self, parameters, *, rates):
        super().__init__(parameters, {**rates, "lr": rates["learning_rate"]})

    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                m = self.state[p].setdefault("exp_avg", torch.zeros_like(p))
                c = group["beta1"] * m + (1 - group["beta1"]) * p.grad
                p.data -= group["lr"] * (torch.sign(c) + group["weight_decay"] * p.data)
                m.mul_(group["beta2"]).add_((1 - group["beta2"]) * p.grad)


OWN_REFERENCES = {"maclaurin": maclaurin, "lion": LionAsPublished}


def factor_of(schedule: str, t: int, rates: dict) -> float:
    """The factor of the peak, from the definition in words."""
    if schedule in ("constant", SEGMENTS):
        return 1.0
    warm = rates.get("warmup_share", 0.0) * T
    p = max(0.0, t - warm) / (T - warm)
    end = rates.get("end_share", 0.0)
    shapes = {
        "linear": lambda: 1 - (1 - end) * p,
        "cosine": lambda: end + (1 - end) * (1 + math.cos(math.pi * p)) / 2,
        "knots": lambda: _interpolated(p, rates["knots"]),
    }
    rising = (t + 1) / (warm + 1) if t < warm else 1.0
    return rising * shapes[schedule]()


def _interpolated(p: float, knots: list[float]) -> float:
    left = min(int(p * (len(knots) - 1)), len(knots) - 2)
    share = p * (len(knots) - 1) - left
    return (1 - share) * knots[left] + share * knots[left + 1]


@pytest.mark.parametrize(
    ("rule", "schedule"),
    [
        *[(rule, "cosine") for rule in RULES],
        *[("adamw", schedule) for schedule in ("linear", "knots", SEGMENTS)],
        *[
            pytest.param(rule, schedule, marks=pytest.mark.slow)
            for rule in RULES
            for schedule in ("constant", "linear", "knots", SEGMENTS)
            if schedule == "constant" or rule != "adamw"
        ],
    ],
)
def test_a_run_is_that_of_torch_optim(rule, schedule):
    """A hundred steps, with dropout, weight decay, clipping and label smoothing."""
    assert_trains_as_torch_does(rule, schedule)


@pytest.mark.parametrize("rule", [name for name in RULES if "momentum" in RULES[name].kinds])
def test_without_momentum_too(rule):
    if rule == "sgd-nesterov":
        pytest.skip("torch.optim has no Nesterov without momentum")
    of_rule = RULES[rule]
    tuned = tuned_kinds(of_rule, SCHEDULES["constant"])
    del tuned["momentum"]
    assert_trains_as_torch_does(rule, "constant", tuned=tuned, fixed={"momentum": 0.0})


def assert_trains_as_torch_does(rule: str, schedule: str, **arguments) -> None:
    problem, theta = run_of_rule(
        rule, "mlp", schedule, steps=T, eps=1e-8, clip_norm=0.6, seed=11, **arguments
    )
    named = problem.describe(theta)
    rates = {kind: next(iter(of.values())) for kind, of in named.items()}
    rates = RULES[rule].defaults() | arguments.get("fixed", {}) | rates
    rates |= {"knots": list(named["knots"].values())} if schedule == "knots" else {}
    own = {kind: rates[kind] for kind in RULES[rule].kinds}
    peaks = list(named["learning_rate"].values())
    if RULES[rule].name in OWN_REFERENCES:
        make = partial(OWN_REFERENCES[RULES[rule].name], rates=own)
    else:
        make = torch_optimizer(rule, own)

    model, _ = network("mlp")
    model.train()
    optimizer = make(model.parameters())
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda t: (
            peaks[t * len(peaks) // T] / peaks[0] * factor_of(schedule, t, rates) if t < T else 0.0
        ),
    )
    clipped = 0
    for t in range(T):
        x = problem.input(t)
        with seeded(generator(11, "random layers", t).initial_seed()):
            loss = cross_entropy(model(x.inputs), x.targets, label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        clipped += bool(nn.utils.clip_grad_norm_(model.parameters(), 0.6) > 0.6)
        optimizer.step()
        scheduler.step()
    assert 0 < clipped < T, "clipping should take part in some steps"

    h = problem.last_state(theta)
    parts = dict(
        zip(("weights", *problem.rule.slots), torch.split(h, problem.weights), strict=True)
    )
    trained = nn.utils.parameters_to_vector(model.parameters()).detach()
    assert relative(parts["weights"], trained) < 1e-10
    start = problem.initial_state()[: problem.weights]
    assert relative(start, trained) > 0.05, "nothing was trained"
    # What the rule keeps is what torch.optim keeps, by its names.
    for name, slot in parts.items():
        of_torch = [optimizer.state[p].get(name) for p in model.parameters()]
        if name != "weights" and all(piece is not None for piece in of_torch):
            expected = nn.utils.parameters_to_vector(of_torch)
            factor = -(1 - rates["momentum"]) if RULES[rule].name == "maclaurin" else 1.0
            assert relative(slot, factor * expected) < 1e-9, name


def test_a_rule_of_torch_optim_has_its_defaults():
    for rule in RULES.values():
        if rule.name in OWN_REFERENCES:
            continue
        of_torch = torch_optimizer(rule.name, rule.defaults())
        named = of_torch.func([torch.zeros(1)]).defaults
        own = of_torch.func([torch.zeros(1)], **of_torch.keywords).defaults
        assert own == named
