"""What an objective is given: a minibatch as tensors, the weights of its examples, a seed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from hyperrbp.data.batches import Batch
from hyperrbp.exceptions import UsageError

PAIR = None
"""The structure of a pair of tensors, (inputs, targets)."""


class Structure(NamedTuple):
    """How the tensors of a batch are nested, with whatever else stands among them.

    Two batches of one structure differ in their tensors alone.
    """

    tree: pytree.TreeSpec
    constants: tuple[Any, ...]
    """All leaves, with a mark in the place of a tensor."""

    @property
    def tensors(self) -> int:
        """The number of tensors."""
        return sum(leaf is _TENSOR for leaf in self.constants)

    def filled(self, tensors: Sequence[Tensor]) -> tuple[Any, Any]:
        """Return (inputs, targets) with these tensors in their places."""
        given = iter(tensors)
        leaves = [next(given) if leaf is _TENSOR else leaf for leaf in self.constants]
        inputs, targets = pytree.tree_unflatten(leaves, self.tree)
        return inputs, targets


class _Tensor:
    """Stands for a tensor among the leaves of a structure."""

    def __repr__(self) -> str:
        return "tensor"


_TENSOR = _Tensor()


class Terms(NamedTuple):
    """One batch, as an objective takes it."""

    tensors: tuple[Tensor, ...]
    """The tensors of the batch, in the order of its structure."""
    structure: Structure | None = PAIR
    weights: Tensor | None = None
    """A weight for every example, shape (B,)."""
    seed: int | None = None
    """Of the random numbers that the module draws; None leaves them to the global generators."""

    def pair(self) -> tuple[Any, Any]:
        """Return (inputs, targets) as the batch has them."""
        if self.structure is PAIR:
            return self.tensors[0], self.tensors[1]
        return self.structure.filled(self.tensors)

    def split(self, parts: int) -> Sequence[Terms]:
        """Return equal parts of the batch, along the first dimension of every tensor.

        Raises:
            UsageError: if the examples do not go into so many.
        """
        if parts == 1:
            return (self,)
        count = len(self.tensors[0])
        if count % parts:
            raise UsageError(f"a minibatch of {count} examples has no {parts} equal parts")
        size = count // parts
        cut = zip(*[torch.split(tensor, size) for tensor in self.tensors], strict=True)
        weights = [None] * parts if self.weights is None else torch.split(self.weights, size)
        return [
            self._replace(tensors=tensors, weights=own)
            for tensors, own in zip(cut, weights, strict=True)
        ]


def terms(x: Batch, example_weights: Tensor | None = None, seed: int | None = None) -> Terms:
    """Return a batch as terms.

    Args:
        x: the batch.
        example_weights: of all training examples; those of this batch are picked from them.
        seed: of the random numbers of the module.
    """
    weights = None if example_weights is None else example_weights[row_numbers(x)]
    if isinstance(x.inputs, Tensor) and isinstance(x.targets, Tensor):
        return Terms((x.inputs, x.targets), PAIR, weights, seed)
    leaves, tree = pytree.tree_flatten((x.inputs, x.targets))
    constants = tuple(_TENSOR if isinstance(leaf, Tensor) else leaf for leaf in leaves)
    tensors = tuple(leaf for leaf in leaves if isinstance(leaf, Tensor))
    return Terms(tensors, Structure(tree, constants), weights, seed)


def without_weights(chunks: Iterable[tuple[float, Batch]]) -> Iterable[tuple[float, Terms]]:
    """Yield chunks without the weights of their examples: what a meta loss is taken on."""
    return ((share, terms(x)) for share, x in chunks)


def row_numbers(x: Batch) -> Tensor:
    """Return which of the training examples a batch holds, shape (B,).

    Raises:
        UsageError: if the batch does not say.
    """
    if x.rows is None:
        raise UsageError("weights of examples need batches that say which examples they hold")
    return x.rows
