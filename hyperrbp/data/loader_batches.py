"""Any data set or loader of ``torch.utils.data`` as the minibatches of a training run."""

from __future__ import annotations

import copy
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from hyperrbp.data import iterable_style, map_style
from hyperrbp.data.batches import CHUNK, Batch, as_batch
from hyperrbp.data.iterable_style import IterableStyle
from hyperrbp.data.map_style import Found, MapStyle, Sample
from hyperrbp.exceptions import DataError, UsageError

POPULATION = 2000
"""Examples that stand for all where these are not known to fit into memory."""
_CACHE_BYTES = 2**28
_CACHE_FEWEST = 8

Prepare = Callable[[Batch], Batch]


class LoaderBatches:
    """Minibatches of a data set or a loader, each a function of (seed, step) alone.

    The same step gives the same bits whenever it is asked for, in any order, as gradients from
    checkpoints need. Items, transforms and collation are the user's own code; PyTorch's, NumPy's
    and Python's generators are seeded for them by the step, and restored afterwards. A minibatch
    that has other bits the second time is refused: code that draws from a generator of its own.

    A data set of map style is shuffled anew every epoch. Of a loader, its ``batch_size``,
    ``collate_fn`` and sampler are used; a sampler that is neither sequential nor plainly random is
    iterated once an epoch. ``num_workers``, ``pin_memory`` and ``drop_last`` are not: items are
    fetched in this process, and examples that do not fill a last minibatch sit that epoch out. A
    data set of iterable style is replayed from the start of the epoch where a step is asked for
    that lies behind, unless it is among the minibatches kept, 256 MiB of them.

    Args:
        source: a ``Dataset``, of map or iterable style, or a ``DataLoader``.
        size: examples in a minibatch; of a loader, its own if not given.
        seed: of order, and of what is drawn.
        population: how many examples stand for all training examples, where there are more.
        device: where the tensors go; by default they stay where they are.
        dtype: the floating-point format of tensors that have one; by default they keep theirs.
        prepare: what else is done to every minibatch.
        evaluation: only what stands for all examples will be asked for; there may be fewer than a
            minibatch.

    Raises:
        UsageError: for a source of another kind, or sizes that contradict each other.
        DataError: if there are too few examples, code of the data set fails, or it gives something
            else the second time.
    """

    def __init__(
        self,
        source: Dataset[Any] | DataLoader[Any],
        size: int | None = None,
        *,
        seed: int = 0,
        population: int = POPULATION,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        prepare: Prepare | None = None,
        evaluation: bool = False,
    ) -> None:
        self._source = _opened(source, size)
        self._seed, self._device, self._dtype, self._prepare = seed, device, dtype, prepare
        self._kept = _Kept()
        self._known: dict[int, int] = {}  # checksums of the minibatches that were fetched
        self._population = _Population(self._source, population, self._as_batch)
        if not evaluation:
            self._check_repeatable()

    @property
    def name(self) -> str:
        """What a message calls the data set."""
        return self._source.name

    @property
    def steps_per_epoch(self) -> int | None:
        """Minibatches of an epoch; None for a stream that does not know its length."""
        return self._source.steps_per_epoch

    @property
    def population_note(self) -> str | None:
        """What stands for all training examples, in words; None if it is all of them."""
        return self._population.note

    @property
    def population_count(self) -> int:
        """How many examples stand for all."""
        return self._population.count()

    def with_seed(self, seed: int) -> LoaderBatches:
        """Return other minibatches of the same data; what stands for all examples is the same."""
        other = copy.copy(self)
        other._seed, other._kept, other._known = seed, _Kept(), {}
        if isinstance(self._source, IterableStyle):  # which stands at a step of one seed
            other._source = self._source.again()
        return other

    def __call__(self, t: int) -> Batch:
        """Return the minibatch of step t."""
        if (known := self._kept.get(t)) is not None:
            return known
        batch: Batch | None = None
        for found in self._source.reach(t, self._seed):
            batch = self._checked(found)
            self._kept.add(found[0], batch)
        assert batch is not None
        return batch

    def population(self, size: int | None = None) -> Iterable[tuple[float, Batch]]:
        """Yield the examples that stand for all, in weighted chunks.

        Args:
            size: examples in a chunk; as many as in a minibatch if not given. Where the data set
                makes minibatches itself, they are its own.
        """
        return self._population.chunks(size)

    def _checked(self, found: Found) -> Batch:
        """Return a minibatch, if its bits are those that it had before."""
        batch = self._as_batch(found)
        sum_of_bits = _checksum(batch)
        if self._known.setdefault(found[0], sum_of_bits) != sum_of_bits:
            raise DataError(_another(self.name, f"minibatch {found[0]}"))
        return batch

    def _check_repeatable(self) -> None:
        """Take the first two minibatches twice; an epoch may have but one."""
        for source in (self._source, self._source.again()):
            for t in (0, 1):
                for found in source.reach(t, self._seed):
                    self._kept.add(found[0], self._checked(found))

    def _as_batch(self, found: Found) -> Batch:
        rows = None if found[2] is None else torch.tensor(found[2], device=self._device)
        batch = as_batch(found[1], rows)
        try:
            tensors = batch.tensors
        except UsageError as error:
            raise DataError(f"{self.name}: {error}") from None
        if self._device is not None or (rows is not None and rows.device != tensors[0].device):
            device = self._device or tensors[0].device
            batch = batch.map(lambda x: x.to(device)).with_rows(
                None if rows is None else rows.to(device)
            )
        if self._dtype is not None:
            batch = batch.in_precision(self._dtype)
        return batch if self._prepare is None else self._prepare(batch)


