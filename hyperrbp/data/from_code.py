"""Data sets that a function of the user's returns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hyperrbp.data import arrays
from hyperrbp.data.data_set import DataSet
from hyperrbp.exceptions import DataError
from hyperrbp.runtime import user_code
from hyperrbp.runtime.randomness import generator, seeded


def load_from_code(name: str, options: Mapping[str, Any], modules: user_code.Modules) -> DataSet:
    """Call a function for its data: ((x, y) to train on, (x, y) held out).

    PyTorch's generators have the same seed whenever it runs, and stand afterwards as before.

    Raises:
        UsageError: if there is no such function, or it fails.
        DataError: if it returns something else.
    """
    with seeded(generator(0, "data").initial_seed()):
        returned = modules.run(name, **options)
    where = user_code.described(name)
    try:
        (train_x, train_y), (test_x, test_y) = returned
    except (TypeError, ValueError):
        raise DataError(
            f"{where} returned {type(returned).__name__}; expected"
            " ((train_x, train_y), (test_x, test_y))"
        ) from None
    return DataSet(
        arrays.examples(train_x, train_y, where, ("train_x", "train_y")),
        arrays.examples(test_x, test_y, where, ("test_x", "test_y")),
    )
