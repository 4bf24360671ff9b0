"""Prepares data sets and loaders of ``torch.utils.data`` as the examples of a recipe."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, IterableDataset, Subset

from hyperrbp.config.recipe import Recipe
from hyperrbp.data.batches import Batch
from hyperrbp.data.data_set import Loaders
from hyperrbp.data.loader_batches import LoaderBatches, LoaderExamples
from hyperrbp.exceptions import DataError, UsageError
from hyperrbp.experiments.array_data import at_least, digest
from hyperrbp.experiments.data_module import DTYPES, DataModule
from hyperrbp.problems.losses import AUTO, LOSSES
from hyperrbp.problems.networks import wanted_inputs
from hyperrbp.runtime import user_code
from hyperrbp.runtime.randomness import generator

_ALL = 2**62


class LoaderData(DataModule):
    """Examples that are read minibatch by minibatch.

    Tensors stay as the data set gives them, but for the precision of floats. A digest is of the
    examples that stand for all, which are the ones that are read before anything is trained.

    Args:
        recipe: how they are split, and what for.
        device: where minibatches go.
        loaders: the data sets or loaders.
        modules: the user's own code, which may be the loss.

    Raises:
        DataError: if they do not fit the recipe, or a key of it makes no sense for them.
    """

    def __init__(
        self, recipe: Recipe, device: torch.device, loaders: Loaders, modules: user_code.Modules
    ) -> None:
        self._recipe, self._device = recipe, device
        self._name = f"data set '{recipe.data.name}'"
        self.dtype = DTYPES[recipe.dtype]
        self._refuse_keys()
        train, held_back = self._split(loaders)
        self._fit: Callable[[Batch], Batch] = lambda batch: batch
        self._batches = self._opened(train, self._size_of(train))
        first = self._batches(0)
        self.batch_size = len(first) if isinstance(train, DataLoader) else recipe.inner.batch_size
        self.loss_name = self._loss_for(first)
        known = LOSSES.get(self.loss_name)
        self.loss = modules.function(self.loss_name) if known is None else known.function
        self._flat = self._flattened(first)
        self._kind = None if known is None else known.targets
        self._most: int | None = None
        self._fit = self._fitted
        self._batches = self._batches.with_seed(0)
        heldout = self._evaluated(loaders.heldout)
        validation = self._evaluated(held_back) if held_back is not None else None
        self.heldout = LoaderExamples(heldout)
        self.validation = None if validation is None else LoaderExamples(validation)
        x = self._batches(0)
        self.shape = self._shape_of(x)
        self.outputs = at_least(self._outputs(x, loaders), recipe, self.loss_name)
        self._most = self.outputs if self._kind == "classes" else None
        self.digest = self._digest(heldout)
        parts = (("", self._batches), ("validation: ", validation), ("held out: ", heldout))
        notes = [f"{what}{b.population_note}" for what, b in parts if b and b.population_note]
        self.population_note = "; ".join(notes) or None
        self._number_examples()

    def batches(self, seed: int) -> LoaderBatches:
        """Return the minibatches of a seed; see ``DataModule``."""
        return self._batches.with_seed(seed)

    def shown(self, count: int) -> Batch:
        """Return the beginning of the first minibatch, or all of it; see ``DataModule``."""
        first = self._batches(0)
        try:
            return first.part(0, count)
        except UsageError:  # made by a collation of the user's own that nothing can cut
            return first

    @property
    def steps_per_epoch(self) -> int | None:
        """Minibatches of an epoch; see ``DataModule``."""
        return self._batches.steps_per_epoch

    # --- the parts --------------------------------------------------------------------------------

    def _refuse_keys(self) -> None:
        section = self._recipe.data
        for key, given, instead in (
            ("center", section.center is True, "normalize in its transform"),
            ("label_noise", section.label_noise > 0, "change labels in the data set"),
            ("inputs", section.inputs != "auto", "give tensors of the kind that the network takes"),
        ):
            if given:
                raise DataError(
                    f"{self._name}: data.{key} is for arrays; of a data set or a loader, {instead}"
                )

    def _split(self, loaders: Loaders) -> tuple[Any, Any]:
        """Return what is trained on and what is held back for the meta loss, None for nothing."""
        section, train, validation = self._recipe.data, loaders.train, loaders.validation
        wanted, back = section.train_examples, section.validation_examples
        if back and validation is not None:
            raise DataError(
                f"{self._name} has a validation part of its own; expected"
                f" data.validation_examples: 0, got {back}"
            )
        self._rows: Tensor | None = None
        if wanted is None and not back:
            return train, validation
        key = "train_examples" if wanted is not None else "validation_examples"
        if isinstance(train, DataLoader | IterableDataset) or not hasattr(train, "__len__"):
            kind = "a loader" if isinstance(train, DataLoader) else "a stream"
            raise DataError(
                f"{self._name}: data.{key} cuts a data set of map style, and this is {kind}; return"
                " (train, validation, heldout) as they are to be used"
            )
        count: int = len(train)
        wanted = wanted or count
        if wanted > count or back >= wanted:
            raise DataError(
                f"{self._name} has {count} training examples; the recipe needs"
                f" {max(wanted, back + self._recipe.inner.batch_size)}"
            )
        if not back:
            self._rows = torch.arange(wanted)
            return Subset(train, range(wanted)), validation
        # As of arrays: which ones depends on the seed alone; the rest keep their order.
        order = torch.randperm(wanted, generator=generator(self._recipe.seed, "validation split"))
        self._rows = order[back:].sort().values
        held_back = order[:back].sort().values.tolist()
        return Subset(train, self._rows.tolist()), Subset(train, held_back)

    def _size_of(self, train: Any) -> int | None:
        """Return the size of a minibatch; None for a loader's own."""
        inner = self._recipe.inner
        if not isinstance(train, DataLoader):
            return inner.batch_size
        own = train.batch_size
        if own is not None and "batch_size" in inner.model_fields_set and inner.batch_size != own:
            raise DataError(
                f"{self._name}: its loader has minibatches of {own}, inner.batch_size says"
                f" {inner.batch_size}; leave the key out, or return the data set itself"
            )
        return None

    def _opened(self, source: Any, size: int | None, evaluation: bool = False) -> LoaderBatches:
        # Of what is only evaluated, all is taken; of a stream, nobody knows how much that is.
        dataset = source.dataset if isinstance(source, DataLoader) else source
        sampled = not evaluation or isinstance(dataset, IterableDataset)
        return LoaderBatches(
            source,
            size,
            population=self._recipe.data.population if sampled else _ALL,
            device=self._device,
            dtype=self.dtype,
            prepare=lambda batch: self._fit(batch),
            evaluation=evaluation,
        )

    def _evaluated(self, source: Any) -> LoaderBatches:
        size = None if isinstance(source, DataLoader) else self.batch_size
        return self._opened(source, size, evaluation=True)

    def _number_examples(self) -> None:
        """Note the numbers of the training examples, for their weights."""
        if self._recipe.hyperparameters.example_weight is None:
            self.train_rows = torch.arange(0)
            return
        rows = [x.rows for _, x in self._batches.population()]
        known = torch.cat([x for x in rows if x is not None]) if None not in rows else None
        count = self._batches.population_count
        whole = self._batches.population_note is None
        if known is None or not whole or known.tolist() != list(range(count)):
            raise DataError(
                f"{self._name}: weights of examples need a data set of map style, at most"
                " data.population examples of it, in an order without a sampler of its own"
            )
        self.train_rows = torch.arange(count) if self._rows is None else self._rows

    # --- what a minibatch is ----------------------------------------------------------------------

    def _loss_for(self, x: Batch) -> str:
        asked, targets = self._recipe.inner.loss, x.targets
        if not isinstance(targets, Tensor) and (asked == AUTO or asked in LOSSES):
            held = "no pair" if targets is None else f"targets of {type(targets).__name__}"
            raise DataError(
                f"{self._name}: a minibatch is {held}; inner.loss {asked} wants a tensor of"
                " targets: expected file.py:function, a loss of (outputs, targets)"
            )
        if asked != AUTO:
            return asked
        return "mse" if targets.is_floating_point() else "cross-entropy"

    def _flattened(self, x: Batch) -> bool:
        """Return whether inputs are made flat, for a network of ours that takes them so."""
        takes, shape = wanted_inputs(self._recipe.model.name), self._recipe.data.shape
        if takes is not None:
            wants_ids = takes == "ids"
            held = x.inputs
            fits = isinstance(held, Tensor) and held.is_floating_point() != wants_ids
            if not fits or (takes == "image" and held.dim() != 4):
                form = {"flat": "floats", "image": "images (C, H, W)", "ids": "token ids"}[takes]
                raise DataError(
                    f"{self._name}: {self._recipe.model.name} takes {form}; a minibatch has"
                    f" {_described(held)}"
                )
        return takes == "flat" or shape == "flat"

    def _fitted(self, x: Batch) -> Batch:
        """Return a minibatch as the network and the loss take it.

        Raises:
            DataError: if its targets are none for the loss.
        """
        inputs, targets = x.inputs, x.targets
        if self._flat and isinstance(inputs, Tensor):
            inputs = inputs.flatten(1)
        if self._kind == "classes":
            self._check_classes(targets)
        elif self._kind is not None:
            targets = targets if targets.is_floating_point() else targets.to(self.dtype)
            targets = targets[:, None] if targets.dim() == 1 else targets
            if self._kind == "shares" and not bool(((targets >= 0) & (targets <= 1)).all()):
                raise DataError(f"{self._name}: targets outside 0 … 1, as {self.loss_name} wants")
        return Batch(inputs, targets, x.rows)

    def _check_classes(self, targets: Tensor) -> None:
        if targets.is_floating_point() or targets.dim() == 0:
            raise DataError(
                f"{self._name}: targets are {_described(targets)}; {self.loss_name} wants whole"
                " numbers: say inner.loss: mse, or give classes"
            )
        lowest, highest = int(targets.min()), int(targets.max())
        if lowest < 0 or (self._most is not None and highest >= self._most):
            raise DataError(
                f"{self._name}: a label is {lowest if lowest < 0 else highest}; expected 0 …"
                f" {'' if self._most is None else self._most - 1} as data.outputs or the examples"
                " say"
            )

    def _shape_of(self, x: Batch) -> Any:
        if isinstance(x.inputs, Tensor):
            own = tuple(x.inputs.shape[1:])
            return own[0] if self._flat else own
        return pytree.tree_map_only(Tensor, lambda each: tuple(each.shape[1:]), x.inputs)

    def _outputs(self, x: Batch, loaders: Loaders) -> int:
        """Return the number of outputs: of classes by their names or their highest, of values."""
        if isinstance(x.targets, Tensor):
            if x.targets.is_floating_point():
                return math.prod(x.targets.shape[1:])
            if (named := _class_names(loaders.train)) is not None:
                return named
            if self._recipe.data.outputs is not None:
                return 1  # what the recipe says is checked at every minibatch
            return self._highest(x.targets.dim() > 1) + 1
        if self._recipe.data.outputs is None and wanted_inputs(self._recipe.model.name):
            raise DataError(f"{self._name}: nothing says how many outputs; expected data.outputs")
        return 1

    def _highest(self, tokens: bool) -> int:
        found = 0
        for _, x in self._batches.population():
            found = max(found, int(x.targets.max()))
            if tokens and isinstance(x.inputs, Tensor) and not x.inputs.is_floating_point():
                found = max(found, int(x.inputs.max()))
        return found

    def _digest(self, heldout: LoaderBatches) -> str:
        _, first = next(iter(heldout.population()))
        parts = [x for _, x in self._batches.population()]
        together = "".join(map(digest, ([part] for part in (*parts, first))))
        return hashlib.sha256(together.encode()).hexdigest()[:16]


def _class_names(source: Any) -> int | None:
    """Return how many classes a data set names, as torchvision's do; None if it names none."""
    while source is not None:
        names = getattr(source, "classes", None)
        if isinstance(names, list | tuple) and names:
            return len(names)
        source = getattr(source, "dataset", None)
    return None


def _described(held: Any) -> str:
    if not isinstance(held, Tensor):
        return type(held).__name__
    kind = "floats" if held.is_floating_point() else "whole numbers"
    return f"{kind} of shape {tuple(held.shape[1:])}"
