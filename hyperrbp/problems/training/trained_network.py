"""A network with trained weights, as its losses are reported: in evaluation mode."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from hyperrbp.data.batches import Examples
from hyperrbp.problems.training.batch_norm import (
    Statistics,
    buffers_of,
    mean_of,
    normalizing_by,
    recording,
)
from hyperrbp.problems.training.network_loss import (
    NetworkLoss,
    differentiable_attention,
    in_mode,
)
from hyperrbp.problems.training.terms import Terms
from hyperrbp.runtime.process_state import ONE_THREAD

_SEED = 0
"""Of random numbers that a network draws although it is in evaluation mode."""


class TrainedNetwork:
    """The network of flat weights w, in evaluation mode, with recalibrated statistics.

    Layers that keep running statistics take the mean of those of fixed minibatches at w, with all
    other layers in evaluation mode; the gradient of a loss goes through them.

    Args:
        network: the module and the loss to evaluate.
        w: the weights, shape (N,).
        recalibration: the minibatches whose statistics are taken.
    """

    def __init__(self, network: NetworkLoss, w: Tensor, recalibration: Sequence[Terms]) -> None:
        self._network, self._w = network, w.detach()
        self._recalibration = recalibration if network.normalizing else ()
        self._statistics = self._mean_statistics()

    @property
    def buffers(self) -> dict[str, Tensor]:
        """The recalibrated running statistics by the names that they have in the module."""
        return buffers_of(self._statistics, len(self._recalibration))

    def state_dict(self) -> dict[str, Tensor]:
        """Return what ``load_state_dict`` of the module takes, as new tensors.

        Beside the weights these are the recalibrated statistics, and, as they are, the parameters
        that are held fixed and the buffers that a forward pass only reads.
        """
        module = copy.deepcopy(self._network.model)
        named = self._network.named(self._network.pieces(self._w)) | self.buffers
        own = dict(module.named_parameters()) | dict(module.named_buffers())
        with torch.no_grad():
            for name, tensor in named.items():
                own[name].copy_(tensor)
        return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}

    def outputs(self, inputs: Any) -> Any:
        """Return the outputs of the module, without a graph."""
        with torch.no_grad(), self._evaluating(self._statistics), self._drawing():
            return self._network.outputs(self._network.pieces(self._w), inputs)

    def loss_of(self, outputs: Any, x: Terms) -> Tensor:
        """Return the loss of outputs that this network has made of x, shape (), without a graph."""
        with torch.no_grad(), self._drawing():
            return self._network.loss_of(outputs, x)

    def accuracy(self, examples: Examples) -> float:
        """Return the share of examples whose largest output is their class."""
        right = sum(
            int((self.outputs(x.inputs).argmax(1) == x.targets).sum()) for _, x in examples.chunks()
        )
        return right / len(examples)

    def mean_loss(self, chunks: Iterable[tuple[float, Terms]]) -> Tensor:
        """Return the loss over weighted chunks, one at a time; shape (), without a graph."""
        with torch.no_grad(), self._evaluating(self._statistics):
            named = self._network.named(self._network.pieces(self._w))
            values = []
            for weight, x in chunks:
                with self._drawing():
                    values.append(weight * self._network.mean_loss(named, x))
            return torch.stack(values).sum()

    def mean_loss_and_gradient(
        self, chunks: Iterable[tuple[float, Terms]]
    ) -> tuple[Tensor, Tensor]:
        """Return the loss over weighted chunks and its gradient by w, shapes () and (N,)."""
        network, w = self._network, self._w
        total, gradient = w.new_zeros(()), torch.zeros_like(w)
        with torch.enable_grad():
            parameters = [piece.requires_grad_() for piece in network.pieces(w)]
            statistics = {
                name: (mean.clone().requires_grad_(), variance.clone().requires_grad_())
                for name, (mean, variance) in self._statistics.items()
            }
            points = [tensor for pair in statistics.values() for tensor in pair]
            adjoints = [torch.zeros_like(point) for point in points]
            with self._evaluating(statistics):
                for weight, x in chunks:
                    with self._drawing():
                        loss = network.mean_loss(network.named(parameters), x)
                    pieces = torch.autograd.grad(
                        loss, [*parameters, *points], materialize_grads=True
                    )
                    into = [*network.pieces(gradient), *adjoints]
                    for sum_of, piece in zip(into, pieces, strict=True):
                        sum_of.add_(piece, alpha=weight)
                    total += weight * loss.detach()
        if points:
            self._add_through_statistics(gradient, adjoints)
        return total, gradient

    def _add_through_statistics(self, gradient: Tensor, adjoints: Sequence[Tensor]) -> None:
        """Add to ∂L/∂w what reaches w through the statistics, a minibatch at a time."""
        network = self._network
        for x in self._recalibration:
            with torch.enable_grad():
                parameters = [piece.requires_grad_() for piece in network.pieces(self._w)]
                recorded = self._recorded(parameters, x)
                points = [tensor for name in self._statistics for tensor in recorded[name]]
                # Those of a layer above parameters that are all held fixed depend on none.
                moving = [i for i, point in enumerate(points) if point.requires_grad]
                if not moving:
                    return
                pieces = torch.autograd.grad(
                    [points[i] for i in moving],
                    parameters,
                    [adjoints[i] for i in moving],
                    materialize_grads=True,
                )
            for sum_of, piece in zip(network.pieces(gradient), pieces, strict=True):
                sum_of.add_(piece, alpha=1 / len(self._recalibration))

    def _mean_statistics(self) -> Statistics:
        if not self._recalibration:
            return {}
        with torch.no_grad():
            pieces = self._network.pieces(self._w)
            each = [self._recorded(pieces, x) for x in self._recalibration]
            return {
                name: (
                    torch.stack([of[name][0] for of in each]).mean(0),
                    torch.stack([of[name][1] for of in each]).mean(0),
                )
                for name in each[0]
            }

    def _recorded(self, parameters: Sequence[Tensor], x: Terms) -> Statistics:
        """Return the statistics of one minibatch, with their graphs if the parameters have any."""
        network = self._network
        with (
            ONE_THREAD,
            self._drawing(),
            in_mode(network.model, training=False),
            differentiable_attention(),
            recording(network.normalizing) as found,
        ):
            named = network.named(parameters) | network.throwaway_buffers()
            network.forward_only(named, x)
        return mean_of(found)

    def _drawing(self) -> Any:
        # Most that draws in training does not here; what does gives one loss, and its gradient.
        return self._network.drawing(_SEED)

    @contextmanager
    def _evaluating(self, statistics: Statistics) -> Iterator[None]:
        network = self._network
        with ExitStack() as stack:
            stack.enter_context(ONE_THREAD)
            if network.model.training:
                stack.enter_context(in_mode(network.model, training=False))
            stack.enter_context(differentiable_attention())
            if network.normalizing:
                called = {name: network.normalizing[name] for name in statistics}
                stack.enter_context(normalizing_by(called, statistics))
            yield
