"""Folders of images by class."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from commands import assert_refused, run
from own_parts import SHORT, short
from PIL import Image

from hyperrbp.experiments.experiment import Experiment

pytestmark = pytest.mark.usefixtures("elsewhere")


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
    assert found.data.train.inputs.shape == (24, 1, 5, 5)


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
