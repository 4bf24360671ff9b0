"""Data, losses and networks of the user's own."""

from __future__ import annotations

import json
import pickle
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from commands import assert_refused, run
from factories import write_mnist
from PIL import Image
from torch import nn
from torch.func import functional_call
from torchvision import datasets

from hyperrbp import hypergradient, train_recipe, tune_recipe
from hyperrbp.config.loading import parse, parse_any
from hyperrbp.data import sources as own_data
from hyperrbp.data.batches import Batch, ShuffledBatches
from hyperrbp.exceptions import CheckpointError, DataError, RecipeError, UsageError
from hyperrbp.experiments import device as device_module
from hyperrbp.experiments.checkpoint import read_tensors
from hyperrbp.experiments.experiment import Experiment
from hyperrbp.problems.losses import LOSSES
from hyperrbp.problems.networks import Conv
from hyperrbp.problems.training.hidden_state import refuse_hidden_state
from hyperrbp.problems.training.run import TrainingRun
from hyperrbp.runtime.randomness import seeded

SHORT = """\
threads: 1
device: cpu
inner: {steps: 6, batch_size: 10, update: pytorch, learning_rate: 0.1}
gradient: {trunc: 3, averaging: {minibatches: 2, series: 1}}
meta: {steps: 2}
"""
SHOW = ("-q", "--json")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYPERRBP_DATA", raising=False)
    before = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(before)


def short(**changes):
    """A recipe in the working folder with these values over it; __ for the dot of a key."""
    overrides = [("test", key.replace("__", "."), value) for key, value in changes.items()]
    return parse_any(SHORT, folder=Path(), overrides=overrides)


def images(count=30, shape=(6, 6), dtype=np.uint8, seed=0):
    """Images whose class of three is how bright they are."""
    source = np.random.default_rng(seed)
    labels = source.integers(0, 3, count)
    labels[:3] = (0, 1, 2)
    pixels = source.integers(0, 60, (count, *shape)) + 80 * labels.reshape(-1, *[1] * len(shape))
    return pixels.astype(dtype), labels


def npz(name="mine.npz", **arrays):
    if not arrays:
        (x, y), (tx, ty) = images(30), images(12, seed=1)
        arrays = {"x_train": x, "y_train": y, "x_test": tx, "y_test": ty}
    np.savez(name, **arrays)
    return name


# --- arrays --------------------------------------------------------------------------------------


def test_a_file_of_arrays_is_read_as_it_is():
    (x, y), (tx, ty) = images(30), images(12, seed=1)
    experiment = Experiment(short(data__name=npz(), data__center=False))
    assert torch.equal(experiment.data.train.inputs, torch.tensor(x).flatten(1).float() / 255)
    assert torch.equal(experiment.data.heldout.inputs, torch.tensor(tx).flatten(1).float() / 255)
    assert experiment.data.train.targets.tolist() == y.tolist()
    assert experiment.data.heldout.targets.tolist() == ty.tolist()
    assert experiment.data.train.targets.dtype == torch.int64
    assert experiment.problem().objective.shapes[-1] == (3,), "an output for each class"


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4", np.int16, bool])
def test_other_numbers_than_bytes_stay_as_they_are(dtype):
    x = (np.arange(120).reshape(30, 4) % 7 - (0 if dtype is bool else 3)).astype(dtype)
    npz(x_train=x, y_train=np.arange(30) % 3, x_test=x, y_test=np.arange(30) % 3)
    experiment = Experiment(short(data__name="mine.npz", data__center=False, dtype="float64"))
    assert experiment.data.train.inputs.dtype == torch.float64
    assert experiment.data.train.inputs.tolist() == x.astype(float).tolist()


def test_float64_is_not_rounded_on_the_way():
    x = 1.0 + np.arange(120).reshape(30, 4) * 1e-12
    npz(inputs=x, targets=np.arange(30) % 3)
    experiment = Experiment(short(data__name="mine.npz", data__center=False, dtype="float64"))
    rows = {
        tuple(row)
        for part in (experiment.data.train, experiment.data.heldout)
        for row in part[0].tolist()
    }
    assert rows == {tuple(row) for row in x.tolist()}


def test_a_share_is_held_out_where_there_are_no_test_arrays():
    """Drawn at random, the same for every seed, and every example in one of the two parts."""
    x, y = images(40)
    x[:, 0, 0] = np.arange(40)
    npz(inputs=x, targets=y)
    one = Experiment(short(data__name="mine.npz", data__options={"heldout": 0.25}))
    two = Experiment(short(data__name="mine.npz", data__options={"heldout": 0.25}, seed=7))
    assert (len(one.train), len(one.heldout)) == (30, 10)
    assert torch.equal(one.heldout.inputs, two.heldout.inputs)
    marks = [
        torch.round((part.inputs[:, 0] + one._center[0]) * 255).int().tolist()
        for part in (one.train, one.heldout)
    ]
    assert sorted(marks[0] + marks[1]) == list(range(40))
    assert marks[1] != list(range(30, 40)), "not the last ones"


@pytest.mark.parametrize(
    ("stored", "shape", "channels", "expected"),
    [
        ((6, 5), "image", None, (1, 6, 5)),
        ((3, 6, 5), "image", None, (3, 6, 5)),
        ((6, 5, 3), "image", "last", (3, 6, 5)),
        ((6, 5, 3), "image", "first", (6, 5, 3)),
        ((6, 5), "own", None, (6, 5)),
        ((7,), "own", None, (7,)),
        ((6, 5), "flat", None, 30),
        ((3, 6, 5), "auto", None, 90),
    ],
)
def test_inputs_come_in_the_shape_that_the_recipe_says(stored, shape, channels, expected):
    x, y = images(20, stored)
    npz(inputs=x, targets=y)
    Path("net.py").write_text(
        "import math\nfrom torch import nn\n"
        "def make(features, classes):\n"
        f"    assert features == {expected!r}, features\n"
        f"    assert type(features) is {type(expected).__name__}\n"
        "    n = features if isinstance(features, int) else math.prod(features)\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(n, classes))\n"
    )
    options = {} if channels is None else {"channels": channels}
    experiment = Experiment(
        short(
            data={"name": "mine.npz", "shape": shape, "options": options, "center": False},
            model__name="net.py:make",
        )
    )
    wanted = (expected,) if isinstance(expected, int) else expected
    assert experiment.data.train.inputs.shape[1:] == wanted
    if channels == "last":
        rows = sorted(
            map(tuple, experiment.data.train.inputs.flatten(1).mul(255).round().int().tolist())
        )
        truth = {tuple(row) for row in np.moveaxis(x, 3, 1).reshape(20, -1).tolist()}
        assert set(rows) <= truth
    experiment.problem()


def test_a_built_in_set_can_be_images():
    flat = Experiment(short(data__name="digits", inner__batch_size=50))
    Path("net.py").write_text(NET)
    image = Experiment(
        short(
            data={"name": "digits", "shape": "image"}, model__name="net.py:make",
            inner__batch_size=50,
        )
    )  # fmt: skip
    assert image.train.inputs.shape == (1200, 1, 8, 8)
    assert torch.equal(image.train.inputs.flatten(1), flat.train.inputs)


