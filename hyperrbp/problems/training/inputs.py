"""The minibatches of a training run, at their places in it, and what stands for all of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from hyperrbp.data.batches import Batch, Batches, ConvertedBatches
from hyperrbp.problems.training.objective import Objective
from hyperrbp.problems.training.products import Place
from hyperrbp.problems.training.terms import row_numbers, terms
from hyperrbp.runtime.randomness import generator

_POPULATION = 32
"""Minibatches that stand for all training examples where their updates are averaged, not their
gradients."""
_SAMPLE = 4
"""Minibatches that do where only a diagnosis depends on the average."""


class RunInputs:
    """The batches of a run, and the random numbers that go with each step.

    Args:
        batches: the minibatch of every step.
        objective: knows whether the module draws random numbers.
        seed: of these: those of a step depend on it alone.
    """

    def __init__(self, batches: Batches, objective: Objective, seed: int) -> None:
        self.batches, self._objective, self._seed = batches, objective, seed

    def in_precision(self, dtype: torch.dtype, objective: Objective) -> RunInputs:
        """Return the same inputs in another floating-point format, for such an objective."""
        return RunInputs(ConvertedBatches(self.batches, dtype), objective, self._seed)

    @property
    def seed(self) -> int:
        """The seed of what the module draws."""
        return self._seed

    def __call__(self, t: int) -> Batch:
        """Return the minibatch of step t."""
        return self.batches(t).at_step(t)

    def place(self, x: Batch, steps: int, example_weights: Tensor | None = None) -> Place:
        """Return a batch at its place in a run of so many steps: by default, at the last one.

        ``example_weights`` are those of all training examples.
        """
        step = steps - 1 if x.step is None else x.step
        seed = None
        if self._objective.draws:
            seed = generator(self._seed, "random layers", step).initial_seed()
        rows = None if example_weights is None else row_numbers(x)
        return Place(terms(x, example_weights, seed), rows, step, steps)

    def places(
        self, start: int, stop: int, steps: int, example_weights: Tensor | None
    ) -> Iterator[Place]:
        """Yield the minibatches of the steps from start to stop at their places."""
        plain = not self._objective.draws and example_weights is None
        for t in range(start, stop):
            x = self.batches(t)
            if plain:
                yield Place(terms(x), None, t, steps)
            else:
                yield self.place(x.at_step(t), steps, example_weights)

    def last(self, steps: int) -> list[tuple[float, Batch]]:
        """Return a few of the last minibatches, for a mean that only a diagnosis asks for."""
        last = range(max(0, steps - _SAMPLE), steps)
        return [(1 / len(last), self.batches(t)) for t in last]

    def spread(self) -> Iterator[tuple[float, Batch]]:
        """Yield minibatches of the population, spread evenly over it, that stand for all of it."""
        size = len(self.batches(0))
        every = [x for _, chunk in self.batches.population() for _, x in chunk.chunks(size)]
        whole = [x for x in every if len(x) == size] or every
        kept = whole[:: -(-len(whole) // _POPULATION)]
        yield from ((1 / len(kept), x) for x in kept)


def joined(inputs: Sequence[Batch]) -> Iterable[tuple[float, Batch]] | None:
    """Return batches of one size and kind as one, cut into chunks; None if they are not."""
    tensors = all(isinstance(part, Tensor) for batch in inputs for part in batch[:2])
    if len({len(batch) for batch in inputs}) > 1 or not tensors:
        return None
    rows = [batch.rows for batch in inputs if batch.rows is not None]
    whole = Batch(
        torch.cat([batch.inputs for batch in inputs]),
        torch.cat([batch.targets for batch in inputs]),
        torch.cat(rows) if len(rows) == len(inputs) else None,
        inputs[0].step,
    )
    return whole.chunks()
