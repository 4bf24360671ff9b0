"""The examples of a training run, and the minibatch of each of its steps."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol, Self

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from hyperrbp.exceptions import UsageError
from hyperrbp.runtime.randomness import generator

CHUNK = 2000
"""Examples that are differentiated at once where a sum runs over a whole data set."""


class Batch(NamedTuple):
    """Examples: inputs of shape (B, …) and their targets, of shape (B, …).

    Both may be tensors, or dicts, lists and tuples of tensors. A batch that is no pair has its
    tensors in ``inputs``; the module takes them as they are, and the loss beside its outputs.
    """

    inputs: Any
    targets: Any
    """None for a batch that is no pair of inputs and targets."""
    rows: Tensor | None = None
    """Which of the training examples they are, shape (B,)."""
    step: int | None = None
    """The step of the run that they belong to; by default the last one."""

    def __len__(self) -> int:
        # Asked for at every step: the common case first.
        if isinstance(self.inputs, Tensor) and self.inputs.dim():
            return len(self.inputs)
        return len(self.tensors[0])

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors of the inputs and the targets.

        Raises:
            UsageError: if there is none that has an example.
        """
        found = [x for x in pytree.tree_leaves(self[:2]) if isinstance(x, Tensor)]
        if not found or found[0].dim() == 0:
            raise UsageError(
                f"a minibatch of {type(self.inputs).__name__} begins with no tensor of shape"
                " (examples, …); expected tensors, or dicts, lists and tuples of them"
            )
        return found

    def at_step(self, step: int) -> Batch:
        """Return the same examples, at a step of the run."""
        return Batch(self.inputs, self.targets, self.rows, step)

    def with_rows(self, rows: Tensor | None) -> Batch:
        """Return the same examples with their numbers among the training examples."""
        return Batch(self.inputs, self.targets, rows, self.step)

    def map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """Return the batch with a function applied to every tensor of inputs and targets."""
        if isinstance(self.inputs, Tensor) and isinstance(self.targets, Tensor):
            return Batch(function(self.inputs), function(self.targets), self.rows, self.step)
        inputs, targets = pytree.tree_map_only(Tensor, function, tuple(self[:2]))
        return Batch(inputs, targets, self.rows, self.step)

    def in_precision(self, dtype: torch.dtype) -> Batch:
        """Return the same examples; whole numbers, such as classes, stay as they are."""
        return self.map(lambda x: x.to(dtype) if x.is_floating_point() else x)

    def part(self, start: int, stop: int) -> Batch:
        """Return the examples of a range; numbers that belong to no example stay.

        Raises:
            UsageError: if a tensor has another number of examples than the first.
        """
        count = len(self)
        for tensor in self.tensors:
            if tensor.dim() and len(tensor) != count:
                raise UsageError(
                    f"a minibatch of {count} examples has a tensor of shape"
                    f" {tuple(tensor.shape)}; it cannot be cut where it is too long to be"
                    f" differentiated at once: expected ({count}, …)"
                )
        rows = None if self.rows is None else self.rows[start:stop]
        return self.map(lambda x: x[start:stop] if x.dim() else x).with_rows(rows)

    def chunks(self, size: int = CHUNK) -> Iterable[tuple[float, Batch]]:
        """Yield pieces of at most ``size`` examples, each with its share of the whole."""
        count = len(self)
        if count <= size:  # of whatever shapes its tensors are
            yield 1.0, self
            return
        for start in range(0, count, size):
            piece = self.part(start, start + size)
            yield len(piece) / count, piece


def as_batch(found: Any, rows: Tensor | None = None) -> Batch:
    """Return what a loader gives as a batch: a pair is inputs and targets, all else inputs."""
    if isinstance(found, Batch):
        return found if rows is None else found.with_rows(rows)
    if isinstance(found, tuple | list) and len(found) == 2:
        return Batch(found[0], found[1], rows)
    return Batch(found, None, rows)


