"""The built-in data sets: one function and one registry line each.

Every set has a training part, in its original order, and a held-out part. Nothing is downloaded
unless it is asked for.
"""

from __future__ import annotations

import gzip
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hyperrbp.data.data_set import DataSet
from hyperrbp.exceptions import DataError, MissingDataError
from hyperrbp.runtime import downloads
from hyperrbp.runtime.downloads import Digest, RemoteFile

if TYPE_CHECKING:
    from hyperrbp.data.batches import Batch


@dataclass(frozen=True)
class BuiltinSet:
    """A built-in data set, and what is known of it before it is read."""

    read: Callable[[Path, bool], DataSet]  # (data root, whether to download)
    train_examples: int
    features: int
    classes: int

    @property
    def image(self) -> tuple[int, int, int]:
        """The shape of an input as the square gray image that it is."""
        side = math.isqrt(self.features)
        return 1, side, side


def data_root(given: Path | None = None) -> Path:
    """Return where data sets live: the argument, else ``HYPERRBP_DATA``, else the user's cache."""
    if given is not None:
        return given.expanduser()
    if named := os.environ.get("HYPERRBP_DATA"):
        return Path(named).expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_dir("hyperrbp"))


def load_builtin_set(name: str, root: Path, *, download: bool = False) -> DataSet:
    """Load the data set of a name, one of BUILTIN_SETS.

    Raises:
        DataError: if it is missing, damaged, or not what its name promises.
    """
    known = BUILTIN_SETS[name]
    data = known.read(root, download)
    for part in (data.train, data.heldout):
        if len(part) == 0:
            raise DataError(f"data set '{name}' in {root}: no examples")
        if part.inputs.shape != (len(part.targets), known.features):
            raise DataError(
                f"data set '{name}' in {root}: {tuple(part.inputs.shape)} inputs for"
                f" {len(part.targets)} labels; expected {known.features} features"
            )
        if not 0 <= int(part.targets.min()) <= int(part.targets.max()) < known.classes:
            raise DataError(f"data set '{name}' in {root}: labels outside 0 … {known.classes - 1}")
    return data


def _digits(root: Path, download: bool) -> DataSet:
    """Load 1,797 real 8×8 digits, shipped with scikit-learn: 1,200 to train on, 597 held out."""
    import torch
    from sklearn.datasets import load_digits

    from hyperrbp.data.batches import Batch

    images, labels = load_digits(return_X_y=True)
    inputs = torch.tensor(images, dtype=torch.float32) / 16
    targets = torch.tensor(labels, dtype=torch.int64)
    return DataSet(Batch(inputs[:1200], targets[:1200]), Batch(inputs[1200:], targets[1200:]))


def _torchvision(class_name: str) -> Callable[[Path, bool], DataSet]:
    """Return what loads one of torchvision's 28×28 ten-class sets, from ``root/<class>/raw``."""

    def load_both(root: Path, download: bool) -> DataSet:
        import torch
        from torchvision import datasets

        from hyperrbp.data.batches import Batch

        folder = root / class_name / "raw"
        kind = getattr(datasets, class_name)
        files = [folder / archive.removesuffix(".gz") for archive, _ in kind.resources]
        missing = {
            file.name: RemoteFile(f"{_MIRRORS[class_name]}/{archive}", Digest("MD5", md5))
            for file, (archive, md5) in zip(files, kind.resources, strict=True)
            if not file.is_file()
        }
        if missing and not download:
            lacks = ", ".join(missing)
            raise MissingDataError(
                f"{class_name} not found: {folder} lacks {lacks}; name the folder that"
                f" {class_name} lies in with --data-root or HYPERRBP_DATA, or let it be downloaded"
                " with --set data.download=true"
            )

        if missing:
            # Not torchvision's own download, which falls back to http.
            downloads.download(class_name, missing, folder, unpack=gzip.decompress)

        def part(train: bool) -> Batch:
            what = "training part" if train else "held-out part"
            try:
                read = kind(str(root), train=train)
                images, targets = read.data, read.targets.to(torch.int64)
            except MemoryError:
                raise
            except Exception as error:  # bytes that are not an idx file fail in any way at all
                reason = " ".join(str(error).split()) or "it is damaged"
                raise DataError(
                    f"the {what} of {class_name} cannot be read from {folder}: {reason}"
                ) from error
            if len(images) != len(targets):
                raise DataError(
                    f"the {what} of {class_name} in {folder} has {len(images)} images for"
                    f" {len(targets)} labels"
                )
            return Batch(images.flatten(1).to(torch.float32) / 255, targets)

        return DataSet(part(train=True), part(train=False))

    return load_both


_MIRRORS = {
    "MNIST": "https://ossci-datasets.s3.amazonaws.com/mnist",
    "FashionMNIST": "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion",
    "KMNIST": "https://codh.rois.ac.jp/kmnist/dataset/kmnist",
}
"""The mirrors of torchvision that speak https."""


BUILTIN_SETS: dict[str, BuiltinSet] = {
    "digits": BuiltinSet(_digits, train_examples=1200, features=64, classes=10),
    "mnist": BuiltinSet(_torchvision("MNIST"), train_examples=60000, features=784, classes=10),
    "fashion-mnist": BuiltinSet(
        _torchvision("FashionMNIST"), train_examples=60000, features=784, classes=10
    ),
    "kmnist": BuiltinSet(_torchvision("KMNIST"), train_examples=60000, features=784, classes=10),
}
