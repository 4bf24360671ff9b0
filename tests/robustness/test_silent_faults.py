"""Answers that were wrong without a word, each as it was met: now they are right, or refused."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import run
from own_parts import npz, short
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm
from whole_runs import KEPT, by_differences, gradients, relative

from hyperrbp import TrainingRun, examine
from hyperrbp.data.batches import Batch
from hyperrbp.exceptions import UsageError
from hyperrbp.experiments.experiment import Experiment
from hyperrbp.hypergradients.settings import GradientSettings
from hyperrbp.runtime.tracing import TRACE_AFTER


def examples(count: int, seed: int) -> Batch:
    source = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 6, generator=source, dtype=torch.float64)
    return Batch(inputs, inputs[:, :3].argmax(1))


def run_on(model: nn.Module, steps: int = 6, loss=F.cross_entropy) -> tuple[TrainingRun, Tensor]:
    """Everything by default, as one who has just read the guide has it."""
    batches = [tuple(examples(8, seed)[:2]) for seed in (1, 2)]
    made = TrainingRun(
        model.double(), batches, steps=steps, loss=loss, meta_examples=examples(16, 3)
    )
    return made, made.initial_theta(learning_rate=0.2, momentum=0.5)


def network(*between: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), *between, nn.Tanh(), nn.Linear(5, 3))


class Layer(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function, self.calls = function, 0

    def forward(self, x):
        return self.function(self, x)


# --- 1: frozen parameters -------------------------------------------------------------------------


def test_a_frozen_layer_is_held_fixed_and_has_no_hyperparameters():
    model = network()
    model[0].requires_grad_(False)
    made, theta = run_on(model, steps=30)
    assert made.tensors == ("2.weight", "2.bias")
    assert all(list(of) == ["2.weight", "2.bias"] for of in made.describe(theta).values())
    h = made.last_state(theta)
    assert len(h) == 2 * 18
    trained = copy.deepcopy(model)
    nn.utils.vector_to_parameters(h[:18], trained[2].parameters())
    later = examples(16, 3)
    truth = F.cross_entropy(trained.eval()(later.inputs), later.targets).detach()
    assert float(made.loss(h)) == pytest.approx(float(truth), rel=1e-12)
    assert relative(gradients(made, theta)["graph"], by_differences(made, theta)) < 1e-6


# --- 2: functional randomness ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "drawn",
    [lambda self, x: F.dropout(x, 0.5, self.training), lambda self, x: x + torch.rand_like(x)],
    ids=["F.dropout", "torch.rand"],
)
def test_functional_randomness_has_one_gradient(drawn):
    made, theta = run_on(network(Layer(drawn)), steps=10)
    for seed in range(6):
        torch.manual_seed(seed)
        found = gradients(made, theta)
        truth = by_differences(made, theta)
        for keep in KEPT:
            assert relative(found[keep], truth) < 1e-6, (keep, seed)


# --- 3: several processes -------------------------------------------------------------------------


def test_a_module_in_distributed_data_parallel_is_refused(tmp_path):
    distributed = pytest.importorskip("torch.distributed")
    store = distributed.FileStore(str(tmp_path / "store"), 1)
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(network())
        with pytest.raises(UsageError, match=r"DistributedDataParallel.*pass model\.module"):
            run_on(wrapped)
        assert run_on(wrapped.module)
    finally:
        distributed.destroy_process_group()


# --- 6: a backward that is not the derivative of forward ------------------------------------------


class Reversal(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, g):
        return -g


def counted(self, x):
    self.calls += 1
    return x * (1 + 0.1 * self.calls)


def hooked() -> nn.Module:
    layer = nn.Linear(5, 5)
    layer.register_full_backward_hook(lambda module, given, _: (2 * given[0],))
    return layer


NOT_A_DERIVATIVE = {
    "gradient reversal": lambda: network(Layer(lambda self, x: Reversal.apply(x))),
    "straight-through": lambda: network(Layer(lambda self, x: x + (x.round() - x).detach())),
    "detached factor": lambda: network(Layer(lambda self, x: x * x.detach())),
    "full backward hook": lambda: network(hooked()),
    "weight_norm": lambda: network(weight_norm(nn.Linear(5, 5))),
    "counter": lambda: network(Layer(counted)),
    "in place": lambda: nn.Sequential(Layer(lambda self, x: x.mul_(0.5)), network()),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*")
@pytest.mark.parametrize("name", NOT_A_DERIVATIVE)
def test_what_is_no_derivative_is_called_exact_by_no_method(name):
    def examined(method: str):
        made, theta = run_on(NOT_A_DERIVATIVE[name]())
        return examine(made, theta, GradientSettings(method, 3))

    for method in ("bptt", "forward", "neumann"):
        with pytest.raises(UsageError):
            examined(method)


@pytest.mark.parametrize(
    "layer",
    [nn.RReLU(), Layer(lambda self, x: F.gumbel_softmax(x) if self.training else x.softmax(-1))],
    ids=["RReLU", "gumbel_softmax"],
)
def test_layers_that_draw_without_a_p_have_one_gradient(layer):
    made, theta = run_on(network(layer))
    truth = by_differences(made, theta)
    for keep, found in gradients(made, theta).items():
        assert relative(found, truth) < 1e-6, keep


NETS = """\
import torch
from torch import nn
from torch.nn import functional as F

class Reversal(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, g):
        return -g

