"""Data sets that a function of the user's returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch.utils.data import DataLoader, Dataset, TensorDataset

from hyperrbp.data import arrays
from hyperrbp.data.batches import Batch
from hyperrbp.data.data_set import DataSet, Loaders
from hyperrbp.exceptions import DataError
from hyperrbp.runtime import user_code
from hyperrbp.runtime.randomness import generator, seeded

_EXPECTED = (
    "((train_x, train_y), (test_x, test_y)); or data sets or loaders of torch.utils.data, (train,"
    " heldout) or (train, validation, heldout)"
)


def load_from_code(
    name: str, options: Mapping[str, Any], modules: user_code.Modules, ids: bool = False
) -> DataSet | Loaders:
    """Call a function for its data.

    It returns arrays, ((x, y) to train on, (x, y) held out); or data sets or loaders of
    ``torch.utils.data``, (train, heldout) or (train, validation, heldout). Data sets that are
    tensors in memory, inputs and targets, are as fast as arrays.

    PyTorch's generators have the same seed whenever it runs, and stand afterwards as before.

    Args:
        name: of the function, as in a recipe.
        options: its keyword arguments.
        modules: the user's own code.
        ids: whether inputs that are arrays of whole numbers are token ids.

    Raises:
        UsageError: if there is no such function, or it fails.
        DataError: if it returns something else.
    """
    with seeded(generator(0, "data").initial_seed()):
        returned = modules.run(name, **options)
    where = user_code.described(name)
    if isinstance(returned, tuple | list) and any(map(_is_loadable, returned)):
        return _loaders(returned, where)
    try:
        (train_x, train_y), (test_x, test_y) = returned
    except (TypeError, ValueError):
        kind = type(returned).__name__
        raise DataError(f"{where} returned {kind}; expected {_EXPECTED}") from None
    return DataSet(
        arrays.examples(train_x, train_y, where, ("train_x", "train_y"), ids),
        arrays.examples(test_x, test_y, where, ("test_x", "test_y"), ids),
    )


def _is_loadable(part: object) -> bool:
    return isinstance(part, Dataset | DataLoader)


def _loaders(returned: Sequence[Any], where: str) -> DataSet | Loaders:
    if len(returned) not in (2, 3) or not all(map(_is_loadable, returned)):
        kinds = ", ".join(type(part).__name__ for part in returned)
        raise DataError(f"{where} returned ({kinds}); expected {_EXPECTED}")
    train, *validation, heldout = returned
    for part, what in zip(returned, ("train", *["validation"] * len(validation), "heldout"),
                          strict=True):  # fmt: skip
        dataset = part.dataset if isinstance(part, DataLoader) else part
        if hasattr(dataset, "__len__") and len(dataset) == 0:
            raise DataError(f"{where}: {what} has no examples")
    if all(_is_pair_in_memory(part) for part in returned):
        first, *between, last = (Batch(*part.tensors) for part in returned)
        middle = between[0] if between else None
        return DataSet(first, last, validation=middle, as_it_is=True)
    return Loaders(train, validation[0] if validation else None, heldout)


def _is_pair_in_memory(part: object) -> bool:
    return type(part) is TensorDataset and len(part.tensors) == 2
