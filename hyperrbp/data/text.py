"""Texts as examples of a language model: windows of characters or bytes, and the next of each."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from hyperrbp.data.batches import CHUNK, Batch
from hyperrbp.exceptions import DataError, UsageError
from hyperrbp.runtime.randomness import generator

Tokens = Literal["characters", "bytes"]


class Windows:
    """Windows of a text at given places, as examples that a loss is taken on.

    Args:
        ids: of the text, shape (characters,).
        starts: where the windows begin, shape (B,).
        block: characters in a window.
    """

    def __init__(self, ids: Tensor, starts: Tensor, block: int) -> None:
        self._ids, self.starts, self.block = ids, starts, block
        self._offsets = torch.arange(block + 1, device=ids.device)

    def __len__(self) -> int:
        return len(self.starts)

    def at(self, rows: Tensor) -> Batch:
        """Return the windows of these numbers: (B, block) ids, and those one place further."""
        places = self.starts[rows][:, None] + self._offsets
        found = self._ids.index_select(0, places.view(-1)).view(places.shape)
        return Batch(found[:, :-1].long().contiguous(), found[:, 1:].long().contiguous(), rows)

    def chunks(self, size: int = CHUNK) -> Iterable[tuple[float, Batch]]:
        """Yield the windows in pieces of at most ``size``, each with its share of the whole."""
        for rows in torch.split(torch.arange(len(self), device=self.starts.device), size):
            yield len(rows) / len(self), self.at(rows)

    def in_precision(self, dtype: torch.dtype) -> Windows:
        """Return the same windows: ids are whole numbers."""
        return self

    def to(self, device: torch.device) -> Windows:
        """Return the same windows on a device."""
        return Windows(self._ids.to(device), self.starts.to(device), self.block)


class WindowBatches:
    """Minibatches of windows without replacement, reshuffled every epoch.

    Args:
        windows: those to train on.
        size: windows in a minibatch.
        seed: of their order; that of an epoch depends on (seed, epoch) alone.
        population: how many windows stand for all of them, where there are more.

    Raises:
        UsageError: for a size that there are not enough windows for.
    """

    def __init__(self, windows: Windows, size: int, seed: int, population: int) -> None:
        if not 1 <= size <= len(windows):
            raise UsageError(f"batch size {size} is not between 1 and {len(windows)} windows")
        self._windows, self._size, self._seed = windows, size, seed
        self._most = population
        self._order: tuple[int, Tensor] | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Minibatches of an epoch, in which a character is read about ``block`` times."""
        return len(self._windows) // self._size

    @property
    def population_note(self) -> str | None:
        """What stands for all training examples, in words; None if it is all of them."""
        count = len(self._windows)
        if count <= self._most:
            return None
        return f"a fixed sample of {self._most:,} of {count:,} windows stands for all of them"

    def __call__(self, t: int) -> Batch:
        """Return the minibatch of step t: (size, block) ids, and those one place further."""
        epoch, position = divmod(t, self.steps_per_epoch)
        if self._order is None or self._order[0] != epoch:
            source = generator(self._seed, "batches", epoch)
            shuffled = torch.randperm(len(self._windows), generator=source)
            self._order = epoch, shuffled.to(self._windows.starts.device)
        rows = self._order[1][position * self._size : (position + 1) * self._size]
        return self._windows.at(rows)

    def population(self) -> Iterable[tuple[float, Batch]]:
        """Yield the windows that stand for all, in weighted chunks."""
        for rows in torch.split(self._sample, CHUNK):
            yield len(rows) / len(self._sample), self._windows.at(rows)

    @cached_property
    def _sample(self) -> Tensor:
        count, device = len(self._windows), self._windows.starts.device
        if count <= self._most:
            return torch.arange(count, device=device)
        order = torch.randperm(count, generator=generator(0, "population"))
        return order[: self._most].sort().values.to(device)


