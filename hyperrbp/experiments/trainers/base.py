"""The base class of all that ``hyperrbp.experiments.train`` trains."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from hyperrbp.config.schema import BaseRecipe
from hyperrbp.experiments.device import environment
from hyperrbp.experiments.results.records import TrainRecord
from hyperrbp.experiments.results.train import TrainResult


class Trainer(ABC):
    """Training that can be advanced, saved and taken up again, bit for bit."""

    unit: ClassVar[str]
    """What the number of a record counts: ``epoch`` or ``step``."""
    recipe: BaseRecipe
    """As it is run: the device and the number of threads are filled in."""
    position: int
    """The number of the next record; 0 is the untrained start."""
    last: int
    """The number of the last record."""
    device: torch.device

    @abstractmethod
    def headline(self) -> str:
        """Say what is trained, and how, in a line or two."""

    @property
    def place(self) -> str:
        """The device and the number of threads, in words."""
        count = self.recipe.threads
        return f"{self.recipe.device}, {count} thread{'' if count == 1 else 's'}"

    def environment(self) -> dict[str, str | int]:
        """Return what the bits of a result depend on, besides the recipe."""
        return environment(self.device)

    @abstractmethod
    def advance(self) -> TrainRecord:
        """Train a little further; return the record of ``position``, which then moves on.

        Raises:
            DivergedError: before anything that is not finite reaches the weights.
        """

    @abstractmethod
    def due(self) -> bool:
        """Whether a checkpoint should be written now."""

    @abstractmethod
    def content(self) -> dict[str, Any]:
        """Return what a checkpoint holds besides tensors, as JSON knows it."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors of a checkpoint."""

    @abstractmethod
    def restore(self, content: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Go to where ``content`` and ``tensors`` were taken."""

    @abstractmethod
    def weights(self) -> dict[str, Tensor]:
        """Return the trained weights, by the names of the network's parameters."""

    @abstractmethod
    def result(self, common: TrainResult) -> TrainResult:
        """Return the result of the run; ``common`` holds what all trainings say."""

    def pictures(self) -> tuple[list[str], Tensor] | None:
        """Return the names of rows of images, and these: (rows, columns, height, width).

        Pixels are in [0, 1]. None where there is nothing to see.
        """
        return None
