"""The examples of a recipe: in the shape that its network wants, with targets as its loss wants."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hyperrbp.config.recipe import Recipe
from hyperrbp.data import sources as own_data
from hyperrbp.data.batches import Batch
from hyperrbp.data.builtin import SOURCES, DataSet, load
from hyperrbp.exceptions import DataError
from hyperrbp.problems.losses import AUTO, LOSSES
from hyperrbp.problems.networks import Shape, wanted_inputs
from hyperrbp.problems.training.objective import LossFunction
from hyperrbp.runtime import user_code

_CLASSES = 10**6
"""More are a mistake: the network has an output for each."""


@dataclass(frozen=True)
class Examples:
    """What a network is trained and tested on."""

    train: Batch
    """With the user's own numbers as rows, where their order is another."""
    heldout: Batch
    shape: int | Shape
    """Of an input: the number of features if it is flat."""
    outputs: int
    """How many numbers the network is to make of one."""
    loss: LossFunction
    loss_name: str
    """As in the recipe, and what ``auto`` has become."""
    digest: str | None
    """Of the user's own data, which may be others tomorrow."""


def read(recipe: Recipe, root: Path, modules: user_code.Modules) -> Examples:
    """The examples that a recipe names, by its code if it says so.

    Raises:
        DataError: if they are missing, damaged, or do not fit the recipe.
        UsageError: if code that it names fails.
    """
    name, source = recipe.data.name, SOURCES.get(recipe.data.name)
    if source is not None:
        data = load(name, root, download=recipe.data.download)
        natural: Shape | None = source.image
    else:
        kind = own_data.of(name, recipe.data.options, modules)
        data, natural = kind.load(name, root, recipe.data.download), None
        _same_shapes(data, name)
    wanted = recipe.data.shape
    if wanted == "auto":
        wanted = wanted_inputs(recipe.model.name) or "flat"
    inputs = [_shaped(part.inputs, wanted, natural, name) for part in (data.train, data.heldout)]
    targets, outputs, loss_name = _targets(data, recipe.inner.loss, name)
    if source is not None and loss_name == "cross-entropy":
        outputs = source.classes
    return Examples(
        Batch(inputs[0], targets[0], data.train.rows),
        Batch(inputs[1], targets[1]),
        inputs[0].shape[1] if wanted == "flat" else tuple(inputs[0].shape[1:]),
        outputs,
        LOSSES[loss_name].function if loss_name in LOSSES else modules.function(loss_name),
        loss_name,
        None if source is not None else _digest(data),
    )


def _same_shapes(data: DataSet, name: str) -> None:
    for what, train, heldout in zip(
        ("inputs", "targets"), data.train[:2], data.heldout[:2], strict=True
    ):
        if train.is_floating_point() != heldout.is_floating_point():
            raise DataError(
                f"data set '{name}': {what} are {_kind(train)} to train on and {_kind(heldout)}"
                " held out; expected the same"
            )
        if train.shape[1:] != heldout.shape[1:]:
            raise DataError(
                f"data set '{name}': {what} of shape {tuple(train.shape[1:])} to train on and"
                f" {tuple(heldout.shape[1:])} held out; expected the same"
            )


def _kind(tensor: Tensor) -> str:
    return "floats" if tensor.is_floating_point() else "whole numbers"


def _shaped(inputs: Tensor, wanted: str, natural: Shape | None, name: str) -> Tensor:
    if wanted == "flat":
        return inputs.flatten(1)
    if natural is not None:
        return inputs.view(-1, *natural)
    if wanted == "own" or inputs.dim() == 4:
        return inputs
    if inputs.dim() == 3:
        return inputs[:, None]
    raise DataError(
        f"data set '{name}': inputs of shape {tuple(inputs.shape[1:])} are no images; expected"
        " (height, width) or (colours, height, width)"
    )


def _targets(data: DataSet, asked: str, name: str) -> tuple[list[Tensor], int, str]:
    """The targets of both parts as a loss wants them, the number of outputs, and the loss."""
    both = [data.train.targets, data.heldout.targets]
    values = both[0].is_floating_point()
    if asked == AUTO:
        asked = "mse" if values else "cross-entropy"
    wants = LOSSES[asked].targets if asked in LOSSES else None
    if not values and both[0].dim() == 2 and both[0].shape[1] == 1:
        both = [part[:, 0] for part in both]
    lowest = min(float(part.min()) for part in both)
    if wants == "classes" or (wants is None and not values and both[0].dim() == 1 and lowest >= 0):
        return both, _classes(both, asked, name), asked
    if wants is not None and not values:
        both = [part.to(torch.float64) for part in both]
    if wants is not None and both[0].dim() == 1:
        both = [part[:, None] for part in both]
    if wants == "shares" and (lowest < 0 or max(float(part.max()) for part in both) > 1):
        raise DataError(f"data set '{name}': targets outside 0 … 1, as {asked} wants them")
    return both, math.prod(both[0].shape[1:]), asked


def _classes(both: list[Tensor], asked: str, name: str) -> int:
    if both[0].is_floating_point() or both[0].dim() != 1:
        held = f"{_kind(both[0])} of shape {tuple(both[0].shape[1:])}"
        other = "mse" if both[0].is_floating_point() else "binary-cross-entropy"
        raise DataError(
            f"data set '{name}': targets are {held}; {asked} wants one whole number an example,"
            f" its class: say inner.loss: {other}, or save classes"
        )
    lowest = min(int(part.min()) for part in both)
    highest = max(int(part.max()) for part in both)
    if lowest < 0:
        raise DataError(f"data set '{name}': a label is {lowest}; expected classes from 0 on")
    if highest >= _CLASSES:
        raise DataError(
            f"data set '{name}': a label is {highest}; expected classes 0 … {_CLASSES - 1} at most;"
            " save floats if these are values"
        )
    if highest == 0:
        raise DataError(f"data set '{name}': every label is 0; expected two classes or more")
    return highest + 1


def _digest(data: DataSet) -> str:
    found = hashlib.sha256()
    for part in (data.train, data.heldout):
        for tensor in part[:2]:
            found.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
            found.update(tensor.contiguous().numpy().data)
    return found.hexdigest()[:16]
