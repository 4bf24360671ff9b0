"""The loss that a training run is judged by: on what examples, in which mode, and its gradient."""

from __future__ import annotations

import weakref
from collections.abc import Iterable

import torch
from torch import Tensor

from hyperrbp.data.batches import CHUNK, Batches, Examples
from hyperrbp.problems.training.network_loss import NetworkLoss
from hyperrbp.problems.training.terms import Terms, terms, without_weights
from hyperrbp.problems.training.trained_network import TrainedNetwork

_LARGE = 10**6
"""Weights from which on a data set is evaluated in chunks of the size of a minibatch."""


class MetaLoss:
    """The loss of trained weights on examples, by default those that are trained on.

    Args:
        network: the module with the loss that is reported.
        batches: of the run, for its training examples and what statistics are taken on.
        examples: what the loss is taken on; None: all training examples.
        recalibration: minibatches of the first steps for the statistics of batch normalization.
    """

    def __init__(
        self,
        network: NetworkLoss,
        batches: Batches,
        examples: Examples | None,
        recalibration: int,
    ) -> None:
        self.network, self._batches, self._examples = network, batches, examples
        self._recalibration = recalibration
        self._last: tuple[weakref.ref[Tensor], int, tuple[Tensor, Tensor]] | None = None

    def of(self, network: NetworkLoss, batches: Batches, dtype: torch.dtype) -> MetaLoss:
        """Return the same loss of another network, in another floating-point format."""
        examples = None if self._examples is None else self._examples.in_precision(dtype)
        return MetaLoss(network, batches, examples, self._recalibration)

    def trained(self, w: Tensor) -> TrainedNetwork:
        """Return the network with these weights, shape (N,), as it is evaluated."""
        first = range(self._recalibration) if self.network.normalizing else ()
        return TrainedNetwork(self.network, w, [terms(self._batches(t)) for t in first])

    def value(self, w: Tensor) -> Tensor:
        """Return the loss at weights w, shape ()."""
        return self.trained(w).mean_loss(self._chunks(self._examples))

    def value_and_gradient(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss of a state, whose first N entries are the weights, and its gradient."""
        if self._examples is None:
            return self.on_training_examples(h)
        w = h[: self.network.weights]
        return self.trained(w).mean_loss_and_gradient(self._chunks(self._examples))

    def on_training_examples(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss on all training examples and ∇L; kept, since it is asked for twice."""
        at, version, known = self._last or (None, 0, None)
        if known is None or at is None or at() is not h or version != h._version:
            network = self.trained(h[: self.network.weights])
            known = network.mean_loss_and_gradient(self._chunks(None))
            self._last = weakref.ref(h), h._version, known
        return known

    def _chunks(self, examples: Examples | None) -> Iterable[tuple[float, Terms]]:
        """Yield examples as an evaluation takes them; None: all training examples."""
        chunks = self._batches.population() if examples is None else examples.chunks()
        if self.network.weights > _LARGE:
            size = min(CHUNK, len(self._batches(0)))
            chunks = ((share * of, x) for share, some in chunks for of, x in some.chunks(size))
        return without_weights(chunks)