class Examples(Protocol):
    """Examples that a loss is taken on: a batch, or what is read piece by piece."""

    def __len__(self) -> int:
        """Return how many there are."""

    def chunks(self, size: int = CHUNK) -> Iterable[tuple[float, Batch]]:
        """Yield them in pieces of about ``size``, each with its share of the whole."""

    def in_precision(self, dtype: torch.dtype) -> Self:
        """Return the same examples in another floating-point format."""


class Batches(Protocol):
    """The minibatch of every step, and all examples that they are sampled from."""

    def __call__(self, t: int) -> Batch:
        """Return the minibatch of step t: the same one whenever it is asked for."""

    def population(self) -> Iterable[tuple[float, Batch]]:
        """Yield all examples, in weighted chunks; the weights sum to one."""


class ShuffledBatches:
    """Minibatches without replacement, reshuffled every epoch.

    Examples that do not fill a last minibatch sit that epoch out. The order of an epoch depends on
    (seed, epoch) alone.
    """

    def __init__(self, examples: Batch, size: int, seed: int) -> None:
        if not 1 <= size <= len(examples):
            raise UsageError(f"batch size {size} is not between 1 and {len(examples)} examples")
        self._count, self._device = len(examples), examples.tensors[0].device
        rows = torch.arange(self._count, device=self._device)
        self._examples, self._size, self._seed = examples.with_rows(rows), size, seed
        self._order: tuple[int, Tensor] | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Minibatches of one epoch."""
        return self._count // self._size

    def __call__(self, t: int) -> Batch:
        """Return the minibatch of step t, shape (size, …)."""
        epoch, position = divmod(t, self._count // self._size)
        if self._order is None or self._order[0] != epoch:
            shuffled = torch.randperm(
                self._count, generator=generator(self._seed, "batches", epoch)
            )
            self._order = epoch, shuffled.to(self._device)
        # Gathered when it is needed, it is still in the processor's cache when it is used.
        rows = self._order[1][position * self._size : (position + 1) * self._size]
        inputs, targets = self._examples[:2]
        if isinstance(inputs, Tensor) and isinstance(targets, Tensor):
            return Batch(inputs.index_select(0, rows), targets.index_select(0, rows), rows)
        return self._examples.map(lambda x: x.index_select(0, rows)).with_rows(rows)

    def population(self) -> Iterable[tuple[float, Batch]]:
        """Yield all examples, in weighted chunks."""
        return self._examples.chunks()


class ListedBatches:
    """A list of minibatches of the caller's own, taken in turn and again from the start."""

    def __init__(self, batches: Sequence[Any]) -> None:
        if not batches:
            raise UsageError("a training run needs at least one minibatch")
        found = [as_batch(batch) for batch in batches]
        firsts = torch.tensor([0, *map(len, found)]).cumsum(0).tolist()
        self._batches = [
            batch.with_rows(torch.arange(*span, device=batch.tensors[0].device))
            for batch, span in zip(found, itertools.pairwise(firsts), strict=True)
        ]

    def __call__(self, t: int) -> Batch:
        """Return the minibatch of step t."""
        return self._batches[t % len(self._batches)]

    def population(self) -> Iterable[tuple[float, Batch]]:
        """Yield all examples, in weighted chunks."""
        total = sum(map(len, self._batches))
        return [(len(batch) / total, batch) for batch in self._batches]


class ConvertedBatches:
    """Other batches in another floating-point format, converted as they are asked for."""

    def __init__(self, batches: Batches, dtype: torch.dtype) -> None:
        self._batches, self._dtype = batches, dtype

    def __call__(self, t: int) -> Batch:
        """Return the minibatch of step t."""
        return self._batches(t).in_precision(self._dtype)

    def population(self) -> Iterable[tuple[float, Batch]]:
        """Yield all examples, in weighted chunks."""
        for weight, x in self._batches.population():
            yield weight, x.in_precision(self._dtype)
