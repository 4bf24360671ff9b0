"""Recipes of texts and of token ids."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from commands import run
from own_parts import npz, short

from hyperrbp import tune_recipe
from hyperrbp.config.loading import read
from hyperrbp.exceptions import DataError, HyperrbpError, RecipeError
from hyperrbp.experiments.experiment import Experiment
from hyperrbp.problems.losses import LOSSES

pytestmark = pytest.mark.usefixtures("elsewhere")

NET = """\
import torch
from torch import nn

class Lm(nn.Module):
    def __init__(self, vocabulary):
        super().__init__()
        self.embed, self.out = nn.Embedding(vocabulary, 6), nn.Linear(6, vocabulary)

    def forward(self, ids):
        return self.out(torch.tanh(self.embed(ids)))

def lm(shape, outputs):
    return Lm(outputs)

def classifier(shape, outputs):
    return nn.Sequential(nn.Embedding(50, 3), nn.Flatten(), nn.Linear(3 * shape[0], outputs))
"""


@pytest.fixture(autouse=True)
def code(elsewhere):
    Path("net.py").write_text(NET)
    Path("a.txt").write_text("the quick brown fox jumps over the lazy dog. " * 20)


def text(**changes):
    options = {"file": "a.txt", "block": 8}
    changes = {"data": {"name": "text", "options": options}, "model__name": "net.py:lm",
               "model__init_std": None} | changes  # fmt: skip
    return short(**changes)


def test_a_text_is_tuned_on_per_token():
    """The held-out loss and accuracy are those of the tokens, computed here by hand."""
    experiment = Experiment(text(inner__learning_rate=2.0))
    result = tune_recipe(text(inner__learning_rate=2.0), Path("run"))
    assert result.meta_loss[-1] < result.meta_loss[0]
    problem, theta = experiment.problem(), experiment.theta
    h = problem.last_state(theta)
    found = experiment.heldout_measures(problem, h)
    ((_, whole),) = experiment.data.heldout.chunks()
    with torch.no_grad():
        pieces = problem.objective.pieces(h[: problem.weights])
        logits = problem.objective.outputs(pieces, whole.inputs)
    assert logits.shape == (*whole.targets.shape, experiment.data.outputs)
    each = logits.log_softmax(-1).gather(-1, whole.targets[..., None])
    assert found["loss"] == pytest.approx(-float(each.mean()), rel=1e-5)
    right = (logits.argmax(-1) == whole.targets).double().mean()
    assert found["accuracy"] == pytest.approx(float(right))
    assert found.keys() == {"loss", "accuracy"}


def test_the_digest_of_a_text_is_in_its_result():
    first = Experiment(text()).environment()["data"]
    assert Experiment(text()).environment()["data"] == first
    Path("a.txt").write_text("the quick brown fox jumps over the lazy cat. " * 20)
    assert Experiment(text()).environment()["data"] != first
    default = Experiment(text(data={"name": "text"}, data__population=10)).environment()["data"]
    assert default == "a46a07e65d3b74a1"


def test_a_text_beside_its_recipe_is_found_from_anywhere(elsewhere):
    Path("deep").mkdir()
    Path("deep", "b.txt").write_text("ab" * 50)
    Path("deep", "own.yaml").write_text("data: {name: text, options: {file: b.txt}}\n"
                                        "model: {name: 'net.py:lm'}\n")  # fmt: skip
    found = read(Path("deep", "own.yaml"))
    assert found.data.options["file"] == str(elsewhere / "deep" / "b.txt")


def test_validation_windows_are_held_back():
    found = Experiment(text(meta__loss="validation", data__validation_examples=5,
                            data__train_examples=300))  # fmt: skip
    assert len(found.data.validation) == 5
    assert sum(len(x) for _, x in found.problem().population()) == 300 - 5 * 8 - 1
    assert tune_recipe(found.recipe, Path("run")).finished


def test_a_sample_of_windows_is_said_to_be_one():
    result = tune_recipe(text(data__population=50), Path("run"))
    assert result.population.startswith("a fixed sample of 50 of ")


@pytest.mark.parametrize("kind", ["npz", "code"])
@pytest.mark.parametrize("tokens", [True, False])
def test_whole_numbers_are_token_ids_if_the_recipe_says_so(kind, tokens):
    ids = np.random.default_rng(0).integers(0, 50, (30, 7))
    targets = (ids + 1) % 50 if tokens else ids[:, 0] % 3
    name = npz(x_train=ids, y_train=targets, x_test=ids[:9], y_test=targets[:9])
    if kind == "code":
        Path("data.py").write_text(
            "import numpy as np\n"
            "def load():\n"
            "    f = np.load('mine.npz')\n"
            "    return (f['x_train'], f['y_train']), (f['x_test'], f['y_test'])\n"
        )
        name = "data.py:load"
    net = "net.py:lm" if tokens else "net.py:classifier"
    changes = {"data": {"name": name, "inputs": "ids"}, "model__name": net}
    experiment = Experiment(text(**changes))
    assert experiment.data.train.inputs.tolist() == ids.tolist()
    assert experiment.data.train.inputs.dtype is torch.int64
    assert (experiment.data.outputs, experiment.data.shape) == (50 if tokens else 3, (7,))
    assert tune_recipe(text(**changes), Path("run")).test.tuned.accuracy is not None
    floats = Experiment(short(data__name=name)) if not tokens else None
    assert floats is None or floats.data.train.inputs.dtype is torch.float32


def test_the_mean_is_taken_over_the_tokens_of_each_example():
    loss = LOSSES["cross-entropy"].function
    outputs, targets = torch.randn(4, 5, 7), torch.randint(0, 7, (4, 5))
    each = torch.stack([loss(outputs[:, t], targets[:, t]) for t in range(5)], 1)
    assert torch.allclose(loss(outputs, targets), each.mean(1))
    for wrong in (outputs[:, 0], outputs[None]):
        with pytest.raises(HyperrbpError, match=r"of shape \(examples, tokens, classes\)"):
            loss(wrong, targets)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"model__name": "mlp"},
            "a text gives token ids, and mlp takes floats; expected a network",
        ),
        ({"data__center": True}, "data.center: token ids have no mean; expected auto or false"),
        ({"data__inputs": "floats"}, "these are token ids; expected auto or ids"),
        ({"data__label_noise": 0.5}, "a text has no labels; expected 0, got 0.5"),
        ({"data__shape": "image"}, "of a text, expected auto or own, got 'image'"),
        (
            {"data__options": {"heldot": 0.3}},
            "data.options.heldot: unknown key; did you mean heldout?",
        ),
        ({"data__options": {"tokens": "words"}}, "expected one of characters, bytes"),
        ({"data": {"name": "photos/", "inputs": "ids"}}, "photos/ holds images; expected auto or"),
        ({"data__center": "yes"}, "data.center: expected one of auto, true, false, got 'yes'"),
    ],
)
def test_a_recipe_that_contradicts_itself_is_refused(changes, words):
    with pytest.raises(RecipeError) as refused:
        text(**changes)
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data__options": {"file": "no.txt"}}, "no.txt: no such file; data.options.file is"),
        ({"inner__loss": "mse"}, "inner.loss mse wants values: expected cross-entropy"),
        ({"inner__batch_size": 1000}, "to train on; the recipe needs 1,000"),
        ({"data__outputs": 5}, "outputs, data.outputs says 5"),
        ({"data__population": 10, "hyperparameters": {"example_weight": {}},
          "meta__loss": "validation", "data__validation_examples": 2},
         "weights of examples need all of them"),
        ({"data": {"name": "mine.npz", "inputs": "ids"}}, "holds float64; token ids are whole"),
        ({"data": {"name": "less.npz", "inputs": "ids"}}, "holds -1 … 1; expected token ids fr"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(changes, words):
    x, y = np.ones((12, 3)), np.arange(12) % 3
    npz(inputs=x, targets=y)
    npz("less.npz", inputs=x.astype(int) * np.where(np.arange(12) < 6, 1, -1)[:, None], targets=y)
    with pytest.raises(DataError) as refused:
        Experiment(text(**changes))
    assert words in str(refused.value)


def test_a_text_needs_no_code_of_ones_own():
    """But for its network: the data set is in the list, and nothing is run to read it."""
    Path("own.yaml").write_text("data: {name: txt}\n")
    assert "did you mean text?" in run("validate", "own.yaml").stderr
