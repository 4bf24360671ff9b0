"""The loss that a network is trained on, with its gradient and curvature."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hyperrbp.problems.training.network_loss import LossFunction, NetworkLoss, flat, len_of
from hyperrbp.problems.training.terms import PAIR, Structure, Terms
from hyperrbp.runtime.tracing import TracedFunction


class Objective(NetworkLoss):
    """L(w, x) with its derivatives; see ``NetworkLoss``.

    What runs once a training step, or once a product, is traced when it has been called often.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: LossFunction,
        *,
        autocast: torch.dtype | None = None,
        accumulate: int = 1,
    ) -> None:
        super().__init__(model, loss, autocast=autocast, accumulate=accumulate)
        self._programs: dict[Structure | None, _Programs] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Objective:
        return self._copied(copy.deepcopy(self.model, memo), copy.deepcopy(self.loss, memo))

    def __copy__(self) -> Objective:
        return self._copied(self.model, self.loss)

    def in_precision(self, dtype: torch.dtype) -> Objective:
        """Return the same function in another floating-point format."""
        return self._copied(copy.deepcopy(self.model).to(dtype), self.loss, autocast=None)

    def with_loss(self, loss: LossFunction) -> Objective:
        """Return the same module with another loss."""
        return self._copied(self.model, loss)

    def _copied(self, model: nn.Module, loss: LossFunction, **changed: Any) -> Objective:
        settings: dict[str, Any] = {"autocast": self.autocast, "accumulate": self.accumulate}
        other = Objective(model, loss, **(settings | changed))
        other.draws = self.draws
        other.hold(self.held)
        return other

    @property
    def traced_functions(self) -> Mapping[str, TracedFunction]:
        """The functions that are traced once they have been called often, by name."""
        programs = self._of_structure(PAIR)
        return {
            "gradient": programs.gradient,
            "hessian_product": programs.hessian_product,
            "curvature": programs.curvature,
            "example_products": programs.example_products,
        }

    def recheck(self) -> None:
        """Compare every traced function with the module once more, at its next call.

        Raises:
            UsageError: if the module has other parameters to train than it had.
        """
        self.refuse_other_parameters()
        for programs in self._programs.values():
            for function in vars(programs).values():
                function.recheck()

    def example_products(
        self, parameters: Sequence[Tensor], direction: Sequence[Tensor], x: Terms
    ) -> Tensor:
        """Return ⟨∇ℓ_i, d⟩ for the loss ℓ_i of every example, shape (B,); d in pieces."""
        with self.drawing(x.seed):
            return self._of_structure(x.structure).example_products(
                *parameters, *direction, *x.tensors
            )[0]

    def differentiable_gradient(self, w: Tensor, x: Terms) -> Tensor:
        """Return ∇L at w, shape (N,), with a graph that leads to w."""
        return flat(self.gradient_with_graph(self.pieces(w), x))

    def gradient_with_graph(self, parameters: Sequence[Tensor], x: Terms) -> Sequence[Tensor]:
        """Return ∇L in pieces, with a graph that leads to the parameters and the weights of x."""
        with torch.enable_grad(), self.drawing(x.seed):
            # Where the graph leads to the weights of x alone, ∇L still has to be taken.
            leaves = [p if p.requires_grad else p.detach().requires_grad_() for p in parameters]
            return self._gradient(leaves, x, twice=True)

    def gradient(self, parameters: Sequence[Tensor], x: Terms) -> Sequence[Tensor]:
        """Return ∇L in pieces, from the pieces of w; new tensors without graphs."""
        programs = self._programs.get(x.structure) or self._of_structure(x.structure)
        tensors = x.tensors if x.weights is None else _tensors(x)
        if x.seed is None:  # once a step: a context costs as much as a small operation
            return programs.gradient(*parameters, *tensors)
        with self.drawing(x.seed):
            return programs.gradient(*parameters, *tensors)

    def hessian_product(
        self, parameters: Sequence[Tensor], direction: Sequence[Tensor], x: Terms
    ) -> Sequence[Tensor]:
        """Return H d with H = ∇²L in pieces, for d in pieces; new tensors without graphs."""
        with self.drawing(x.seed):
            return self._of_structure(x.structure).hessian_product(
                *parameters, *direction, *_tensors(x)
            )

    def curvature(
        self, parameters: Sequence[Tensor], direction: Sequence[Tensor], x: Terms
    ) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Return (∇L, H d) in pieces, for d in pieces; new tensors without graphs."""
        with self.drawing(x.seed):
            both = self._of_structure(x.structure).curvature(*parameters, *direction, *_tensors(x))
        return both[: len(parameters)], both[len(parameters) :]

    def hessian_products(self, w: Tensor, directions: Tensor, x: Terms) -> tuple[Tensor, Tensor]:
        """Return (∇L, H d for every row d of a matrix), from one graph: shapes (N,) and (m, N)."""
        leaves = [piece.requires_grad_() for piece in self.pieces(w.detach())]
        g = self.gradient_with_graph(leaves, x)
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
        programs = self._of_structure(x.structure)
        with self.drawing(x.seed):
            programs.gradient.trace(*parameters, *_tensors(x))
            for function in (programs.hessian_product, programs.curvature):
                function.trace(*parameters, *parameters, *_tensors(x))

    def mean_gradient(
        self, w: Tensor, chunks: Iterable[tuple[float, Terms]]
    ) -> tuple[Tensor, Tensor]:
        """Return L and ∇L over weighted chunks, shapes () and (N,), without graphs."""
        total, gradient = w.new_zeros(()), torch.zeros_like(w, requires_grad=False)
        with torch.enable_grad():
            parameters = [piece.requires_grad_() for piece in self.pieces(w.detach())]
            for weight, x in chunks:
                with self.drawing(x.seed):
                    loss = self.value(parameters, x)
                pieces = torch.autograd.grad(loss, parameters, materialize_grads=True)
                for sum_of, piece in zip(self.pieces(gradient), pieces, strict=True):
                    sum_of.add_(piece, alpha=weight)
                total += weight * loss.detach()
        return total, gradient

    def _of_structure(self, structure: Structure | None) -> _Programs:
        programs = self._programs.get(structure)
        if programs is None:
            programs = self._programs[structure] = _Programs(self, structure)
        return programs

    def terms_of(self, tensors: Sequence[Tensor], structure: Structure | None) -> Terms:
        """Return the terms of one structure whose tensors, and then weights, these are."""
        count = 2 if structure is PAIR else structure.tensors
        return Terms(
            tuple(tensors[:count]), structure, tensors[count] if len(tensors) > count else None
        )

    def gradient_of(self, structure: Structure | None, *tensors: Tensor) -> Sequence[Tensor]:
        """Return ∇L in pieces from tensors alone: parameters, then a batch of this structure."""
        count = len(self.tensors)
        leaves = [piece.detach().requires_grad_() for piece in tensors[:count]]
        return self._gradient(leaves, self.terms_of(tensors[count:], structure))

    def curvature_of(self, structure: Structure | None, *tensors: Tensor) -> Sequence[Tensor]:
        """Return (∇L, H d) in pieces from tensors alone: parameters, d, and then a batch."""
        count = len(self.tensors)
        leaves = [piece.detach().requires_grad_() for piece in tensors[:count]]
        with torch.enable_grad():
            g = self._gradient(leaves, self.terms_of(tensors[2 * count :], structure), twice=True)
            curved = pulled_back(g, leaves, tensors[count : 2 * count])
        return [piece.detach() for piece in (*g, *curved)]

    def examples_of(self, structure: Structure | None, *tensors: Tensor) -> Sequence[Tensor]:
        """Return ⟨∇ℓ_i, d⟩ of every example from tensors alone: parameters, d, and a batch."""
        # The weighted sum of the losses is linear in the weights of the examples: its derivative
        # along d, differentiated by a weight, is the product of that example.
        count = len(self.tensors)
        leaves = [piece.detach().requires_grad_() for piece in tensors[:count]]
        x = self.terms_of(tensors[2 * count :], structure)
        with torch.enable_grad():
            weights = torch.ones(len_of(x), dtype=leaves[0].dtype, device=leaves[0].device)
            weights.requires_grad_()
            g = self._gradient(leaves, x._replace(weights=weights), twice=True)
            along = torch.stack(
                [(piece * d).sum() for piece, d in zip(g, tensors[count : 2 * count], strict=True)]
            )
            (products,) = torch.autograd.grad(along.sum(), weights, materialize_grads=True)
        return [products * len(weights)]

    def _gradient(
        self, parameters: Sequence[Tensor], x: Terms, twice: bool = False
    ) -> Sequence[Tensor]:
        with torch.enable_grad():
            return torch.autograd.grad(
                self.value(parameters, x), parameters, create_graph=twice, materialize_grads=True
            )


class _Programs:
    """The functions that run once a step or once a product, for batches of one structure.

    Traced, they cost no autograd.
    """

    def __init__(self, objective: Objective, structure: Structure | None) -> None:
        count = len(objective.tensors)
        self.gradient = TracedFunction(partial(objective.gradient_of, structure))
        self.curvature = TracedFunction(partial(objective.curvature_of, structure))
        self.hessian_product = TracedFunction(
            lambda *tensors: objective.curvature_of(structure, *tensors)[count:]
        )
        self.example_products = TracedFunction(partial(objective.examples_of, structure))


def pulled_back(
    g: Sequence[Tensor], points: Sequence[Tensor], d: Sequence[Tensor]
) -> Sequence[Tensor]:
    """Return (∂g/∂point)ᵀd for every point; pieces of g without a graph depend on none."""
    curving = [i for i, piece in enumerate(g) if piece.requires_grad]
    if not curving:
        return [torch.zeros_like(point) for point in points]
    return torch.autograd.grad(
        [g[i] for i in curving], points, [d[i] for i in curving], materialize_grads=True
    )


def _tensors(x: Terms) -> tuple[Tensor, ...]:
    return x.tensors if x.weights is None else (*x.tensors, x.weights)
