"""What an objective is given: a minibatch, with the weights of its examples if they have any."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor

from hyperrbp.data.batches import Batch
from hyperrbp.exceptions import UsageError

Terms = Sequence[Tensor]
"""(inputs, targets), or (inputs, targets, weights) with a weight for every example."""


def with_weights(x: Batch, example_weights: Tensor | None) -> Terms:
    """Return a batch with the weights of its examples, picked from those of the training set."""
    return x[:2] if example_weights is None else (*x[:2], example_weights[row_numbers(x)])


def without_weights(chunks: Iterable[tuple[float, Batch]]) -> Iterable[tuple[float, Terms]]:
    """Yield chunks without the weights of their examples: what a meta loss is taken on."""
    return ((share, x[:2]) for share, x in chunks)


def row_numbers(x: Batch) -> Tensor:
    """Return which of the training examples a batch holds, shape (B,).

    Raises:
        UsageError: if the batch does not say.
    """
    if x.rows is None:
        raise UsageError("weights of examples need batches that say which examples they hold")
    return x.rows
