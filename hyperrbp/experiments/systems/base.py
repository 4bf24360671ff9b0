"""The base class of the paper's systems: a network, its examples, and its measures."""

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
    """Some examples on which one update of the weights is taken."""

    share: float
    """The share of these examples in the loss of an epoch."""
    inputs: Tensor
    loss: Callable[[Tensor], Tensor]
    """Maps the network's output to the loss."""


class System(ABC):
    """A network with a convergent part, its examples, and measures of how good it is."""

    network: ConvergentNetwork
    inputs: Tensor
    """All inputs; the change norms are taken on them."""
    size: str
    """The system in words: how many neurons, images, documents."""

    @abstractmethod
    def epoch(self, n: int) -> Iterator[Example]:
        """Yield the examples of epoch n, in their order."""

    @abstractmethod
    def loss(self, answer: Answer) -> float:
        """Return the loss over all training examples."""

    @abstractmethod
    def validate(self, answer: Answer) -> dict[str, float]:
        """Return the measures that choose between epochs."""

    @abstractmethod
    def badness(self, validation: Mapping[str, float]) -> float:
        """Return the measure of which the best epoch has least."""

    @abstractmethod
    def test(self, answer: Answer) -> dict[str, float]:
        """Return the measures of the finished network."""

    def curves(self, problem: FixedPoint, theta: Tensor) -> dict[str, list[float]]:
        """Return curves over the updates of one inference: by name, one value for each update."""
        return {"change_norms": problem.changes(theta)}

    def pictures(self, answer: Answer) -> tuple[list[str], Tensor] | None:
        """Return the names of rows of images, and these: (rows, columns, height, width).

        Pixels are in [0, 1]. None where there is nothing to see.
        """
        return None


def share_right(logits: Tensor, labels: Tensor, nodes: Tensor) -> float:
    """Return the share of nodes whose largest logit is their class."""
    return float((logits[nodes].argmax(1) == labels[nodes]).to(torch.float64).mean())
