"""A data set: what is trained on, and what is held out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.utils.data import DataLoader, Dataset

    from hyperrbp.data.batches import Batch


@dataclass(frozen=True)
class DataSet:
    """A part to train on, and one held out.

    A built-in set has inputs of shape (B, features) in [0, 1], float32, and classes of shape (B,),
    int64. The user's own have shapes and values of their own, and where the order of ``train`` is
    not theirs, its ``rows`` are their numbers.
    """

    train: Batch
    heldout: Batch
    validation: Batch | None = field(default=None, kw_only=True)
    """A part of its own for the meta loss, where there is one."""
    as_it_is: bool = field(default=False, kw_only=True)
    """Whether it is a data set of PyTorch's, whose tensors are neither scaled nor centered."""


@dataclass(frozen=True)
class Loaders:
    """Data sets or loaders of ``torch.utils.data``, which are read minibatch by minibatch."""

    train: Dataset[Any] | DataLoader[Any]
    validation: Dataset[Any] | DataLoader[Any] | None
    heldout: Dataset[Any] | DataLoader[Any]
