"""The interface between what converges and how it is differentiated.

A problem is a recurrent map h' = F(h, θ, x) iterated T times, and a loss on the last state
(Liao et al. 2018, eq. 1-3). A gradient method needs of it F, the loss gradient, and three
products at a point: Jᵀu, Jv and (∂F/∂θ)ᵀu with J = ∂F/∂h. Everything here is matrix-free.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

Input = Any
"""The input of one application of F: a minibatch, an image, a graph. Methods only pass it on."""


Pushforward = Callable[[Tensor, Input, Tensor], tuple[Tensor, Tensor]]
"""(h, x, S) ↦ (F(h, θ, x), J S + ∂F/∂θ): it pushes the tangents S of a state forward."""


class Problem(ABC):
    """A convergent recurrent map, its inputs, and a loss on its last state.

    The state ``h`` is one flat vector of shape (n,), the parameters ``theta`` one flat vector of
    shape (p,), of one dtype and device.
    """

    steps: int
    """T, the number of updates of one run."""
    transient: ClassVar[frozenset[str]] = frozenset()
    """The kinds of parameters that change how a steady state is reached, but not where it is."""

    @abstractmethod
    def initial_state(self, theta: Tensor | None = None) -> Tensor:
        """Return h_0 at θ, shape (n,); where it does not depend on θ, that may be left out."""

    @abstractmethod
    def step(self, h: Tensor, theta: Tensor, x: Input) -> Tensor:
        """Return F(h, θ, x), shape (n,), differentiable in h and θ if they require a gradient."""

    @abstractmethod
    def input(self, t: int) -> Input:
        """Return x_t, the input of the update from h_t to h_{t+1}, for 0 ≤ t < steps."""

    @abstractmethod
    def population(self) -> Iterable[tuple[float, Input]]:
        """Yield all that the inputs are sampled from, as weighted chunks; the weights sum to one.

        A problem with a fixed input yields that input with weight 1.
        """

    def sample(self) -> Iterable[tuple[float, Input]] | None:
        """Return weighted inputs that stand for the population where little depends on it.

        None: nothing less than the population.
        """
        return None

    @abstractmethod
    def loss_and_gradient(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Return L(h), shape (), and ∂L/∂h, shape (n,); neither keeps a graph."""

    def loss(self, h: Tensor) -> Tensor:
        """Return L(h), shape (), without its gradient."""
        return self.loss_and_gradient(h)[0]

    def states(self, theta: Tensor, start: int, stop: int, h: Tensor) -> Iterator[Tensor]:
        """Yield h_{start+1}, …, h_stop from h = h_start, without graphs.

        Each is valid until the next is asked for: whoever keeps one has to copy it.
        """
        for t in range(start, stop):
            with torch.no_grad():
                h = self.step(h, theta, self.input(t))
            yield h

    def run(self, theta: Tensor, start: int, stop: int, h: Tensor) -> Tensor:
        """Return h_stop from h = h_start, keeping no graph and no trajectory."""
        for state in self.states(theta, start, stop, h):
            h = state
        return h

    def last_state(self, theta: Tensor) -> Tensor:
        """Return h_T at θ, shape (n,)."""
        return self.run(theta, 0, self.steps, self.initial_state(theta))

    def initial_theta_transposed(self, theta: Tensor, u: Tensor) -> Tensor:
        """Return (∂h_0/∂θ)ᵀu, shape (p,)."""
        with torch.enable_grad():
            theta = theta.detach().requires_grad_()
            h = self.initial_state(theta)
        return _pullback(h, [theta], u)[0]

    def initial_tangents(self, theta: Tensor) -> Tensor:
        """Return ∂h_0/∂θ, shape (p, n): row i is ∂h_0/∂θ_i."""
        with torch.enable_grad():
            theta = theta.detach().requires_grad_()
            h = self.initial_state(theta)
            tangents = h.new_zeros(len(theta), len(h), requires_grad=False)
            if not h.requires_grad:
                return tangents
            u = torch.zeros_like(h, requires_grad=True)
            (product,) = torch.autograd.grad(h, theta, u, create_graph=True)
        for i, row in enumerate(tangents):
            row.copy_(torch.autograd.grad(product[i], u, retain_graph=True)[0])
        return tangents

    def transposed_at(self, h: Tensor, theta: Tensor) -> Callable[[Input, Tensor], Tensor]:
        """Return (x, u) ↦ Jᵀu at (h, θ, x), shape (n,), from linearizations that are not kept."""
        return lambda x, u: Linearization(self, h, theta, x).transposed(u)

    def pullback_at(self, theta: Tensor) -> Callable[[Tensor, Input, Tensor], tuple[Tensor, ...]]:
        """Return (h, x, u) ↦ (Jᵀu, (∂F/∂θ)ᵀu) at (h, θ, x): it pulls an adjoint u of F back."""

        def pullback(h: Tensor, x: Input, u: Tensor) -> tuple[Tensor, Tensor]:
            along_h, along_theta = Linearization(self, h, theta, x).both_transposed(u[None])
            return along_h[0], along_theta[0]

        return pullback

    def pushforward_at(self, theta: Tensor) -> Pushforward:
        """Return (h, x, S) ↦ (F(h, θ, x), J S + ∂F/∂θ), for tangents S that may be used up by it.

        S has shape (p, n): row i is ∂h/∂θ_i.
        """

        def pushforward(h: Tensor, x: Input, tangents: Tensor) -> tuple[Tensor, Tensor]:
            update = Linearization(self, h, theta, x)
            return update.image, update.total_forward(tangents)

        return pushforward

    def refuse_gradient(self, method: str, updates: int) -> None:  # noqa: B027  # mostly none
        """Refuse a gradient method that would not see what θ does.

        Args:
            method: its name.
            updates: how many of the last updates it differentiates: T, K, or 0 where it knows of
                no update but the one at the last state.

        Raises:
            UsageError: if it would not, with the reason.
        """

    def refuse_last_state(self, method: str, h: Tensor) -> None:  # noqa: B027  # mostly none
        """Refuse a gradient method that linearizes F at a last state h where F has no derivative.

        Raises:
            UsageError: if it has none, with the place.
        """

    def prepare(self, theta: Tensor) -> None:  # noqa: B027  # there may be nothing to do
        """Do now what is done only once, such as tracing, so that what follows can be timed."""

    def mean_theta_pullback(
        self, h: Tensor, theta: Tensor, chunks: Iterable[tuple[float, Input]] | None = None
    ) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Return the mean F̄ of F over the population at (h, θ), shape (n,), and u ↦ (∂F̄/∂θ)ᵀu.

        ``chunks`` are other weighted inputs to take the mean over.
        """
        with torch.enable_grad():
            theta = theta.detach().requires_grad_()
            image = torch.zeros_like(h)
            for weight, x in self.population() if chunks is None else chunks:
                image = image + weight * self.step(h.detach(), theta, x)
        return image.detach(), lambda u: _pullback(image, [theta], u)[0]

    def merge(self, inputs: Sequence[Input]) -> Iterable[tuple[float, Input]]:
        """Return weighted chunks on which the mean of F equals its mean over ``inputs``."""
        return [(1.0 / len(inputs), x) for x in inputs]

    def describe(self, theta: Tensor) -> Mapping[str, Mapping[str, float]]:
        """Return θ in natural units, ``{kind: {name: value}}``, in the order of θ."""
        return self.by_name(theta)

    def by_name(self, values: Tensor) -> Mapping[str, Mapping[str, float]]:
        """Return values in the order of θ, shape (p,), by kind and name, as they are."""
        return {"theta": {str(i): value for i, value in enumerate(values.tolist())}}

    def in_precision(self, dtype: torch.dtype) -> Problem | None:
        """Return the same problem in another floating-point format; None if it has no such form."""
        return None

    def norms(self, h: Tensor) -> Mapping[str, float]:
        """Return Euclidean norms by name that show a reader how large the state has become."""
        return {"state": float(h.norm())}


def loss_where_finite(problem: Problem, h: Tensor) -> float:
    """Return L(h); NaN where the state has overflowed, which a loss need not show."""
    return float(problem.loss(h)) if bool(h.isfinite().all()) else math.nan


class Jacobian(Protocol):
    """The products of J = ∂F/∂h and its transpose that a linear solver asks for."""

    def transposed(self, u: Tensor) -> Tensor:
        """Return Jᵀu, shape (n,)."""

    def forward(self, v: Tensor) -> Tensor:
        """Return J v, shape (n,)."""


class Linearization:
    """F at (h, θ, x), as one graph that is kept and traversed for every product.

    J v comes from differentiating the transposed product (it is linear in u, so its derivative with
    respect to u, applied to v, is J v exactly); it therefore needs no forward-mode rule.
    """

    def __init__(self, problem: Problem, h: Tensor, theta: Tensor, x: Input) -> None:
        with torch.enable_grad():
            self._h = h.detach().requires_grad_()
            self._theta = theta.detach().requires_grad_()
            self._image = problem.step(self._h, self._theta, x)
        self._twice: tuple[Tensor, Tensor] | None = None

    @property
    def image(self) -> Tensor:
        """F(h, θ, x), without its graph."""
        return self._image.detach()

    def transposed(self, u: Tensor) -> Tensor:
        """Return Jᵀu, shape (n,)."""
        return _pullback(self._image, [self._h], u)[0]

    def theta_transposed(self, u: Tensor) -> Tensor:
        """Return (∂F/∂θ)ᵀu, shape (p,)."""
        return _pullback(self._image, [self._theta], u)[0]

    def both_transposed(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return (Jᵀu, (∂F/∂θ)ᵀu) for every row u of a matrix: (m, n) → (m, n), (m, p)."""
        points = [self._h, self._theta]
        if len(u) == 1:
            one = _pullback(self._image, points, u[0])
            return one[0][None], one[1][None]
        along_h, along_theta = _pullback(self._image, points, u, batched=True)
        return along_h, along_theta

    def forward(self, v: Tensor) -> Tensor:
        """Return J v, shape (n,)."""
        if self._twice is None:
            with torch.enable_grad():
                u = torch.zeros_like(self._h, requires_grad=True)
                product = torch.autograd.grad(
                    self._image, self._h, u, create_graph=True, materialize_grads=True
                )[0]
            self._twice = u, product
        u, product = self._twice
        if not product.requires_grad:  # F does not depend on h: J = 0
            return torch.zeros_like(v)
        return _pullback(product, [u], v)[0]

    def total_forward(self, tangents: Tensor) -> Tensor:
        """Return J s_i + ∂F/∂θ_i for every row s_i of the tangents: (p, n) → (p, n)."""
        with torch.enable_grad():
            u = torch.zeros_like(self._h, requires_grad=True)
            products = torch.autograd.grad(
                self._image, [self._h, self._theta], u, create_graph=True, materialize_grads=True
            )
        each = torch.eye(len(tangents), dtype=tangents.dtype, device=tangents.device)
        moved = torch.zeros_like(tangents)
        for product, directions in zip(products, (tangents, each), strict=True):
            moved += _pullback(product, [u], directions, batched=True)[0]
        return moved


