"""Terms for a loss that keep I − J invertible at a fixed point (section 3.2; appendix A).

The implicit gradient at h* = F(h*) needs (I − J)⁻¹, J = ∂F/∂h at h*. Each penalty here looks at J
at that one point, for any differentiable F, and asks for nothing but products with J and Jᵀ.
With n = h.numel(), h counts as one vector of n numbers, whatever its shape.

=======================  ============================  ===============================
name                     value                         products beyond ``dense_up_to``
=======================  ============================  ===============================
``columns``              max(0, max_i ‖J^i‖₁ − η)²     about 4 a start; 1 with a graph
``gershgorin``           max(0, √n ‖A − I‖_F − 1)      2 a probe, all with a graph
``smallest-eigenvalue``  max(0, η − λ_min(A))          2 a step and 2; 1 with a graph
=======================  ============================  ===============================

A = (I − J)ᵀ(I − J). Up to ``dense_up_to`` numbers in h, J is written out instead, for n products.
The value carries a graph to whatever ``update`` closes over and to h; only products 'with a graph'
add to its memory, each about as much as two backward passes through F. A J v costs two passes
through F's graph, a Jᵀu one.

None of this is global: a small J at h* makes F contract near h*, not everywhere.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from hyperrbp.exceptions import UsageError
from hyperrbp.runtime.options import CheckedOptions

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    StateMap = Callable[[Tensor], Tensor]

_CLIMB = 5
"""The most columns that one start of the column search visits (Higham's choice)."""


@dataclass(frozen=True)
class Penalty:
    """A penalty at one point, and how much of it is known."""

    value: Tensor
    """Shape (), to be added to a loss; without a graph where gradients are disabled."""
    quantity: float
    """What is held against the bound: the column norm, √n ‖A − I‖_F, or the eigenvalue."""
    error: float | None
    """Of ``quantity``: a standard error or a residual norm; 0 if exact, None where unknown."""
    exact: bool
    """Whether J was written out, so that nothing but rounding stands between quantity and truth."""
    products: int
    """Products with J or its transpose spent, with a graph or without."""


class LocalJacobian:
    """J = ∂F/∂h at h, by products with vectors of shape (n,) that may themselves be differentiated.

    F is evaluated once. ``update`` maps a tensor of the shape of h to one of the same shape; h may
    be the output of something differentiable.
    """

    def __init__(self, update: StateMap, h: Tensor) -> None:
        import torch

        if not h.is_floating_point() or h.numel() == 0:
            raise UsageError(f"a state of real numbers is needed, not {h.dtype} {tuple(h.shape)}")
        with torch.enable_grad():
            # A node of its own: products neither run the hooks on h (an implicit layer solves its
            # linear system in one) nor see what else was computed from h.
            self._h = h.view_as(h) if h.requires_grad else h.detach().requires_grad_()
            self._image = update(self._h)
        if self._image.shape != h.shape:
            raise UsageError(
                f"the update takes a state of shape {tuple(h.shape)} to one of shape"
                f" {tuple(self._image.shape)}"
            )
        self._twice: tuple[Tensor, Tensor] | None = None
        self.like = h.detach().reshape(-1)
        """The state as a vector, shape (n,), for its device and dtype."""
        self.products = 0
        """Products so far."""

    @property
    def size(self) -> int:
        """The number n of numbers in the state."""
        return len(self.like)

    def transposed(self, u: Tensor, graph: bool = False) -> Tensor:
        """Return Jᵀu, shape (n,); ``graph`` makes it differentiable in F's parameters and in h."""
        self.products += 1
        return self._pullback(self._image, self._h, u, graph)

    def forward(self, v: Tensor, graph: bool = False) -> Tensor:
        """Return J v, shape (n,), as the derivative by u of Jᵀu, which is linear in u."""
        import torch

        self.products += 1
        if self._twice is None:
            with torch.enable_grad():
                u = torch.zeros_like(self._h, requires_grad=True)
                self._twice = u, self._pullback(self._image, self._h, u, graph=True)
        u, product = self._twice
        return self._pullback(product, u, v, graph)

    def dense(self, graph: bool = False) -> Tensor:
        """Return J, shape (n, n), at one product for each row."""
        import torch

        unit = torch.eye(self.size, dtype=self.like.dtype, device=self.like.device)
        return torch.stack([self.transposed(row, graph) for row in unit])

    @staticmethod
    def _pullback(image: Tensor, point: Tensor, u: Tensor, graph: bool) -> Tensor:
        import torch

        if not image.requires_grad:  # F is constant
            return torch.zeros_like(u.detach()).reshape(-1)
        (product,) = torch.autograd.grad(
            image,
            point,
            u.reshape(image.shape),
            retain_graph=True,
            create_graph=graph and torch.is_grad_enabled(),
            allow_unused=True,
            materialize_grads=True,
        )
        flat: Tensor = product.reshape(-1)
        return flat


@dataclass(frozen=True)
class Regularizer(CheckedOptions, ABC):
    """A kind of penalty with its options, which are its fields."""

    kind = "penalty"

    @abstractmethod
    def __call__(self, update: StateMap, h: Tensor, generator: torch.Generator) -> Penalty:
        """Return the penalty on ``update`` at the fixed point ``h``, a tensor of any shape.

        Args:
            update: F, which takes a tensor of the shape of h to another; differentiable three
                times over in h and in the parameters that it closes over.
            h: where to linearize; the gradient of the penalty reaches it if it carries a graph.
            generator: of what is sampled; unused where J is written out.

        Raises:
            UsageError: for a state that is empty or not real, or an update that reshapes it.
        """


@dataclass(frozen=True)
class ColumnPenalty(Regularizer):
    """max(0, max_i ‖J^i‖₁ − η)², J^i the columns of J (Scarselli et al. 2009; section 3.2).

    The paper prints max_i (‖J^i‖₁ − η)², which has no max(0, ·). As printed, a column far below η
    can be the worst one, and be pushed up, away from contraction; J = 0 would cost η². Scarselli et
    al. charge a column only for what it has above η, and so does this.

    Zero means ‖J‖₁ ≤ η < 1: F contracts at h, and I − J is invertible.

    Exact up to ``dense_up_to``, for n + 1 products. Beyond, the largest column is searched for by
    Hager's method (1984; Higham 1988): J x for an x of random signs shows which signs of Jx make
    its norm, and the largest |Jᵀ signs| names a column at least so long; its own signs name the
    next, until none is longer. That may be a local maximum, hence several starts. Among 2000
    columns of independent noise, one stretched by three was found in every trial, one stretched by
    two missed now and then, and of columns all alike one within a few per cent of the largest came
    out. Its norm is exact, so ``quantity`` is a lower bound of max_i ‖J^i‖₁, the value one of the
    true penalty, and ``error`` None: how much is missing is not known. Either way the gradient is
    that of the one column, from one product with a graph.
    """

    name = "columns"
    eta: Annotated[float, Field(gt=0, lt=1)] = 0.9
    """η, the contraction constant that is aimed at."""
    starts: PositiveInt = 8
    """Random starts of the search for the largest column."""
    dense_up_to: NonNegativeInt = 256
    """The largest n for which J is written out."""

    def __call__(self, update: StateMap, h: Tensor, generator: torch.Generator) -> Penalty:
        """Return the penalty at h; see ``Regularizer``."""
        jacobian = LocalJacobian(update, h)
        exact = jacobian.size <= self.dense_up_to
        if exact:
            column = int(jacobian.dense().abs().sum(0).argmax())
        else:
            column = self._search(jacobian, generator)
        norm = jacobian.forward(_unit(jacobian, column), graph=True).abs().sum()
        return Penalty(
            value=(norm - self.eta).clamp(min=0).square(),
            quantity=float(norm.detach()),
            error=0.0 if exact else None,
            exact=exact,
            products=jacobian.products,
        )

    def _search(self, jacobian: LocalJacobian, generator: torch.Generator) -> int:
        """Return the index of the largest column seen."""
        norms: dict[int, float] = {}
        for _ in range(self.starts):
            image, here = jacobian.forward(_random_signs(jacobian, generator)), -1.0
            for _ in range(_CLIMB):
                signs = image.new_ones(len(image)).copysign(image)
                promised = jacobian.transposed(signs).abs()
                column = int(promised.argmax())
                # No column is shorter than promised, so every step but the first climbs.
                if column in norms or float(promised[column]) <= here:
                    break
                image = jacobian.forward(_unit(jacobian, column))
                norms[column] = here = float(image.abs().sum())
        return max(norms, key=norms.__getitem__)


@dataclass(frozen=True)
class GershgorinPenalty(Regularizer):
    """max(0, √n ‖A − I‖_F − 1), A = (I − J)ᵀ(I − J) (appendix A, eq. 4).

    Zero means λ_min(A) ≥ 1 − √n ‖A − I‖_F ≥ 0, so that I − J is invertible if the inequality is
    strict. The √n is that of the circle theorem's ∞-norm; 1 − ‖A − I‖_F is already a bound. It
    makes this the severest penalty of the three: what it leaves alone has ‖A − I‖_F ≤ 1/√n.

    Exact up to ``dense_up_to``, for n products with a graph. Beyond, E ‖(A − I)w‖² = ‖A − I‖_F²
    over vectors w of random signs (Hutchinson 1990), as the mean over ``probes`` of them, each two
    products with a graph: memory is linear in their number. The square is unbiased; its root, and
    the penalty's gradient, are so only up to O(1/probes). ``error`` is the standard error of the
    mean, divided by the derivative of the square; None for a single probe.
    """

    name = "gershgorin"
    probes: PositiveInt = 8
    """Vectors of random signs."""
    dense_up_to: NonNegativeInt = 256
    """The largest n for which J is written out."""

    def __call__(self, update: StateMap, h: Tensor, generator: torch.Generator) -> Penalty:
        """Return the penalty at h; see ``Regularizer``."""
        import torch

        jacobian = LocalJacobian(update, h)
        n, error = jacobian.size, None
        exact = n <= self.dense_up_to
        if exact:
            J = jacobian.dense(graph=True)
            square, error = (J.T @ J - J - J.T).square().sum(), 0.0
        else:
            squares = []
            for _ in range(self.probes):
                w = _random_signs(jacobian, generator)
                image = jacobian.forward(w, graph=True)
                # (A − I)w = Jᵀ(Jw − w) − Jw: the identity never enters, and never has to cancel.
                squares.append((jacobian.transposed(image - w, graph=True) - image).square().sum())
            sample = torch.stack(squares)
            square = sample.mean()
            if self.probes > 1:
                spread = float(sample.detach().std()) / self.probes**0.5
                error = (
                    spread * n**0.5 / (2 * float(sample.detach().mean()) ** 0.5) if spread else 0.0
                )
        scaled = n * square
        return Penalty(
            # Clamped before the root, whose derivative at A = I is infinite.
            value=scaled.clamp(min=1).sqrt() - 1,
            quantity=float(scaled.detach().sqrt()),
            error=error,
            exact=exact,
            products=jacobian.products,
        )


@dataclass(frozen=True)
class SmallestEigenvaluePenalty(Regularizer):
    """max(0, η − λ_min(A)), A = (I − J)ᵀ(I − J), by Lanczos (appendix A).

    λ_min(A) is the square of the distance of I − J from the singular matrices. The paper writes
    max(0, −λ_min), which vanishes whatever J is: A is positive semi-definite. η puts the bound to
    where it is felt before I − J is singular.

    The paper differentiates the Lanczos iterations. There is no need: to first order an eigenvalue
    changes as the Rayleigh quotient of its eigenvector held fixed (Feynman 1939), so ‖(I − J)v‖² is
    differentiated with v constant, through one product. Where λ_min is a multiple eigenvalue it has
    no gradient, and this is one of its generalized ones.

    Exact up to ``dense_up_to``, for n + 1 products: v is the last right singular vector of I − J.
    Beyond, v is the lowest Ritz vector of at most ``steps`` steps from a random start, with full
    reorthogonalization (memory (steps + 2) n), and ``quantity`` its Rayleigh quotient: an upper
    bound of λ_min, so that the value is a lower bound of the true penalty. ``error`` is ‖Av − λv‖:
    some eigenvalue of A is within it, and the error of λ is of second order in it, provided that v
    has turned to the lowest eigenvector.
    """

    name = "smallest-eigenvalue"
    eta: PositiveFloat = 0.1
    """η, what λ_min should not fall below."""
    steps: PositiveInt = 30
    """The most Lanczos steps; n are always enough."""
    dense_up_to: NonNegativeInt = 256
    """The largest n for which J is written out."""

    def __call__(self, update: StateMap, h: Tensor, generator: torch.Generator) -> Penalty:
        """Return the penalty at h; see ``Regularizer``."""
        jacobian = LocalJacobian(update, h)
        exact = jacobian.size <= self.dense_up_to
        v = _last_singular_vector(jacobian) if exact else self._ritz_vector(jacobian, generator)
        image = v - jacobian.forward(v, graph=True)
        quotient = image.square().sum()
        error = 0.0
        if not exact:
            product = image.detach() - jacobian.transposed(image.detach())
            error = float((product - quotient.detach() * v).norm())
        return Penalty(
            value=(self.eta - quotient).clamp(min=0),
            quantity=float(quotient.detach()),
            error=error,
            exact=exact,
            products=jacobian.products,
        )

    def _ritz_vector(self, jacobian: LocalJacobian, generator: torch.Generator) -> Tensor:
        """Return the unit vector of lowest Rayleigh quotient in the Krylov space, shape (n,)."""
        import torch

        like = jacobian.like
        steps = min(self.steps, jacobian.size)
        basis = like.new_empty(steps, jacobian.size)
        q = torch.randn(
            jacobian.size, generator=generator, device=generator.device, dtype=like.dtype
        ).to(like.device)
        q /= q.norm()
        diagonal: list[float] = []
        beside: list[float] = []
        scale = 0.0
        for k in range(steps):
            basis[k] = q
            image = q - jacobian.forward(q)
            image = image - jacobian.transposed(image)
            diagonal.append(float(q @ image))
            # Twice is enough (Parlett 1998, section 6.9), and takes the recurrence's terms with it.
            for _ in range(2):
                image -= basis[: k + 1].T @ (basis[: k + 1] @ image)
            length = float(image.norm())
            scale = max(scale, abs(diagonal[-1]), length)
            # An invariant subspace: from a random start it holds a vector of every eigenvalue.
            # Also the way out for what is not a number.
            if k + 1 == steps or not length > 10 * torch.finfo(like.dtype).eps * scale:
                break
            beside.append(length)
            q = image / length
        T = torch.tensor(diagonal, dtype=torch.float64).diag()
        if not T.isfinite().all():
            return q  # whose Rayleigh quotient will tell
        T += torch.tensor(beside, dtype=torch.float64).diag(1)
        T += torch.tensor(beside, dtype=torch.float64).diag(-1)
        lowest = torch.linalg.eigh(T).eigenvectors[:, 0].to(basis)
        v: Tensor = basis[: len(diagonal)].T @ lowest
        v /= v.norm()
        return v


PENALTIES: dict[str, type[Regularizer]] = {
    "columns": ColumnPenalty,
    "gershgorin": GershgorinPenalty,
    "smallest-eigenvalue": SmallestEigenvaluePenalty,
}
"""The penalties by name; the fields of each are its options."""


def _unit(jacobian: LocalJacobian, i: int) -> Tensor:
    """Return the i-th unit vector, shape (n,)."""
    unit = jacobian.like.new_zeros(jacobian.size)
    unit[i] = 1
    return unit


def _random_signs(jacobian: LocalJacobian, generator: torch.Generator) -> Tensor:
    """Return random signs, shape (n,), sampled on the generator's device."""
    import torch

    bits = torch.randint(0, 2, (jacobian.size,), generator=generator, device=generator.device)
    return bits.mul_(2).sub_(1).to(jacobian.like)


def _last_singular_vector(jacobian: LocalJacobian) -> Tensor:
    """Return the unit v for which ‖(I − J)v‖ is least, shape (n,)."""
    import torch

    J = jacobian.dense()
    if not J.isfinite().all():
        return _unit(jacobian, 0)  # whose Rayleigh quotient will tell
    v: Tensor = torch.linalg.svd(torch.eye(len(J)).to(J) - J).Vh[-1]
    return v
