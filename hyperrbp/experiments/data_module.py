"""What an experiment knows of its data, wherever they come from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from hyperrbp.data.batches import Batch, Batches, Examples
from hyperrbp.problems.training.network_loss import LossFunction

DTYPES = {"float32": torch.float32, "float64": torch.float64}


class DataModule(ABC):
    """The examples of a recipe, ready to be trained and tested on."""

    dtype: torch.dtype
    """Of all floats."""
    shape: Any
    """Of an input: the number of features if it is flat; nested as the inputs are."""
    outputs: int
    """How many numbers the network is to make of one, or of a token of it."""
    loss: LossFunction
    loss_name: str
    """As in the recipe, and what ``auto`` has become."""
    digest: str | None
    """Of data that may be others tomorrow; None for a built-in set."""
    batch_size: int
    """Examples in a minibatch."""
    train_rows: Tensor
    """Which examples of the data set are trained on, by their numbers there, shape (B,)."""
    validation: Examples | None
    heldout: Examples
    population_note: str | None = None
    """Where a sample stands for all examples, in words."""

    @abstractmethod
    def batches(self, seed: int) -> Batches:
        """Return the minibatches of a training run, in an order that the seed decides."""

    @abstractmethod
    def shown(self, count: int) -> Batch:
        """Return a few training examples, at most ``count``, to try a network on."""

    @property
    @abstractmethod
    def steps_per_epoch(self) -> int | None:
        """Minibatches of an epoch; None where nobody knows."""

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors of all examples, which a meter of what a gradient keeps leaves out."""
        return []
