"""Prepares examples that are arrays: split, centered, in the precision and on the device.

Inputs get the shape that the network wants, targets the one that the loss wants.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hyperrbp.config.recipe import Recipe
from hyperrbp.data.batches import Batch, ShuffledBatches
from hyperrbp.data.builtin import BUILTIN_SETS
from hyperrbp.data.data_set import DataSet
from hyperrbp.exceptions import DataError, UsageError
from hyperrbp.experiments.data_module import DTYPES, DataModule
from hyperrbp.problems.losses import AUTO, LOSSES
from hyperrbp.problems.networks import Shape, wanted_inputs
from hyperrbp.problems.training.network_loss import LossFunction
from hyperrbp.runtime import user_code
from hyperrbp.runtime.randomness import generator

_CLASSES = 10**6
"""More are a mistake: the network has an output for each."""


class ArrayData(DataModule):
    """Examples that are arrays, in memory.

    Args:
        recipe: how they are split, and what for.
        device: where the examples go.
        data: the examples as they were read.
        modules: the user's own code, which may be the loss.

    Raises:
        DataError: if the data are missing, damaged, too few, or do not fit the recipe.
        UsageError: if code that it names fails.
    """

    def __init__(
        self, recipe: Recipe, device: torch.device, data: DataSet, modules: user_code.Modules
    ) -> None:
        self._recipe, self._device = recipe, device
        self.dtype, self.batch_size = DTYPES[recipe.dtype], recipe.inner.batch_size
        self._scaled = not data.as_it_is
        examples = arranged(recipe, data, modules)
        self.shape, self.outputs = examples.shape, examples.outputs
        self.loss, self.loss_name = examples.loss, examples.loss_name
        self.digest = examples.digest
        self.center: Tensor | None
        """The mean of the training inputs, which is taken off all inputs, if ``data.center``."""
        self.mislabelled: Tensor
        """Which training examples have a wrong class, by ``data.label_noise``; shape (B,)."""
        self.train, held_back = self._split(examples.train)
        if examples.validation is not None:
            if held_back is not None:
                raise DataError(
                    f"data set '{recipe.data.name}' has a validation part of its own; expected"
                    f" data.validation_examples: 0, got {len(held_back)}"
                )
            held_back = self._prepared(examples.validation)
        self._parts = [self.train, self._prepared(examples.heldout)]
        self.validation, self.heldout = held_back, self._parts[1]
        if held_back is not None:
            self._parts.append(held_back)

    def batches(self, seed: int) -> ShuffledBatches:
        """Return minibatches without replacement; see ``DataModule``."""
        return ShuffledBatches(self.train, self.batch_size, seed)

    def shown(self, count: int) -> Batch:
        """Return the first training examples; see ``DataModule``."""
        return Batch(self.train.inputs[:count], self.train.targets[:count])

    @property
    def steps_per_epoch(self) -> int:
        """Minibatches of an epoch; see ``DataModule``."""
        return len(self.train) // self.batch_size

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors of all examples, which a meter of what a gradient keeps leaves out."""
        return [tensor for examples in self._parts for tensor in examples.tensors]

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
        floats = train.inputs.is_floating_point()
        if section.center is True and not floats:
            raise DataError(f"data set '{section.name}': whole numbers have no mean to subtract")
        centered = section.center is True or (section.center == "auto" and floats and self._scaled)
        self.center = train.inputs.mean(0) if centered else None
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
        if train.targets.dim() > 1:
            raise UsageError("data.label_noise is for one class an example, not for tokens")
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
            inputs.to(self._device, self.dtype if inputs.is_floating_point() else None),
            examples.targets.to(self._device),
        ).in_precision(self.dtype)
        for what, tensor in zip(("inputs", "targets"), prepared[:2], strict=True):
            if tensor.is_floating_point() and not tensor.isfinite().all():
                name, dtype = self._recipe.data.name, self._recipe.dtype
                raise DataError(f"data set '{name}': {what} too large for {dtype}")
        return prepared


@dataclass(frozen=True)
class Arranged:
    """The examples of a recipe in the shapes that its network and its loss want."""

    train: Batch
    """With the user's own numbers as rows, where their order is another."""
    validation: Batch | None
    """Where it is a part of its own."""
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


