"""Truncated back-propagation through time: the last K updates (section 1; appendix B, eq. 6)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hyperrbp.hypergradients.method import Averaging, Gradient, Horizon, Method, Run, Status, Task

if TYPE_CHECKING:
    from torch import Tensor

    from hyperrbp.problems.base import Linearization, Sensitivity


@dataclass(frozen=True)
class Tbptt(Method):
    """Differentiates the K updates before each of the last M states, and takes the mean.

    One linearization is kept for each of the last K + M − 1 updates, and M adjoints: memory is
    linear in K + M.
    """

    name = "tbptt"
    horizon = Horizon.WINDOW
    estimators = ("end-points",)

    def steps_needed(self, trunc: int, averaging: Averaging) -> int:
        """Return K updates before the first of M end points."""
        return trunc + averaging.minibatches - 1

    def run(self, task: Task) -> Run:
        """Run without a graph up to the window, and linearize each update in it."""
        from hyperrbp.problems.base import Linearization

        problem, theta = task.problem, task.theta
        first = problem.steps - self.steps_needed(task.trunc, task.averaging)
        h = problem.run(theta, 0, first, problem.initial_state(theta))
        window: list[Linearization] = []
        for t in range(first, problem.steps):
            window.append(Linearization(problem, h, theta, problem.input(t)))
            h = window[-1].image
        return Run(h, window)

    def differentiate(self, task: Task, run: Run, g: Tensor, sensitivity: Sensitivity) -> Gradient:
        """Go back through the window, from every end point at once."""
        import torch

        from hyperrbp.hypergradients.averaging import mean_and_standard_error

        # Row j of the adjoints belongs to the j-th end point from the last. Going back, a row
        # joins at its end point and leaves K updates later; an update serves all at once.
        problem, trunc, window = task.problem, task.trunc, run.kept
        gradients = task.theta.new_zeros(task.averaging.minibatches, len(task.theta))
        adjoints = g.new_zeros(0, len(g))
        last, left = len(window), 0
        for after in range(last, 0, -1):  # the window's updates up to the state at hand
            update = window.pop()
            if after >= trunc:
                if after < last:
                    _, g = problem.loss_and_gradient(update.image)
                adjoints = torch.cat([adjoints, g[None]])
            adjoints, along_theta = update.both_transposed(adjoints)
            gradients[left : left + len(adjoints)] += along_theta
            if last - left == after + trunc - 1:
                if after == 1 and trunc >= problem.steps:  # all the way to the start
                    gradients[left] += problem.initial_theta_transposed(task.theta, adjoints[0])
                adjoints, left = adjoints[1:], left + 1
        mean, error = mean_and_standard_error(list(gradients))
        return Gradient(
            gradient=mean,
            standard_error=error,
            samples=task.averaging.minibatches,
            residuals=[],
            status=Status.EXACT if trunc == problem.steps else Status.TRUNCATED,
            products=trunc * task.averaging.minibatches,
        )
