"""Built-in networks, and networks of the user's own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from commands import run
from own_parts import NET, SHORT, SHOW, images, npz, short
from torch.func import functional_call

from hyperrbp import hypergradient
from hyperrbp.data.batches import Batch, ShuffledBatches
from hyperrbp.exceptions import UsageError
from hyperrbp.experiments import device as device_module
from hyperrbp.experiments.experiment import Experiment
from hyperrbp.problems.losses import LOSSES
from hyperrbp.problems.networks import Conv
from hyperrbp.problems.training.run import TrainingRun

pytestmark = pytest.mark.usefixtures("elsewhere")


OWN = (
    SHORT.replace("steps: 6", "steps: 60")
    + """\
data: {name: mine.npz, shape: image}
model: {name: "net.py:make", options: {width: 3}, init_std: null}
"""
)


def test_a_convolutional_network_of_ones_own_end_to_end(elsewhere):
    """From an archive and a file of code to weights that tell the classes apart."""
    (x, y), (tx, ty) = images(60), images(30, seed=1)
    (elsewhere / "mine").mkdir()
    np.savez("mine/mine.npz", x_train=x, y_train=y, x_test=tx, y_test=ty)
    Path("mine/net.py").write_text(NET)
    Path("mine/own.yaml").write_text(OWN)
    done = run("tune", "mine/own.yaml", "--run-code", "--out", "run", *SHOW)
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert result["best"]["meta_loss"] < result["meta_loss"][0]
    assert result["test"]["tuned"]["accuracy"]["mean"] > 0.9
    assert list(result["hyperparameters"]["momentum"]) == [
        "0.weight", "0.bias", "4.weight", "4.bias",
    ]  # fmt: skip
    written = yaml.safe_load(Path("run/recipe.yaml").read_text())
    assert written["data"]["name"] == str(elsewhere / "mine" / "mine.npz")
    for words in (
        ["train", "run/recipe.yaml", "--hyperparameters", "run", "--out", "trained", "-q"],
        ["check", "run", "--out", "checked", "--no-exact"],
        ["compare", "run", "--out", "compared", "--methods", "bptt,neumann", "--repeats", "1"],
    ):
        done = run(*words, "--run-code")
        assert done.exit_code in (0, 5), (words, done.output)


def test_paths_to_data_are_relative_to_who_wrote_them(elsewhere):
    """In a recipe to its folder, in --set to the working folder; each key for itself."""
    for place, count in (("mine", 31), ("here", 33)):
        (elsewhere / place).mkdir()
        x, y = images(count)
        np.savez(elsewhere / place / "d.npz", x_train=x, y_train=y, x_test=x, y_test=y)
        (elsewhere / place / "net.py").write_text(NET)
    recipe = elsewhere / "mine" / "own.yaml"
    recipe.write_text(OWN.replace("mine.npz", "d.npz"))
    for typed, data, net in (
        ([], "mine", "mine"),
        (["--set", "data.name=here/d.npz"], "here", "mine"),
        (["--set", "model.name=here/net.py:make"], "mine", "here"),
        (["--set", "data={name: here/d.npz, shape: image}"], "here", "mine"),
    ):
        done = run("validate", recipe, *typed, "--json")
        assert done.exit_code == 0, done.output
        found = json.loads(done.stdout)
        assert found["data"]["name"] == str(elsewhere / data / "d.npz")
        assert found["model"]["name"] == f"{elsewhere / net / 'net.py'}:make"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("nn.Linear(36, 3)", "on inputs of shape (2, 1, 6, 6): RuntimeError: "),
        ("nn.Sequential(nn.Flatten(), nn.Linear(36, 4))", "outputs of shape (2, 4) of 2 examples"),
        ("nn.Sequential(nn.Flatten(0), nn.Linear(72, 3))", "made (3,) of 2 examples"),
        ("Once()", "cannot be differentiated twice: RuntimeError: "),
        ("Counts()", "keeps a state in the attribute 'calls'"),
        ("nn.Sequential(nn.Flatten())", "no parameters"),
    ],
)
def test_a_network_that_cannot_be_trained_is_refused_before_training(body, words):
    npz()
    Path("net.py").write_text(
        "import torch\nfrom torch import nn\n"
        "class Drops(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n"
        "        self.inner = nn.Linear(36, 3)\n"
        "    def forward(self, x):\n"
        "        return nn.functional.dropout(self.inner(x.flatten(1)), 0.5)\n"
        "class Cube(torch.autograd.Function):\n"
        "    @staticmethod\n    def forward(ctx, x):\n"
        "        ctx.save_for_backward(x)\n        return x**3\n"
        "    @staticmethod\n    @torch.autograd.function.once_differentiable\n"
        "    def backward(ctx, g):\n        return 3 * ctx.saved_tensors[0] ** 2 * g\n"
        "class Once(Drops):\n"
        "    def forward(self, x):\n        return Cube.apply(self.inner(x.flatten(1)))\n"
        "class Counts(Drops):\n"
        "    def forward(self, x):\n"
        "        self.calls = getattr(self, 'calls', 0) + 1\n"
        "        return self.calls * self.inner(x.flatten(1))\n"
        f"def make(shape, classes):\n    return {body}\n"
    )
    state = torch.get_rng_state()
    with pytest.raises(UsageError) as refused:
        Experiment(short(data={"name": "mine.npz", "shape": "image"}, model__name="net.py:make",
                         model__init_std=None)).problem()  # fmt: skip
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_networks_own_initialization_is_kept_and_seeded():
    npz()
    Path("net.py").write_text(NET)
    section = {"data__name": "mine.npz", "data__shape": "image", "model__name": "net.py:make"}
    starts = {
        (std, seed): Experiment(short(**section, model__init_std=std, seed=seed))
        .problem().initial_state()
        for std in (None, 0.5) for seed in (1, 2)
    }  # fmt: skip
    half = len(starts[None, 1]) // 2
    own = starts[None, 1][:half]
    assert torch.equal(
        own,
        Experiment(short(**section, model__init_std=None, seed=1)).problem().initial_state()[:half],
    )
    assert not torch.equal(own, starts[None, 2][:half])
    assert float(own[:36].abs().max()) <= 1 / 3, "Conv2d draws from ±1/√(fan in)"
    assert float(starts[0.5, 1][:half].std()) == pytest.approx(0.5, rel=0.2)
    assert short().model.init_std == pytest.approx(0.0497870684)


def test_conv_is_built_as_it_says():
    built = Conv(channels=[3, 5], kernel=5, activation="softplus", hidden=[7]).build((2, 12, 9), 4)
    assert built(torch.zeros(6, 2, 12, 9)).shape == (6, 4)
    assert [type(m).__name__ for m in built] == [
        "Conv2d", "Softplus", "AvgPool2d", "Conv2d", "Softplus", "AvgPool2d", "Flatten", "Linear",
        "Softplus", "Linear",
    ]  # fmt: skip
    assert built[7].in_features == 5 * 3 * 2
    with pytest.raises(UsageError, match="nothing is left of images of 6×6 after 3 poolings"):
        Conv(channels=[2, 2, 2]).build((1, 6, 6), 4)
    assert (
        Conv(channels=[2, 2, 2], pooling="none").build((1, 6, 6), 4)(torch.zeros(1, 1, 6, 6)).shape
    )


def conv_run(optimizer: str, loss: str = "cross-entropy"):
    """A tiny convolutional network in float64."""
    source = torch.Generator().manual_seed(1)
    inputs = torch.randn(20, 1, 6, 6, generator=source, dtype=torch.float64)
    classes = torch.randint(0, 3, (20,), generator=source)
    values = torch.randn(20, 3, generator=source, dtype=torch.float64)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Conv(channels=[2, 3], activation="tanh").build((1, 6, 6), 3).double()
    targets = classes if LOSSES[loss].targets == "classes" else values
    run = TrainingRun(
        model, ShuffledBatches(Batch(inputs, targets), 5, 3), steps=12, optimizer=optimizer,
        loss=LOSSES[loss].function,
    )  # fmt: skip
    return model, run, run.initial_theta(0.3, 0.6)


@pytest.mark.parametrize("loss", ["cross-entropy", "mse", "huber"])
@pytest.mark.parametrize("optimizer", ["sgd", "maclaurin"])
def test_the_hypergradient_of_a_convolutional_network_is_right(optimizer, loss):
    """In float64 against autograd through a run written out by hand, and central differences."""
    model, run, theta = conv_run(optimizer, loss)
    found = hypergradient(run, theta, "bptt").gradient

    def unrolled(theta):
        weights = {k: v.detach().clone() for k, v in model.named_parameters()}
        velocity = {k: torch.zeros_like(v) for k, v in weights.items()}
        alpha, beta = theta[:6].exp(), theta[6:].sigmoid()

        def loss_at(weights, x):
            made = functional_call(model, weights, (x.inputs,))
            return LOSSES[loss].function(made, x.targets).mean()

        for t in range(12):
            leaves = {k: w if w.requires_grad else w.requires_grad_() for k, w in weights.items()}
            g = torch.autograd.grad(
                loss_at(leaves, run.input(t)), list(leaves.values()), create_graph=True
            )
            for i, key in enumerate(weights):
                sign, gain = (-1, 1) if optimizer == "sgd" else (1, beta[i] - 1)
                velocity[key] = beta[i] * velocity[key] + gain * g[i]
                weights[key] = leaves[key] + sign * alpha[i] * velocity[key]
        ((_, everything),) = run.population()
        return loss_at(weights, everything)

    leaf = theta.clone().requires_grad_()
    (truth,) = torch.autograd.grad(unrolled(leaf), leaf)
    torch.testing.assert_close(found, truth, rtol=1e-10, atol=1e-13)
    for i in (0, 3, 5, 7, 11):
        step = torch.zeros_like(theta)
        step[i] = 1e-5

        def at(theta):
            h = run.run(theta, 0, 12, run.initial_state())
            return float(run.loss_and_gradient(h)[0])

        derivative = (at(theta + step) - at(theta - step)) / 2e-5
        assert float(found[i]) == pytest.approx(derivative, rel=1e-5, abs=1e-9)


def test_a_gpu_convolves_with_the_same_bits_and_all_of_them(monkeypatch):
    for name, default in (("deterministic", False), ("allow_tf32", True)):
        monkeypatch.setattr(torch.backends.cudnn, name, default)
    monkeypatch.setattr(device_module, "choose_device", lambda wanted: "cuda")
    device_module.device_and_threads(short())
    assert torch.backends.cudnn.deterministic
    assert not torch.backends.cudnn.allow_tf32