class Net(nn.Module):
    def __init__(self, features, classes, what):
        super().__init__()
        self.one, self.two = nn.Linear(features, 5), nn.Linear(5, classes)
        self.what, self.calls = what, 0
        if what == "hook":
            self.two.register_full_backward_hook(lambda module, given, _: (2 * given[0],))
        if what == "weight_norm":
            nn.utils.parametrizations.weight_norm(self.one)

    def forward(self, x):
        if self.what == "in place":
            x = x.mul_(0.5)
        y = self.one(x)
        if self.what == "reversal":
            y = Reversal.apply(y)
        if self.what == "straight-through":
            y = y + (y.round() - y).detach()
        if self.what == "detached":
            y = y * y.detach()
        if self.what == "counter":
            self.calls += 1
            y = y * (1 + 0.1 * self.calls)
        if self.what == "rrelu":
            y = F.rrelu(y, training=self.training)
        if self.what == "gumbel":
            y = F.gumbel_softmax(y) if self.training else y
        return self.two(y.tanh())

def make(features, classes, what):
    return Net(features, classes, what)
"""


@pytest.fixture
def nets(elsewhere):
    source = np.random.default_rng(0)
    x = source.normal(size=(40, 6)).astype(np.float32)
    npz(x_train=x, y_train=x[:, :3].argmax(1), x_test=x[:12], y_test=x[:12, :3].argmax(1))
    Path("nets.py").write_text(NETS)


def section(what: str) -> dict:
    return {"name": "nets.py:make", "options": {"what": what}}


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("reversal", "is not its derivative"),
        ("straight-through", "is not its derivative"),
        ("detached", "is not its derivative"),
        ("hook", "backward hook"),
        ("weight_norm", "g v / ‖v‖"),
        ("counter", "'calls'"),
        ("in place", "in place"),
    ],
)
def test_a_recipe_of_what_is_no_derivative_is_refused(nets, what, words):
    Path("own.yaml").write_text(
        "device: cpu\nthreads: 1\ndata: {name: mine.npz}\n"
        f"model: {{name: 'nets.py:make', options: {{what: {what}}}}}\n"
        "inner: {steps: 6, batch_size: 10}\ngradient: {method: bptt}\nmeta: {steps: 1}\n"
    )
    done = run("tune", "own.yaml", "--run-code", "--out", "run", "-q", "--json")
    assert done.exit_code == 2, done.output
    assert words in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("what", ["rrelu", "gumbel"])
def test_a_recipe_of_a_layer_that_draws_has_one_gradient(nets, what):
    recipe = short(data__name="mine.npz", model=section(what), gradient__trunc=1)
    made = Experiment(recipe)
    problem = made.problem().in_precision(torch.float64)
    theta = made.theta.double()
    truth = by_differences(problem, theta)
    for keep, found in gradients(problem, theta).items():
        assert relative(found, truth) < 1e-5, keep


# --- 7: stale traces ------------------------------------------------------------------------------


def fresh(model: nn.Module, loss=F.cross_entropy) -> Tensor:
    return gradients(*run_on(model, loss=loss))["graph"]


def often_used(made: TrainingRun, theta: Tensor) -> None:
    made.prepare(theta)
    gradients(made, theta)
    assert made.objective.traced_functions["gradient"].traced


def assert_answers(made: TrainingRun, theta: Tensor, truth: Tensor) -> None:
    for _ in range(2):
        for keep, found in gradients(made, theta).items():
            assert relative(found, truth) < 1e-9, keep


def test_a_float_of_the_losss_closure_may_change():
    factor = [3.0]

    def loss(outputs, targets):
        return factor[0] * F.cross_entropy(outputs, targets)

    made, theta = run_on(network(), loss=loss)
    often_used(made, theta)
    factor[0] = 1.0
    assert_answers(made, theta, fresh(network()))


def test_an_attribute_of_the_module_may_change():
    model = network(Layer(lambda self, x: self.factor * x))
    model[1].factor = 3.0
    made, theta = run_on(model)
    often_used(made, theta)
    model[1].factor = 1.0
    assert_answers(made, theta, fresh(network()))


def test_a_run_that_was_first_called_under_autocast_answers_in_its_own_precision():
    made, theta = run_on(network())
    with torch.autocast("cpu", torch.bfloat16):  # of float32 alone
        made = made.in_precision(torch.float32)
        often_used(made, theta.float())
    truth = fresh(network())
    for keep, found in gradients(made, theta.float()).items():
        assert relative(found, truth) < 1e-4, keep


def test_a_deep_copy_with_another_model_answers_for_it():
    made, theta = run_on(network())
    often_used(made, theta)
    other = copy.deepcopy(made)
    other.objective.model[1] = nn.Softsign()
    changed = network()
    changed[1] = nn.Softsign()
    assert_answers(other, theta, fresh(changed))
    assert_answers(made, theta, fresh(network()))


@pytest.mark.slow
def test_what_was_traced_by_being_called_often_follows_the_module():
    model = network(Layer(lambda self, x: self.factor * x))
    model[1].factor = 3.0
    steps = TRACE_AFTER // 2 + 20
    made, theta = run_on(model, steps)
    for _ in range(2):
        gradients(made, theta)
    assert made.objective.traced_functions["gradient"].traced
    model[1].factor = 1.0
    assert_answers(made, theta, gradients(*run_on(network(), steps))["graph"])
