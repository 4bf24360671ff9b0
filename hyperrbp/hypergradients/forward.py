"""Forward mode: the exact gradient of the whole run, in memory that does not grow with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hyperrbp.hypergradients.method import Gradient, Horizon, Method, Run, Status, Task

if TYPE_CHECKING:
    from torch import Tensor

    from hyperrbp.problems.base import Sensitivity


@dataclass(frozen=True)
class Forward(Method):
    """Carries S_t = ∂h_t/∂θ along the run: S_{t+1} = J_t S_t + ∂F/∂θ (Williams and Zipser 1989).

    Nothing is kept but the p tangents, however long the run is; an update costs p products J v, so
    it suits a few hyperparameters and not the weights of a network. The loss needs to be known only
    at the end, and any number of losses would share the tangents.
    """

    name = "forward"
    horizon = Horizon.TANGENTS
    uses_trunc = False

    def states_kept(self, steps: int, parameters: int) -> int:
        """Return one tangent a parameter."""
        return parameters

    def run(self, task: Task) -> Run:
        """Run all updates, and carry the tangents along."""
        problem, theta = task.problem, task.theta.detach()
        h = problem.initial_state(theta)
        tangents = problem.initial_tangents(theta)
        pushforward = problem.pushforward_at(theta)
        for t in range(problem.steps):
            h, tangents = pushforward(h, problem.input(t), tangents)
        return Run(h, tangents)

    def differentiate(self, task: Task, run: Run, g: Tensor, sensitivity: Sensitivity) -> Gradient:
        """Return S_Tᵀ ∂L/∂h."""
        return Gradient(
            gradient=run.kept @ g,
            standard_error=None,
            samples=1,
            residuals=[],
            status=Status.EXACT,
            products=task.problem.steps * len(task.theta),
        )