GOOD = {
    "x_train": np.ones((20, 4)),
    "y_train": np.arange(20) % 2,
    "x_test": np.ones((8, 4)),
    "y_test": np.arange(8) % 2,
}


def bad(place, value):
    array = np.array(GOOD["x_train"])
    array[place] = value
    return array


BAD_ARRAYS = [
    ({"y_train": None}, "has x_train, x_test, y_test, but no y_train\n"),
    (
        {"y_train": None, "Y_train": GOOD["y_train"]},
        "has x_train, x_test, y_test, Y_train, but no y_train; did you mean Y_train?",
    ),
    (
        {**dict.fromkeys(GOOD), "inputs": GOOD["x_train"], "target": GOOD["y_train"]},
        "has inputs, target, but no targets; did you mean target?",
    ),
    (
        {"x_test": None, "y_test": None, "X_test": GOOD["x_test"], "Y_test": GOOD["y_test"]},
        "mine.npz has X_test; did you mean x_test?",
    ),
    ({"y_test": None}, "has x_train, y_train, x_test, but no y_test"),
    ({"x_test": None}, "but no x_test"),
    ({**dict.fromkeys(GOOD), "X": np.ones(3)}, "mine.npz has X; expected x_train, y_train, x_test"),
    ({"x_train": bad((3, 1), np.nan)}, "x_train[3, 1] is nan"),
    ({"x_train": bad((0, 0), np.inf)}, "x_train[0, 0] is inf"),
    ({"x_test": np.full((8, 4), -np.inf)}, "x_test[0, 0] is -inf"),
    ({"x_train": np.array([{}] * 20)}, "holds Python objects, which are not opened"),
    ({"x_train": np.ones((20, 4), complex)}, "x_train holds complex numbers; expected numbers"),
    ({"x_train": np.ones((20, 4), np.longdouble)}, "x_train holds "),
    ({"y_train": np.array(["cat"] * 20)}, "y_train holds text; expected numbers"),
    ({"y_train": np.array(["2026-01-01"] * 20, "M8[D]")}, "y_train holds dates"),
    ({"x_train": np.full((20, 4), 2**24 + 1)}, "the whole number 16777217, which is too large"),
    ({"x_train": np.full((20, 4), -(2**63))}, "too large to stand for itself"),
    ({"y_train": np.full(20, 2**63, np.uint64)}, "y_train holds 9223372036854775808, too large"),
    ({"y_train": np.full(20, 2**62)}, "a label is 4611686018427387904; expected classes"),
    ({"y_train": np.arange(20) - 1}, "a label is -1; expected classes from 0 on"),
    ({"y_train": np.zeros(20, int), "y_test": np.zeros(8, int)}, "every label is 0"),
    ({"x_train": np.ones(20)}, "x_train has shape (20,); expected (examples, features, …)"),
    ({"x_train": np.ones((19, 4))}, "19 x_train for 20 y_train; expected as many"),
    ({"x_train": np.ones((0, 4)), "y_train": np.ones(0, int)}, "expected at least one example"),
    ({"x_train": np.ones((20, 0))}, "x_train has shape (20, 0)"),
    ({"x_train": np.float64(3)}, "x_train has shape ()"),
    ({"x_test": np.ones((8, 5))}, "inputs of shape (4,) to train on and (5,) held out"),
    ({"y_test": np.ones(8)}, "whole numbers to train on and floats held out"),
    ({"y_train": np.ones((20, 2), int), "y_test": np.ones((8, 2), int)}, "cross-entropy wants one"),
    ({"x_train": np.full((20, 4), 1e300)}, "inputs too large for float32"),
    ({"y_train": np.full(20, 1e300), "y_test": np.ones(8)}, "targets too large for float32"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "words"), BAD_ARRAYS)
def test_arrays_that_are_no_examples_are_refused(changes, words):
    """On the command line: exit code 3, one line that names the file, nothing written."""
    arrays = {name: array for name, array in {**GOOD, **changes}.items() if array is not None}
    np.savez("mine.npz", **arrays)
    Path("own.yaml").write_text(f"data: {{name: mine.npz, center: false}}\n{SHORT}")
    done = run("tune", "own.yaml", "--out", "out")
    assert_refused(done, 3, words)
    assert "mine.npz" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not Path("out").exists()


