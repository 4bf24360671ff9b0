"""Recipes that run in a second or less, and what there is to compare of the runs that they make."""

from __future__ import annotations

import copy
import struct
from pathlib import Path
from typing import Any

import yaml
from runs import records_of, result_of

from hyperrbp.config.loading import parse_any
from hyperrbp.config.schema import BaseRecipe
from hyperrbp.experiments import checkpoint
from hyperrbp.experiments.export import EXAMPLE_WEIGHTS, WEIGHT_DECAY
from hyperrbp.experiments.run_folder import RunFolder

TUNING: dict[str, Any] = {
    "threads": 1,
    "device": "cpu",
    "data": {"name": "digits", "train_examples": 100},
    "model": {"options": {"hidden": [4]}},
    "inner": {"steps": 6, "batch_size": 50},
    "gradient": {"trunc": 3, "averaging": {"minibatches": 2, "series": 1}},
    "meta": {"steps": 2},
}
LEARNING: dict[str, Any] = {
    "data.train_examples": 200,
    "model": {"options": {"hidden": [5]}, "init_std": 0.3},
    "inner.steps": 12,
    "gradient": {"trunc": 4, "averaging": {"minibatches": 4, "series": 2}},
    "meta.learning_rate": 0.1,
}
"""Changes of ``TUNING`` with which a few meta steps lower the loss."""
MEMORY: dict[str, Any] = {
    "system": "hopfield",
    "threads": 1,
    "device": "cpu",
    "data": {"name": "digits", "images": 2},
    "network": {"hidden": 4},
    "inference": {"updates": 5},
    "gradient": {"trunc": 3},
    "training": {"epochs": 2, "validate_every": 1},
}
DOCUMENTS: dict[str, Any] = {
    "system": "graph-net",
    "threads": 1,
    "device": "cpu",
    "data": {"dimensions": 3},
    "network": {"init": "normal"},
    "inference": {"updates": 7},
    "gradient": {"trunc": 3},
    "training": {"epochs": 6, "validate_every": 2, "learning_rate": 0.05},
}


SIX_STEPS: dict[str, str] = {}
"""Recipes whose runs are killed, cut off and resumed: by verb, of six steps or epochs."""


def tuning_text(**changes: Any) -> str:
    """Write a recipe of ``tune``: ``tuning_text(meta__steps=3)``, ``tuning_text(**LEARNING)``."""
    return _text(TUNING, changes)


def memory_text(**changes: Any) -> str:
    """Write a recipe that trains a small associative memory."""
    return _text(MEMORY, changes)


def documents_text(**changes: Any) -> str:
    """Write a recipe that trains a small graph network."""
    return _text(DOCUMENTS, changes)


def recipe(text: str, **changes: Any) -> BaseRecipe:
    """Read a recipe with other values: ``recipe(text, meta__steps=3)``; a dot may stand for __."""
    return parse_any(text, overrides=[("test", key, value) for key, value in dotted(changes)])


def dotted(changes: dict[str, Any]) -> list[tuple[str, Any]]:
    return [(key.replace("__", "."), value) for key, value in changes.items()]


def _text(content: dict[str, Any], changes: dict[str, Any]) -> str:
    """One line a section, as in a recipe that was written by hand."""
    content = copy.deepcopy(content)
    for key, value in dotted(changes):
        *sections, last = key.split(".")
        place = content
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = copy.deepcopy(value)  # what is inside may be changed next
    lines = [
        yaml.safe_dump({key: value}, default_flow_style=True, sort_keys=False, width=1000).strip()
        for key, value in content.items()
    ]
    return "".join(f"{line[1:-1]}\n" for line in lines)


SIX_STEPS["tune"] = tuning_text(
    name="tiny",
    model__init_std=0.3,
    gradient__averaging__series=2,
    meta={"steps": 6, "learning_rate": 0.1},
)
SIX_STEPS["train"] = memory_text(
    name="memory",
    network__hidden=3,
    inference__updates=4,
    training={"epochs": 6, "validate_every": 2, "learning_rate": 0.01},
)


def write_mnist(root: Path, count: int, label: int = 3) -> None:
    """Write MNIST of so many examples of one class where ``data_root`` would find it."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        pixels = bytes(i % 251 for i in range(count * 784))
        (raw / f"{part}-images-idx3-ubyte").write_bytes(
            struct.pack(">4i", 0x0803, count, 28, 28) + pixels
        )
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(
            struct.pack(">2i", 0x0801, count) + bytes([label] * count)
        )


def without_measured(record: dict) -> dict:
    return {key: value for key, value in record.items() if key != "measured"}


def outcome(folder: Path) -> tuple:
    """All of a finished run but what was measured, to the bit."""
    run = RunFolder(folder)
    result = result_of(run)
    for key in ("seconds", "peak_bytes", "wall_seconds", "run_folder"):
        del result[key]
    result.pop("weights", None)  # of a training: where they are
    content, tensors = checkpoint.load(run.checkpoint_file)
    beside = (folder / WEIGHT_DECAY, folder / EXAMPLE_WEIGHTS)
    answers = (run.weights_file, run.yaml_file, run.groups_file, *beside)
    return (
        [without_measured(record) for record in records_of(run)],
        result,
        [file.read_bytes() for file in answers if file.exists()],
        content,
        {name: tensor.tolist() for name, tensor in tensors.items()},
    )
