"""Recipes whose code returns data sets or loaders of torch.utils.data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from commands import assert_refused, run
from own_parts import SHORT, SHOW, short

from hyperrbp import tune_recipe
from hyperrbp.config.loading import parse_any
from hyperrbp.data.batches import ShuffledBatches
from hyperrbp.exceptions import DataError, HyperrbpError, RecipeError
from hyperrbp.experiments.experiment import Experiment

pytestmark = pytest.mark.usefixtures("elsewhere")

DATA = """\
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

class Images(Dataset):
    def __init__(self, count, seed, classes=True, values=False, flips=True):
        g = torch.Generator().manual_seed(seed)
        self.y = torch.randint(0, 3, (count,), generator=g)
        self.x = torch.randn(count, 1, 4, 4, generator=g) + self.y.view(-1, 1, 1, 1)
        self.values, self.flips = values, flips
        if classes:
            self.classes = ["a", "b", "c"]

    def __len__(self):
        return len(self.y)

    def __getitem__(self, n):
        x = self.x[n]
        if self.flips and torch.rand(()) < 0.5:
            x = x.flip(-1)
        return x, float(self.y[n]) if self.values else int(self.y[n])

class Stream(IterableDataset):
    def __init__(self, count):
        self.count = count

    def __iter__(self):
        for n in torch.randperm(self.count).tolist():
            yield torch.tensor([float(n % 3), 1.0]), n % 3

def sets(**options):
    return Images(60, 0, **options), Images(20, 1, **options)

def loaders():
    return tuple(DataLoader(Images(n, n), batch_size=b, shuffle=n == 60)
                 for n, b in ((60, 16), (12, 16), (20, 7)))

def streams():
    return Stream(35), Stream(12)

def in_memory():
    parts = [Images(n, n, flips=False) for n in (60, 12, 20)]
    return [TensorDataset(part.x, part.y) for part in parts]

def tokens():
    ids = torch.arange(400).view(40, 10) % 7
    parts = [TensorDataset(part[:, :-1], part[:, 1:], part[:, 1:]) for part in (ids, ids[:9])]
    return [Pairs(part) for part in parts]

class Pairs(Dataset):
    def __init__(self, whole):
        self.whole = whole

    def __len__(self):
        return len(self.whole)

    def __getitem__(self, n):
        return self.whole[n][:2]

class Nested(Images):
    def __getitem__(self, n):
        x, y = super().__getitem__(n)
        return {"image": x, "mask": torch.ones(2)}, y

class Single(Images):
    def __getitem__(self, n):
        return super().__getitem__(n)[0]

def nested():
    return Nested(30, 0), Nested(10, 1)

def singles():
    return Single(30, 0), Single(10, 1)

def wrong():
    return Images(10, 0), 3
"""
NET = """\
import math
import torch
from torch import nn

def flat(shape, outputs):
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), outputs))

class Lm(nn.Module):
    def __init__(self, vocabulary):
        super().__init__()
        self.embed, self.out = nn.Embedding(vocabulary, 6), nn.Linear(6, vocabulary)

    def forward(self, ids):
        return self.out(torch.tanh(self.embed(ids)))

def lm(shape, outputs):
    return Lm(outputs)

def shapes(shape, outputs):
    raise ValueError(f"{shape} {outputs}")
