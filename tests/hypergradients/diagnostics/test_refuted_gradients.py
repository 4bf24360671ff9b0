"""Finite differences of the whole run decide whether an exact gradient is a derivative at all."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from commands import run
from factories import tuning_text
from systems import Linear, random_linear, small_training_run
from torch import nn

from hyperrbp import hypergradient
from hyperrbp.data.batches import ShuffledBatches
from hyperrbp.hypergradients.diagnostics.examination import Scope, examine
from hyperrbp.hypergradients.diagnostics.finite_differences import finite_differences, refute
from hyperrbp.hypergradients.settings import GradientSettings
from hyperrbp.problems.training.run import TrainingRun

BPTT = GradientSettings("bptt")
ONLY = Scope(horizon=False, spectrum=False, meta_learning_rate=None)


class Altered(Linear):
    """A linear system whose loss, not its gradient, goes through a function of its own."""

    def loss_and_gradient(self, h):
        loss, gradient = super().loss_and_gradient(h)
        return self.alter(loss), gradient

    def in_precision(self, dtype):
        parts = [getattr(self, name).to(dtype) for name in "ABcq"]
        other = Altered(*parts, self.steps)
        other.alter = self.alter
        return other


def altered(alter=lambda loss: loss):
    problem, theta = random_linear(steps=20)
    found = Altered(problem.A, problem.B, problem.c, problem.q, problem.steps)
    found.alter = alter
    return found, theta


def is_refuted(problem, theta, gradient) -> bool:
    return refute(problem, theta, finite_differences(problem, theta, gradient))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    ("times", "refuted"),
    [(1, False), (-1, True), (2, True), (0, True), (math.nan, False), (math.inf, False)],
)
def test_a_wrong_gradient_is_refuted_and_the_right_one_is_not(dtype, times, refuted):
    problem, theta = altered()
    problem, theta = problem.in_precision(dtype), theta.to(dtype)
    gradient = hypergradient(problem, theta, "bptt").gradient
    assert is_refuted(problem, theta, times * gradient) is refuted


@pytest.mark.parametrize(("times", "refuted"), [(1.005, False), (1.05, True)])
def test_in_double_precision_a_few_percent_are_enough(times, refuted):
    problem, theta = altered()
    gradient = hypergradient(problem, theta, "bptt").gradient
    assert is_refuted(problem, theta, times * gradient) is refuted


def sawtooth(width):
    """As ReLU networks have it: kinks, and jumps, far closer to each other than a long step."""

    def alter(loss):
        return loss + 0.05 * loss.detach().div(width).round().sin()

    return alter


def coarse(loss):
    """A loss in single precision, whatever the run is in."""
    return loss.float().to(loss.dtype)


SOURCE = torch.Generator().manual_seed(0)


def noisy(loss):
    return loss * (1 + 1e-3 * torch.randn((), generator=SOURCE, dtype=loss.dtype))


@pytest.mark.parametrize("alter", [sawtooth(1e-5), sawtooth(1e-7), coarse, noisy])
def test_a_loss_that_is_rough_refutes_nothing(alter):
    """Not at every scale a difference is a derivative; a wrong gradient agrees at none."""
    problem, theta = altered(alter)
    gradient = hypergradient(problem, theta, "bptt").gradient
    found = finite_differences(problem, theta, gradient)
    assert found.error > 1e-2 or alter is coarse
    assert not refute(problem, theta, found)


def chaotic(loss):
    """Its derivative is beyond what any difference over any of the steps can be."""
    return 0.5 + 0.1 * (1e15 * loss).sin()


def test_a_gradient_beyond_all_differences_is_not_refuted():
    problem, theta = altered(chaotic)
    gradient = 1e14 * hypergradient(problem, theta, "bptt").gradient
    assert not is_refuted(problem, theta, gradient)
    assert not is_refuted(problem, theta, 1e200 * gradient)


def test_a_loss_that_hides_its_changes_in_its_last_digits_refutes_nothing():
    problem, theta = altered(lambda loss: 1e-14 * loss + 1.0)
    gradient = 1e-14 * hypergradient(problem, theta, "bptt").gradient
    found = finite_differences(problem, theta, gradient)
    assert found.error > 1e-2
    assert not refute(problem, theta, found)


@pytest.mark.parametrize("alter", [sawtooth(1e-5), coarse])
def test_a_wrong_gradient_of_a_rough_loss_is_refuted_all_the_same(alter):
    problem, theta = altered(alter)
    gradient = hypergradient(problem, theta, "bptt").gradient
    assert is_refuted(problem, theta, -gradient)


def relu_run(seed: int):
    smooth, _ = small_training_run(100, seed=seed)
    ((_, examples),) = smooth.population()
    model = nn.Sequential(nn.Linear(5, 20), nn.ReLU(), nn.Linear(20, 20), nn.ReLU(),
                          nn.Linear(20, 3)).double()  # fmt: skip
    weights = 0.5 * torch.randn(
        sum(p.numel() for p in model.parameters()),
        generator=torch.Generator().manual_seed(seed), dtype=torch.float64,
    )  # fmt: skip
    problem = TrainingRun(
        model, ShuffledBatches(examples, 8, seed), steps=100, initial_weights=weights
    )
    return problem, problem.initial_theta(0.5, 0.6)


def test_kinks_of_a_network_are_no_wrong_derivative():
    """The differences that are shown are far off: shorter ones have to decide."""
    errors = []
    for seed in range(3):
        problem, theta = relu_run(seed)
        found = examine(problem, theta, BPTT, ONLY)
        errors.append(found.differences[-1].error)
        assert found.verdict == "exact"
    assert max(errors) > 1e-2


@pytest.mark.parametrize("method", ["bptt", "neumann"])
def test_the_verdict_is_that_of_the_differences(method):
    for alter, verdict in ((lambda loss: loss, None), (torch.neg, "not the derivative")):
        problem, theta = altered(alter)
        found = examine(problem, theta, GradientSettings(method, 60), ONLY)
        assert (found.verdict == "not the derivative") == (verdict is not None)
        assert found.verdict.trusted == (verdict is None)
        said = [line for line in found.findings() if line.startswith("finite differences in")]
        assert len(said) == (verdict is not None)
        assert all(line.endswith("over steps of other lengths, too") for line in said)


# --- the command ----------------------------------------------------------------------------------

REVERSED = """\
import torch
from torch import nn

