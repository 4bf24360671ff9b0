"""What a system of the paper has to say so that it can be trained: network, examples, measures."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from hyperrbp.problems.convergent import ConvergentNetwork
from hyperrbp.problems.fixed_point import FixedPoint

Answer = Callable[[Tensor], Tensor]
"""Inputs → the network's output at their steady state, without a graph."""


class Example(NamedTuple):
    """What one update of the weights is taken on."""

    share: float
    """Of an epoch's loss."""
    inputs: Tensor
    loss: Callable[[Tensor], Tensor]
    """Of the network's output."""


class System(ABC):
    """A network with a convergent part, its examples, and what tells how good it is."""

    network: ConvergentNetwork
    inputs: Tensor
    """All of them, on which the change norms are taken."""
    size: str
    """The system in words: how many neurons, images, documents."""

    @abstractmethod
    def epoch(self, n: int) -> Iterator[Example]:
        """The examples of epoch n, in their order."""

    @abstractmethod
    def loss(self, answer: Answer) -> float:
        """Over all training examples."""

    @abstractmethod
    def validate(self, answer: Answer) -> dict[str, float]:
        """Measures that choose between epochs."""

    @abstractmethod
    def badness(self, validation: Mapping[str, float]) -> float:
        """What the best epoch has least of."""

    @abstractmethod
    def test(self, answer: Answer) -> dict[str, float]:
        """What the network is worth, at the end."""

    def watch(self, problem: FixedPoint, theta: Tensor) -> dict[str, list[float]]:
        """Curves over the updates of one inference: by name, a value an update."""
        return {"change_norms": problem.changes(theta)}

    def pictures(self, answer: Answer) -> tuple[list[str], Tensor] | None:
        """Names of rows, and images in [0, 1] of shape (rows, columns, height, width)."""
        return None


def share_right(logits: Tensor, labels: Tensor, nodes: Tensor) -> float:
    """The share of nodes whose largest logit is their class."""
    return float((logits[nodes].argmax(1) == labels[nodes]).to(torch.float64).mean())
