"""Minibatches of an iterable-style data set as a function of the step, by replay."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from functools import partial
from itertools import islice
from typing import Any

from torch.utils.data import DataLoader, Dataset

from hyperrbp.data.map_style import Collate, Found, Sample, len_of_first
from hyperrbp.data.user_errors import reported
from hyperrbp.exceptions import DataError, UsageError
from hyperrbp.runtime.randomness import generator, seeded_everywhere


class IterableStyle:
    """A data set with ``__iter__``: iterated under a seed for each epoch and each minibatch.

    A step ahead is reached by going on, one behind by starting its epoch again. Examples that do
    not fill a last minibatch sit that epoch out.

    Args:
        dataset: the data set.
        size: examples in a minibatch; None where every item is a minibatch already.
        collate: makes a minibatch of a list of items.
    """

    def __init__(self, dataset: Dataset[Any], size: int | None, collate: Collate) -> None:
        self._dataset, self.size, self._collate = dataset, size, collate
        self._starts = [0]  # the first step of every epoch that is known
        self._at: tuple[int, int, Iterator[Any]] | None = None  # (epoch, step, what comes next)
        self._seed: int | None = None

    @property
    def name(self) -> str:
        """What a message calls the data set."""
        return type(self._dataset).__name__

    @property
    def steps_per_epoch(self) -> int | None:
        """Minibatches of an epoch, if the data set knows its length."""
        try:
            count = len(self._dataset)  # type: ignore[arg-type]
        except TypeError:
            return None
        return count if self.size is None else count // self.size

    def again(self) -> IterableStyle:
        """Return what the same minibatches can be taken from once more."""
        return IterableStyle(self._dataset, self.size, self._collate)

    def reach(self, t: int, seed: int) -> Iterator[Found]:
        """Yield the minibatches on the way to step t, that one last.

        Raises:
            DataError: if an epoch has no minibatch, or another number of them when it is replayed.
        """
        if self._seed != seed:
            self._seed, self._at, self._starts = seed, None, [0]
        epoch = bisect_right(self._starts, t) - 1
        if self._at is None or self._at[1] > t or self._at[0] < epoch:
            self._at = epoch, self._starts[epoch], self._begun(generator(seed, "epoch", epoch))
        while True:
            epoch, step, items = self._at
            with seeded_everywhere(generator(seed, "augmentation", step).initial_seed()):
                found = self._next(items, self.size)
            if found is None:
                self._end(epoch, step)
                self._at = epoch + 1, step, self._begun(generator(seed, "epoch", epoch + 1))
                continue
            self._at = epoch, step + 1, items
            yield step, found[0], None
            if step == t:
                return

    def sample(self, most: int, size: int | None) -> Sample:
        """Return the examples that stand for all.

        They are the first of a pass of their own: nothing else can be said of a stream.
        """
        found = list(self._first(most, size or self.size))
        more = found[-1] is _MORE
        pieces = found[:-1] if more else found
        counts = [len_of_first(piece) for piece in pieces]
        return Sample(
            [partial(_already, (n, piece, None)) for n, piece in enumerate(pieces)],
            f"the first {sum(counts):,} examples of a stream stand for all" if more else None,
            counts,
        )

    def _first(self, most: int, size: int | None) -> Iterator[Any]:
        items, count, n = self._begun(generator(0, "population")), 0, 0
        while True:
            left = None if size is None else min(size, most - count)
            with seeded_everywhere(generator(0, "population", n).initial_seed()):
                if count >= most:
                    with reported(self.name):
                        if next(items, _MORE) is not _MORE:
                            yield _MORE
                    return
                found = self._next(items, left, partly=True)
            if found is None:
                if n == 0:
                    raise DataError(f"{self.name}: no examples")
                return
            count, n = count + len_of_first(found[0]), n + 1
            yield found[0]

    def _begun(self, source: Any) -> Iterator[Any]:
        with seeded_everywhere(source.initial_seed()), reported(self.name):
            return iter(self._dataset)

    def _next(
        self, items: Iterator[Any], size: int | None, partly: bool = False
    ) -> tuple[Any] | None:
        with reported(self.name):
            if size is None:
                found = list(islice(items, 1))
                return (self._collate(found[0]),) if found else None
            found = list(islice(items, size))
            if not found or (len(found) < size and not partly):
                return None
            return (self._collate(found),)

    def _end(self, epoch: int, step: int) -> None:
        """Note where an epoch ends."""
        if step == self._starts[epoch]:
            raise DataError(f"{self.name}: epoch {epoch} has fewer than {self.size or 1} examples")
        if epoch + 1 == len(self._starts):
            self._starts.append(step)
        elif self._starts[epoch + 1] != step:
            raise DataError(
                f"{self.name}: epoch {epoch} has {step - self._starts[epoch]} minibatches when it"
                f" is iterated again, {self._starts[epoch + 1] - self._starts[epoch]} before;"
                " expected the same examples under the same seeds"
            )


_MORE = object()


def _already(found: Found) -> Found:
    return found


def of_loader(loader: DataLoader[Any]) -> IterableStyle:
    """Return what gives the minibatches of a loader of an iterable-style data set.

    Raises:
        UsageError: for a batch sampler, which such a set has no indices for.
    """
    if loader.batch_sampler is not None and loader.batch_size is None:
        raise UsageError("a loader of an iterable-style data set takes no batch_sampler")
    size = None if loader.batch_sampler is None else loader.batch_size
    return IterableStyle(loader.dataset, size, loader.collate_fn)