@dataclass(frozen=True)
class Text:
    """A text, cut into a part to train on and the rest of it, held out."""

    ids: Tensor
    """Of every character or byte, shape (characters,): uint8, or int32 where there are more."""
    vocabulary: int
    """How many ids there are."""
    block: int
    train: int
    """How many of the characters are to train on, the first ones."""
    digest: str
    name: str

    def parts(self, train_examples: int | None, validation_examples: int) -> tuple[Windows, ...]:
        """Return the windows to train on, to validate on (maybe none) and held out.

        Those to train on begin at every character of the first part. Those of the other two do not
        overlap each other: validation is the end of the training part, and no character of it is in
        a window that is trained on.

        Args:
            train_examples: end the training part after so many windows; None: do not.
            validation_examples: windows to validate on.

        Raises:
            DataError: if the text is too short.
        """
        end, block = self.train, self.block
        if train_examples is not None:
            if train_examples > end - block:
                raise DataError(
                    f"{self.name}: {max(end - block, 0):,} windows of {block} to train on; the"
                    f" recipe needs {train_examples:,}"
                )
            end = train_examples + block
        held_back = validation_examples * block + 1 if validation_examples else 0
        count = end - held_back - block
        heldout = (len(self.ids) - self.train - 1) // block
        for what, found in (("to train on", count), ("held out", heldout)):
            if found < 1:
                raise DataError(
                    f"{self.name}: {len(self.ids):,} characters leave no window of {block} {what};"
                    " expected a longer text, or a smaller data.options.block"
                )
        return (
            Windows(self.ids, torch.arange(count), block),
            self._side_by_side(end - held_back, validation_examples),
            self._side_by_side(self.train, heldout),
        )

    def _side_by_side(self, start: int, count: int) -> Windows:
        return Windows(self.ids, start + self.block * torch.arange(count), self.block)


def load_text(file: Path | None, block: int, tokens: Tokens, heldout: float) -> Text:
    """Read a text, UTF-8 where it is read by characters.

    Args:
        file: the text; the names of characters if not given, see ``character_names``.
        block: characters in a window.
        tokens: whether a token is a character, numbered in the order of code points, or a byte.
        heldout: the share of the text that is held out, at its end.

    Raises:
        DataError: if it cannot be read, or is of one character.
    """
    name = "data set 'text'" if file is None else str(file)
    content = character_names().encode() if file is None else _read(file)
    if tokens == "bytes":
        ids, vocabulary = torch.frombuffer(bytearray(content), dtype=torch.uint8), 256
    else:
        try:
            text = content.decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(
                f"{name} is no text in UTF-8 at byte {error.start}; expected UTF-8, or"
                " data.options.tokens: bytes"
            ) from None
        points = torch.frombuffer(bytearray(text.encode("utf-32-le")), dtype=torch.int32)
        symbols, where = torch.unique(points, return_inverse=True)
        vocabulary = len(symbols)
        ids = where.to(torch.uint8 if vocabulary <= 256 else torch.int32)
    if int(ids.min()) == int(ids.max()):
        raise DataError(f"{name}: one character again and again; expected two or more")
    train = len(ids) - round(heldout * len(ids))
    digest = hashlib.sha256(content).hexdigest()[:16]
    return Text(ids, vocabulary, block, train, digest, name)


def _read(file: Path) -> bytes:
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        raise DataError(
            f"{file}: no such file; data.options.file is relative to the recipe"
        ) from None
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror or error}") from None
    if not content:
        raise DataError(f"{file}: an empty text")
    return content


def character_names() -> str:
    """Return the names of the 12,886 characters of Unicode 3.2 that have one of their own.

    The default text: 354,744 characters, 39 different ones, one name a line. It is the same to the
    byte in every Python: the standard library keeps the database of Unicode 3.2 for IDNA, and a
    name is never changed. The other texts that are always there are not: the topics of ``pydoc``
    differ from one Python to the next, descriptions of data sets from one scikit-learn to the next.
    The order is that of a hash, or else the part that is held out would be of other scripts.
    """
    database = unicodedata.ucd_3_2_0
    found = (database.name(chr(point), "") for point in range(0x110000))
    names = [name for name in found if name and not name.startswith(_NUMBERED)]
    names.sort(key=lambda name: hashlib.sha256(name.encode()).digest())
    return "\n".join(names) + "\n"


_NUMBERED = ("CJK UNIFIED IDEOGRAPH-", "CJK COMPATIBILITY IDEOGRAPH-", "HANGUL SYLLABLE ")
"""What the names of all other characters begin with; the rest of these is a number or a sound."""
