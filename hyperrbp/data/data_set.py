"""A data set: what is trained on, and what is held out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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
