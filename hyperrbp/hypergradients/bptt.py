"""Back-propagation through time: the exact gradient of the whole run (the paper's reference)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from hyperrbp.hypergradients.method import Gradient, Method, Run, Status, Task

if TYPE_CHECKING:
    from torch import Tensor

    from hyperrbp.problems.base import Problem, Sensitivity


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

    def states_kept(self, steps: int, parameters: int) -> int:
        """Return none, all, or the checkpoints with the states of one stretch."""
        if self.keep == "graph":
            return 0
        length = self._stretch(steps)
        last = (steps - 1) // length  # the stretches before the last one
        return max(last + steps - last * length, last - 1 + length if last else 0)

    def _stretch(self, steps: int) -> int:
        return steps if self.keep == "states" else math.isqrt(steps - 1) + 1

    def run(self, task: Task) -> Run:
        """Run with one graph through all updates, or keeping states."""
        return self._run_with_graph(task) if self.keep == "graph" else self._run_with_states(task)

    def differentiate(self, task: Task, run: Run, g: Tensor, sensitivity: Sensitivity) -> Gradient:
        """Go back through all updates."""
        pull_back = self._through_graph if self.keep == "graph" else self._through_states
        return Gradient(
            gradient=pull_back(task, run, g),
            standard_error=None,
            samples=1,
            residuals=[],
            status=Status.EXACT,
            products=task.problem.steps,
        )

    @staticmethod
    def _run_with_graph(task: Task) -> Run:
        import torch

        problem = task.problem
        with torch.enable_grad():
            theta = task.theta.detach().requires_grad_()
            # The state carries a gradient from the start, so that every update is differentiated
            # twice and costs the same.
            h = problem.initial_state(theta)
            if not h.requires_grad:
                h = h.detach().requires_grad_()
            for t in range(problem.steps):
                h = problem.step(h, theta, problem.input(t))
        return Run(h.detach(), [h, theta])

    @staticmethod
    def _through_graph(task: Task, run: Run, g: Tensor) -> Tensor:
        import torch

        theta, h = run.kept.pop(), run.kept.pop()
        gradient: Tensor
        (gradient,) = torch.autograd.grad(h, theta, g, materialize_grads=True)
        return gradient

    def _run_with_states(self, task: Task) -> Run:
        problem, theta = task.problem, task.theta.detach()
        length = self._stretch(problem.steps)
        stretch: list[Tensor] = []
        h = problem.initial_state(theta)
        checkpoints = []
        for start in range(0, problem.steps, length):
            checkpoints.append(h)
            # The last stretch is the first on the way back: its states are at hand.
            stop = min(start + length, problem.steps)
            if stop == problem.steps:
                stretch = _trajectory(problem, theta, start, stop, h)
                h = stretch.pop()
            else:
                h = problem.run(theta, start, stop, h)
        return Run(h, (checkpoints, stretch))

    def _through_states(self, task: Task, run: Run, g: Tensor) -> Tensor:
        import torch

        problem, theta = task.problem, task.theta.detach()
        length = self._stretch(problem.steps)
        checkpoints, stretch = run.kept
        adjoint, gradient = g, torch.zeros_like(theta)
        pullback = problem.pullback_at(theta)
        for start in reversed(range(0, problem.steps, length)):
            h = checkpoints.pop()
            if not stretch:
                stop = min(start + length, problem.steps)
                stretch = _trajectory(problem, theta, start, stop - 1, h)
            stretch.insert(0, h)
            while stretch:
                t = start + len(stretch) - 1
                adjoint, along_theta = pullback(stretch.pop(), problem.input(t), adjoint)
                gradient += along_theta
        return gradient + problem.initial_theta_transposed(theta, adjoint)


def _trajectory(problem: Problem, theta: Tensor, start: int, stop: int, h: Tensor) -> list[Tensor]:
    """Return h_{start+1}, …, h_stop."""
    return [state.clone() for state in problem.states(theta, start, stop, h)]