def test_files_that_are_no_archives_are_refused(elsewhere):
    whole = Path(npz()).read_bytes()
    (elsewhere / "one.npy.npz").write_bytes(b"")
    np.save("single.npy", np.ones(3))
    for content, words in (
        (None, "no such file; data.name is relative to the recipe"),
        (b"", "cannot be read: No data left in file"),
        (b"hello", "which are not opened"),
        (pickle.dumps([1]), "which are not opened"),
        (whole[: len(whole) // 2], "cannot be read: File is not a zip file"),
        (whole[:200] + b"xxxx" + whole[204:], "cannot be read: "),
        (Path("single.npy").read_bytes(), "one array without a name"),
    ):
        file = elsewhere / "mine.npz"
        file.unlink(missing_ok=True)
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(DataError) as refused:
            Experiment(short(data__name="mine.npz"))
        assert words in str(refused.value)
        assert str(file) in str(refused.value)
        assert "\n" not in str(refused.value)


class Marker:
    def __reduce__(self):
        return (Path.touch, (Path("ran"),))


def test_a_pickle_in_an_archive_is_not_opened():
    """Refused in one line. Catches an archive that runs what is in it."""
    hostile = np.empty(20, object)
    hostile[:] = [Marker()] * 20
    np.savez("mine.npz", **{**GOOD, "y_train": hostile})
    with np.load("mine.npz", allow_pickle=True) as opened:
        assert len(opened["y_train"]) == 20
    assert Path("ran").exists(), "the payload is none"
    Path("ran").unlink()
    with pytest.raises(DataError, match="which are not opened"):
        Experiment(short(data__name="mine.npz"))
    assert not Path("ran").exists()


def test_images_with_their_colours_last_are_not_guessed():
    npz(inputs=np.zeros((20, 8, 8, 3), np.uint8), targets=np.arange(20) % 2)
    with pytest.raises(DataError, match=r"say data\.options\.channels: last if"):
        Experiment(short(data__name="mine.npz"))


def test_data_that_are_no_images_are_not_shown_to_a_convolution():
    np.savez("mine.npz", **GOOD)
    with pytest.raises(DataError, match=r"inputs of shape \(4,\) are no images"):
        Experiment(short(data__name="mine.npz", model__name="conv"))


def test_more_examples_than_there_are_is_a_fault_of_the_data():
    npz()
    for changes in (
        {"data__train_examples": 31},
        {"inner__batch_size": 31},
        {"data__validation_examples": 25},
    ):
        with pytest.raises(DataError, match="has 30 training examples; the recipe needs"):
            Experiment(short(data__name="mine.npz", **changes))
    with pytest.raises(RecipeError, match="at most the 20 training examples, got 21"):
        short(data__name="mine.npz", data__train_examples=20, inner__batch_size=21)


# --- images in folders ---------------------------------------------------------------------------


def photos(folder="photos", size=(6, 6), mode="L", parts=("train", "test"), count=8):
    for part in parts:
        for n, name in enumerate(("ant", "bee", "cat")):
            place = Path(folder, part, name)
            place.mkdir(parents=True)
            for i in range(count):
                color = 80 * n + i if mode == "L" else (80 * n + i, 10, 200)
                Image.new(mode, size, color).save(place / f"{i}.png")
            (place / "notes.txt").write_text("no image")
    return f"{folder}/"


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_folder_of_images_is_its_pixels_and_classes(mode):
    experiment = Experiment(short(data__name=photos(mode=mode), data__center=False,
                                  data__shape="own", model__name="net.py:make"))  # fmt: skip
    inputs, targets = experiment.data.train[:2]
    assert inputs.shape == (24, 1 if mode == "L" else 3, 6, 6)
    first = (inputs[:, 0, 0, 0] * 255).round().int()
    assert (first // 80).tolist() == targets.tolist()
    assert sorted(first.tolist()) == [80 * n + i for n in range(3) for i in range(8)]
    assert len(set(targets[:8].tolist())) == 3, "they come class by class"
    if mode == "RGB":
        assert (inputs[0, :, 2, 3] * 255).round().int().tolist()[1:] == [10, 200]


def test_images_are_resized_and_recoloured_if_asked():
    name = photos(mode="RGB", size=(9, 12))
    found = Experiment(short(data={"name": name, "shape": "own", "options": {"size": 5,
                                   "colors": "gray"}}, model__name="net.py:make"))  # fmt: skip
    assert found.train.inputs.shape == (24, 1, 5, 5)


def test_a_share_of_the_images_is_held_out_where_there_is_no_test_folder():
    experiment = Experiment(
        short(data__name=photos(parts=("train",)), data__options={"heldout": 0.5})
    )
    assert (len(experiment.data.train), len(experiment.data.heldout)) == (12, 12)


def spoiled(how):
    folder = Path(photos())
    match how:
        case "gone":
            shutil.rmtree(folder)
        case "no train":
            shutil.rmtree(folder / "train")
        case "one class":
            shutil.rmtree(folder / "train" / "ant")
            shutil.rmtree(folder / "train" / "bee")
        case "empty class":
            shutil.rmtree(folder / "train" / "bee")
            (folder / "train" / "bee").mkdir()
        case "new class":
            (folder / "test" / "dog").mkdir()
        case "sizes":
            Image.new("L", (7, 6)).save(folder / "train" / "bee" / "3.png")
        case "torn":
            file = folder / "test" / "cat" / "1.png"
            file.write_bytes(file.read_bytes()[:40])
        case "text":
            (folder / "test" / "cat" / "1.png").write_text("hello")
        case "deep":
            deep = Image.fromarray(np.full((6, 6), 4000, np.uint16))
            deep.save(folder / "train" / "ant" / "0.png")


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("gone", "photos/: no folder train in it; expected train/<class>/*.png"),
        ("no train", "photos/: no folder train in it"),
        ("one class", "expected a folder for each of two classes or more"),
        ("empty class", "train/bee: no images; expected files that end with .png"),
        ("new class", "test/dog: no such class in train; expected one of ant, bee, cat"),
        ("sizes", "bee/3.png has 7×6 pixels"),
        ("sizes", "resize them all with data.options.size"),
        ("torn", "test/cat/1.png cannot be read: "),
        ("text", "test/cat/1.png cannot be read: cannot identify image file"),
        ("deep", "train/ant/0.png: pixels of mode I;16; expected 8 bits a colour"),
    ],
)
def test_folders_that_are_no_data_set_are_refused(how, words):
    spoiled(how)
    Path("own.yaml").write_text(f"data: {{name: photos/}}\n{SHORT}")
    done = run("tune", "own.yaml", "--out", "out")
    assert_refused(done, 3, words)
    assert len(done.stderr.splitlines()) == 1


# --- torchvision's sets --------------------------------------------------------------------------


class FakeSet:
    """As CIFAR10 presents itself to who reads it."""

    asked: list[dict] = []  # noqa: RUF012

    def __init__(self, root, train, download):
        FakeSet.asked.append({"root": root, "train": train, "download": download})
        if not download:
            raise RuntimeError("Dataset not found or corrupted. You can use download=True")
        self.data, self.targets = images(20 if train else 8, (6, 6, 3), seed=train)
        self.targets = self.targets.tolist()

    def __len__(self):
        return len(self.data)

    def __getitem__(self, n):
        return Image.fromarray(self.data[n]), self.targets[n]


def test_a_set_of_torchvisions_is_asked_for_its_parts(monkeypatch, elsewhere):
    monkeypatch.setattr(datasets, "CIFAR10", FakeSet)
    monkeypatch.setattr(FakeSet, "asked", [])
    section = {"name": "torchvision:CIFAR10", "center": False, "shape": "own"}
    with pytest.raises(DataError) as refused:
        Experiment(short(data=section, model__name="net.py:make"), elsewhere)
    assert "torchvision:CIFAR10 cannot be read from " in str(refused.value)
    assert "--set data.download=true" in str(refused.value)
    assert [asked["download"] for asked in FakeSet.asked] == [False]
    section["download"] = True
    experiment = Experiment(short(data=section, model__name="net.py:make"), elsewhere)
    assert [asked["train"] for asked in FakeSet.asked[1:]] == [True, False]
    x, y = images(20, (6, 6, 3), seed=True)
    assert torch.equal(experiment.data.train.inputs, torch.tensor(x).permute(0, 3, 1, 2) / 255)
    assert experiment.data.train.targets.tolist() == y.tolist()
    # Through images, one by one, if they are to be changed.
    section["options"] = {"colors": "rgb"}
    again = Experiment(short(data=section, model__name="net.py:make"), elsewhere)
    assert torch.equal(again.train.inputs, experiment.data.train.inputs)
    section["options"] = {"size": 4, "colors": "gray"}
    small = Experiment(short(data=section, model__name="net.py:make"), elsewhere)
    assert small.train.inputs.shape == (20, 1, 4, 4)


@pytest.mark.parametrize("verified", [True, False])
def test_a_pickle_in_cifars_place_is_not_opened(elsewhere, verified):
    """Its own files are pickles: they are opened only if they are the published ones."""
    folder = elsewhere / "cifar-10-batches-py"
    folder.mkdir()
    for name, _ in (*datasets.CIFAR10.train_list, *datasets.CIFAR10.test_list):
        (folder / name).write_bytes(pickle.dumps(Marker()))
    (folder / "batches.meta").write_bytes(pickle.dumps(Marker()))
    with pytest.raises(DataError, match="not found or corrupted"):
        Experiment(short(data__name="torchvision:CIFAR10"), elsewhere)
    assert not Path("ran").exists()


def test_gray_images_in_a_tensor_are_read_at_once(monkeypatch, elsewhere):
    """As EMNIST has them."""

    class Gray(FakeSet):
        def __init__(self, *args, split, **options):
            assert split == "letters"
            super().__init__(*args, **options)
            self.data, self.targets = torch.tensor(self.data[..., 0]), torch.tensor(self.targets)

        def __getitem__(self, n):
            raise AssertionError("one by one")

    monkeypatch.setattr(datasets, "EMNIST", Gray)
    section = {"name": "torchvision:EMNIST", "center": False, "download": True,
               "options": {"split": "letters"}}  # fmt: skip
    experiment = Experiment(short(data=section, model__name="conv"), elsewhere)
    x, _ = images(20, (6, 6, 3), seed=True)
    assert torch.equal(experiment.data.train.inputs, torch.tensor(x[..., 0])[:, None] / 255)


def test_mnist_is_resized_from_the_verified_files(elsewhere, monkeypatch):
    """torchvision is never let to fetch it: it would do without encryption."""
    write_mnist(elsewhere, 20)

    def refuse(*args, **options):
        raise AssertionError("torchvision fetches")

    monkeypatch.setattr(datasets.MNIST, "download", refuse)
    section = {"name": "torchvision:MNIST", "download": True, "options": {"size": 14}}
    experiment = Experiment(short(data=section, model__name="conv"), elsewhere)
    assert experiment.data.train.inputs.shape == (20, 1, 14, 14)


def test_torchvisions_mnist_is_ours(data_root):
    if not (data_root / "MNIST").is_dir():
        pytest.skip(f"{data_root} has no MNIST")
    ours = Experiment(short(data={"name": "mnist", "train_examples": 50}), data_root)
    theirs = Experiment(short(data={"name": "torchvision:MNIST", "train_examples": 50}), data_root)
    assert torch.equal(ours.train.inputs, theirs.train.inputs)
    assert torch.equal(ours.heldout.targets, theirs.heldout.targets)


# --- code that returns data ----------------------------------------------------------------------

DATA = """\
from pathlib import Path
import torch

Path(__file__).with_name("ran").touch()

def load(count=20, kind="tensor"):
    x = torch.randn(count + 8, 5)
    y = (x[:, 0] > 0).long()
    if kind == "list":
        x, y = x.tolist(), y.tolist()
    if kind == "numpy":
        x, y = x.numpy(), y.numpy()
    return (x[:count], y[:count]), (x[count:], y[count:])

def nothing():
    return None

def three():
    return 1, 2, 3

def ragged():
    return ([[1.0], [1.0, 2.0]], [0, 1]), ([[1.0]], [0])
"""


@pytest.mark.parametrize("kind", ["tensor", "list", "numpy"])
def test_data_may_come_from_code_behind_run_code(elsewhere, kind):
    """Refused without it, before anything runs. Catches code that runs unasked."""
    (elsewhere / "mine").mkdir()
    (elsewhere / "mine" / "data.py").write_text(DATA)
    recipe = elsewhere / "mine" / "own.yaml"
    recipe.write_text(
        f'data: {{name: "data.py:load", options: {{count: 24, kind: {kind}}}}}\n{SHORT}'
    )
    ran = elsewhere / "mine" / "ran"
    for words in (["tune", recipe], ["train", recipe], ["check", recipe], ["compare", recipe]):
        done = run(*words)
        assert_refused(done, 2, "data.name: would run 'load' of ")
        assert not ran.exists()
    assert run("validate", recipe).exit_code == 0
    assert not ran.exists()
    done = run("tune", recipe, "--run-code", "--out", "run", *SHOW)
    assert done.exit_code == 0, done.output
    assert f"hyperrbp: note: runs 'load' of {elsewhere}/mine/data.py" in done.stderr
    assert ran.exists()
    # From anywhere, with the same bits: the path is absolute, the generator seeded.
    again = run("tune", "run", "--run-code", "--out", "again", *SHOW)
    assert json.loads(again.stdout)["meta_loss"] == json.loads(done.stdout)["meta_loss"]


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("nothing", "returned NoneType; expected ((train_x, train_y), (test_x, test_y))"),
        ("three", "returned tuple; expected ((train_x, train_y)"),
        ("ragged", "train_x is no array of numbers: "),
    ],
)
def test_code_that_returns_no_data_is_refused(function, words):
    Path("data.py").write_text(DATA)
    with pytest.raises(DataError) as refused:
        Experiment(short(data__name=f"data.py:{function}"))
    assert words in str(refused.value)