"""


@pytest.fixture(autouse=True)
def code(elsewhere):
    Path("data.py").write_text(DATA)
    Path("net.py").write_text(NET)


def recipe(load, **changes):
    changes = {"model__name": "net.py:flat", "model__init_std": None, **changes}
    return short(data__name=f"data.py:{load}", **changes)


def without(key, *, load="loaders", **changes):
    """As ``recipe`` is, of a text that lacks a line of the inner section."""
    text = SHORT.replace(f"{key}, ", "")
    assert text != SHORT
    overrides = [("test", k.replace("__", "."), v) for k, v in changes.items()]
    return parse_any(text, folder=Path(), overrides=[
        ("test", "data.name", f"data.py:{load}"), ("test", "model.name", "net.py:flat"),
        ("test", "model.init_std", None), *overrides])  # fmt: skip


BY_LOADER = "batch_size: 10"


# --- what goes in ---------------------------------------------------------------------------------


@pytest.mark.parametrize("load", ["sets", "streams", "in_memory", "tokens"])
def test_data_sets_are_tuned_on_as_they_are(load):
    """Bits do not depend on what is remembered: bptt keeping states and going back agree."""
    model = {"model__name": "net.py:lm"} if load == "tokens" else {}
    results = []
    for keep in ("graph", "checkpoints"):
        changes = {"gradient__method": "bptt", "gradient__options": {"bptt": {"keep": keep}}}
        results.append(tune_recipe(recipe(load, **model, **changes), Path(f"run-{keep}")))
    first, again = results
    assert first.meta_loss == pytest.approx(again.meta_loss, rel=1e-6)
    assert first.meta_loss[-1] < first.meta_loss[0]
    assert first.test.tuned.accuracy is not None
    assert first.population is None


def test_a_run_resumed_has_the_bits_of_one_that_went_through():
    whole = tune_recipe(recipe("sets", meta__steps=3), Path("whole"))
    tune_recipe(recipe("sets", meta__steps=1), Path("parts"))
    again = tune_recipe(recipe("sets", meta__steps=3), Path("parts"), resume=True)
    assert again.meta_loss == whole.meta_loss
    assert again.environment["data"] == whole.environment["data"]


def test_loaders_bring_their_minibatch_and_their_validation_part():
    found = Experiment(without(BY_LOADER, meta__loss="validation"))
    assert found.recipe.inner.batch_size == 16
    assert len(found.problem().input(3)) == 16
    assert (len(found.data.validation), len(found.data.heldout)) == (12, 20)
    assert found.data.shape == (1, 4, 4)
    tuned = tune_recipe(without(BY_LOADER, meta__loss="validation"), Path("run"))
    assert tuned.finished
    again = tune_recipe(without(BY_LOADER, meta__loss="validation", meta__steps=3),
                        Path("run"), resume=True)  # fmt: skip
    assert len(again.meta_loss) == 4
    with pytest.raises(DataError, match=r"minibatches of 16, inner\.batch_size says 10; leave"):
        Experiment(recipe("loaders"))


def test_tensors_in_memory_take_the_path_of_arrays():
    found = Experiment(recipe("in_memory", meta__loss="validation"))
    assert isinstance(found.data.batches(0), ShuffledBatches)
    assert (len(found.data.validation), len(found.data.heldout)) == (12, 20)
    assert found.data.center is None
    assert found.data.shape == (1, 4, 4)


def test_parts_are_cut_as_those_of_arrays_are():
    """By the seed for validation; the first ones of all. The numbers are those of the data set."""
    weights = {"hyperparameters": {"example_weight": {}}, "meta__loss": "validation"}
    ours = Experiment(recipe("sets", data__options={"flips": False}, data__train_examples=40,
                             data__validation_examples=8, **weights))  # fmt: skip
    theirs = Experiment(recipe("in_memory", meta__loss="train"))
    validation = torch.cat([x.inputs for _, x in ours.data.validation.chunks()])
    trained = torch.cat([x.inputs for _, x in ours.problem().population()])
    assert (len(validation), len(trained)) == (8, 32)
    of_sets = Experiment(recipe("sets", data__options={"flips": False}))
    whole = torch.cat([x.inputs for _, x in of_sets.problem().population()])
    assert torch.equal(trained, whole[ours.data.train_rows])
    left = sorted(set(range(40)) - set(ours.data.train_rows.tolist()))
    assert torch.equal(validation, whole[left])
    assert len(theirs.data.train) == 60


def test_the_shape_and_the_classes_reach_the_network():
    for load, options, words in (
        ("sets", {}, r"\(1, 4, 4\) 3"),
        ("sets", {"classes": False}, r"\(1, 4, 4\) 3"),
        ("sets", {"values": True}, r"\(1, 4, 4\) 1"),
        ("nested", {}, r"\{'image': \(1, 4, 4\), 'mask': \(2,\)\} 3"),
        ("tokens", {}, r"\(9,\) 7"),
    ):
        with pytest.raises(HyperrbpError, match=words):
            Experiment(recipe(load, data__options=options, model__name="net.py:shapes")).problem()
    with pytest.raises(HyperrbpError, match=r"\(9,\) 11"):
        Experiment(recipe("tokens", data__outputs=11, model__name="net.py:shapes")).problem()


def test_our_own_networks_take_what_fits_them():
    assert Experiment(recipe("sets", model__name="mlp")).data.shape == 16
    assert Experiment(recipe("sets", model__name="conv")).problem().steps == 6


def test_a_sample_is_said_to_be_one():
    """In the result, in its page, and by the loss, which is that of the sample."""
    found = recipe("sets", data__population=24)
    result = tune_recipe(found, Path("run"))
    assert result.population == "a fixed sample of 24 of 60 examples stands for all of them"
    assert json.loads(Path("run", "result.json").read_text())["population"] == result.population
    shown = run("show", "run")
    assert "a fixed sample of 24 of 60" in " ".join(shown.output.split())
    problem = Experiment(found).problem()
    assert sum(len(x) for _, x in problem.population()) == 24


def test_training_says_it_too():
    Path("own.yaml").write_text(f"data: {{name: 'data.py:streams', population: 20}}\n{SHORT}"
                                "model: {name: 'net.py:flat'}\n")  # fmt: skip
    done = run("train", "own.yaml", "--run-code", "--out", "run", *SHOW)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["population"] == (
        "the first 20 examples of a stream stand for all"
    )


# --- epochs ---------------------------------------------------------------------------------------


def test_epochs_are_steps_once_the_data_are_known():
    found = without("steps: 6", load="sets", inner__epochs=2)
    assert "epochs: 2" in found.to_yaml()
    assert "\n  steps:" not in found.to_yaml().partition("inner:")[2].partition("\nmeta:")[0]
    assert parse_any(found.to_yaml()) == found
    experiment = Experiment(found)
    assert experiment.problem().steps == experiment.recipe.inner.steps == 2 * (60 // 10)
    assert experiment.recipe.inner.epochs is None
    assert parse_any(experiment.recipe.to_yaml()) == experiment.recipe
    tune_recipe(found, Path("run"))
    with pytest.raises(HyperrbpError, match=r"inner.steps: 12 → 18"):
        tune_recipe(without("steps: 6", load="sets", inner__epochs=3), Path("run"), resume=True)


def test_steps_and_epochs_exclude_each_other():
    with pytest.raises(RecipeError, match=r"expected inner\.steps or inner\.epochs, not both"):
        parse_any("inner: {steps: 60, epochs: 2}")
    # On the command line, the one that is typed is meant.
    assert parse_any("inner: {epochs: 2}", overrides=[("--set", "inner.steps", 59)]).inner == (
        parse_any("inner: {steps: 59}").inner
    )
    over = parse_any("inner: {steps: 60}", overrides=[("--set", "inner.epochs", 2)])
    assert (over.inner.epochs, over.from_data()[0]) == (2, "inner.steps")


def test_a_length_that_comes_out_wrong_names_the_epochs():
    made = without("steps: 6", load="sets", inner__epochs=1, inner__batch_size=40)
    with pytest.raises(RecipeError, match=r"inner\.epochs: 1 are 1 steps: gradient\..* needs 2"):
        Experiment(made)
    with pytest.raises(DataError, match=r"does not know its length.*expected inner\.steps"):
        Experiment(without("steps: 6", load="streams", inner__epochs=1))
    Path("own.yaml").write_text("inner: {epochs: 1}\n")
    assert_refused(run("compare", "own.yaml"), 2, "expected --train-steps")


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("load", "changes", "words"),
    [
        ("sets", {"data__center": True}, "data.center is for arrays; of a data set or a loader, n"),
        ("sets", {"data__label_noise": 0.1}, "data.label_noise is for arrays"),
        ("sets", {"data__inputs": "floats"}, "data.inputs is for arrays"),
        ("sets", {"data__train_examples": 61}, "has 60 training examples; the recipe needs 61"),
        ("sets", {"data__validation_examples": 60}, "has 60 training examples; the recipe needs"),
        ("streams", {"data__train_examples": 12}, "train_examples cuts a data set of map style, a"),
        ("in_memory", {"data__validation_examples": 5}, "has a validation part of its own"),
        ("sets", {"inner__batch_size": 61}, "60 examples are fewer than a minibatch of 61"),
        ("sets", {"meta__loss": "validation"}, "has no such part; expected data.validation_examp"),
        ("singles", {}, "a minibatch is no pair; inner.loss auto wants a tensor of targets"),
        ("nested", {"model__name": "mlp"}, "mlp takes floats; a minibatch has dict"),
        ("tokens", {"model__name": "mlp"}, "mlp takes floats; a minibatch has whole numbers"),
        ("streams", {"model__name": "conv"}, "conv takes images (C, H, W); a minibatch has floats"),
        ("sets", {"data__outputs": 2}, "the examples need 3 outputs, data.outputs says 2"),
        ("sets", {"data__options": {"values": True}, "inner__loss": "cross-entropy"},
         "targets are floats of shape (); cross-entropy wants whole numbers"),
        ("wrong", {}, "returned (Images, int); expected ((train_x, train_y)"),
        ("sets", {"data__population": 20, "data__validation_examples": 9,
                  "meta__loss": "validation", "hyperparameters": {"example_weight": {}}},
         "weights of examples need a data set of map style, at most data.population examples"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_for_them_is_refused(load, changes, words):
    with pytest.raises(HyperrbpError) as refused:
        Experiment(recipe(load, **changes))
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_label_beyond_the_outputs_is_refused_where_it_comes():
    """Not an index error of the loss, nor, on a GPU, an assertion that ends the process."""
    found = recipe("sets", data__options={"classes": False}, data__outputs=3, inner__batch_size=5)
    assert Experiment(found).data.outputs == 3
    Path("data.py").write_text(DATA.replace("int(self.y[n])", "int(self.y[n]) + (n == 59) * 9"))
    with pytest.raises(DataError, match=r"a label is (9|10|11); expected 0 … 2 as data\.o"):
        Experiment(found)
