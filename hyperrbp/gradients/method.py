"""What every gradient method takes and returns.

How ``trunc`` (K) counts, stated once: it is the number of times that a method applies its basic
operation.

============  =====================================================================
``bptt``      K is not used: all T updates are differentiated.
``tbptt``     K differentiated updates, the last K of the run.
``neumann``   K Jacobian products after the first term: K + 1 terms (eq. 18, Alg. 2).
``rbp``       at most K iterations of z ← Jᵀz + g (Alg. 1).
``cg``        at most K conjugate-gradient steps, two Jacobian products each (eq. 16).
============  =====================================================================

So at an exact fixed point ``neumann`` with K equals ``tbptt`` with K + 1 (Proposition 1, by the
counting of eq. 6) and ``rbp`` with K + 1 iterations from zero (Proposition 3).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    import torch
    from pydantic import ConfigDict
    from torch import Tensor

    from hyperrbp.dynamics import Jacobian, Problem
    from hyperrbp.gradients.averaging import Averaging


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
        """The status for a reader."""
        return _SENTENCES[self]

    @staticmethod
    def worst(statuses: list[Status]) -> Status:
        """The most alarming of several."""
        return max(statuses, key=list(Status).index)


_SENTENCES = {
    Status.EXACT: "every update of the run was differentiated",
    Status.CONVERGED: "the linear system was solved to the tolerance",
    Status.TRUNCATED: "the truncation ended it before it converged",
    Status.GROWING: "the terms were still growing at the truncation",
    Status.BREAKDOWN: "the search direction vanished before the residual did",
    Status.NON_FINITE: "a term overflowed or was not a number",
}


@dataclass
class Solution:
    """What a linear solver makes of (I − Jᵀ) z = g."""

    z: Tensor
    """Shape (n,)."""
    residuals: list[float]
    """Relative residuals, each as its method defines it, in order of products spent."""
    status: Status
    products: int
    """Jacobian products spent, Jᵀu and Jv together."""


@dataclass
class Hypergradient:
    """dL(h_T)/dθ as a method sees it, and what there is to know about it."""

    gradient: Tensor
    """Shape (p,)."""
    standard_error: Tensor | None
    """Of the mean over minibatches, series or end points, shape (p,); None for a single one."""
    samples: int
    """How many gradients were averaged."""
    loss: Tensor
    """L(h_T), shape ()."""
    state: Tensor
    """h_T, shape (n,)."""
    residuals: list[list[float]]
    """One residual trace a solve; empty for methods that solve nothing."""
    status: Status
    products: int
    """Jacobian products spent, all solves together."""
    structurally_zero: Tensor
    """Which parameters F does not feel at h_T: boolean, shape (p,)."""
    steady_state_residual: float
    """‖h_T − F(h_T)‖ / ‖h_T‖, F averaged over its whole population of inputs."""

    @property
    def residual(self) -> float | None:
        """The largest last residual of the solves."""
        return max((trace[-1] for trace in self.residuals if trace), default=None)


Phase = Callable[[str], AbstractContextManager[object]]
"""Opened around each phase of a method: ``inner run`` and ``meta-gradient``."""


def unmetered(_: str) -> AbstractContextManager[object]:
    """The phase that measures nothing."""
    return nullcontext()


class Method(ABC):
    """A way to differentiate the loss on the last state with respect to θ."""

    __pydantic_config__: ClassVar[ConfigDict] = {"extra": "forbid", "strict": True}

    name: ClassVar[str]
    fixed_operator: ClassVar[bool] = False
    """Whether it needs one and the same Jacobian for all its products, as Krylov methods do."""
    estimators: ClassVar[tuple[str, ...]] = ()
    """The averaging estimators that it takes, the default first; empty: it has no use for one."""

    def steps_needed(self, trunc: int, averaging: Averaging) -> int:
        """The shortest run that it can differentiate."""
        return averaging.minibatches if self.estimators else 1

    @abstractmethod
    def __call__(
        self,
        problem: Problem,
        theta: Tensor,
        trunc: int,
        averaging: Averaging,
        generator: torch.Generator,
        phase: Phase = unmetered,
    ) -> Hypergradient:
        """Run the problem at ``theta`` and differentiate its loss."""


class ImplicitMethod(Method):
    """A solver of (I − Jᵀ) z = ∂L/∂h at the last state (eq. 9): all else is shared.

    The run keeps no graph and no trajectory.
    """

    estimators: ClassVar[tuple[str, ...]] = ("resampled", "frozen", "mean")

    @abstractmethod
    def solve(
        self, jacobian: Jacobian, g: Tensor, trunc: int, generator: torch.Generator
    ) -> Solution:
        """z with (I − Jᵀ) z ≈ g, from at most ``trunc`` steps; ``g`` is left as it is."""

    def __call__(
        self,
        problem: Problem,
        theta: Tensor,
        trunc: int,
        averaging: Averaging,
        generator: torch.Generator,
        phase: Phase = unmetered,
    ) -> Hypergradient:
        """Run without a graph, then solve at h_T and multiply by ∂F/∂θ (eq. 8)."""
        from hyperrbp.gradients.averaging import average

        with phase("inner run"):
            h = problem.run(theta, 0, problem.steps, problem.initial_state())
        with phase("meta-gradient"):
            loss, g = problem.loss_and_gradient(h)
            return average(self, problem, theta, h, loss, g, trunc, averaging, generator)


def series_status(norms: list[float], tolerance: float) -> Status:
    """The status of a series or fixed-point iteration, from the norms of its terms.

    Growing means that over the second half of the terms the geometric mean of their growth is
    above one. ``norms`` are relative to the first term.
    """
    if not all(norm < float("inf") for norm in norms):  # NaN compares false
        return Status.NON_FINITE
    if norms[-1] <= tolerance:
        return Status.CONVERGED
    return Status.GROWING if norms[-1] > norms[len(norms) // 2] else Status.TRUNCATED
