"""The distance of the last state from a steady one, and what an implicit gradient then means."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hyperrbp.hypergradients.diagnostics.last_state import LastState
from hyperrbp.problems.base import Linearization
from hyperrbp.runtime.randomness import generator

AT_REST = 1e-6
"""‖h − F(h)‖/‖h‖ up to which the last state counts as a steady one."""


@dataclass(frozen=True)
class SteadyState:
    """The distance from a fixed point (eq. 2), and the parameters that F depends on there."""

    residual: float
    """‖h − F(h)‖ / ‖h‖, F averaged over its whole population of inputs."""
    minibatch_residual: float
    """The same with the input of the last update alone."""
    norms: Mapping[str, float]
    """Norms of the state; for a training run ‖w‖, ‖v‖ and ‖∇L‖."""
    structurally_zero: Mapping[str, list[str]]
    """By kind, the parameters that F does not depend on at h_T."""
    meaning: Mapping[str, str]
    """By kind of parameter, what an implicit gradient at h_T is about."""


def steady_state(at: LastState, seed: int = 0) -> SteadyState:
    """Measure the distance of a last state from a steady one."""
    problem, h = at.problem, at.h
    image = Linearization(problem, h, at.theta, problem.input(problem.steps - 1)).image
    residual = at.sensitivity.steady_state_residual()
    zero = at.sensitivity.structurally_zero(generator(seed, "structurally zero"))
    names = problem.by_name(zero)
    unfelt = {kind: [n for n, value in of.items() if value] for kind, of in names.items()}
    return SteadyState(
        residual=residual,
        minibatch_residual=float((image - h).norm() / h.norm()),
        norms=problem.norms(h),
        structurally_zero=unfelt,
        meaning={
            kind: _meaning(kind in problem.transient, len(unfelt[kind]) == len(of), residual)
            for kind, of in names.items()
        },
    )


def _meaning(transient: bool, unfelt: bool, residual: float) -> str:
    if unfelt:
        return "at the optimum: F does not feel it at the last state, so every such gradient is 0"
    if transient:
        return (
            "for this finite run: it does not move the steady state, and its implicit gradient"
            " fades as the run converges"
        )
    if residual <= AT_REST:
        return "at the optimum: it moves the steady state, and the run has reached it"
    return "for this finite run: it moves the steady state, which the run has not reached"