# --- the numbers of the examples ------------------------------------------------------------------


def numbered(x):
    """The same, with each one's number in its first two pixels."""
    x = x.copy()
    x[:, 0, 0], x[:, 0, 1] = np.arange(len(x)), 7
    return x


class ByClass:
    """As torchvision's folders of files present themselves: class by class."""

    def __init__(self, root, split, download):
        self.made = [(n, n // 10) for n in range(30 if split == "train" else 12)]

    def __len__(self):
        return len(self.made)

    def __getitem__(self, n):
        number, label = self.made[n]
        pixels = np.full((6, 6), number, np.uint8)
        pixels[0, 1] = 7
        return Image.fromarray(pixels), label


def prepared(kind, monkeypatch):
    """The name of data whose training examples have their number as the first pixel."""
    (x, y), (tx, ty) = images(30), images(12, seed=1)
    match kind:
        case "x_train":
            return npz(x_train=numbered(x), y_train=y, x_test=tx, y_test=ty)
        case "inputs":
            return npz(inputs=numbered(x), targets=y)
        case "photos/" | "all photos/":
            for part, (pixels, labels) in {"train": (x, y), "test": (tx, ty)}.items():
                for n, label in enumerate(labels):
                    place = Path("photos", part, "abc"[label], "deep" if n % 3 else "")
                    place.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(pixels[n]).save(place / f"{n}.png")
            for n, file in enumerate(sorted(Path("photos/train").rglob("*.png"))):
                pixels = np.array(Image.open(file))
                pixels[0, 0], pixels[0, 1] = n, 7
                Image.fromarray(pixels).save(file)
            if kind == "all photos/":
                shutil.rmtree("photos/test")
            return "photos/"
        case "torchvision:DTD":
            monkeypatch.setattr(datasets, "DTD", ByClass)
            return kind
        case "data.py:load":
            npz(x=numbered(x), y=y)
            Path("data.py").write_text(
                "import numpy as np\n"
                "def load():\n"
                "    with np.load('mine.npz') as found:\n"
                "        x, y = found['x'], found['y']\n"
                "    return (x, y), (x, y)\n"
            )
            return kind
    raise AssertionError


@pytest.mark.parametrize(
    "kind", ["x_train", "inputs", "photos/", "all photos/", "torchvision:DTD", "data.py:load"]
)
@pytest.mark.parametrize("held_back", [0, 5])
def test_examples_are_known_by_the_numbers_that_the_user_gave_them(
    kind, held_back, elsewhere, monkeypatch
):
    """In the exported file of their weights: the numbers lead to the examples."""
    section = {"name": prepared(kind, monkeypatch), "center": False, "shape": "own"}
    if held_back:
        section |= {"validation_examples": held_back}
    Path("net.py").write_text(
        "import math\nfrom torch import nn\n"
        "def make(shape, classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), classes))\n"
    )
    changes = {"data": section | {"train_examples": 20}, "model__name": "net.py:make"}
    experiment = Experiment(short(**changes), elsewhere)
    shown = (experiment.data.train.inputs.flatten(1)[:, :2] * 255).round().int()
    assert shown[:, 1].tolist() == [7] * (20 - held_back), "these pixels tell nothing"
    assert experiment.data.train_rows.tolist() == shown[:, 0].tolist()
    if held_back:
        recipe = short(**changes, hyperparameters={"example_weight": {}},
                       meta={"steps": 1, "loss": "validation"})  # fmt: skip
        tune_recipe(recipe, Path("run"), data_root=elsewhere)
        kept = read_tensors(Path("run", "example_weights.safetensors"))
        assert kept["rows"].tolist() == experiment.data.train_rows.tolist()
        words = {
            "photos/": "as the image files of train/ are sorted",
            "torchvision:DTD": "as torchvision's training part has them",
            "data.py:load": "as in the data to train on that the function returns",
        }
        where = words.get(section["name"], "as in x_train or inputs")
        assert f"Numbered from 0, {where}." in Path("run", "sgd_parameter_groups.py").read_text()


# --- losses --------------------------------------------------------------------------------------


def two_batches():
    source = torch.Generator().manual_seed(0)
    outputs = torch.randn(7, 3, generator=source, dtype=torch.float64)
    values = torch.rand(7, 3, generator=source, dtype=torch.float64)
    return outputs, values, torch.randint(0, 3, (7,), generator=source)


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("cross-entropy", nn.functional.cross_entropy),
        ("mse", nn.functional.mse_loss),
        ("mae", nn.functional.l1_loss),
        ("huber", nn.functional.huber_loss),
        ("binary-cross-entropy", nn.functional.binary_cross_entropy_with_logits),
    ],
)
def test_a_loss_is_one_number_an_example_whose_mean_is_pytorchs(name, reference):
    outputs, values, classes = two_batches()
    targets = classes if LOSSES[name].targets == "classes" else values
    losses = LOSSES[name].function(outputs, targets)
    assert losses.shape == (7,)
    torch.testing.assert_close(losses.mean(), reference(outputs, targets))
    torch.testing.assert_close(losses[2:3], LOSSES[name].function(outputs[2:3], targets[2:3]))
    assert set(LOSSES) == {"cross-entropy", "mse", "mae", "huber", "binary-cross-entropy"}