def arranged(recipe: Recipe, data: DataSet, modules: user_code.Modules) -> Arranged:
    """Give inputs the shape that the network wants, and targets the one that the loss wants.

    Raises:
        DataError: if they do not fit the recipe.
        UsageError: if a loss that is code fails to be imported.
    """
    name, source = recipe.data.name, BUILTIN_SETS.get(recipe.data.name)
    natural: Shape | None = None
    if source is not None:
        natural = source.image
    else:
        _same_shapes(data, name)
    parts = [data.train, data.heldout, *([] if data.validation is None else [data.validation])]
    wanted, takes = recipe.data.shape, wanted_inputs(recipe.model.name)
    whole = not data.train.inputs.is_floating_point()
    if whole and takes in ("flat", "image"):
        raise DataError(
            f"data set '{name}': inputs are whole numbers, and {recipe.model.name} takes floats"
        )
    if not whole and takes == "ids":
        raise DataError(f"data set '{name}': inputs are floats, and {recipe.model.name} takes ids")
    if wanted == "auto":
        as_they_are = whole or data.as_it_is
        wanted = takes if takes in ("flat", "image") else "own" if as_they_are else "flat"
    inputs = [_shaped(part.inputs, wanted, natural, name) for part in parts]
    targets, outputs, loss_name = _targets(parts, recipe.inner.loss, name)
    if source is not None and loss_name == "cross-entropy":
        outputs = source.classes
    return Arranged(
        Batch(inputs[0], targets[0], data.train.rows),
        None if data.validation is None else Batch(inputs[2], targets[2]),
        Batch(inputs[1], targets[1]),
        inputs[0].shape[1] if wanted == "flat" else tuple(inputs[0].shape[1:]),
        at_least(outputs, recipe, loss_name),
        LOSSES[loss_name].function if loss_name in LOSSES else modules.function(loss_name),
        loss_name,
        None if source is not None else digest(parts),
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


def at_least(found: int, recipe: Recipe, loss_name: str) -> int:
    """Return the number of outputs that a recipe asks for, where the examples need no more.

    Raises:
        DataError: if they do.
    """
    asked = recipe.data.outputs
    if asked is None:
        return found
    if asked < found or (asked != found and loss_name in VALUES):
        raise DataError(
            f"data set '{recipe.data.name}': the examples need {found} outputs, data.outputs says"
            f" {asked}"
        )
    return asked


VALUES = {name for name, loss in LOSSES.items() if loss.targets != "classes"}
"""The losses whose targets are as many numbers as the outputs."""


def _targets(parts: Sequence[Batch], asked: str, name: str) -> tuple[list[Tensor], int, str]:
    """Return the targets of all parts as the loss wants them, the number of outputs, the loss."""
    both = [part.targets for part in parts]
    tokens = not parts[0].inputs.is_floating_point() and both[0].shape == parts[0].inputs.shape
    values = both[0].is_floating_point()
    if asked == AUTO:
        asked = "mse" if values else "cross-entropy"
    wants = LOSSES[asked].targets if asked in LOSSES else None
    if not values and both[0].dim() == 2 and both[0].shape[1] == 1:
        both = [part[:, 0] for part in both]
    lowest = min(float(part.min()) for part in both)
    one_each = both[0].dim() == 1 or tokens
    if wants == "classes" or (wants is None and not values and one_each and lowest >= 0):
        most = _classes(both, asked, name, tokens)
        # What is read is what is predicted: one vocabulary.
        ids = max(int(part.inputs.max()) + 1 for part in parts) if tokens else 0
        return both, max(most, ids), asked
    if wants is not None and not values:
        both = [part.to(torch.float64) for part in both]
    if wants is not None and both[0].dim() == 1:
        both = [part[:, None] for part in both]
    if wants == "shares" and (lowest < 0 or max(float(part.max()) for part in both) > 1):
        raise DataError(f"data set '{name}': targets outside 0 … 1, as {asked} wants them")
    return both, math.prod(both[0].shape[1:]), asked


def _classes(both: list[Tensor], asked: str, name: str, tokens: bool = False) -> int:
    if both[0].is_floating_point() or not (both[0].dim() == 1 or tokens):
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


def digest(parts: Iterable[Batch]) -> str:
    """Return the digest of the tensors of some examples."""
    found = hashlib.sha256()
    for part in parts:
        for tensor in part.tensors:
            found.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
            found.update(tensor.contiguous().cpu().numpy().data)
    return found.hexdigest()[:16]
