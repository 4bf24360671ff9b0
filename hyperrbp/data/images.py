"""Images as pixels, and folders of them by class, as torchvision's ImageFolder has them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hyperrbp.data import arrays
from hyperrbp.data.batches import Batch
from hyperrbp.data.data_set import DataSet
from hyperrbp.exceptions import DataError, message_of

EXTENSIONS = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp"}
_GRAY = {"1", "L", "LA"}
_EIGHT_BITS = {*_GRAY, "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"}


def load_folder(folder: Path, size: int | None, colors: str | None, heldout: float) -> DataSet:
    """Load train/<class>/… and test/<class>/…, classes numbered in the order of their names.

    Without test/, a share of train/ is held out. Images come in a fixed random order, since that
    of the files is class by class.

    Raises:
        DataError: if there is no such folder, an image cannot be read, or sizes differ.
    """
    train = folder / "train"
    if not train.is_dir():
        raise DataError(f"{folder}/: no folder train in it; expected train/<class>/*.png")
    classes = sorted(path.name for path in train.iterdir() if path.is_dir())
    if len(classes) < 2:
        raise DataError(f"{train}: expected a folder for each of two classes or more")
    pixels = Pixels(size, colors)
    whole = arrays.in_random_order(_part(train, classes, pixels))
    test = folder / "test"
    if not test.is_dir():
        return arrays.split(whole, heldout, f"{folder}/")
    return DataSet(whole, arrays.in_random_order(_part(test, classes, pixels)))


def _part(folder: Path, classes: list[str], pixels: Pixels) -> Batch:
    images, labels = [], []
    for path in sorted(folder.iterdir()):
        if not path.is_dir():
            continue
        if path.name not in classes:
            raise DataError(f"{path}: no such class in train; expected one of {', '.join(classes)}")
        files = sorted(f for f in path.rglob("*") if f.suffix.lower() in EXTENSIONS)
        if not files:
            raise DataError(f"{path}: no images; expected files that end with .png, .jpg, …")
        for file in files:
            try:
                with Image.open(file) as image:
                    images.append(pixels.of(image, str(file)))
            except (MemoryError, DataError):
                raise
            except Exception as error:  # from many decoders
                reason = message_of(error)
                raise DataError(f"{file} cannot be read: {reason}") from error
            labels.append(classes.index(path.name))
    return stacked(images, labels, str(folder))


class Pixels:
    """Images as bytes, (C, H, W), all of one size and in the same colours."""

    def __init__(self, size: int | None, colors: str | None) -> None:
        self._size, self._colors = size, colors
        self._first: tuple[tuple[int, int], str] | None = None

    def of(self, image: Image.Image, where: str) -> np.ndarray[Any, Any]:
        """Return the pixels of an image, shape (C, H, W), bytes.

        Raises:
            DataError: if it is of another size than the first, or has more than 8 bits a colour.
        """
        if image.mode not in _EIGHT_BITS:
            raise DataError(f"{where}: pixels of mode {image.mode}; expected 8 bits a colour")
        if self._colors is None:
            self._colors = "gray" if image.mode in _GRAY else "rgb"
        image = image.convert("L" if self._colors == "gray" else "RGB")
        if self._size is not None:
            image = image.resize((self._size, self._size), Image.Resampling.BILINEAR)
        size, first = self._first or (image.size, where)
        self._first = size, first
        if image.size != size:
            raise DataError(
                f"{where} has {image.width}×{image.height} pixels, {first} has {size[0]}×{size[1]};"
                " resize them all with data.options.size"
            )
        found = np.asarray(image)
        return found[None] if found.ndim == 2 else np.moveaxis(found, 2, 0)


def stacked(images: list[np.ndarray[Any, Any]], labels: Iterable[int], where: str) -> Batch:
    """Stack images of one size with their classes."""
    if not images:
        raise DataError(f"{where}: no examples")
    targets = np.array(list(labels), dtype=np.int64)
    return arrays.examples(np.stack(images), targets, where, ("images", "labels"))
