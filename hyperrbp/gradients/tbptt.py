"""Truncated back-propagation through time: the last K updates (section 1; appendix B, eq. 6)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hyperrbp.gradients.method import Hypergradient, Method, Phase, Status, unmetered

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from hyperrbp.dynamics import Problem
    from hyperrbp.gradients.averaging import Averaging


@dataclass(frozen=True)
class Tbptt(Method):
    """Differentiates the K updates before each of the last M states, and takes the mean.

    One linearization is kept for each of the last K + M − 1 updates, so memory is linear in K + M.
    """

    name = "tbptt"
    estimators = ("end-points",)

    def steps_needed(self, trunc: int, averaging: Averaging) -> int:
        """K updates before the first of M end points."""
        return trunc + averaging.minibatches - 1

    def __call__(
        self,
        problem: Problem,
        theta: Tensor,
        trunc: int,
        averaging: Averaging,
        generator: torch.Generator,
        phase: Phase = unmetered,
    ) -> Hypergradient:
        """Run without a graph up to the window, with one through it, and walk back."""
        from hyperrbp.dynamics import Linearization, Sensitivity
        from hyperrbp.gradients.averaging import mean_and_standard_error

        first = problem.steps - self.steps_needed(trunc, averaging)
        with phase("inner run"):
            h = problem.run(theta, 0, first, problem.initial_state())
            window: list[Linearization] = []
            for t in range(first, problem.steps):
                window.append(Linearization(problem, h, theta, problem.input(t)))
                h = window[-1].image
        with phase("meta-gradient"):
            gradients = []
            for end in range(trunc, len(window) + 1):
                loss, u = problem.loss_and_gradient(window[end - 1].image)
                gradient = theta.new_zeros(theta.shape)
                for update in reversed(window[end - trunc : end]):
                    u, along_theta = update.both_transposed(u)
                    gradient += along_theta
                gradients.append(gradient)
            mean, error = mean_and_standard_error(gradients)
            at_end = Sensitivity(problem, h, theta, problem.population())
            return Hypergradient(
                gradient=mean,
                standard_error=error,
                samples=len(gradients),
                loss=loss,
                state=h,
                residuals=[],
                status=self._status(problem, trunc, mean),
                products=trunc * len(gradients),
                structurally_zero=at_end.structurally_zero(generator),
                steady_state_residual=at_end.steady_state_residual(),
            )

    @staticmethod
    def _status(problem: Problem, trunc: int, gradient: Tensor) -> Status:
        if not gradient.isfinite().all():
            return Status.NON_FINITE
        return Status.EXACT if trunc == problem.steps else Status.TRUNCATED
