"""torchvision's data sets by their own names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from hyperrbp.data import arrays
from hyperrbp.data.batches import Batch
from hyperrbp.data.builtin import BUILTIN_SETS, load_builtin_set
from hyperrbp.data.data_set import DataSet
from hyperrbp.data.images import Pixels, stacked
from hyperrbp.data.torchvision_catalog import TORCHVISION_SETS
from hyperrbp.exceptions import DataError, message_of

_BUILT_IN = {"MNIST": "mnist", "FashionMNIST": "fashion-mnist", "KMNIST": "kmnist"}
"""Downloaded over https alone, whole or not at all."""


def load_torchvision_set(
    kind: str,
    root: Path,
    download: bool,
    size: int | None,
    colors: str | None,
    split: str | None,
) -> DataSet:
    """Load images (C, H, W) and their classes, of both parts.

    Raises:
        DataError: if they are missing, or torchvision cannot read them.
    """
    from torchvision import datasets

    if kind in _BUILT_IN:
        name = _BUILT_IN[kind]
        built_in, image = load_builtin_set(name, root, download=download), BUILTIN_SETS[name].image
        if size is None and colors is None:
            train, heldout = (
                Batch(part.inputs.reshape(-1, *image), part.targets)
                for part in (built_in.train, built_in.heldout)
            )
            return DataSet(train, heldout)
        download = False  # it is there now
    pixels = Pixels(size, colors)
    parts = []
    for asked in TORCHVISION_SETS[kind]:
        also = {} if split is None else {"split": split}
        try:
            read = getattr(datasets, kind)(str(root), download=download, **asked, **also)
            parts.append(_examples(read, pixels, kind, size is None and colors is None))
        except (MemoryError, DataError):
            raise
        except Exception as error:  # whatever torchvision and what it imports may raise
            reason = message_of(error)
            remedy = "" if download else "; --set data.download=true lets torchvision fetch it"
            raise DataError(
                f"torchvision:{kind} cannot be read from {root}: {reason}{remedy}"
            ) from error
    return DataSet(*parts)


def _examples(read: Any, pixels: Pixels, kind: str, plain: bool) -> Batch:
    where = f"torchvision:{kind}"
    data, targets = getattr(read, "data", None), getattr(read, "targets", None)
    if isinstance(data, torch.Tensor):
        data = data.numpy()
    one_each = targets is not None and np.ndim(targets) == 1
    if plain and one_each and isinstance(data, np.ndarray) and data.ndim in (3, 4):
        array = data[:, None] if data.ndim == 3 else np.ascontiguousarray(np.moveaxis(data, 3, 1))
        return arrays.examples(array, targets, where, ("images", "labels"))
    images, labels = [], []
    for n in range(len(read)):
        image, label = read[n]
        images.append(pixels.of(image, f"{where}[{n}]"))
        labels.append(int(label))
    found = stacked(images, labels, where)
    # Those that are folders of files come class by class.
    return arrays.in_random_order(found) if labels == sorted(labels) else found
