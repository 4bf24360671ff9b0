"""The examples of a training run, and the minibatch of each of its steps."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from hyperrbp.exceptions import UsageError
from hyperrbp.runtime.randomness import generator

CHUNK = 2000
"""Examples that are differentiated at once where a sum runs over a whole data set."""


class Batch(NamedTuple):
    """Examples: inputs of shape (B, …) and their targets, of shape (B, …)."""

    inputs: Tensor
    targets: Tensor
    rows: Tensor | None = None
    """Which of the training examples they are, shape (B,)."""
    step: int | None = None
    """The step of the run that they belong to; by default the last one."""

    def __len__(self) -> int:
        return len(self.targets)

    def at_step(self, step: int) -> Batch:
        """Return the same examples, at a step of the run."""
        return Batch(self.inputs, self.targets, self.rows, step)

    def in_precision(self, dtype: torch.dtype) -> Batch:
        """Return the same examples; whole numbers, such as classes, stay as they are."""
        inputs, targets = (x.to(dtype) if x.is_floating_point() else x for x in self[:2])
        return Batch(inputs, targets, self.rows, self.step)

    def chunks(self, size: int = CHUNK) -> Iterable[tuple[float, Batch]]:
        """Yield pieces of at most ``size`` examples, each with its share of the whole."""
        for start in range(0, len(self), size):
            here = slice(start, start + size)
            rows = None if self.rows is None else self.rows[here]
            piece = Batch(self.inputs[here], self.targets[here], rows, self.step)
            yield len(piece) / len(self), piece


class Batches(Protocol):
    """The minibatch of every step, and all examples that they are sampled from."""

    def __call__(self, t: int) -> Batch:
        """Return the minibatch of step t."""

    def population(self) -> Iterable[tuple[float, Batch]]:
        """Yield all examples, in weighted chunks."""


class ShuffledBatches:
    """Minibatches without replacement, reshuffled every epoch.

    Examples that do not fill a last minibatch sit that epoch out. The order of an epoch depends on
    (seed, epoch) alone.
    """

    def __init__(self, examples: Batch, size: int, seed: int) -> None:
        if not 1 <= size <= len(examples):
            raise UsageError(f"batch size {size} is not between 1 and {len(examples)} examples")
        rows = torch.arange(len(examples), device=examples.targets.device)
        self._examples, self._size, self._seed = Batch(*examples[:2], rows), size, seed
        self._order: tuple[int, Tensor] | None = None

    def __call__(self, t: int) -> Batch:
        """Return the minibatch of step t, shape (size, …)."""
        inputs, targets = self._examples[:2]
        epoch, position = divmod(t, len(targets) // self._size)
        if self._order is None or self._order[0] != epoch:
            shuffled = torch.randperm(
                len(targets), generator=generator(self._seed, "batches", epoch)
            )
            self._order = epoch, shuffled.to(targets.device)
        # Gathered when it is needed, it is still in the processor's cache when it is used.
        rows = self._order[1][position * self._size : (position + 1) * self._size]
        return Batch(inputs.index_select(0, rows), targets.index_select(0, rows), rows)

    def population(self) -> Iterable[tuple[float, Batch]]:
        """Yield all examples, in weighted chunks."""
        return self._examples.chunks()


class ListedBatches:
    """A list of minibatches of the caller's own, taken in turn and again from the start."""

    def __init__(self, batches: Sequence[tuple[Tensor, Tensor]]) -> None:
        if not batches:
            raise UsageError("a training run needs at least one minibatch")
        firsts = torch.tensor([0, *(len(targets) for _, targets in batches)]).cumsum(0).tolist()
        self._batches = [
            Batch(*batch, torch.arange(*span, device=batch[1].device))
            for batch, span in zip(batches, itertools.pairwise(firsts), strict=True)
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
