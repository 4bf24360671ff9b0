"""Back-propagation through time: the exact gradient of the whole run (the paper's reference)."""

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
class Bptt(Method):
    """Unrolls all T updates in one autograd graph and walks it back; memory is linear in T."""

    name = "bptt"

    def __call__(
        self,
        problem: Problem,
        theta: Tensor,
        trunc: int,
        averaging: Averaging,
        generator: torch.Generator,
        phase: Phase = unmetered,
    ) -> Hypergradient:
        """Run with a graph, then differentiate through all of it."""
        import torch

        from hyperrbp.dynamics import Sensitivity

        with phase("inner run"), torch.enable_grad():
            theta = theta.detach().requires_grad_()
            # The state carries a gradient from the start, so that every update is differentiated
            # twice and costs the same.
            h = problem.initial_state().detach().requires_grad_()
            for t in range(problem.steps):
                h = problem.step(h, theta, problem.input(t))
        with phase("meta-gradient"):
            loss, g = problem.loss_and_gradient(h.detach())
            (gradient,) = torch.autograd.grad(h, theta, g, materialize_grads=True)
            at_end = Sensitivity(problem, h, theta, problem.population())
            return Hypergradient(
                gradient=gradient,
                standard_error=None,
                samples=1,
                loss=loss,
                state=h.detach(),
                residuals=[],
                status=Status.EXACT if gradient.isfinite().all() else Status.NON_FINITE,
                products=problem.steps,
                structurally_zero=at_end.structurally_zero(generator),
                steady_state_residual=at_end.steady_state_residual(),
            )