class MeanLinearization:
    """The mean of F over weighted chunks of inputs, linearized at (h, θ).

    One chunk keeps its graph; several are rebuilt for every product, so that the memory is that
    of one chunk.
    """

    def __init__(
        self, problem: Problem, h: Tensor, theta: Tensor, chunks: Iterable[tuple[float, Input]]
    ) -> None:
        self._chunks = list(chunks)
        self._at = problem, h, theta
        self._kept = self._linearize(self._chunks[0][1]) if len(self._chunks) == 1 else None

    def _linearize(self, x: Input) -> Linearization:
        problem, h, theta = self._at
        return Linearization(problem, h, theta, x)

    def transposed(self, u: Tensor) -> Tensor:
        """Return Jᵀu for the mean Jacobian, shape (n,)."""
        if self._kept is not None:
            return self._kept.transposed(u)
        total = torch.zeros_like(u)
        for weight, x in self._chunks:
            total.add_(self._linearize(x).transposed(u), alpha=weight)
        return total

    def forward(self, v: Tensor) -> Tensor:
        """Return J v for the mean Jacobian, shape (n,)."""
        if self._kept is not None:
            return self._kept.forward(v)
        total = torch.zeros_like(v)
        for weight, x in self._chunks:
            total.add_(self._linearize(x).forward(v), alpha=weight)
        return total