def test_outputs_are_not_broadcast():
    outputs, targets = torch.zeros(5), torch.arange(5.0)[:, None]
    assert LOSSES["mse"].function(outputs, targets).tolist() == [0, 1, 4, 9, 16]
    with pytest.raises(
        UsageError, match=r"outputs of shape \(5, 2\) for targets of shape \(5, 1\)"
    ):
        LOSSES["mse"].function(torch.zeros(5, 2), targets)


def regression(**arrays):
    source = np.random.default_rng(0)
    x = source.normal(size=(80, 3))
    y = x @ np.array([1.0, -2.0, 0.5]) + 0.01 * source.normal(size=80)
    return npz(inputs=x, targets=arrays.get("targets", y))


def test_regression_end_to_end():
    """No classes: the squared error falls, and what is reported is its root and R²."""
    regression()
    Path("own.yaml").write_text(
        SHORT.replace("steps: 6", "steps: 40") + "data: {name: mine.npz}\n"
        "model: {options: {hidden: []}, init_std: 0.01}\n"
    )
    done = run("tune", "own.yaml", "--out", "run", *SHOW)
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    test = result["test"]["tuned"]
    assert test.pop("diverged") == 0
    after = {measure: of["values"][0] for measure, of in test.items()}
    assert set(after) == {"loss", "rmse", "r2"}
    assert after["rmse"] ** 2 == pytest.approx(after["loss"], rel=1e-5)
    assert after["rmse"] < 0.2
    assert after["r2"] > 0.98
    experiment = Experiment(short(data__name="mine.npz"))
    assert experiment.data.heldout.targets.shape == (16, 1)
    spread = float(experiment.data.heldout.targets.var(unbiased=False))
    assert after["r2"] == pytest.approx(1 - after["loss"] / spread, rel=1e-5)
    shown = run("show", "run").stdout
    assert "held-out error" in shown
    assert "held-out R²" in shown
    assert "accuracy" not in shown
    done = run("train", "own.yaml", "--hyperparameters", "run", "--out", "trained", "-q")
    assert done.exit_code == 0, done.output
    assert "held-out R²" in run("show", "trained").stdout
    trained = json.loads(Path("trained", "result.json").read_text())
    assert trained["heldout"]["rmse"] == pytest.approx(after["rmse"], rel=0.5)  # another draw


def test_a_loss_of_ones_own_gets_single_values_as_a_column():
    regression()
    Path("loss.py").write_text(
        "def loss(outputs, targets):\n"
        "    assert outputs.shape == targets.shape == (len(targets), 1)\n"
        "    return (outputs - targets).abs()[:, 0]\n"
    )
    experiment = Experiment(short(data__name="mine.npz", inner__loss="loss.py:loss"))
    problem = experiment.problem()
    assert set(experiment.heldout_measures(problem, problem.initial_state())) == {
        "loss", "rmse", "r2",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("loss", "targets", "outputs"),
    [
        ("auto", np.linspace(0, 1, 80), 1),
        ("auto", np.ones((80, 4)), 4),
        ("huber", np.arange(80), 1),
        ("mae", np.arange(160).reshape(80, 2), 2),
        ("binary-cross-entropy", np.arange(80) % 2, 1),
        ("binary-cross-entropy", np.arange(160).reshape(80, 2) % 2, 2),
        ("cross-entropy", np.arange(80) % 5, 5),
        ("cross-entropy", np.arange(80)[:, None] % 5, 5),
    ],
)
def test_a_loss_says_how_many_outputs_there_are(loss, targets, outputs):
    regression(targets=targets)
    experiment = Experiment(short(data__name="mine.npz", inner__loss=loss))
    assert experiment.problem().objective.shapes[-1] == (outputs,)
    measures = experiment.heldout_measures(
        experiment.problem(), experiment.problem().initial_state()
    )
    kind = "accuracy" if loss in ("cross-entropy", "binary-cross-entropy") else "rmse"
    assert kind in measures


def test_binary_accuracy_is_the_share_on_the_right_side():
    regression(targets=np.arange(80) % 2)
    experiment = Experiment(short(data__name="mine.npz", inner__loss="binary-cross-entropy"))
    problem = experiment.problem()
    h = problem.run(experiment.theta, 0, 6, problem.initial_state())
    made = problem.objective.outputs(
        problem.objective.pieces(h[: problem.weights]), experiment.data.heldout[0]
    )
    right = ((made > 0) == (experiment.data.heldout.targets > 0.5)).double().mean()
    assert experiment.heldout_measures(problem, h)["accuracy"] == float(right)


