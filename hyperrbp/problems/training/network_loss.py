"""The loss of a network as a function of its weights, in training and in evaluation."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from hyperrbp.exceptions import UsageError, is_foreseen, type_and_message_of
from hyperrbp.problems.training.batch_norm import normalizing_layers, throwaway_buffers
from hyperrbp.problems.training.module_checks import refuse_module
from hyperrbp.problems.training.terms import PAIR, Terms
from hyperrbp.runtime.process_state import ONE_THREAD
from hyperrbp.runtime.randomness import seeded

LossFunction = Callable[[Any, Any], Tensor]
"""(outputs, targets) → the loss of every example, shape (B,), or their mean, shape (). One whose
first parameter is called ``model`` takes (model, batch) instead, and calls the model itself."""


class NetworkLoss:
    """L(w, x): the mean (weighted) loss of a module with flat weights w, shape (N,), on a batch x.

    This is the loss that is trained on: the module is in training mode, and what it draws at random
    depends on the seed of the terms alone. How weights are evaluated is the business of
    ``hyperrbp.problems.training.trained_network``. The module's own parameters are only read; w
    holds those that require a gradient, in the order of ``model.named_parameters()``.

    Args:
        model: the module.
        loss: what is trained on.
        autocast: the lower precision that the forward pass may use; None: that of the weights.
        accumulate: equal parts of a batch; the loss is their mean.

    Raises:
        UsageError: for a module that cannot be trained here, with the reason.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: LossFunction,
        *,
        autocast: torch.dtype | None = None,
        accumulate: int = 1,
    ) -> None:
        refuse_module(model)
        named = {name: tensor for name, tensor in model.named_parameters() if tensor.requires_grad}
        self.model, self.loss = model, loss
        self.autocast, self.accumulate = autocast, accumulate
        self.tensors: tuple[str, ...] = tuple(named)
        """The names of the parameter tensors."""
        self.shapes = [tensor.shape for tensor in named.values()]
        self.sizes = [tensor.numel() for tensor in named.values()]
        self.weights = sum(self.sizes)
        """N, the number of weights."""
        self.draws = False
        """Whether the module draws random numbers, which then come from the seed of the terms."""
        self.hold(
            [name for name, module in model.named_modules() if model.training > module.training]
        )
        self._takes_model = takes_model(loss)
        self._device = next(iter(named.values())).device.type

    def hold(self, names: Collection[str]) -> None:
        """Leave these modules in evaluation mode always: those that are so in a model that is not.

        Batch normalization, for one, then keeps the statistics that it came with.
        """
        modules = dict(self.model.named_modules())
        self.held = tuple(names)
        """The names of the modules that are always in evaluation mode."""
        self._held = [modules[name] for name in self.held]
        self.normalizing = {
            name: layer
            for name, layer in normalizing_layers(self.model).items()
            if name not in self.held
        }
        """The layers with running statistics of the run's own, by name."""

    @property
    def couples(self) -> bool:
        """Whether the loss of an example depends on the others of its minibatch."""
        return bool(self.normalizing) or self.accumulate > 1

    def initial_weights(self) -> Tensor:
        """Return the module's current parameters, shape (N,)."""
        named = dict(self.model.named_parameters())
        return torch.cat([named[name].detach().reshape(-1) for name in self.tensors])

    def refuse_other_parameters(self) -> None:
        """Refuse a module of which other parameters are to be trained than at first.

        Raises:
            UsageError: with the name of one.
        """
        now = [name for name, tensor in self.model.named_parameters() if tensor.requires_grad]
        if tuple(now) != self.tensors:
            name = min(set(now) ^ set(self.tensors), default="")
            raise UsageError(
                f"the model's parameters that require a gradient are others than when the run was"
                f" made ('{name}'); make the run anew"
            )

    def pieces(self, w: Tensor) -> list[Tensor]:
        """Return views of w in the shapes of the parameter tensors."""
        return [
            piece.view(shape)
            for piece, shape in zip(torch.split(w, self.sizes), self.shapes, strict=True)
        ]

    def state_pieces(self, h: Tensor) -> list[list[Tensor]]:
        """Return views of the parts of a state, weights first, or of an adjoint, in pieces."""
        return [self.pieces(part) for part in torch.split(h, self.weights)]

    # --- the loss ---------------------------------------------------------------------------------

    def named(self, parameters: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return pieces of w by the names of the parameters."""
        return dict(zip(self.tensors, parameters, strict=True))

    def outputs(self, parameters: Sequence[Tensor], inputs: Any) -> Any:
        """Return the outputs of the module, in the mode that it is in."""
        named = self.named(parameters) | self.throwaway_buffers()
        return functional_call(self.model, named, (inputs,))

    def value(self, parameters: Sequence[Tensor], x: Terms) -> Tensor:
        """Return L, shape (), in training mode."""
        with self._as_trained():
            parts = [
                self.mean_loss(self.named(parameters) | self.throwaway_buffers(), part)
                for part in x.split(self.accumulate)
            ]
        return parts[0] if len(parts) == 1 else torch.stack(parts).mean()

    def throwaway_buffers(self) -> dict[str, Tensor]:
        """Return copies of the running statistics, which a forward pass in training overwrites."""
        return throwaway_buffers(self.normalizing) if self.normalizing else {}

    def mean_loss(self, named: Mapping[str, Tensor], x: Terms) -> Tensor:
        """Return the mean loss of a batch, shape (), in the mode that the module is in.

        Args:
            named: parameters, and buffers where they are others than the module's own.
            x: the batch.
        """
        inputs, targets = x.pair()
        if self._takes_model:
            batch = inputs if targets is None else (inputs, targets)
            whole = _WithLoss(self.model, self.loss)
            within = {f"model.{name}": tensor for name, tensor in named.items()}
            return self._mean(
                partial(functional_call, whole, within, (batch,)), len_of(x), x.weights
            )
        try:
            outputs = functional_call(self.model, dict(named), (inputs,))
        except Exception as error:
            if is_foreseen(error):
                raise
            raise UsageError(f"the model failed: {type_and_message_of(error)}") from error
        return self.loss_of(outputs, x)

    def forward_only(self, named: Mapping[str, Tensor], x: Terms) -> None:
        """Call the module on a batch, for what its layers see."""
        if self._takes_model:  # only the loss knows how
            self.mean_loss(named, x)
        else:
            functional_call(self.model, dict(named), (x.pair()[0],))

    def loss_of(self, outputs: Any, x: Terms) -> Tensor:
        """Return L where the module has made these outputs of x, shape ()."""
        inputs, targets = x.pair()
        return self._mean(
            partial(self.loss, outputs, inputs if targets is None else targets),
            len_of(x),
            x.weights,
            outputs,
        )

    def _mean(
        self,
        losses_of: Callable[[], Tensor],
        count: int,
        weights: Tensor | None,
        outputs: Any = None,
    ) -> Tensor:
        try:
            losses = losses_of()
        except Exception as error:
            if is_foreseen(error):
                raise
            # It need not put up with what is not finite: no loss either.
            if isinstance(outputs, Tensor) and not bool(outputs.isfinite().all()):
                return outputs.sum() * math.nan
            raise UsageError(f"the loss failed: {type_and_message_of(error)}") from error
        if not isinstance(losses, Tensor) or not losses.is_floating_point():
            raise UsageError(f"the loss gave {_kind(losses)}; expected a floating-point tensor")
        if weights is None:
            return losses.mean() if losses.dim() else losses
        if losses.shape != weights.shape:
            raise UsageError(
                f"the loss gave {tuple(losses.shape)} for {count} examples; weights of"
                f" examples need the loss of each, shape ({count},)"
            )
        return torch.dot(losses, weights) / count

    @contextmanager
    def _as_trained(self) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(ONE_THREAD)
            if not self.model.training or any(held.training for held in self._held):
                stack.enter_context(in_mode(self.model, training=True, held=self._held))
            stack.enter_context(differentiable_attention())
            if self.autocast is not None:
                stack.enter_context(
                    torch.autocast(self._device, self.autocast, cache_enabled=False)
                )
            yield

    def drawing(self, seed: int | None) -> Any:
        """Return a context in which the module draws the random numbers of a seed."""
        return seeded(seed) if self.draws and seed is not None else nullcontext()


class _WithLoss(nn.Module):
    """A module and a loss that calls it, as one module."""

    def __init__(self, model: nn.Module, loss: LossFunction) -> None:
        super().__init__()
        self.model, self._loss = model, loss

    def forward(self, batch: Any) -> Tensor:
        return self._loss(self.model, batch)


def takes_model(loss: LossFunction) -> bool:
    """Return whether a loss takes (model, batch): its first parameter is called ``model``."""
    try:
        parameters = inspect.signature(loss).parameters
    except (TypeError, ValueError):
        return False
    return next(iter(parameters), None) == "model"


@contextmanager
def in_mode(model: nn.Module, *, training: bool, held: Iterable[nn.Module] = ()) -> Iterator[None]:
    """Put a module in training or evaluation mode, and every part back in its own afterwards.

    Args:
        model: the module.
        training: whether in training mode.
        held: the parts that are in evaluation mode all the same.
    """
    before = [(module, module.training) for module in model.modules()]
    model.train(training)
    for module in held:
        module.training = False
    try:
        yield
    finally:
        for module, mode in before:
            module.training = mode


def differentiable_attention() -> Any:
    """Return a context in which attention uses the kernel that has second derivatives."""
    return sdpa_kernel(SDPBackend.MATH)


def flat(pieces: Sequence[Tensor]) -> Tensor:
    """Join pieces into one vector, shape (N,)."""
    return torch.cat([piece.reshape(-1) for piece in pieces])


def len_of(x: Terms) -> int:
    """Return the number of examples of a batch."""
    return len(x.tensors[-1] if x.structure is PAIR else x.tensors[0])


def _kind(value: Any) -> str:
    return f"{value.dtype}" if isinstance(value, Tensor) else type(value).__name__
