"""The loss of a network as a function of its flat weights, with its gradient and curvature."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from hyperrbp.exceptions import UsageError, is_foreseen, type_and_message_of
from hyperrbp.problems.training.hidden_state import refuse_hidden_state
from hyperrbp.problems.training.terms import Terms
from hyperrbp.runtime.tracing import TracedFunction

LossFunction = Callable[[Tensor, Tensor], Tensor]
"""(outputs, targets) → the loss of every example, shape (B,), or their mean, shape ()."""


class Objective:
    """L(w, x): the mean (weighted) loss of a module with flat weights w, shape (N,), on a batch x.

    The module's own parameters are only read; w holds them in the order of
    ``model.named_parameters()``.

    Raises:
        UsageError: for a module without parameters, or with a state that is not among them.
    """

    def __init__(self, model: nn.Module, loss: LossFunction) -> None:
        refuse_hidden_state(model)
        named = dict(model.named_parameters())
        if not named:
            raise UsageError("the model has no parameters to train")
        self.tensors: tuple[str, ...] = tuple(named)
        """The names of the parameter tensors."""
        self.shapes = [tensor.shape for tensor in named.values()]
        self.sizes = [tensor.numel() for tensor in named.values()]
        self.weights = sum(self.sizes)
        """N, the number of weights."""
        self._model, self._loss = model, loss
        # These run once a training step or once a product: traced, they cost no autograd.
        self._traced_gradient = TracedFunction(self._gradient_of)
        self._traced_hessian_product = TracedFunction(
            lambda *tensors: self._curvature_of(*tensors)[len(named) :]
        )
        self._traced_curvature = TracedFunction(self._curvature_of)
        self._traced_example_products = TracedFunction(self._examples_of)

    def in_precision(self, dtype: torch.dtype) -> Objective:
        """Return the same function in another floating-point format."""
        return Objective(copy.deepcopy(self._model).to(dtype), self._loss)

    def initial_weights(self) -> Tensor:
        """Return the module's current parameters, shape (N,)."""
        return nn.utils.parameters_to_vector(self._model.parameters()).detach()

    def pieces(self, w: Tensor) -> list[Tensor]:
        """Return views of w in the shapes of the parameter tensors."""
        return [
            piece.view(shape)
            for piece, shape in zip(torch.split(w, self.sizes), self.shapes, strict=True)
        ]

    @property
    def traced_functions(self) -> Mapping[str, TracedFunction]:
        """The functions that are traced once they have been called often, by name."""
        return {
            "gradient": self._traced_gradient,
            "hessian_product": self._traced_hessian_product,
            "curvature": self._traced_curvature,
            "example_products": self._traced_example_products,
        }

    def state_pieces(self, h: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Return views of the two halves of a state, weights and velocities, or of an adjoint."""
        w, v = torch.split(h, self.weights)
        return self.pieces(w), self.pieces(v)

    def outputs(self, parameters: Sequence[Tensor], inputs: Tensor) -> Tensor:
        """Return the outputs of the module."""
        named = dict(zip(self.tensors, parameters, strict=True))
        outputs: Tensor = functional_call(self._model, named, (inputs,))
        return outputs

    def value(self, parameters: Sequence[Tensor], x: Terms) -> Tensor:
        """Return L, shape ()."""
        return self.loss_of(self.outputs(parameters, x[0]), x)

    def loss_of(self, outputs: Tensor, x: Terms) -> Tensor:
        """Return L where the module has made these outputs of x, shape ()."""
        _, targets, *weights = x
        try:
            losses = self._loss(outputs, targets)
        except Exception as error:
            if is_foreseen(error):
                raise
            if not bool(outputs.isfinite().all()):  # which it need not put up with: no loss either
                return outputs.sum() * math.nan
            raise UsageError(f"the loss failed: {type_and_message_of(error)}") from error
        if not weights:
            return losses.mean() if losses.dim() else losses
        if losses.shape != weights[0].shape:
            raise UsageError(
                f"the loss gave {tuple(losses.shape)} for {len(targets)} examples; weights of"
                f" examples need the loss of each, shape ({len(targets)},)"
            )
        return torch.dot(losses, weights[0]) / len(targets)

    def mean_value(self, w: Tensor, chunks: Iterable[tuple[float, Terms]]) -> Tensor:
        """Return L over weighted chunks, one at a time; shape (), without a graph."""
        with torch.no_grad():
            parameters = self.pieces(w.detach())
            values = [weight * self.value(parameters, x) for weight, x in chunks]
            return torch.stack(values).sum()

    def example_products(
        self, parameters: Sequence[Tensor], direction: Sequence[Tensor], x: Terms
    ) -> Tensor:
        """Return ⟨∇ℓ_i, d⟩ for the loss ℓ_i of every example, shape (B,); d in pieces."""
        return self._traced_example_products(*parameters, *direction, *x[:2])[0]

    def differentiable_gradient(self, w: Tensor, x: Terms) -> Tensor:
        """Return ∇L at w, shape (N,), with a graph that leads to w."""
        with torch.enable_grad():
            return flat(self._gradient(self.pieces(w), x, twice=True))

    def gradient(self, parameters: Sequence[Tensor], x: Terms) -> Sequence[Tensor]:
        """Return ∇L in pieces, from the pieces of w; new tensors without graphs."""
        return self._traced_gradient(*parameters, *x)

    def hessian_product(
        self, parameters: Sequence[Tensor], direction: Sequence[Tensor], x: Terms
    ) -> Sequence[Tensor]:
        """Return H d with H = ∇²L in pieces, for d in pieces; new tensors without graphs."""
        return self._traced_hessian_product(*parameters, *direction, *x)

    def curvature(
        self, parameters: Sequence[Tensor], direction: Sequence[Tensor], x: Terms
    ) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Return (∇L, H d) in pieces, for d in pieces; new tensors without graphs."""
        both = self._traced_curvature(*parameters, *direction, *x)
        return both[: len(parameters)], both[len(parameters) :]

    def hessian_products(self, w: Tensor, directions: Tensor, x: Terms) -> tuple[Tensor, Tensor]:
        """Return (∇L, H d for every row d of a matrix), from one graph: shapes (N,) and (m, N)."""
        leaves = [piece.requires_grad_() for piece in self.pieces(w.detach())]
        g = self._gradient(leaves, x, twice=True)
        curving = [i for i, piece in enumerate(g) if piece.requires_grad]
        if not curving:
            return flat(g), torch.zeros_like(directions)
        rows = [
            piece.reshape(len(directions), *shape)
            for piece, shape in zip(
                torch.split(directions, self.sizes, 1), self.shapes, strict=True
            )
        ]
        curved = torch.autograd.grad(
            [g[i] for i in curving],
            leaves,
            [rows[i] for i in curving],
            is_grads_batched=True,
            materialize_grads=True,
        )
        return flat(g).detach(), torch.cat([piece.flatten(1) for piece in curved], 1)

    def trace(self, w: Tensor, x: Terms) -> None:
        """Trace now the products with minibatches like x, which are asked for at every step."""
        parameters = self.pieces(w)
        self._traced_gradient.trace(*parameters, *x)
        for function in (self._traced_hessian_product, self._traced_curvature):
            function.trace(*parameters, *parameters, *x)

    def mean_gradient(
        self, w: Tensor, chunks: Iterable[tuple[float, Terms]]
    ) -> tuple[Tensor, Tensor]:
        """Return L and ∇L over weighted chunks, shapes () and (N,), without graphs."""
        total, gradient = w.new_zeros(()), torch.zeros_like(w, requires_grad=False)
        with torch.enable_grad():
            parameters = [piece.requires_grad_() for piece in self.pieces(w.detach())]
            for weight, x in chunks:
                loss = self.value(parameters, x)
                pieces = torch.autograd.grad(loss, parameters, materialize_grads=True)
                for sum_of, piece in zip(self.pieces(gradient), pieces, strict=True):
                    sum_of.add_(piece, alpha=weight)
                total += weight * loss.detach()
        return total, gradient

    def _gradient_of(self, *tensors: Tensor) -> Sequence[Tensor]:
        count = len(self.tensors)
        leaves = [piece.detach().requires_grad_() for piece in tensors[:count]]
        return self._gradient(leaves, tensors[count:])

    def _curvature_of(self, *tensors: Tensor) -> Sequence[Tensor]:
        count = len(self.tensors)
        leaves = [piece.detach().requires_grad_() for piece in tensors[:count]]
        with torch.enable_grad():
            g = self._gradient(leaves, tensors[2 * count :], twice=True)
            # A piece without a graph is one that L is affine in.
            curving = [i for i, piece in enumerate(g) if piece.requires_grad]
            curved = (
                torch.autograd.grad(
                    [g[i] for i in curving],
                    leaves,
                    [tensors[count + i] for i in curving],
                    materialize_grads=True,
                )
                if curving
                else [torch.zeros_like(leaf) for leaf in leaves]
            )
        return [piece.detach() for piece in (*g, *curved)]

    def _examples_of(self, *tensors: Tensor) -> Sequence[Tensor]:
        # The weighted sum of the losses is linear in the weights of the examples: its derivative
        # along d, differentiated by a weight, is the product of that example.
        count = len(self.tensors)
        leaves = [piece.detach().requires_grad_() for piece in tensors[:count]]
        inputs, targets = tensors[2 * count :]
        with torch.enable_grad():
            weights = torch.ones(len(targets), dtype=leaves[0].dtype, device=leaves[0].device)
            weights.requires_grad_()
            g = self._gradient(leaves, (inputs, targets, weights), twice=True)
            along = torch.stack(
                [(piece * d).sum() for piece, d in zip(g, tensors[count : 2 * count], strict=True)]
            )
            (products,) = torch.autograd.grad(along.sum(), weights, materialize_grads=True)
        return [products * len(targets)]

    def _gradient(
        self, parameters: Sequence[Tensor], x: Terms, twice: bool = False
    ) -> Sequence[Tensor]:
        with torch.enable_grad():
            return torch.autograd.grad(
                self.value(parameters, x), parameters, create_graph=twice, materialize_grads=True
            )


def flat(pieces: Sequence[Tensor]) -> Tensor:
    """Join pieces into one vector, shape (N,)."""
    return torch.cat([piece.reshape(-1) for piece in pieces])
