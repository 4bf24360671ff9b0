"""Arrays in a .npz file: what is read, and what is refused."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import assert_refused, run
from own_parts import NET, SHORT, Marker, images, npz, short

from hyperrbp.exceptions import DataError, RecipeError
from hyperrbp.experiments.experiment import Experiment

pytestmark = pytest.mark.usefixtures("elsewhere")


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
    section = {"name": "mine.npz", "options": {"heldout": 0.25}, "center": False}
    one = Experiment(short(data=section))
    two = Experiment(short(data=section, seed=7))
    assert (len(one.data.train), len(one.data.heldout)) == (30, 10)
    assert torch.equal(one.data.heldout.inputs, two.data.heldout.inputs)
    marks = [
        (part.inputs[:, 0] * 255).round().int().tolist()
        for part in (one.data.train, one.data.heldout)
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
    assert image.data.train.inputs.shape == (1200, 1, 8, 8)
    assert torch.equal(image.data.train.inputs.flatten(1), flat.data.train.inputs)


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
