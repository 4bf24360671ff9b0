"""Prepares a text as the examples of a recipe."""

from __future__ import annotations

import torch

from hyperrbp.config.recipe import Recipe
from hyperrbp.data.batches import Batch
from hyperrbp.data.text import Text, WindowBatches
from hyperrbp.exceptions import DataError
from hyperrbp.experiments.array_data import at_least
from hyperrbp.experiments.data_module import DTYPES, DataModule
from hyperrbp.problems.losses import AUTO, LOSSES
from hyperrbp.runtime import user_code


class TextData(DataModule):
    """Windows of a text, on the device, and the ids that follow.

    Args:
        recipe: how it is split, and what for.
        device: where its ids go.
        text: the text.
        modules: the user's own code, which may be the loss.

    Raises:
        DataError: if the text is too short, or the loss is not one of classes.
    """

    def __init__(
        self, recipe: Recipe, device: torch.device, text: Text, modules: user_code.Modules
    ) -> None:
        section, name = recipe.data, recipe.inner.loss
        self.loss_name = "cross-entropy" if name == AUTO else name
        if self.loss_name in LOSSES and LOSSES[self.loss_name].targets != "classes":
            raise DataError(
                f"{text.name}: a token is followed by another; inner.loss {self.loss_name} wants"
                " values: expected cross-entropy, or file.py:function"
            )
        known = LOSSES.get(self.loss_name)
        self.loss = modules.function(self.loss_name) if known is None else known.function
        self.dtype, self.batch_size = DTYPES[recipe.dtype], recipe.inner.batch_size
        self.digest, self.shape = text.digest, (text.block,)
        self.outputs = at_least(text.vocabulary, recipe, self.loss_name)
        parts = text.parts(section.train_examples, section.validation_examples)
        self._train, validation, self.heldout = (part.to(device) for part in parts)
        self.validation = validation if section.validation_examples else None
        if self.batch_size > len(self._train):
            raise DataError(
                f"{text.name}: {len(self._train):,} windows of {text.block} to train on; the"
                f" recipe needs {self.batch_size:,}"
            )
        self.train_rows = torch.arange(len(self._train))
        self._most = section.population
        self.population_note = self.batches(recipe.seed).population_note
        if self.population_note is not None and recipe.hyperparameters.example_weight is not None:
            raise DataError(
                f"{text.name}: weights of examples need all of them: {self.population_note};"
                f" expected data.population of {len(self._train)} or more"
            )

    def batches(self, seed: int) -> WindowBatches:
        """Return minibatches of windows without replacement; see ``DataModule``."""
        return WindowBatches(self._train, self.batch_size, seed, self._most)

    def shown(self, count: int) -> Batch:
        """Return the first windows; see ``DataModule``."""
        rows = torch.arange(min(count, len(self._train)), device=self._train.starts.device)
        return self._train.at(rows)

    @property
    def steps_per_epoch(self) -> int:
        """Minibatches of an epoch: windows begin at every character; see ``DataModule``."""
        return len(self._train) // self.batch_size