class LoaderExamples:
    """A data set or a loader as examples that a loss is taken on: a held-out part.

    Args:
        batches: of the data set; what stands for all is what a loss is taken on.
        dtype: another floating-point format.
    """

    def __init__(self, batches: LoaderBatches, dtype: torch.dtype | None = None) -> None:
        self._batches, self._dtype = batches, dtype

    def __len__(self) -> int:
        return self._batches.population_count

    def chunks(self, size: int = CHUNK) -> Iterable[tuple[float, Batch]]:
        """Yield them in minibatches, whatever ``size`` is, each with its share of the whole."""
        for share, x in self._batches.population():
            yield share, x if self._dtype is None else x.in_precision(self._dtype)

    def in_precision(self, dtype: torch.dtype) -> LoaderExamples:
        """Return the same examples in another floating-point format."""
        return LoaderExamples(self._batches, dtype)


class _Population:
    """The examples that stand for all: fetched when asked for, and kept if memory allows."""

    def __init__(
        self, source: MapStyle | IterableStyle, most: int, as_batch: Callable[[Found], Batch]
    ) -> None:
        self._source, self._most, self._as_batch = source, most, as_batch
        self._samples: dict[int | None, Sample] = {}
        self._counts: dict[int | None, list[int]] = {}
        self._kept: list[Batch] | None = None
        self._known: dict[tuple[int | None, int], int] = {}

    @property
    def note(self) -> str | None:
        return self._sample(None).note

    def count(self, size: int | None = None) -> int:
        return sum(self._counts_of(size))

    def chunks(self, size: int | None) -> Iterable[tuple[float, Batch]]:
        counts = self._counts_of(size)
        total = sum(counts)
        if size is None and self._kept is not None:
            yield from ((n / total, x) for n, x in zip(counts, self._kept, strict=True))
            return
        kept, held = [], 0
        for i, (n, fetch) in enumerate(zip(counts, self._sample(size).fetchers, strict=True)):
            batch = self._as_batch(fetch())
            if self._known.setdefault((size, i), bits := _checksum(batch)) != bits:
                raise DataError(_another(self._source.name, f"chunk {i} of what stands for all"))
            held += _bytes(batch)
            if held <= _CACHE_BYTES:
                kept.append(batch)
            yield n / total, batch
        if size is None and held <= _CACHE_BYTES:
            self._kept = kept

    def _sample(self, size: int | None) -> Sample:
        if size not in self._samples:
            self._samples[size] = self._source.sample(self._most, size)
        return self._samples[size]

    def _counts_of(self, size: int | None) -> list[int]:
        if size not in self._counts:
            sample = self._sample(size)
            self._counts[size] = sample.counts or [
                len(self._as_batch(fetch())) for fetch in sample.fetchers
            ]
        return self._counts[size]


class _Kept:
    """The minibatches that were asked for last."""

    def __init__(self) -> None:
        self._batches: OrderedDict[int, Batch] = OrderedDict()
        self._bytes = 0

    def get(self, t: int) -> Batch | None:
        if t in self._batches:
            self._batches.move_to_end(t)
        return self._batches.get(t)

    def add(self, t: int, batch: Batch) -> None:
        if t in self._batches:
            return
        self._batches[t] = batch
        self._bytes += _bytes(batch)
        while self._bytes > _CACHE_BYTES and len(self._batches) > _CACHE_FEWEST:
            _, oldest = self._batches.popitem(last=False)
            self._bytes -= _bytes(oldest)


def _opened(source: Any, size: int | None) -> MapStyle | IterableStyle:
    if isinstance(source, DataLoader):
        opened = (
            iterable_style.of_loader(source)
            if isinstance(source.dataset, IterableDataset)
            else map_style.of_loader(source)
        )
        if size is not None and opened.size is not None and opened.size != size:
            raise UsageError(
                f"the loader's minibatches have {opened.size} examples; got size {size}"
            )
        return opened
    if size is None or size < 1:
        raise UsageError(f"a data set needs a minibatch size of 1 or more, not {size}")
    if isinstance(source, IterableDataset):
        return IterableStyle(source, size, default_collate)
    if not (hasattr(source, "__getitem__") and hasattr(source, "__len__")):
        raise UsageError(
            f"{type(source).__name__} is no data set: expected __getitem__ and __len__, an"
            " IterableDataset, or a DataLoader"
        )
    return MapStyle(source, size, default_collate)


def _another(name: str, what: str) -> str:
    return (
        f"{name}: {what} is another the second time, under the same seeds; expected a data set that"
        " draws from PyTorch's, NumPy's and Python's global generators alone, and keeps no count"
    )


def _bytes(batch: Batch) -> int:
    return sum(x.numel() * x.element_size() for x in batch.tensors)


def _checksum(batch: Batch) -> int:
    found = 0
    for tensor in batch.tensors:
        if tensor.numel():
            flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            found = zlib.crc32(flat.numpy().data, found)
    return found
