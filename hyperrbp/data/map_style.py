"""Minibatches of a map-style data set, or of a loader of one, as a function of the step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, SequentialSampler

from hyperrbp.data.user_errors import reported
from hyperrbp.exceptions import DataError, UsageError
from hyperrbp.runtime.randomness import generator, seeded_everywhere

Collate = Callable[[Any], Any]
Found = tuple[int, Any, Sequence[Any] | None]
"""A step, what was collated for it, and the indices of its examples where they are numbers."""


@dataclass(frozen=True)
class Sample:
    """The examples that stand for all of a data set."""

    fetchers: list[Callable[[], Found]]
    """What fetches each piece of them."""
    note: str | None
    """What they are, in words; None if they are all."""
    counts: list[int] | None = None
    """The examples of each piece, where they are known before they are fetched."""


class MapStyle:
    """A data set with ``__getitem__``, in an order that depends on (seed, epoch) alone.

    Args:
        dataset: the data set.
        size: examples in a minibatch; None where every item is a minibatch already.
        collate: makes a minibatch of a list of items.
        sampler: the loader's own: RandomSampler and SequentialSampler stand for orders of our own,
            any other is iterated once an epoch, under seeds. None shuffles.
        whole: whether the sampler gives minibatches, as a ``batch_sampler`` does.

    Raises:
        UsageError: for a sampler that does not know its length.
        DataError: for a sampler that gives something else the second time.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        size: int | None,
        collate: Collate,
        sampler: Any = None,
        whole: bool = False,
    ) -> None:
        self._dataset, self.size, self._collate = dataset, size, collate
        self._sampler = None if _is_plain(sampler, dataset) else sampler
        self._sequential = type(sampler) is SequentialSampler
        self._whole = whole
        self._epochs: dict[tuple[int, int], Sequence[Any]] = {}
        if self._sampler is not None:
            self._check_sampler()
        self._per_epoch = len(self._indices(0, 0))

    @property
    def name(self) -> str:
        """What a message calls the data set."""
        return type(self._dataset).__name__

    @property
    def steps_per_epoch(self) -> int:
        """Minibatches of an epoch; examples that do not fill a last one sit it out."""
        return self._per_epoch

    def reach(self, t: int, seed: int) -> Iterator[Found]:
        """Yield the minibatch of step t."""
        if self._per_epoch == 0:
            count: int = len(self._dataset)  # type: ignore[arg-type]
            raise DataError(
                f"{self.name}: {count} examples are fewer than a minibatch of {self.size or 1}"
            )
        epoch, position = divmod(t, self._per_epoch)
        indices = self._indices(epoch, seed)[position]
        with seeded_everywhere(generator(seed, "augmentation", t).initial_seed()):
            yield t, self._fetched(indices), _numbers(indices)

    def again(self) -> MapStyle:
        """Return what the same minibatches can be taken from once more."""
        return self

    def sample(self, most: int, size: int | None) -> Sample:
        """Return the examples that stand for all.

        Args:
            most: examples.
            size: examples at once.
        """
        if self.size is None and not self._whole:
            return self._sample_of_batches(most)
        if self._sampler is None:
            pool: Sequence[Any] = range(len(self._dataset))  # type: ignore[arg-type]
        elif self._whole:
            pool = [index for indices in self._indices(0, 0) for index in indices]
        else:
            pool = self._listed(0, 0)
        if not pool:
            raise DataError(f"{self.name}: no examples")
        chosen: Sequence[Any] = pool
        if len(pool) > most:
            order = torch.randperm(len(pool), generator=generator(0, "population"))
            chosen = [pool[i] for i in order[:most].sort().values.tolist()]
        size = size or self.size or len(self._indices(0, 0)[0])
        pieces = [list(chosen[start : start + size]) for start in range(0, len(chosen), size)]
        note = _note(most, len(pool), "examples")
        return Sample(self._fetchers(pieces), note, [len(piece) for piece in pieces])

    def _sample_of_batches(self, most: int) -> Sample:
        epoch = self._indices(0, 0)
        if not epoch:
            raise DataError(f"{self.name}: no examples")
        each = len_of_first(self._fetched(epoch[0]))
        count = max(1, most // max(each, 1))
        chosen = list(epoch)
        if len(epoch) > count:
            order = torch.randperm(len(epoch), generator=generator(0, "population"))
            chosen = [epoch[i] for i in order[:count].sort().values.tolist()]
        return Sample(self._fetchers(chosen), _note(count, len(epoch), "minibatches"))

    def _fetchers(self, pieces: Sequence[Any]) -> list[Callable[[], Found]]:
        def fetcher(n: int, indices: Any) -> Callable[[], Found]:
            def fetch() -> Found:
                with seeded_everywhere(generator(0, "population", n).initial_seed()):
                    return n, self._fetched(indices), _numbers(indices)

            return fetch

        return [fetcher(n, indices) for n, indices in enumerate(pieces)]

    def _fetched(self, indices: Any) -> Any:
        dataset: Any = self._dataset
        with reported(f"{self.name}, on examples {_shown(indices)}"):
            if self.size is None and not self._whole:
                return self._collate(dataset[indices])
            if hasattr(dataset, "__getitems__"):
                return self._collate(dataset.__getitems__(indices))
            return self._collate([dataset[index] for index in indices])

    # --- orders -----------------------------------------------------------------------------------

    def _indices(self, epoch: int, seed: int) -> Sequence[Any]:
        """Return the indices of every minibatch of an epoch, of the last few epochs from memory."""
        if (known := self._epochs.get((epoch, seed))) is not None:
            return known
        if self._sampler is None:
            found = self._own(epoch, seed)
        else:
            found = self._listed(epoch, seed)
            if self.size is not None:
                full = len(found) // self.size * self.size
                found = [found[start : start + self.size] for start in range(0, full, self.size)]
        if self._epochs and len(found) != self._per_epoch:
            raise DataError(
                f"{self.name}: its sampler gave {self._per_epoch} minibatches in one epoch and"
                f" {len(found)} in epoch {epoch}; expected as many in each"
            )
        if len(self._epochs) >= _EPOCHS:
            del self._epochs[next(iter(self._epochs))]
        self._epochs[epoch, seed] = found
        return found

    def _own(self, epoch: int, seed: int) -> Sequence[Any]:
        count, size = len(self._dataset), self.size  # type: ignore[arg-type]
        order = (
            torch.arange(count)
            if self._sequential
            else torch.randperm(count, generator=generator(seed, "batches", epoch))
        )
        if size is None:
            return list(order.tolist())
        return _Cut(order, size)

    def _listed(self, epoch: int, seed: int) -> Sequence[Any]:
        sampler: Any = self._sampler
        inner: Any = getattr(sampler, "sampler", None)
        for part in (sampler, inner):
            if hasattr(part, "set_epoch"):  # as DistributedSampler counts its epochs
                part.set_epoch(epoch)
        with _own_generators(sampler, seed, epoch), reported(f"{self.name}, its sampler"):
            return [list(index) if self._whole else index for index in sampler]

    def _check_sampler(self) -> None:
        sampler: Any = self._sampler
        kind = type(sampler).__name__
        try:
            len(sampler)
        except TypeError:
            raise UsageError(
                f"{self.name}: its sampler {kind} does not know its length; expected one with"
                " __len__, since a minibatch is asked for by its number"
            ) from None
        if self._listed(0, 0) != self._listed(0, 0):
            raise DataError(
                f"{self.name}: its sampler {kind} gives another order the second time, under the"
                " same seeds; expected one that draws from the global generators, or from a"
                " generator= of its own"
            )


_EPOCHS = 4


class _Cut(Sequence[Any]):
    """An order cut into minibatches, of which only those asked for become lists."""

    def __init__(self, order: torch.Tensor, size: int) -> None:
        self._order, self._size = order, size

    def __len__(self) -> int:
        return len(self._order) // self._size

    def __getitem__(self, position: Any) -> Any:
        if not 0 <= position < len(self):
            raise IndexError(position)
        return self._order[position * self._size : (position + 1) * self._size].tolist()


def of_loader(loader: DataLoader[Any]) -> MapStyle:
    """Return what gives the minibatches of a loader of a map-style data set."""
    dataset, collate = loader.dataset, loader.collate_fn
    if loader.batch_sampler is None:
        return MapStyle(dataset, None, collate, loader.sampler)
    if type(loader.batch_sampler) is BatchSampler and loader.batch_size is not None:
        return MapStyle(dataset, loader.batch_size, collate, loader.sampler)
    return MapStyle(dataset, None, collate, loader.batch_sampler, whole=True)


def _is_plain(sampler: Any, dataset: Any) -> bool:
    """Return whether a sampler stands for a shuffled or a sequential order of the whole set."""
    if type(sampler) is RandomSampler:
        return not sampler.replacement and sampler.num_samples == len(dataset)
    return sampler is None or type(sampler) is SequentialSampler


@contextmanager
def _own_generators(sampler: Any, seed: int, epoch: int) -> Iterator[None]:
    """Seed all generators, and those of a sampler itself, which go on from where they stand."""
    at = generator(seed, "batches", epoch).initial_seed()
    parts = (sampler, getattr(sampler, "sampler", None))
    found = [getattr(part, "generator", None) for part in parts]
    own = [one for one in found if isinstance(one, torch.Generator)]
    states = [one.get_state() for one in own]
    try:
        for one in own:
            one.manual_seed(at)
        with seeded_everywhere(at):
            yield
    finally:
        for one, state in zip(own, states, strict=True):
            one.set_state(state)


def _numbers(indices: Any) -> Sequence[Any] | None:
    whole = isinstance(indices, list) and all(isinstance(index, int) for index in indices)
    return indices if whole else None


def _shown(indices: Any) -> str:
    listed = indices if isinstance(indices, list) else [indices]
    return ", ".join(map(str, listed[:4])) + (", …" if len(listed) > 4 else "")


def _note(taken: int, count: int, what: str) -> str | None:
    if count <= taken:
        return None
    return f"a fixed sample of {taken:,} of {count:,} {what} stands for all of them"


def len_of_first(collated: Any) -> int:
    """Return the number of examples of what was collated."""
    from hyperrbp.data.batches import as_batch

    return len(as_batch(collated))
