"""The base of methods that solve (I − Jᵀ) z = ∂L/∂h at the last state (eq. 8-9)."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar

from hyperrbp.exceptions import UsageError
from hyperrbp.hypergradients.method import (
    Averaging,
    Gradient,
    Horizon,
    Method,
    Run,
    Solution,
    Status,
    Task,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from hyperrbp.problems.base import Jacobian, Sensitivity


class ImplicitMethod(Method):
    """A solver of (I − Jᵀ) z = ∂L/∂h at the last state (eq. 9): all else is shared.

    The run keeps no graph and no trajectory.
    """

    horizon = Horizon.STATE
    estimators: ClassVar[tuple[str, ...]] = ("resampled", "frozen", "mean")

    def solve(
        self, jacobian: Jacobian, g: Tensor, trunc: int, generator: torch.Generator
    ) -> Solution:
        """Return z with (I − Jᵀ) z ≈ g, from at most ``trunc`` steps; ``g`` is left as it is."""
        scale = float(g.norm())
        if scale == 0:
            return Solution(g.clone(), [0.0], Status.CONVERGED, 0)
        return self._iterate(jacobian, g, scale, trunc, generator)

    @abstractmethod
    def _iterate(
        self, jacobian: Jacobian, g: Tensor, scale: float, trunc: int, generator: torch.Generator
    ) -> Solution:
        """Solve for a g of norm ``scale`` > 0."""

    def run(self, task: Task) -> Run:
        """Run all updates without a graph, and keep the last state only."""
        return Run(task.problem.last_state(task.theta))

    def differentiate(self, task: Task, run: Run, g: Tensor, sensitivity: Sensitivity) -> Gradient:
        """Solve at h_T and multiply by ∂F/∂θ (eq. 8)."""
        from hyperrbp.hypergradients.averaging import estimate, mean_and_standard_error

        samples = estimate(
            self._estimator(task.averaging),
            task,
            run.state,
            sensitivity,
            solve=lambda jacobian: self.solve(jacobian, g, task.trunc, task.generator),
        )
        mean, error = mean_and_standard_error([sample.gradient for sample in samples])
        return Gradient(
            gradient=mean,
            standard_error=error,
            samples=len(samples),
            residuals=[sample.residuals for sample in samples],
            status=Status.worst([sample.status for sample in samples]),
            products=sum(sample.products for sample in samples),
        )

    def _estimator(self, averaging: Averaging) -> str:
        name = self.estimator(averaging)
        if name not in self.estimators:
            raise UsageError(
                f"{self.name} cannot take the '{name}' estimator; it takes"
                f" {' or '.join(self.estimators)}"
                + (", since it needs one fixed Jacobian" if self.fixed_operator else "")
            )
        return name


def series_status(norms: list[float], tolerance: float) -> Status:
    """Return the status of a series or fixed-point iteration, from the norms of its terms.

    Growing means that over the second half of the terms the geometric mean of their growth is
    above one. ``norms`` are relative to the first term.
    """
    if not all(norm < float("inf") for norm in norms):  # NaN compares false
        return Status.NON_FINITE
    if norms[-1] <= tolerance:
        return Status.CONVERGED
    return Status.GROWING if norms[-1] > norms[len(norms) // 2] else Status.TRUNCATED
