"""Data sets in a ``.npz`` file. Pickles in it are refused, not opened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from hyperrbp.data import arrays
from hyperrbp.data.batches import Batch
from hyperrbp.data.data_set import DataSet
from hyperrbp.exceptions import DataError, message_of
from hyperrbp.runtime.suggestions import did_you_mean

_TRAIN, _TEST, _WHOLE = ("x_train", "y_train"), ("x_test", "y_test"), ("inputs", "targets")
_NAMES = {*_TRAIN, *_TEST, *_WHOLE}
_COLORS = (1, 3, 4)


def load_npz(file: Path, heldout: float, channels: str | None, ids: bool = False) -> DataSet:
    """Load inputs in their own shape, images as (C, H, W) or (H, W), and targets as they are.

    Args:
        file: a ``.npz`` file.
        heldout: the share to hold out where it has no test arrays.
        channels: ``first`` or ``last``, for images of four axes with their examples.
        ids: whether the inputs are token ids.

    Raises:
        DataError: if it cannot be read, or lacks an array.
    """
    found, known = _read(file)
    train = _TRAIN if any(name in found for name in _TRAIN) else _WHOLE
    whole = _examples(found, known, train, file, channels, ids)
    if not any(name in found for name in _TEST):
        for name in _TEST:
            for other in known:
                if other.lower() == name:  # a share of the rest would be held out in its place
                    raise DataError(f"{file} has {other}; did you mean {name}?")
        return arrays.split(whole, heldout, str(file))
    return DataSet(whole, _examples(found, known, _TEST, file, channels, ids))


def _read(file: Path) -> tuple[dict[str, Any], list[str]]:
    """Read the arrays that are wanted, and the names of all."""
    try:
        with file.open("rb") as content:  # NumPy leaves open what it cannot read
            opened = np.load(content, allow_pickle=False)
            if not isinstance(opened, np.lib.npyio.NpzFile):
                raise DataError(f"{file}: one array without a name; expected numpy.savez's archive")
            with opened:
                known = opened.files
                found = {name: opened[name] for name in known if name in _NAMES}
    except (MemoryError, DataError):
        raise
    except FileNotFoundError:
        raise DataError(f"{file}: no such file; data.name is relative to the recipe") from None
    except Exception as error:  # bytes that are no archive fail in any way at all
        reason = message_of(error)
        if "allow_pickle" in reason:
            reason = "it holds Python objects, which are not opened; expected arrays of numbers"
        raise DataError(f"{file} cannot be read: {reason}") from error
    if not found:
        raise DataError(
            f"{file} has {', '.join(known) or 'no arrays'}; expected x_train, y_train, x_test and"
            " y_test, or inputs and targets"
        )
    return found, known


def _examples(
    found: dict[str, Any],
    known: list[str],
    names: tuple[str, str],
    file: Path,
    channels: str | None,
    ids: bool,
) -> Batch:
    for name in names:
        if name not in found:
            others = [other for other in known if other not in _NAMES]
            hint = did_you_mean(name, others)
            raise DataError(f"{file} has {', '.join(known)}, but no {name}{hint}")
    inputs = found[names[0]]
    if inputs.ndim == 4 and not ids:
        looks_last = inputs.shape[3] in _COLORS and inputs.shape[1] not in _COLORS
        if channels is None and looks_last:
            raise DataError(
                f"{file}: {names[0]} has shape {inputs.shape}: say data.options.channels: last if"
                " these are (examples, height, width, colours), or first if they are not"
            )
        if channels == "last":
            inputs = np.ascontiguousarray(np.moveaxis(inputs, 3, 1))
    return arrays.examples(inputs, found[names[1]], str(file), names, ids)
