"""Truncated back-propagation through time: the last K updates (section 1; appendix B, eq. 6)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

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
class Tbptt(Method):
    """Differentiates the K updates before each of the last M states, and takes the mean.

    One linearization is kept for each of the last K + M − 1 updates, and M adjoints: memory is
    linear in K + M.
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
        import torch

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
            # Row j of the adjoints belongs to the j-th end point from the last. Going back, a row
            # joins at its end point and leaves K updates later; an update serves all at once.
            gradients = theta.new_zeros(averaging.minibatches, len(theta))
            adjoints = h.new_zeros(0, len(h))
            last, left, losses = len(window), 0, []
            for after in range(last, 0, -1):  # the window's updates up to the state at hand
                update = window.pop()
                if after >= trunc:
                    loss, g = problem.loss_and_gradient(update.image)
                    losses.append(loss)
                    adjoints = torch.cat([adjoints, g[None]])
                adjoints, along_theta = update.both_transposed(adjoints)
                gradients[left : left + len(adjoints)] += along_theta
                if last - left == after + trunc - 1:
                    adjoints, left = adjoints[1:], left + 1
            mean, error = mean_and_standard_error(list(gradients))
            at_end = Sensitivity(problem, h, theta)
            return Hypergradient(
                gradient=mean,
                standard_error=error,
                samples=averaging.minibatches,
                loss=losses[0],
                state=h,
                residuals=[],
                status=self._status(problem, trunc, mean),
                products=trunc * averaging.minibatches,
                structurally_zero=at_end.structurally_zero(generator),
                steady_state_residual=at_end.steady_state_residual(),
            )

    @staticmethod
    def _status(problem: Problem, trunc: int, gradient: Tensor) -> Status:
        if not gradient.isfinite().all():
            return Status.NON_FINITE
        return Status.EXACT if trunc == problem.steps else Status.TRUNCATED