class Sensitivity:
    """∂F/∂θ of the mean of F over its population of inputs (or other chunks), at (h, θ).

    The state is held constant, so a training step costs one first-order gradient a chunk, at the
    first use. The same pass shows how far h is from a steady state, and on which parameters F does
    not depend at h.
    """

    def __init__(
        self,
        problem: Problem,
        h: Tensor,
        theta: Tensor,
        chunks: Iterable[tuple[float, Input]] | None = None,
    ) -> None:
        self._h, self._parameters = h.detach(), len(theta)
        self._pull: Callable[[], tuple[Tensor, Callable[[Tensor], Tensor]]] = partial(
            problem.mean_theta_pullback, h, theta, chunks
        )

    @cached_property
    def _image_and_product(self) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        return self._pull()

    def theta_transposed(self, u: Tensor) -> Tensor:
        """Return (∂F/∂θ)ᵀu, shape (p,)."""
        return self._image_and_product[1](u)

    def steady_state_residual(self) -> float:
        """Return ‖h − F(h)‖ / ‖h‖, which is zero at a fixed point (eq. 2)."""
        image, _ = self._image_and_product
        return float((image - self._h).norm() / self._h.norm())

    def structurally_zero(self, generator: torch.Generator, probes: int = 4) -> Tensor:
        """Return which parameters F does not depend on at h, to rounding: booleans, shape (p,).

        The norm of each column of ∂F/∂θ is estimated from products with random signs and held
        against ‖h‖. Where a column vanishes, every gradient through this h vanishes with it,
        whatever the loss: a zero there is no information about the parameter.
        """
        squares = self._h.new_zeros(self._parameters)
        for _ in range(probes):
            signs = torch.randint(0, 2, self._h.shape, generator=generator, dtype=self._h.dtype)
            product = self.theta_transposed(signs.mul_(2).sub_(1).to(self._h.device))
            squares += product.square() / probes
        floor = 64 * torch.finfo(self._h.dtype).eps * self._h.norm()
        below: Tensor = squares.sqrt() <= floor
        return below


def _pullback(
    image: Tensor, points: Sequence[Tensor], u: Tensor, batched: bool = False
) -> tuple[Tensor, ...]:
    """Return products of ``u`` with the transposed Jacobians of ``image``, keeping the graph."""
    if not image.requires_grad:
        rows = u.shape[:1] if batched else ()
        return tuple(point.new_zeros(*rows, *point.shape) for point in points)
    products: tuple[Tensor, ...] = torch.autograd.grad(
        image,
        points,
        u,
        retain_graph=True,
        allow_unused=True,
        is_grads_batched=batched,
        materialize_grads=True,
    )
    return products
