"""Back-propagation through time: the exact gradient of the whole run (the paper's reference)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from hyperrbp.gradients.method import (
    Averaging,
    Hypergradient,
    Method,
    Phase,
    Status,
    unmetered,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from hyperrbp.dynamics import Problem


@dataclass(frozen=True)
class Bptt(Method):
    """Differentiates all T updates; what it keeps of them on the way is for the user to choose.

    ``graph`` keeps the autograd graph of the unrolled run, ``states`` the T states, and
    ``checkpoints`` one state in √T, from which it runs each stretch again (Griewank and Walther
    2008, chapter 12). The last two take every update back by itself, and give the same gradient
    to rounding.
    """

    name = "bptt"
    uses_trunc = False
    keep: Literal["graph", "states", "checkpoints"] = "graph"
    """graph | states | checkpoints: memory for T graphs, for T states, or for 2√T states."""

    def states_kept(self, steps: int) -> int:
        """None, all, or the checkpoints with the states of one stretch."""
        if self.keep == "graph":
            return 0
        length = self._stretch(steps)
        last = (steps - 1) // length  # the stretches before the last one
        return max(last + steps - last * length, last - 1 + length if last else 0)

    def _stretch(self, steps: int) -> int:
        return steps if self.keep == "states" else math.isqrt(steps - 1) + 1

    def __call__(
        self,
        problem: Problem,
        theta: Tensor,
        trunc: int,
        averaging: Averaging,
        generator: torch.Generator,
        phase: Phase = unmetered,
    ) -> Hypergradient:
        """Run forth and back."""
        from hyperrbp.dynamics import Sensitivity

        walk = self._unrolled if self.keep == "graph" else self._recomputed
        h, loss, gradient = walk(problem, theta.detach(), phase)
        with phase("meta-gradient"):
            at_end = Sensitivity(problem, h, theta)
            return Hypergradient(
                gradient=gradient,
                standard_error=None,
                samples=1,
                loss=loss,
                state=h,
                residuals=[],
                status=Status.EXACT if gradient.isfinite().all() else Status.NON_FINITE,
                products=problem.steps,
                structurally_zero=at_end.structurally_zero(generator),
                steady_state_residual=at_end.steady_state_residual(),
                trajectory_bytes=self.states_kept(problem.steps) * h.nbytes,
            )

    @staticmethod
    def _unrolled(problem: Problem, theta: Tensor, phase: Phase) -> tuple[Tensor, Tensor, Tensor]:
        import torch

        with phase("inner run"), torch.enable_grad():
            theta = theta.requires_grad_()
            # The state carries a gradient from the start, so that every update is differentiated
            # twice and costs the same.
            h = problem.initial_state().detach().requires_grad_()
            for t in range(problem.steps):
                h = problem.step(h, theta, problem.input(t))
        with phase("meta-gradient"):
            last = h.detach()
            loss, g = problem.loss_and_gradient(last)
            (gradient,) = torch.autograd.grad(h, theta, g, materialize_grads=True)
            return last, loss, gradient

    def _recomputed(
        self, problem: Problem, theta: Tensor, phase: Phase
    ) -> tuple[Tensor, Tensor, Tensor]:
        import torch

        length = self._stretch(problem.steps)
        starts = range(0, problem.steps, length)
        stretch: list[Tensor] = []
        with phase("inner run"):
            h = problem.initial_state()
            checkpoints = []
            for start in starts:
                checkpoints.append(h)
                # The last stretch is the first to be walked back: its states are at hand.
                stop = min(start + length, problem.steps)
                if stop == problem.steps:
                    stretch = _trajectory(problem, theta, start, stop, h)
                    h = stretch.pop()
                else:
                    h = problem.run(theta, start, stop, h)
            last = h
        with phase("meta-gradient"):
            loss, adjoint = problem.loss_and_gradient(last)
            gradient = torch.zeros_like(theta)
            pullback = problem.pullback_at(theta)
            for start in reversed(starts):
                h = checkpoints.pop()
                if not stretch:
                    stop = min(start + length, problem.steps)
                    stretch = _trajectory(problem, theta, start, stop - 1, h)
                stretch.insert(0, h)
                while stretch:
                    t = start + len(stretch) - 1
                    adjoint, along_theta = pullback(stretch.pop(), problem.input(t), adjoint)
                    gradient += along_theta
            return last, loss, gradient


def _trajectory(problem: Problem, theta: Tensor, start: int, stop: int, h: Tensor) -> list[Tensor]:
    """h_{start+1}, …, h_stop."""
    return [state.clone() for state in problem.states(theta, start, stop, h)]
