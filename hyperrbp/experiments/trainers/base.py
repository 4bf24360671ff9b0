"""What is trained on disk, step by step: see :mod:`hyperrbp.experiments.train`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from hyperrbp.config.schema import AnyRecipe
from hyperrbp.experiments.experiment import environment


class Trainer(ABC):
    """Training that can be advanced, saved and taken up again, bit for bit."""

    unit: ClassVar[str]
    """What one record is of: the key of its number."""
    recipe: AnyRecipe
    """As it is run: the device and the number of threads are filled in."""
    position: int
    """Of the next record; 0 is the untrained start."""
    last: int
    """The number of the last record."""
    device: torch.device

    @abstractmethod
    def headline(self) -> str:
        """What is trained, and how, in a line or two."""

    @property
    def place(self) -> str:
        """Where it runs, in words."""
        count = self.recipe.threads
        return f"{self.recipe.device}, {count} thread{'' if count == 1 else 's'}"

    def environment(self) -> dict[str, str | int]:
        """What the bits of a result depend on, besides the recipe."""
        return environment(self.device)

    @abstractmethod
    def advance(self) -> dict[str, Any]:
        """The record of ``position``, which is then that of the next one.

        Raises:
            DivergedError: before anything that is not finite reaches the weights.
        """

    @abstractmethod
    def due(self) -> bool:
        """Whether this is a place to save."""

    @abstractmethod
    def content(self) -> dict[str, Any]:
        """What there is to save besides tensors."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """The tensors to save."""

    @abstractmethod
    def restore(self, content: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Stand where these were taken."""

    @abstractmethod
    def weights(self) -> dict[str, Tensor]:
        """The answer, by the names of the network's parameters."""

    @abstractmethod
    def result(self) -> dict[str, Any]:
        """What there is to say at the end."""

    def pictures(self) -> tuple[list[str], Tensor] | None:
        """Names of rows, and images in [0, 1] of shape (rows, columns, height, width)."""
        return None