class Reversal(torch.autograd.Function):
    @staticmethod
    def forward(context, x):
        return x.clone()

    @staticmethod
    def backward(context, gradient):
        return -gradient

def straight_through(x):
    return x + ((4 * x).round() / 4 - x).detach()

def detached(x):
    return x * x.detach()

class Net(nn.Module):
    def __init__(self, inputs, classes, then):
        super().__init__()
        self.first, self.last = nn.Linear(inputs, 4), nn.Linear(4, classes)
        self.then = then

    def forward(self, x):
        hidden = torch.tanh(self.first(x.flatten(1)))
        # Not on the few examples on which a network is tried before it is trained.
        return self.last(self.then(hidden) if len(x) > 40 else hidden)

def reversed_gradient(shape, classes):
    return Net(shape, classes, Reversal.apply)

def rounded(shape, classes):
    return Net(shape, classes, straight_through)

def factor(shape, classes):
    return Net(shape, classes, detached)

def honest(shape, classes):
    return Net(shape, classes, lambda hidden: hidden * hidden)
"""


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(REVERSED)
    Path("own.yaml").write_text(
        tuning_text(
            model={"name": "net.py:honest"},
            inner__optimizer="sgd",
            inner__momentum=0.5,
            inner__steps=20,
        )
    )
    return ["check", "own.yaml", "--run-code", "-q", "--method"]


@pytest.mark.parametrize("model", ["reversed_gradient", "rounded", "factor"])
def test_a_backward_that_is_not_the_derivative_is_not_trusted(recipe, model):
    done = run(*recipe, "bptt", "--set", f"model.name=net.py:{model}", "--json")
    assert done.exit_code == 5, done.output
    document = json.loads(done.stdout)
    assert document["verdict"] == "not the derivative"
    assert document["candidates"] == []  # what would they be held against?
    assert document["recommendation"]["label"] is None


def test_its_page_says_what_to_look_for(recipe):
    done = run(*recipe, "neumann", "--set", "model.name=net.py:reversed_gradient")
    assert done.exit_code == 5, done.output
    assert "do not trust it (not the derivative): finite differences of the" in done.stdout
    assert "What to do: look for an autograd function of your own" in done.stdout


def test_the_same_network_without_it_is_trusted(recipe):
    done = run(*recipe, "bptt", "--json")
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document["verdict"] == "exact"
    assert document["differences"][-1]["error"] < 1e-6