@pytest.mark.parametrize(
    ("loss", "targets", "words"),
    [
        ("cross-entropy", np.linspace(0, 1, 80), "targets are floats of shape (1,); cross-entropy"),
        ("binary-cross-entropy", np.linspace(0, 2, 80), "targets outside 0 … 1"),
        ("binary-cross-entropy", np.arange(80) - 1, "targets outside 0 … 1"),
    ],
)
def test_targets_that_a_loss_cannot_take_are_refused(loss, targets, words):
    regression(targets=targets)
    with pytest.raises(DataError) as refused:
        Experiment(short(data__name="mine.npz", inner__loss=loss))
    assert words in str(refused.value)


OWN_LOSS = """\
from torch.nn.functional import cross_entropy

def focal(outputs, targets):
    each = cross_entropy(outputs, targets, reduction="none")
    return (1 - (-each).exp()) ** 2 * each

def mean(outputs, targets):
    return focal(outputs, targets).mean()

def plain(outputs, targets):
    return cross_entropy(outputs, targets, reduction="none")

def fails(outputs, targets):
    raise KeyError("no")

def number(outputs, targets):
    return 3.0

def matrix(outputs, targets):
    return outputs

def wrong(outputs, targets):
    return (outputs.argmax(1) != targets).float()
"""


def test_a_loss_of_ones_own_is_trained_on_behind_run_code():
    """Refused without it. Catches a loss that is not asked for, or not used."""
    npz()
    Path("loss.py").write_text(OWN_LOSS)
    Path("own.yaml").write_text(SHORT.replace("batch_size: 10", 'loss: "loss.py:focal"')
                                .replace("inner: {", "inner: {batch_size: 10, ")
                                + "data: {name: mine.npz}\n")  # fmt: skip
    assert_refused(run("tune", "own.yaml"), 2, "inner.loss: would run 'focal' of ")
    results = {}
    for name in ("focal", "mean", "plain"):
        done = run("tune", "own.yaml", "--set", f"inner.loss=loss.py:{name}", "--run-code",
                   "--out", name, *SHOW)  # fmt: skip
        assert done.exit_code == 0, done.output
        results[name] = json.loads(done.stdout)
    assert results["focal"]["meta_loss"] == pytest.approx(results["mean"]["meta_loss"], rel=1e-4)
    assert results["focal"]["meta_loss"] != pytest.approx(results["plain"]["meta_loss"], rel=0.1)
    assert set(results["focal"]["test"]["tuned"]) == {"loss", "accuracy", "diverged"}
    named = tune_recipe(short(data__name="mine.npz"), Path("named"))
    assert results["plain"]["meta_loss"] == pytest.approx(named["meta_loss"], rel=1e-5)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("fails", "on outputs of shape (2, 3) and targets of (2,): KeyError: 'no'"),
        ("number", "made float; expected a tensor of floats"),
        ("matrix", "made losses of shape (2, 3) for 2 examples; expected one an example, (2,)"),
        ("wrong", "cannot be differentiated twice: RuntimeError: element 0 of tensors does not"),
        ("gone", "AttributeError: "),
    ],
)
def test_a_loss_that_cannot_be_used_is_refused_before_training(function, words):
    npz()
    Path("loss.py").write_text(OWN_LOSS)
    with pytest.raises(UsageError) as refused:
        Experiment(short(data__name="mine.npz", inner__loss=f"loss.py:{function}")).problem()
    assert words in str(refused.value)
    assert f"'{function}' of " in str(refused.value)


# --- networks ------------------------------------------------------------------------------------

NET = """\
from torch import nn

def make(shape, classes, width=4):
    channels, height, side = shape
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(),
        nn.Linear(width * (height // 2) * (side // 2), classes),
    )
"""
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
        ("nn.Sequential(nn.Flatten(), nn.Linear(36, 3), nn.BatchNorm1d(3))", "use GroupNorm or La"),
        ("nn.Sequential(nn.Flatten(), nn.Linear(36, 3), nn.Dropout(0.1))", "with p = 0"),
        ("Once()", "cannot be differentiated twice: RuntimeError: "),
        ("Drops()", "draws random numbers or keeps a state is not supported"),
        ("Holds()", "keeps buffers (scale), which are part of no gradient"),
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
        "class Holds(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n"
        "        self.inner = nn.Linear(36, 3)\n"
        "        self.register_buffer('scale', torch.ones(3))\n"
        "    def forward(self, x):\n        return self.scale * self.inner(x.flatten(1))\n"
        f"def make(shape, classes):\n    return {body}\n"
    )
    state = torch.get_rng_state()
    with pytest.raises(UsageError) as refused:
        Experiment(short(data={"name": "mine.npz", "shape": "image"}, model__name="net.py:make",
                         model__init_std=None)).problem()  # fmt: skip
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "module",
    [
        nn.BatchNorm2d(4),
        nn.BatchNorm2d(4, track_running_stats=False),
        nn.Dropout(0.1),
        nn.MultiheadAttention(4, 2, dropout=0.1),
        nn.LSTM(4, 4, num_layers=2, dropout=0.1),
    ],
    ids=lambda m: type(m).__name__,
)
def test_modules_with_a_hidden_state_are_named(module):
    with pytest.raises(UsageError, match=rf"the model's '0' \({type(module).__name__}\)"):
        refuse_hidden_state(nn.Sequential(module))
    refuse_hidden_state(
        nn.Sequential(nn.GroupNorm(2, 4), nn.LayerNorm(4), nn.Dropout(0.0), nn.LSTM(4, 4))
    )


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


def conv_run(update: str, loss: str = "cross-entropy"):
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
        model, ShuffledBatches(Batch(inputs, targets), 5, 3), steps=12, update=update,
        loss=LOSSES[loss].function,
    )  # fmt: skip
    return model, run, run.initial_theta(0.3, 0.6)


@pytest.mark.parametrize("loss", ["cross-entropy", "mse", "huber"])
@pytest.mark.parametrize("update", ["pytorch", "maclaurin"])
def test_the_hypergradient_of_a_convolutional_network_is_right(update, loss):
    """In float64 against autograd through a run written out by hand, and central differences."""
    model, run, theta = conv_run(update, loss)
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
                sign, gain = (-1, 1) if update == "pytorch" else (1, beta[i] - 1)
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

        slope = (at(theta + step) - at(theta - step)) / 2e-5
        assert float(found[i]) == pytest.approx(slope, rel=1e-5, abs=1e-9)


def test_a_gpu_convolves_with_the_same_bits_and_all_of_them(monkeypatch):
    for name, default in (("deterministic", False), ("allow_tf32", True)):
        monkeypatch.setattr(torch.backends.cudnn, name, default)
    monkeypatch.setattr(device_module, "choose_device", lambda wanted: "cuda")
    device_module.device_and_threads(short())
    assert torch.backends.cudnn.deterministic
    assert not torch.backends.cudnn.allow_tf32


# --- torchvision's networks ----------------------------------------------------------------------


