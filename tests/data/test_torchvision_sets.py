"""torchvision's data sets by their own names."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from factories import write_mnist
from own_parts import Marker, images, short
from PIL import Image
from torchvision import datasets

from hyperrbp.exceptions import DataError
from hyperrbp.experiments.experiment import Experiment

pytestmark = pytest.mark.usefixtures("elsewhere")


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
    assert torch.equal(again.data.train.inputs, experiment.data.train.inputs)
    section["options"] = {"size": 4, "colors": "gray"}
    small = Experiment(short(data=section, model__name="net.py:make"), elsewhere)
    assert small.data.train.inputs.shape == (20, 1, 4, 4)


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
    assert torch.equal(ours.data.train.inputs, theirs.data.train.inputs)
    assert torch.equal(ours.data.heldout.targets, theirs.data.heldout.targets)
