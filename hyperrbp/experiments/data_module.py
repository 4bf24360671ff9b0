"""Prepares the examples of a recipe: read, split, centered, in its precision, on its device.

Inputs get the shape that the network wants, targets the one that the loss wants.
"""

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
from hyperrbp.data.builtin import BUILTIN_SETS, load_builtin_set
from hyperrbp.data.data_set import DataSet
from hyperrbp.exceptions import DataError, UsageError
from hyperrbp.problems.losses import AUTO, LOSSES
from hyperrbp.problems.networks import Shape, wanted_inputs
from hyperrbp.problems.training.network_loss import LossFunction
from hyperrbp.runtime import user_code
from hyperrbp.runtime.randomness import generator

_CLASSES = 10**6
"""More are a mistake: the network has an output for each."""


class DataModule:
    """The examples of a recipe, ready to be trained and tested on.

    Args:
        recipe: which data, and how they are split.
        device: where the examples go.
        root: the data root.
        modules: the user's own code, which the recipe may name.

    Raises:
        DataError: if the data are missing, damaged, too few, or do not fit the recipe.
        UsageError: if code that it names fails.
    """

    def __init__(
        self, recipe: Recipe, device: torch.device, root: Path, modules: user_code.Modules
    ) -> None:
        self._recipe, self._device = recipe, device
        self.dtype = {"float32": torch.float32, "float64": torch.float64}[recipe.dtype]
        examples = read(recipe, root, modules)
        self.shape, self.outputs = examples.shape, examples.outputs
        self.loss, self.loss_name = examples.loss, examples.loss_name
        self.digest = examples.digest
        """Of the user's own data; None for a built-in set."""
        self.center: Tensor | None
        """The mean of the training inputs, which is taken off all inputs, if ``data.center``."""
        self.mislabelled: Tensor
        """Which training examples have a wrong class, by ``data.label_noise``; shape (B,)."""
        self.train_rows: Tensor
        """Which examples of the data set are trained on, by their numbers there, shape (B,)."""
        self.train, self.validation = self._split(examples.train)
        self.heldout = self._prepared(examples.heldout)

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors of all examples, which a meter of what a gradient keeps leaves out."""
        parts = (self.train, self.validation, self.heldout)
        return [tensor for examples in parts if examples for tensor in examples[:2]]

    def _split(self, train: Batch) -> tuple[Batch, Batch | None]:
        """Return the examples to train on and those to validate on."""
        section = self._recipe.data
        wanted = section.train_examples or len(train)
        kept = wanted - section.validation_examples
        if wanted > len(train) or self._recipe.inner.batch_size > kept:
            raise DataError(
                f"data set '{section.name}' has {len(train)} training examples; the recipe needs"
                f" {max(wanted, self._recipe.inner.batch_size + section.validation_examples)}"
            )
        numbers = torch.arange(wanted) if train.rows is None else train.rows[:wanted]
        train = Batch(train.inputs[:wanted], train.targets[:wanted])
        self.center = train.inputs.mean(0) if section.center else None
        train = self._prepared(train)
        self.train_rows = numbers
        if not section.validation_examples:
            return self._noisy(train), None
        # Which examples are held back depends on the seed alone; the rest keep their order.
        order = torch.randperm(wanted, generator=generator(self._recipe.seed, "validation split"))
        back = order[: section.validation_examples].sort().values.to(self._device)
        left = order[section.validation_examples :].sort().values
        self.train_rows, stay = numbers[left], left.to(self._device)
        return (
            self._noisy(Batch(train.inputs[stay], train.targets[stay])),
            Batch(train.inputs[back], train.targets[back]),
        )

    def _noisy(self, train: Batch) -> Batch:
        """Replace the classes of some examples by others, each other one as likely."""
        source = generator(self._recipe.seed, "label noise")
        count = round(self._recipe.data.label_noise * len(train))
        self.mislabelled = torch.zeros(len(train), dtype=torch.bool)
        if not count:
            return train
        if self.loss_name != "cross-entropy":
            raise UsageError("data.label_noise needs classes, for the loss cross-entropy")
        classes = self.outputs
        wrong = torch.randperm(len(train), generator=source)[:count]
        self.mislabelled[wrong] = True
        shift = torch.randint(1, classes, (count,), generator=source)
        targets = train.targets.clone()
        wrong = wrong.to(targets.device)
        targets[wrong] = (targets[wrong] + shift.to(targets.device)) % classes
        return Batch(train.inputs, targets)

    def _prepared(self, examples: Batch) -> Batch:
        inputs = examples.inputs if self.center is None else examples.inputs - self.center
        prepared = Batch(
            inputs.to(self._device, self.dtype), examples.targets.to(self._device)
        ).in_precision(self.dtype)
        for what, tensor in zip(("inputs", "targets"), prepared[:2], strict=True):
            if tensor.is_floating_point() and not tensor.isfinite().all():
                name, dtype = self._recipe.data.name, self._recipe.dtype
                raise DataError(f"data set '{name}': {what} too large for {dtype}")
        return prepared


@dataclass(frozen=True)
class Examples:
    """The examples of a recipe as they are read."""

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
    """Read the examples that a recipe names, by its code if it says so.

    Raises:
        DataError: if they are missing, damaged, or do not fit the recipe.
        UsageError: if code that it names fails.
    """
    name, source = recipe.data.name, BUILTIN_SETS.get(recipe.data.name)
    if source is not None:
        data = load_builtin_set(name, root, download=recipe.data.download)
        natural: Shape | None = source.image
    else:
        kind = own_data.source_of(name, recipe.data.options, modules)
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
    """Return the targets of both parts as the loss wants them, the number of outputs, the loss."""
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