def test_torchvisions_network_is_trained_with_group_norm():
    npz(inputs=images(12, (32, 32))[0], targets=np.arange(12) % 3)
    section = {
        "data__name": "mine.npz", "model__name": "torchvision:resnet18", "model__init_std": None,
        "inner__steps": 3, "inner__batch_size": 4,
    }  # fmt: skip
    with pytest.raises(UsageError, match=r"'bn1' \(BatchNorm2d\).*normalization: group"):
        Experiment(short(**section)).problem()
    experiment = Experiment(short(**section, model__options={"normalization": "group"}))
    problem = experiment.problem()
    assert experiment.data.train.inputs.shape[1:] == (1, 32, 32)
    assert problem.objective.shapes[0] == (64, 1, 7, 7), "as many channels as the images have"
    assert problem.objective.shapes[-1] == (3,)
    found = hypergradient(problem, experiment.theta, "neumann", trunc=1)
    assert found.gradient.isfinite().all()
    assert found.gradient.norm() > 0


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("resnet81", {}, "torchvision has no model 'resnet81'; did you mean resnet18?"),
        ("alexnet", {"dropuot": 0}, "torchvision:alexnet: TypeError: "),
        ("alexnet", {}, "dropout is not supported: build the model with p = 0"),
        ("resnet18", {"normalization": "layer"}, "expected group or batch, got 'layer'"),
    ],
)
def test_torchvisions_network_is_refused_in_words(name, options, words):
    npz(inputs=images(12, (32, 32))[0], targets=np.arange(12) % 3)
    with pytest.raises(UsageError) as refused:
        Experiment(short(data__name="mine.npz", model__name=f"torchvision:{name}",
                         model__options=options)).problem()  # fmt: skip
    assert words in str(refused.value)


# --- recipes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "key", "words"),
    [
        ("data: {name: mydata.np}", "data.name", "or file.npz, folder/, torchvision:NAME"),
        ("data: {name: photos}", "data.name", "expected one of digits, mnist"),
        ("data: {name: 'torchvision:CIFAR11'}", "data.name", "did you mean CIFAR10?"),
        ("data: {name: a.npz, options: {heldot: 0.5}}", "data.options.heldot", "mean heldout?"),
        ("data: {name: a.npz, options: {heldout: 1}}", "data.options.heldout", "below 1, got 1"),
        ("data: {name: a.npz, options: {channels: x}}", "data.options.channels", "first, last"),
        ("data: {name: a/, options: {size: 0}}", "data.options.size", "at least 1, got 0"),
        ("data: {name: a/, options: {colors: red}}", "data.options.colors", "one of gray, rgb"),
        ("data: {options: {size: 3}}", "data.options.size", "there are no options here"),
        (
            "data: {name: 'torchvision:EMNIST'}",
            "data.options.split",
            "expected one of byclass, bymerge, balanced, letters, digits, mnist",
        ),
        (
            "data: {name: 'torchvision:EMNIST', options: {split: leters}}",
            "data.options.split",
            "did you mean letters?",
        ),
        (
            "data: {name: 'torchvision:SVHN', options: {split: extra}}",
            "data.options.split",
            "only EMNIST has one, SVHN none; got 'extra'",
        ),
        (
            "data: {name: 'torchvision:MNIST', options: {split: digits}}",
            "data.options.split",
            "only EMNIST has one, MNIST none; got 'digits'",
        ),
        ("data: {shape: round}", "data.shape", "expected one of auto, flat, image, own"),
        ("data: {shape: image}", "data.shape", "mlp takes inputs of shape flat; expected auto or"),
        ("data: {shape: flat}\nmodel: {name: conv}", "data.shape", "conv takes inputs of shape im"),
        ("inner: {loss: crossentropy}", "inner.loss", "did you mean cross-entropy?"),
        ("inner: {loss: loss.py}", "inner.loss", "; or file.py:function"),
        ("model: {name: 'torchvision:'}", "model.name", "as in torchvision:resnet18"),
        ("model: {name: 'torchvision:a b'}", "model.name", "as in torchvision:resnet18"),
        ("model: {name: conv, options: {kernel: 4}}", "model.options.kernel", "1, 3, 5, 7, got 4"),
        ("model: {name: conv, options: {channels: []}}", "model.options.channels", "at least 1"),
        ("model: {init_std: 0}", "model.init_std", "expected a number above 0, got 0"),
    ],
)
def test_a_fault_in_what_is_ones_own_names_its_key(text, key, words):
    with pytest.raises(RecipeError) as refused:
        parse(text)
    (fault,) = refused.value.faults
    assert fault.key == key
    assert words in fault.message


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.npz", "file.npz"),
        ("/x/a b.npz", "file.npz"),
        ("a/", "folder/"),
        ("torchvision:SVHN", "torchvision:NAME"),
        ("a.py:load", "file.py:function"),
        ("a.b:load", "file.py:function"),
        ("a", None),
        (".npz", None),
        ("", None),
    ],
)
def test_what_a_name_means(name, kind):
    assert own_data.kind_of(name) == kind


def test_what_is_torchvisions_needs_no_run_code(elsewhere):
    names = "data: {name: 'torchvision:CIFAR10'}\nmodel: {name: 'torchvision:resnet18'}"
    assert list(parse(names).code()) == []
    Path("own.yaml").write_text(f"{SHORT}{names}\n")
    assert_refused(run("tune", "own.yaml", "--data-root", elsewhere), 3, "cannot be read from")


def test_a_recipe_with_all_of_it_reads_back_as_written():
    recipe = parse(
        "data: {name: /a/b.npz, options: {heldout: 0.5}, shape: own}\n"
        "model: {name: '/a/c.py:make', init_std: null}\ninner: {loss: '/a/d.py:loss'}"
    )
    assert parse(recipe.to_yaml()) == recipe
    assert [key for key, _ in recipe.code()] == ["model.name", "inner.loss"]


# --- runs that go on -----------------------------------------------------------------------------


def own_everything(**changes):
    """Data, a network and a loss of one's own, each in a file."""
    npz()
    Path("net.py").write_text(NET)
    Path("loss.py").write_text(OWN_LOSS)
    return short(data={"name": "mine.npz", "shape": "image"}, model__name="net.py:make",
                 inner__loss="loss.py:plain", **changes)  # fmt: skip


def change(what):
    if what == "data":
        (x, y), (tx, ty) = images(30, seed=5), images(12, seed=1)
        npz(x_train=x, y_train=y, x_test=tx, y_test=ty)
    else:
        file = Path("net.py" if what == "model code" else "loss.py")
        file.write_text(file.read_text() + "\n# another day\n")


@pytest.mark.parametrize("changed", ["data", "model code", "loss code"])
def test_a_run_does_not_go_on_with_other_data_or_code_unseen(changed):
    """Each file changed in turn. Catches one whose digest is not compared."""
    recipe = own_everything()
    tune_recipe(recipe, Path("run"))
    longer = recipe.model_copy(update={"meta": recipe.meta.model_copy(update={"steps": 3})})
    change(changed)
    with pytest.raises(CheckpointError, match=f"{changed}: "):
        tune_recipe(longer, Path("run"), resume=True)


