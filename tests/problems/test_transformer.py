"""The built-in network ``gpt``, and the recipe that trains it."""

from __future__ import annotations

import json
import math

import pytest
import torch
from commands import assert_refused, run
from own_parts import SHOW

from hyperrbp.config import presets
from hyperrbp.config.loading import read
from hyperrbp.data.batches import Batch
from hyperrbp.exceptions import UsageError
from hyperrbp.experiments.experiment import Experiment
from hyperrbp.problems.losses import cross_entropy
from hyperrbp.problems.networks import Gpt
from hyperrbp.problems.training.objective import Objective
from hyperrbp.problems.training.terms import terms
from hyperrbp.runtime.randomness import generator, seeded

pytestmark = pytest.mark.usefixtures("elsewhere")

SMALL = Gpt(layers=2, heads=2, width=6, dropout=0.3)
TINY = {
    "data.options.block": 6,
    "data.validation_examples": 20,
    "data.population": 20,
    "model.options.width": 8,
    "inner.steps": 6,
    "inner.batch_size": 4,
    "meta.steps": 2,
    "record.test_seeds": 0,
}


def tiny(**changes):
    values = TINY | {key.replace("__", "."): value for key, value in changes.items()}
    return read(presets.built_in("gpt"), [("test", key, value) for key, value in values.items()])


def ids(*shape, below=7):
    return torch.randint(below, shape, generator=generator(1, "ids"))


@pytest.fixture
def network():
    with seeded(5):
        return SMALL.build((4,), 7).double()


def test_the_logits_of_a_token_depend_on_it_and_on_those_before_it(network):
    network.eval()
    one = ids(3, 4)
    other = one.clone()
    other[:, 2] = (other[:, 2] + 1) % 7
    moved = (network(one) - network(other)).abs().amax((0, 2))
    assert network(one).shape == (3, 4, 7)
    assert moved[:2].max() == 0
    assert moved[2:].min() > 1e-6


def test_the_matrix_of_the_output_is_the_embedding_and_is_listed_once(network):
    named = dict(network.named_parameters())
    weights = sum(tensor.numel() for tensor in named.values())
    block = 4 * 6 + (18 * 6 + 18) + (6 * 6 + 6) + (24 * 6 + 24) + (6 * 24 + 6)
    assert weights == 7 * 6 + 4 * 6 + 2 * block + 2 * 6
    assert Objective(network, cross_entropy).weights == weights
    # An id that no input has is still one that is predicted: its row has a gradient.
    inputs = ids(3, 4, below=6)
    (g,) = torch.autograd.grad(network.eval()(inputs)[..., 6].sum(), [named["tokens.weight"]])
    assert g[6].abs().min() > 0


def test_it_begins_as_gpt2_does():
    with seeded(5):
        network = Gpt(layers=8, heads=4, width=64).build((16,), 40)
    for name, tensor in network.named_parameters():
        if "norm" in name:
            assert (tensor == float(name.endswith("weight"))).all(), name
        elif name.endswith("bias"):
            assert (tensor == 0).all(), name
        else:
            added = name.endswith(("projection.weight", "narrow.weight"))
            std = 0.02 / math.sqrt(2 * 8) if added else 0.02
            assert float(tensor.detach().std()) == pytest.approx(std, rel=0.1), name


def test_second_derivatives_agree_with_finite_differences(network):
    """With dropout: a seed decides what it drops, in the loss, its gradient and its curvature."""
    objective = Objective(network, cross_entropy)
    objective.draws = True
    x = terms(Batch(ids(5, 4), ids(5, 4).flip(1)), seed=11)
    source = generator(2, "points")
    w, d = torch.randn(2, objective.weights, generator=source, dtype=torch.float64)
    d /= d.norm()

    def gradient(at):
        pieces = [piece.detach() for piece in objective.pieces(at)]
        return torch.cat([g.reshape(-1) for g in objective.gradient(pieces, x)])

    def value(at):
        leaves = [piece.detach().requires_grad_() for piece in objective.pieces(at)]
        with objective.drawing(11):
            return float(objective.value(leaves, x).detach())

    step = 1e-5
    along = (value(w + step * d) - value(w - step * d)) / (2 * step)
    assert float(gradient(w) @ d) == pytest.approx(along, rel=1e-6)
    pieces = [piece.detach() for piece in objective.pieces(w)]
    _, product = objective.curvature(pieces, objective.pieces(d), x)
    product = torch.cat([piece.reshape(-1) for piece in product])
    differences = (gradient(w + step * d) - gradient(w - step * d)) / (2 * step)
    torch.testing.assert_close(product, differences, rtol=1e-6, atol=1e-8)
    assert product.norm() > 1e-2


def test_the_recipe_has_the_exact_gradient_of_its_validation_loss():
    """By what it tunes: rates of AdamW, its betas, and the schedule, under dropout and clipping."""
    experiment = Experiment(tiny(dtype="float64", model__options__width=4))
    problem, theta = experiment.problem(), experiment.theta

    def loss(at):
        return float(problem.loss(problem.last_state(at)))

    found = experiment.gradient.hypergradient(problem, theta, seed=1)
    assert found.loss == pytest.approx(loss(theta), rel=1e-12)
    direction = torch.randn(len(theta), generator=generator(3, "d"), dtype=torch.float64)
    step = 1e-4
    along = (loss(theta + step * direction) - loss(theta - step * direction)) / (2 * step)
    assert float(found.gradient @ direction) == pytest.approx(along, rel=1e-6)


def test_the_recipe_tunes_and_names_its_text():
    changes = [f"--set={key}={value}" for key, value in TINY.items()]
    done = run("tune", "gpt", *changes, "--set=meta.learning_rate=1", "--out", "run", *SHOW)
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert result["meta_loss"][-1] < result["meta_loss"][0]
    assert result["environment"]["data"] == "a46a07e65d3b74a1"


def test_what_the_network_cannot_take_is_refused():
    with pytest.raises(UsageError, match="3 heads do not divide a width of 64"):
        Experiment(tiny(model__options__heads=3, model__options__width=64)).problem()
    with pytest.raises(UsageError, match=r"takes windows of token ids; these have shape \(3, 8"):
        SMALL.build((3, 8, 8), 10)
    assert_refused(run("validate", "gpt", "--set=data={name: digits}"), 2, "gpt takes token ids")
    assert_refused(
        run("validate", "gpt", "--set=model.options.layer=3"),
        2,
        "unknown key; did you mean layers?",
    )
