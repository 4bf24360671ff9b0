"""SGD with momentum as a recurrent map: the hidden state is the weights and the velocities.

Liao et al. 2018, section 5.3. The flat state is h = (w, v), each of the N weights long; θ holds a
log learning rate and a logit momentum for every parameter tensor, θ = (a, b) with α = exp(a) and
β = sigmoid(b).

The update is one of

``maclaurin``  v' = β v − (1 − β) ∇L(w),  w' = w + α v'   (Maclaurin et al. 2015, Algorithm 1)
``pytorch``    v' = β v + ∇L(w),          w' = w − α v'   (``torch.optim.SGD``, dampening 0)

In exact arithmetic the first is ``torch.optim.SGD`` with learning rate α(1 − β) and momentum β,
whose buffer is −v / (1 − β).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from hyperrbp.dynamics import Input, Problem
from hyperrbp.errors import UsageError
from hyperrbp.randomness import generator

CHUNK = 2000
"""Examples that are differentiated at once where a sum runs over a whole data set."""

Loss = Callable[[Tensor, Tensor], Tensor]
"""(outputs, targets) → the mean loss over the examples, shape ()."""


class Batch(NamedTuple):
    """Examples: inputs of shape (B, …) and their targets, of shape (B, …)."""

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def chunks(self, size: int = CHUNK) -> Iterable[tuple[float, Batch]]:
        """Pieces of at most ``size`` examples, each with its share of the whole."""
        for start in range(0, len(self), size):
            piece = Batch(self.inputs[start : start + size], self.targets[start : start + size])
            yield len(piece) / len(self), piece


class Batches(Protocol):
    """The minibatch of every step, and all examples that they are drawn from."""

    def __call__(self, t: int) -> Batch:
        """The minibatch of step t."""

    def population(self) -> Iterable[tuple[float, Batch]]:
        """All examples, in weighted chunks."""


class ShuffledBatches:
    """Minibatches without replacement, reshuffled every epoch.

    Examples that do not fill a last minibatch sit that epoch out. The order of an epoch depends on
    (seed, epoch) alone.
    """

    def __init__(self, examples: Batch, size: int, seed: int) -> None:
        if not 1 <= size <= len(examples):
            raise UsageError(f"batch size {size} is not between 1 and {len(examples)} examples")
        self._examples, self._size, self._seed = examples, size, seed
        self._epoch: tuple[int, Batch] | None = None

    def __call__(self, t: int) -> Batch:
        """The minibatch of step t, shape (size, …)."""
        epoch, position = divmod(t, len(self._examples) // self._size)
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = epoch, self._shuffled(epoch)
        inputs, targets = self._epoch[1]
        rows = slice(position * self._size, (position + 1) * self._size)
        return Batch(inputs[rows], targets[rows])

    def _shuffled(self, epoch: int) -> Batch:
        inputs, targets = self._examples
        order = torch.randperm(len(targets), generator=generator(self._seed, "batches", epoch))
        order = order.to(targets.device)
        return Batch(inputs[order], targets[order])

    def population(self) -> Iterable[tuple[float, Batch]]:
        """All examples, in weighted chunks."""
        return self._examples.chunks()


class ListedBatches:
    """A list of minibatches of the caller's own, taken in turn and again from the start."""

    def __init__(self, batches: Sequence[tuple[Tensor, Tensor]]) -> None:
        if not batches:
            raise UsageError("a training run needs at least one minibatch")
        self._batches = [Batch(*batch) for batch in batches]

    def __call__(self, t: int) -> Batch:
        """The minibatch of step t."""
        return self._batches[t % len(self._batches)]

    def population(self) -> Iterable[tuple[float, Batch]]:
        """Every minibatch, with its share of the examples."""
        total = sum(map(len, self._batches))
        return [(len(batch) / total, batch) for batch in self._batches]


@dataclass(frozen=True)
class Update:
    """One form of SGD with momentum; ``effective_rate`` is its learning rate in torch.optim.SGD."""

    velocity: Callable[[Tensor, Tensor, Tensor], Tensor]  # (v, g, β) → v'
    sign: float  # w' = w + sign · α v'
    effective_rate: Callable[[float, float], float]  # (α, β) → lr


UPDATES: dict[str, Update] = {
    "maclaurin": Update(
        lambda v, g, beta: beta * v - (1 - beta) * g, 1.0, lambda alpha, beta: alpha * (1 - beta)
    ),
    "pytorch": Update(lambda v, g, beta: beta * v + g, -1.0, lambda alpha, beta: alpha),
}


