"""Arrays of the user's own, checked and turned into examples."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from hyperrbp.data.batches import Batch
from hyperrbp.data.data_set import DataSet
from hyperrbp.exceptions import DataError
from hyperrbp.runtime.randomness import generator

_NOT_NUMBERS = {
    "O": "Python objects",
    "c": "complex numbers",
    "U": "text",
    "S": "text",
    "M": "dates",
    "m": "durations",
    "V": "records",
}
_EXACT = 2**24
"""The largest whole number up to which all are float32 numbers."""


def examples(
    inputs: Any, targets: Any, where: str, names: tuple[str, str], ids: bool = False
) -> Batch:
    """Return inputs in their own shape and targets as they are, as tensors.

    Bytes are taken as pixels, 0 … 255 → 0 … 1; floats stay as they are. Whole targets are classes,
    int64; floats are values, (B, 1) if they were (B,).

    Args:
        inputs: an array, a tensor or nested lists, shape (B, …).
        targets: the same, shape (B,) or (B, …).
        where: where they come from, for a message.
        names: what both are called there.
        ids: whether the inputs are token ids: whole numbers, int64, which stay so.

    Raises:
        DataError: if they are no examples.
    """
    array = _array(inputs, where, names[0])
    x = _ids(array, where, names[0]) if ids else _inputs(array, where, names[0])
    y = _targets(_array(targets, where, names[1]), where, names[1])
    if len(x) != len(y):
        raise DataError(f"{where}: {len(x)} {names[0]} for {len(y)} {names[1]}; expected as many")
    return Batch(x, y)


def split(whole: Batch, share: float, where: str) -> DataSet:
    """Hold out a random share: the same one for every seed, so that seeds compare.

    What is left to train on keeps its numbers, or gets those it has in the whole.

    Raises:
        DataError: if there are too few examples.
    """
    back = max(1, round(share * len(whole)))
    if back >= len(whole):
        raise DataError(
            f"{where}: {len(whole)} examples are too few to hold {share:.0%} of them out"
        )
    order = torch.randperm(len(whole), generator=generator(0, "held-out examples"))
    held, kept = order[:back].sort().values, order[back:].sort().values
    rows = kept if whole.rows is None else whole.rows[kept]
    return DataSet(
        Batch(whole.inputs[kept], whole.targets[kept], rows),
        Batch(whole.inputs[held], whole.targets[held]),
    )


def in_random_order(whole: Batch) -> Batch:
    """Return the examples in a fixed random order, with the numbers that they had before.

    What comes class by class cannot be cut at a number.
    """
    order = torch.randperm(len(whole), generator=generator(0, "order of the examples"))
    return Batch(whole.inputs[order], whole.targets[order], order)


def _array(values: Any, where: str, name: str) -> np.ndarray[Any, Any]:
    try:
        if isinstance(values, Tensor):
            values = values.detach().cpu()
            if values.dtype is torch.bfloat16:
                values = values.float()
            values = values.numpy()
        array = np.asarray(values)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{where}: {name} is no array of numbers: {reason}") from error
    kind = array.dtype.kind
    if kind in _NOT_NUMBERS or array.dtype.itemsize > 8:
        held = _NOT_NUMBERS.get(kind, str(array.dtype))
        raise DataError(f"{where}: {name} holds {held}; expected numbers")
    if array.ndim == 0 or 0 in array.shape:
        raise DataError(f"{where}: {name} has shape {array.shape}; expected at least one example")
    if kind == "f" and not np.isfinite(array).all():
        place = tuple(map(int, np.argwhere(~np.isfinite(array))[0]))
        raise DataError(f"{where}: {name}[{', '.join(map(str, place))}] is {array[place]}")
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    return array


def _inputs(array: np.ndarray[Any, Any], where: str, name: str) -> Tensor:
    if array.ndim < 2:
        raise DataError(
            f"{where}: {name} has shape {array.shape}; expected (examples, features, …)"
        )
    if array.dtype.kind in "iu" and array.dtype != np.uint8:
        largest = max(abs(int(array.min())), abs(int(array.max())))
        if largest > _EXACT:
            raise DataError(
                f"{where}: {name} holds the whole number {largest}, which is too large to stand for"
                " itself in float32; save floats"
            )
    wide = array.dtype == np.float64
    tensor = torch.tensor(array if wide else array.astype(np.float32))
    return tensor / 255 if array.dtype == np.uint8 else tensor


def _ids(array: np.ndarray[Any, Any], where: str, name: str) -> Tensor:
    if array.dtype.kind not in "iu":
        raise DataError(f"{where}: {name} holds {array.dtype}; token ids are whole numbers")
    if int(array.min()) < 0 or int(array.max()) >= 2**63:
        raise DataError(
            f"{where}: {name} holds {int(array.min())} … {int(array.max())}; expected token ids"
            " from 0 on"
        )
    return torch.tensor(array.astype(np.int64))


def _targets(array: np.ndarray[Any, Any], where: str, name: str) -> Tensor:
    if array.dtype.kind == "f":
        tensor = torch.tensor(array if array.dtype == np.float64 else array.astype(np.float32))
        return tensor[:, None] if tensor.dim() == 1 else tensor
    if int(array.max()) >= 2**63:
        raise DataError(f"{where}: {name} holds {int(array.max())}, too large for a whole number")
    return torch.tensor(array.astype(np.int64))
