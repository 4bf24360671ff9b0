"""The base of every gradient method: what it takes and returns.

How ``trunc`` (K) counts, stated once: it is the number of times that a method applies its basic
operation.

============  =====================================================================
``bptt``      K is not used: all T updates are differentiated; ``forward`` likewise.
``tbptt``     K differentiated updates, the last K of the run.
``neumann``   K Jacobian products after the first term: K + 1 terms (eq. 18, Alg. 2).
``rbp``       at most K iterations of z ← Jᵀz + g (Alg. 1).
``cg``        at most K conjugate-gradient steps, two Jacobian products each (eq. 16).
``lsqr``      at most K steps of two Jacobian products each; in exact arithmetic, those of ``cg``.
``gmres``     at most K Jacobian products, the dimension of the Krylov space.
``anderson``  at most K iterations of z ← Jᵀz + g, accelerated.
============  =====================================================================

So at an exact fixed point ``neumann`` with K equals ``tbptt`` with K + 1 (Proposition 1, by the
counting of eq. 6) and ``rbp`` with K + 1 iterations from zero (Proposition 3).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar

from hyperrbp.runtime.options import CheckedOptions

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from hyperrbp.problems.base import Problem, Sensitivity


class Status(StrEnum):
    """How a gradient came to its end."""

    EXACT = "exact"
    CONVERGED = "converged"
    TRUNCATED = "truncated"
    GROWING = "growing"
    BREAKDOWN = "breakdown"
    NON_FINITE = "non-finite"

    @property
    def sentence(self) -> str:
        """Return the status in one sentence."""
        return _SENTENCES[self]

    @staticmethod
    def worst(statuses: list[Status]) -> Status:
        """Return the most alarming of several."""
        return max(statuses, key=list(Status).index)


_SENTENCES = {
    Status.EXACT: "every update of the run was differentiated",
    Status.CONVERGED: "the linear system was solved to the tolerance",
    Status.TRUNCATED: "the truncation ended it before it converged",
    Status.GROWING: "the terms were still growing at the truncation",
    Status.BREAKDOWN: "the search direction vanished before the residual did",
    Status.NON_FINITE: "a term overflowed or was not a number",
}


@dataclass(frozen=True)
class Averaging:
    """Over what an implicit or truncated hypergradient is averaged."""

    estimator: str = "auto"
    """``frozen``, ``resampled``, ``mean``, or ``auto``: the first that the method takes."""
    minibatches: int = 1
    """M, the number of last updates whose minibatches are used (end points, for TBPTT)."""
    series: int = 1
    """How many series ``resampled`` averages, at most M."""


@dataclass
class Solution:
    """An approximate solution of (I − Jᵀ) z = g, from a linear solver."""

    z: Tensor
    """Shape (n,)."""
    residuals: list[float]
    """Relative residuals, each as its method defines it, in order of products spent."""
    status: Status
    products: int
    """Jacobian products spent, Jᵀu and Jv together."""


def largest_last(residuals: list[list[float]]) -> float | None:
    """Return the largest last residual of several traces; None of none."""
    return max((trace[-1] for trace in residuals if trace), default=None)


@dataclass
class Gradient:
    """dL(h_T)/dθ, and how a method came to it."""

    gradient: Tensor
    """Shape (p,)."""
    standard_error: Tensor | None
    """Of the mean over minibatches, series or end points, shape (p,); None for a single one."""
    samples: int
    """How many gradients were averaged."""
    residuals: list[list[float]]
    """One residual trace a solve; empty for methods that solve nothing."""
    status: Status
    products: int
    """Jacobian products spent, all solves together."""

    def __post_init__(self) -> None:
        if not self.gradient.isfinite().all():
            self.status = Status.NON_FINITE

    @property
    def residual(self) -> float | None:
        """Return the largest last residual of the solves; None if there were none."""
        return largest_last(self.residuals)


@dataclass
class Hypergradient(Gradient):
    """A gradient, with the run that it was taken on."""

    loss: Tensor
    """L(h_T), shape ()."""
    state: Tensor
    """h_T, shape (n,)."""
    structurally_zero: Tensor
    """The parameters that F does not depend on at h_T: boolean, shape (p,)."""
    steady_state_residual: float
    """‖h_T − F(h_T)‖ / ‖h_T‖, F averaged over its whole population of inputs."""
    trajectory_bytes: int = 0
    """The most bytes of states or tangents that the method kept at once, graphs aside."""


@dataclass(frozen=True)
class Task:
    """What is to be differentiated, and how."""

    problem: Problem
    theta: Tensor
    """Shape (p,)."""
    trunc: int
    """K."""
    averaging: Averaging
    generator: torch.Generator
    """The source of what a method samples."""


@dataclass
class Run:
    """A run as the forward pass of a method leaves it."""

    state: Tensor
    """h_T, shape (n,), without a graph."""
    kept: Any = field(default=None, repr=False)
    """What the backward pass of the method needs, and nothing else reads."""


Phase = Callable[[str], AbstractContextManager[object]]
"""Opened around each phase of a method: ``inner run`` and ``meta-gradient``."""


def unmetered(_: str) -> AbstractContextManager[object]:
    """Measure nothing."""
    return nullcontext()


class Horizon(StrEnum):
    """How much of a run a method differentiates."""

    RUN = "run"
    TANGENTS = "tangents"
    """The whole run, with a tangent for each parameter."""
    WINDOW = "window"
    """The last K updates."""
    STATE = "state"
    """The last state alone."""


class Method(CheckedOptions, ABC):
    """A way to differentiate the loss on the last state with respect to θ."""

    kind = "gradient method"
    fixed_operator: ClassVar[bool] = False
    """Whether it needs one and the same Jacobian for all its products, as Krylov methods do."""
    horizon: ClassVar[Horizon] = Horizon.RUN
    uses_trunc: ClassVar[bool] = True
    """Whether K makes any difference to it."""
    estimators: ClassVar[tuple[str, ...]] = ()
    """The averaging estimators that it takes, the default first; empty: it has no use for one."""

    @classmethod
    def estimator(cls, averaging: Averaging) -> str:
        """Return the estimator that is meant, ``auto`` being the first; empty if there is none."""
        named = averaging.estimator
        return next(iter(cls.estimators), "") if named == "auto" else named

    def steps_needed(self, trunc: int, averaging: Averaging) -> int:
        """Return the length of the shortest run that it can differentiate."""
        return averaging.minibatches if self.estimators else 1

    def updates_seen(self, steps: int, trunc: int) -> int:
        """Return how many of the last updates it differentiates; 0: it knows the last state."""
        if self.horizon is Horizon.STATE:
            return 0
        return min(trunc, steps) if self.horizon is Horizon.WINDOW else steps

    def states_kept(self, steps: int, parameters: int) -> int:
        """Return the most states, or their tangents, that it keeps at once, graphs aside."""
        return 0

    @abstractmethod
    def run(self, task: Task) -> Run:
        """Run all T updates, and keep what the backward pass needs and no more."""

    @abstractmethod
    def differentiate(self, task: Task, run: Run, g: Tensor, sensitivity: Sensitivity) -> Gradient:
        """Take g = ∂L/∂h at the last state back to θ, once: what the run kept is used up.

        ``sensitivity`` is ∂F/∂θ at the last state.
        """
