"""A map with a fixed input, iterated to its steady state (Liao et al. 2018, eq. 1-2).

Its state, parameters and input may be structured as a user likes them; they are flattened here,
so that a gradient method sees two vectors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hyperrbp.exceptions import UsageError
from hyperrbp.problems.base import Input, Linearization, Problem

Parameters = Tensor | Sequence[Tensor] | Mapping[str, Tensor]
"""One tensor, or several by position or by name."""

Update = Callable[[Tensor, Any, Any], Tensor]
"""F: (h, parameters, x) → the next h, of the shape of h."""


class Structure:
    """A tensor, a sequence, a mapping, or anything else: what is in it, and how it is put together.

    Anything that is none of the first three is a single leaf.
    """

    def __init__(self, whole: Any) -> None:
        self._whole = whole
        self.leaves: list[Any] = [whole]
        if isinstance(whole, Mapping):
            self.leaves = list(whole.values())
        elif isinstance(whole, list | tuple):
            self.leaves = list(whole)

    @property
    def names(self) -> list[str]:
        """The keys of a mapping, or the positions."""
        if isinstance(self._whole, Mapping):
            return list(self._whole)
        return [str(i) for i in range(len(self.leaves))]

    def arrange(self, leaves: Sequence[Any]) -> Any:
        """Put other leaves together alike."""
        whole = self._whole
        if isinstance(whole, Mapping):
            return dict(zip(whole, leaves, strict=True))
        if hasattr(whole, "_make"):  # a named tuple
            return whole._make(leaves)
        if isinstance(whole, tuple):
            return tuple(leaves)
        return list(leaves) if isinstance(whole, list) else leaves[0]


class Flattened(Structure):
    """A structure of tensors alone, as one vector and back.

    Raises:
        UsageError: if there is anything else in it, or tensors of several dtypes or devices.
    """

    def __init__(self, whole: Parameters) -> None:
        super().__init__(whole)
        self.tensors: list[Tensor] = self.leaves
        if not self.tensors or not all(isinstance(tensor, Tensor) for tensor in self.tensors):
            raise UsageError("parameters are a tensor, or a non-empty list or mapping of tensors")
        if len({(tensor.dtype, tensor.device) for tensor in self.tensors}) > 1:
            raise UsageError("parameters have to be of one dtype and on one device")

    def vector(self) -> Tensor:
        """Return θ, shape (p,); a single tensor is not copied."""
        if len(self.tensors) == 1:
            return self.tensors[0].reshape(-1)
        return torch.cat([tensor.reshape(-1) for tensor in self.tensors])

    def split(self, vector: Tensor) -> list[Tensor]:
        """Split a vector into the tensors within it."""
        parts = torch.split(vector, [tensor.numel() for tensor in self.tensors])
        return [part.view(own.shape) for part, own in zip(parts, self.tensors, strict=True)]


class FixedPoint(Problem):
    """h ← F(h, parameters, x), T times from h_0, and a loss on the last state.

    Args:
        update: F, differentiable in the state and the parameters, which it leaves as they are.
        h0: the state to begin with, of any shape; n is its number of elements.
        parameters: θ, p numbers in all; their values here are those of ``initial_theta``.
        x: the input of every update, whatever F takes.
        updates: T.
        loss: of the last state, in its shape; without one, only the products can be asked for.
        settled: updates after the first whose relative change ‖h_{t+1} − h_t‖ / ‖h_{t+1}‖ is at
            most this are not computed: that state stands for all later ones. 0 computes them all.

    Raises:
        UsageError: if T is below 1, or the parameters are not tensors.
    """

    def __init__(
        self,
        update: Update,
        h0: Tensor,
        parameters: Parameters,
        x: Any = None,
        *,
        updates: int,
        loss: Callable[[Tensor], Tensor] | None = None,
        settled: float = 0.0,
    ) -> None:
        if updates < 1:
            raise UsageError(f"a steady state takes at least 1 update, not {updates}")
        if not 0 <= settled < math.inf:
            raise UsageError(f"'settled' is a relative change of at least 0, not {settled:g}")
        self.steps = updates
        self._update, self._x, self._loss, self._settled = update, x, loss, settled
        self._h0 = h0.detach()
        self._flattened = Flattened(parameters)

    def initial_theta(self) -> Tensor:
        """Return the parameters as one vector, shape (p,)."""
        return self._flattened.vector().detach()

    def shaped(self, h: Tensor) -> Tensor:
        """Return a state in the shape that F takes."""
        return h.view(self._h0.shape)

    def initial_state(self, theta: Tensor | None = None) -> Tensor:
        """Return h_0, shape (n,)."""
        return self._h0.reshape(-1).clone()

    def step(self, h: Tensor, theta: Tensor, x: Input) -> Tensor:
        """Return F(h, θ, x), shape (n,)."""
        new = self._update(
            h.view(self._h0.shape), self._flattened.arrange(self._flattened.split(theta)), x
        )
        if not isinstance(new, Tensor):
            raise UsageError(f"F returned {type(new).__name__}, not a tensor")
        if new.shape != self._h0.shape:
            raise UsageError(
                f"F turned a state of shape {tuple(self._h0.shape)} into {tuple(new.shape)}"
            )
        if new.dtype != self._h0.dtype:
            raise UsageError(f"F turned a state of {self._h0.dtype} into {new.dtype}")
        return new.reshape(-1)

    def input(self, t: int) -> Input:
        """Return x, which is the same at every update."""
        return self._x

    def population(self) -> Iterable[tuple[float, Input]]:
        """Return x alone."""
        return [(1.0, self._x)]

    def merge(self, inputs: Sequence[Input]) -> Iterable[tuple[float, Input]]:
        """Return x again: all inputs are the same."""
        return self.population()

    def loss_and_gradient(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Return L(h), shape (), and ∂L/∂h, shape (n,)."""
        if self._loss is None:
            raise UsageError("this fixed-point problem was built without a loss")
        with torch.enable_grad():
            h = h.detach().requires_grad_()
            loss = self._loss(h.view(self._h0.shape))
            (gradient,) = torch.autograd.grad(loss, h, materialize_grads=True)
        return loss.detach(), gradient

    def states(self, theta: Tensor, start: int, stop: int, h: Tensor) -> Iterator[Tensor]:
        """Yield h_{start+1}, …, h_stop from h = h_start, without graphs; see ``settled``."""
        for t in range(start, stop):
            with torch.no_grad():
                new = self.step(h, theta, self._x)
                settled = self._settled and (new - h).norm() <= self._settled * new.norm()
            h = new
            yield h
            if settled:
                for _ in range(t + 1, stop):
                    yield h
                return

    def transposed_at(self, h: Tensor, theta: Tensor) -> Callable[[Input, Tensor], Tensor]:
        """Return (x, u) ↦ Jᵀu at (h, θ), shape (n,), from one graph: x is always the same."""
        linearization = Linearization(self, h, theta, self._x)
        return lambda x, u: linearization.transposed(u)

    def changes(self, theta: Tensor) -> list[float]:
        """Return ‖h_t − h_{t−1}‖ for t = 1 … T: how the state settles (Figures 1c, 3c and 3f)."""
        norms, before = [], self.initial_state()
        for h in self.states(theta, 0, self.steps, before):
            norms.append((h - before).norm())
            before = h.clone()
        return torch.stack(norms).tolist()

    def describe(self, theta: Tensor) -> Mapping[str, Mapping[str, float]]:
        """Return the norm of every parameter tensor."""
        named = zip(self._flattened.names, self._flattened.split(theta.detach()), strict=True)
        return {"norm": {name: float(tensor.norm()) for name, tensor in named}}