class TrainingRun(Problem):
    """T steps of SGD with momentum on a classifier (or any module with a mean loss).

    Args:
        model: any module whose output depends on its parameters and its input alone. Its own
            parameters are only read. Modules with buffers or dropout are refused.
        batches: the minibatch of every step, or a plain list of (inputs, targets).
        steps: T.
        meta_examples: what the meta loss is taken on; the training examples if not given.
        loss: the mean loss of a batch.
        update: ``maclaurin`` or ``pytorch``.
        initial_weights: flat, shape (N,), in the order of ``model.named_parameters()``; the
            model's current ones if not given.

    Raises:
        UsageError: for a model or an argument that it cannot train.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Batches | Sequence[tuple[Tensor, Tensor]],
        *,
        steps: int,
        meta_examples: Batch | None = None,
        loss: Loss = cross_entropy,
        update: str = "maclaurin",
        initial_weights: Tensor | None = None,
    ) -> None:
        if steps < 1:
            raise UsageError(f"a training run has at least 1 step, not {steps}")
        if update not in UPDATES:
            raise UsageError(f"unknown update '{update}'; there are {', '.join(UPDATES)}")
        _refuse_hidden_state(model)
        named = dict(model.named_parameters())
        if not named:
            raise UsageError("the model has no parameters to train")
        self.steps = steps
        self.tensors: tuple[str, ...] = tuple(named)
        """The names of the parameter tensors, in the order of the state and of θ."""
        self._model, self._loss, self._update = model, loss, UPDATES[update]
        self._batches: Batches = (
            ListedBatches(batches) if isinstance(batches, Sequence) else batches
        )
        self._meta_examples = meta_examples
        self._shapes = [tensor.shape for tensor in named.values()]
        self._sizes = [tensor.numel() for tensor in named.values()]
        weights = nn.utils.parameters_to_vector(named.values()).detach()
        self._initial_weights = weights if initial_weights is None else initial_weights.detach()
        if self._initial_weights.shape != weights.shape:
            raise UsageError(
                f"initial weights of shape {tuple(self._initial_weights.shape)} for a model of"
                f" {len(weights)} weights"
            )

    @property
    def weights(self) -> int:
        """N, the number of weights; the state has 2N entries."""
        return sum(self._sizes)

    def initial_theta(self, learning_rate: float, momentum: float) -> Tensor:
        """θ with one learning rate α > 0 and one momentum 0 < β < 1 for every tensor."""
        if not (0 < learning_rate < math.inf and 0 < momentum < 1):
            raise UsageError("a learning rate is above 0, and a momentum between 0 and 1")
        logit = math.log(momentum) - math.log1p(-momentum)
        values = [math.log(learning_rate)] * len(self.tensors) + [logit] * len(self.tensors)
        theta = self._initial_weights.new_tensor(values)
        rate, momentum_held = float(theta[0].exp()), float(theta[-1].sigmoid())
        if not (0 < rate < math.inf and 0 < momentum_held < 1):
            raise UsageError(
                f"learning rate {learning_rate:g} and momentum {momentum!r} are out of the range of"
                f" {str(theta.dtype).removeprefix('torch.')}"
            )
        return theta

    def describe(self, theta: Tensor) -> Mapping[str, Mapping[str, float]]:
        """``{"learning_rate": {tensor: α}, "momentum": {tensor: β}}``."""
        a, b = theta.detach().chunk(2)
        return self.by_name(torch.cat([a.exp(), b.sigmoid()]))

    def by_name(self, values: Tensor) -> dict[str, dict[str, float]]:
        """Values in the order of θ, shape (p,), as ``{kind: {tensor: value}}``."""
        rates, momenta = values.detach().chunk(2)
        return {
            "learning_rate": dict(zip(self.tensors, rates.tolist(), strict=True)),
            "momentum": dict(zip(self.tensors, momenta.tolist(), strict=True)),
        }

    def initial_state(self) -> Tensor:
        """The initial weights, and velocities at rest."""
        return torch.cat([self._initial_weights, torch.zeros_like(self._initial_weights)])

    def input(self, t: int) -> Batch:
        """The minibatch of step t."""
        return self._batches(t)

    def population(self) -> Iterable[tuple[float, Batch]]:
        """All training examples, in weighted chunks."""
        return self._batches.population()

    def merge(self, inputs: Sequence[Input]) -> Iterable[tuple[float, Input]]:
        """One batch of them all, cut into chunks: both updates are affine in the mean gradient."""
        if len({len(batch) for batch in inputs}) > 1:
            return super().merge(inputs)
        joined = Batch(*(torch.cat(parts) for parts in zip(*inputs, strict=True)))
        return joined.chunks()

    def step(self, h: Tensor, theta: Tensor, x: Batch) -> Tensor:
        """One update of the weights and velocities, shape (2N,)."""
        w, v = torch.split(h, self.weights)
        twice = torch.is_grad_enabled() and h.requires_grad
        with torch.enable_grad():
            parameters = self._tensors(w if twice else w.detach().requires_grad_())
        g = self._gradient(parameters, x, twice)
        alpha, beta = self._rates(theta)
        v = self._update.velocity(v, g, beta)
        return torch.cat([w + self._update.sign * alpha * v, v])

    def run(self, theta: Tensor, start: int, stop: int, h: Tensor) -> Tensor:
        """Bit for bit what :meth:`step` does again and again, with what is constant hoisted."""
        with torch.no_grad():
            w, v = torch.split(h.clone(), self.weights)
            alpha, beta = self._rates(theta)
            signed = self._update.sign * alpha
            # Leaves that share the storage of w, so that updating w moves them.
            parameters = [piece.requires_grad_() for piece in self._tensors(w.detach())]
            for t in range(start, stop):
                v = self._update.velocity(v, self._gradient(parameters, self.input(t)), beta)
                w.add_(signed * v)
            return torch.cat([w, v])

    def loss_and_gradient(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """The meta loss of the weights; its gradient with respect to the velocities is zero."""
        gradient = torch.zeros_like(h)
        total = h.new_zeros(())
        with torch.enable_grad():
            parameters = self._tensors(h.detach()[: self.weights].requires_grad_())
            for weight, x in self._meta_chunks():
                loss = weight * self._loss(self._outputs(parameters, x.inputs), x.targets)
                pieces = torch.autograd.grad(loss, parameters, materialize_grads=True)
                gradient[: self.weights] += torch.cat([piece.reshape(-1) for piece in pieces])
                total += loss.detach()
        return total, gradient

    def accuracy(self, h: Tensor, examples: Batch) -> float:
        """The share of examples whose largest output is their class."""
        with torch.no_grad():
            parameters = self._tensors(h.detach()[: self.weights])
            right = sum(
                int((self._outputs(parameters, x.inputs).argmax(1) == x.targets).sum())
                for _, x in examples.chunks()
            )
        return right / len(examples)

    def batch_loss(self, h: Tensor, t: int) -> float:
        """The loss on the minibatch of step t."""
        x = self.input(t)
        with torch.no_grad():
            outputs = self._outputs(self._tensors(h.detach()[: self.weights]), x.inputs)
            return float(self._loss(outputs, x.targets))

    def _meta_chunks(self) -> Iterable[tuple[float, Batch]]:
        return self.population() if self._meta_examples is None else self._meta_examples.chunks()

    def _gradient(self, parameters: Sequence[Tensor], x: Batch, twice: bool = False) -> Tensor:
        """∇L on a batch, flat, shape (N,); with a graph if it is to be differentiated ``twice``."""
        with torch.enable_grad():
            loss = self._loss(self._outputs(parameters, x.inputs), x.targets)
            pieces = torch.autograd.grad(
                loss, parameters, create_graph=twice, materialize_grads=True
            )
            return torch.cat([piece.reshape(-1) for piece in pieces])

    def _outputs(self, parameters: Sequence[Tensor], inputs: Tensor) -> Tensor:
        named = dict(zip(self.tensors, parameters, strict=True))
        outputs: Tensor = functional_call(self._model, named, (inputs,))
        return outputs

    def _tensors(self, w: Tensor) -> list[Tensor]:
        return [
            piece.view(shape)
            for piece, shape in zip(torch.split(w, self._sizes), self._shapes, strict=True)
        ]

    def _rates(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """α and β of every weight, shape (N,) each."""
        a, b = theta.chunk(2)
        return self._spread(a.exp()), self._spread(b.sigmoid())

    def _spread(self, rates: Tensor) -> Tensor:
        # Expanding and joining has a deterministic backward pass on every device; indexing has not.
        return torch.cat([rate.expand(size) for rate, size in zip(rates, self._sizes, strict=True)])


def _refuse_hidden_state(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0:
            raise UsageError(f"the model's '{name}' draws random numbers; dropout is not supported")
        if any(True for _ in module.buffers(recurse=False)):
            raise UsageError(
                f"the model's '{name}' ({type(module).__name__}) keeps buffers, which are part of"
                " no gradient; use a layer without running statistics"
            )
