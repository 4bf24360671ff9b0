"""Training examples keep the numbers that their source gave them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from own_parts import images, npz, short
from PIL import Image
from torchvision import datasets

from hyperrbp import tune_recipe
from hyperrbp.experiments.checkpoint import read_tensors
from hyperrbp.experiments.experiment import Experiment

pytestmark = pytest.mark.usefixtures("elsewhere")


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
        assert f"Numbered from 0, {where}." in Path("run", "parameter_groups.py").read_text()