@pytest.mark.parametrize("changed", ["data", "model code", "loss code"])
def test_a_training_does_not_go_on_with_other_data_or_code_unseen(changed):
    """Each file changed in turn. Catches one whose digest is not compared."""
    recipe = own_everything()
    known = train_recipe(recipe, Path("run"))["environment"]
    assert {"data", "model code", "loss code"} <= set(known)
    train_recipe(recipe, Path("run"), resume=True)
    change(changed)
    with pytest.raises(CheckpointError, match=f"{changed}: "):
        train_recipe(recipe, Path("run"), resume=True)
    result = train_recipe(recipe, Path("run"), resume=True, inexact_resume=True)
    assert [list(resume) for resume in result["inexact_resumes"]] == [[changed]]


def test_a_run_does_not_go_on_with_other_options_of_its_data():
    x, y = images(40)
    npz(inputs=x, targets=y)
    tune_recipe(short(data__name="mine.npz"), Path("run"))
    other = short(data__name="mine.npz", data__options={"heldout": 0.3}, meta__steps=3)
    with pytest.raises(CheckpointError, match=r"data\.options"):
        tune_recipe(other, Path("run"), resume=True)


# --- code that is edited, and code of any kind ---------------------------------------------------


class Edits:
    """Someone who edits the network while it is tuned."""

    def started(self, experiment, folder, earlier):
        pass

    def stepped(self, record, theta):
        Path("net.py").write_text("raise RuntimeError('edited')\n")

    def stopped(self):
        pass


def test_an_edit_during_a_run_does_not_reach_it():
    """The draws to come, the final test and the digest are of what was there."""
    recipe = own_everything(inner__fresh=True, record__test_seeds=2)
    whole = tune_recipe(recipe, Path("whole"))
    found = tune_recipe(recipe, Path("edited"), observers=[Edits()])
    for key in ("meta_loss", "test", "hyperparameters", "environment"):
        assert found[key] == whole[key]
    longer = recipe.model_copy(update={"meta": recipe.meta.model_copy(update={"steps": 3})})
    with pytest.raises(CheckpointError, match="model code: "):
        tune_recipe(longer, Path("edited"), resume=True)
    with pytest.raises(UsageError, match="RuntimeError: edited"):
        Experiment(recipe).problem()


def test_an_experiment_runs_the_files_of_its_beginning(elsewhere):
    recipe = own_everything()
    experiment = Experiment(recipe)
    known, start = experiment.environment(), experiment.problem().initial_state()
    later = Experiment(recipe)
    Path("net.py").write_text(NET.replace("width=4", "width=5"))
    assert later.environment() == known
    assert torch.equal(later.problem().initial_state(), start), "read again when it is imported"
    edited = Experiment(recipe)
    assert edited.environment()["model code"] != known["model code"]
    assert len(edited.problem().initial_state()) > len(start)


ONE_FILE = """\
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

with Path(__file__).with_name("ran").open("a") as log:
    log.write("ran\\n")

@dataclass
class Sizes:
    count: int
    width: int = 3

noise = torch.randn(28, 5)

def load(name, self, module):
    sizes = Sizes(20)
    x = noise + torch.randn(28, 5)
    y = (x[:, 0] > 0).long()
    return (x[: sizes.count], y[: sizes.count]), (x[sizes.count :], y[sizes.count :])

def make(features, classes, name, self):
    return nn.Sequential(nn.Linear(features, Sizes(1).width), nn.Linear(Sizes(1).width, classes))

def loss(outputs, targets):
    return nn.functional.cross_entropy(outputs, targets, reduction="none")
"""


def one_file(folder="."):
    names = {"name": "a", "self": "b"}
    return short(data={"name": f"{folder}/all.py:load", "options": names | {"module": "c"}},
                 model={"name": f"{folder}/all.py:make", "options": names},
                 inner__loss=f"{folder}/all.py:loss", inner__fresh=True)  # fmt: skip


def test_data_network_and_loss_of_one_file_are_one_module():
    """Whatever its options are called, with a dataclass, and imported once for all draws."""
    Path("all.py").write_text(ONE_FILE)
    experiment = Experiment(one_file())
    assert len({experiment.problem(n) for n in range(3)}) == 3
    assert Path("ran").read_text() == "ran\n"
    result = tune_recipe(one_file(), Path("run"))
    digests = {result["environment"][key] for key in ("data code", "model code", "loss code")}
    assert len(digests) == 1


def test_what_a_module_draws_is_seeded():
    """Whoever imports it; PyTorch's generator stands afterwards as before."""
    Path("all.py").write_text(ONE_FILE)
    first = Experiment(one_file()).train.inputs
    torch.rand(3)
    state = torch.get_rng_state()
    assert torch.equal(Experiment(one_file()).train.inputs, first)
    # Here the loss has it imported.
    npz()
    Experiment(short(data__name="mine.npz", inner__loss="all.py:loss"))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_module_that_fails_is_not_left_behind():
    before = set(sys.modules)
    npz()
    Path("net.py").write_text("import all_of_it_gone\n")
    with pytest.raises(UsageError, match="ModuleNotFoundError"):
        Experiment(short(data__name="mine.npz", model__name="net.py:make")).problem()
    assert not [name for name in set(sys.modules) - before if "net" in name]


def test_a_tilde_is_the_home_folder(elsewhere, monkeypatch):
    monkeypatch.setenv("HOME", str(elsewhere / "home"))
    (elsewhere / "home").mkdir()
    (elsewhere / "home" / "all.py").write_text(ONE_FILE)
    recipe = one_file("~")
    assert recipe.data.name == f"{elsewhere}/home/all.py:load"
    assert recipe.model.name == f"{elsewhere}/home/all.py:make"
    assert recipe.inner.loss == f"{elsewhere}/home/all.py:loss"
    assert short(data__name="~/a.npz").data.name == f"{elsewhere}/home/a.npz"
    assert short(data__name="~nobody-of-that-name/a.npz").data.name.endswith("/a.npz")
    Experiment(recipe).problem()


def test_gpus_are_not_seeded_before_they_are_in_use(monkeypatch):
    """A seed would wait until they are, and replace whatever they were to have."""
    if torch.cuda.is_initialized():
        pytest.skip("CUDA is in use")
    seeds = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    Path("all.py").write_text(ONE_FILE)
    Experiment(one_file()).problem()
    assert seeds == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_the_generators_of_gpus_are_seeded_and_stand_as_they_stood():
    torch.cuda.init()
    torch.cuda.manual_seed_all(7)
    before = torch.cuda.get_rng_state_all()
    drawn = []
    for _ in range(2):
        with seeded(3):
            drawn.append(torch.rand(4, device="cuda"))
    assert torch.equal(*drawn)
    for state, now in zip(before, torch.cuda.get_rng_state_all(), strict=True):
        assert torch.equal(state, now)


def test_a_training_of_ones_own_network_is_its_run():
    npz()
    Path("net.py").write_text(NET)
    recipe = short(data={"name": "mine.npz", "shape": "image"}, model__name="net.py:make",
                   model__init_std=None)  # fmt: skip
    result = train_recipe(recipe, Path("run"))
    experiment = Experiment(recipe)
    problem = experiment.problem()
    h = problem.run(experiment.theta, 0, problem.steps, problem.initial_state())
    assert result["heldout"] == experiment.heldout_measures(problem, h)
    assert result["heldout_accuracy"] == problem.accuracy(h, experiment.data.heldout)
