"""How the loss on the last state is differentiated: one file a method, one line in METHODS.

A method takes of a problem F, its products and the loss gradient, and knows of nothing else.
It may import problems, data and runtime; diagnostics/, below it, says what a gradient is worth.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

from hyperrbp.exceptions import UsageError
from hyperrbp.hypergradients.method import (
    Averaging,
    Horizon,
    Hypergradient,
    Method,
    Phase,
    Task,
    unmetered,
)
from hyperrbp.runtime.suggestions import did_you_mean

if TYPE_CHECKING:
    from torch import Tensor

    from hyperrbp.problems.base import Problem

# Import paths rather than classes: a recipe is validated without importing any numerics.
METHODS: dict[str, str] = {
    "bptt": "hyperrbp.hypergradients.bptt:Bptt",
    "tbptt": "hyperrbp.hypergradients.tbptt:Tbptt",
    "rbp": "hyperrbp.hypergradients.rbp:Rbp",
    "cg": "hyperrbp.hypergradients.cg:ConjugateGradient",
    "neumann": "hyperrbp.hypergradients.neumann:Neumann",
    "forward": "hyperrbp.hypergradients.forward:Forward",
    "lsqr": "hyperrbp.hypergradients.lsqr:Lsqr",
    "gmres": "hyperrbp.hypergradients.gmres:Gmres",
    "anderson": "hyperrbp.hypergradients.anderson:Anderson",
}


def method_class(name: str) -> type[Method]:
    """Return the class registered under a name.

    Raises:
        UsageError: if there is none, with the nearest name.
    """
    if name not in METHODS:
        hint = did_you_mean(name, METHODS)
        raise UsageError(f"unknown gradient method '{name}'; there are {', '.join(METHODS)}{hint}")
    module, attribute = METHODS[name].split(":")
    return cast(type[Method], getattr(import_module(module), attribute))


def hypergradient(
    problem: Problem,
    theta: Tensor,
    method: str | Method = "neumann",
    *,
    trunc: int = 50,
    averaging: Averaging | None = None,
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
    step: int = 0,
    phase: Phase = unmetered,
) -> Hypergradient:
    """Run ``problem`` at ``theta`` and differentiate the loss of its last state.

    Args:
        problem: what is run; its state has shape (n,).
        theta: the parameters, shape (p,).
        method: a registered name, or a method object.
        trunc: K; how it counts for each method is stated in ``hyperrbp.hypergradients.method``.
        averaging: over which minibatches; the default uses the last one only.
        options: keyword arguments of the method, when it is given by name.
        seed: of what a method samples (the first guess of RBP).
        step: the meta step: each samples anew.
        phase: opened around ``inner run`` and ``meta-gradient``, for a meter.

    Raises:
        UsageError: for an unknown method or option, a run too short for what is asked, or a method
            that would not see what θ does in it.
    """
    chosen = chosen_method(method, options)
    task = make_task(problem, theta, chosen, trunc, averaging, seed, step)
    refuse_blind(chosen, task)
    return run_and_differentiate(chosen, task, phase, refuse_blind)


def refuse_blind(method: Method, task: Task, last_state: Tensor | None = None) -> None:
    """Ask a problem whether a method can differentiate its run; and at its last state, if given.

    Raises:
        UsageError: if it cannot, with the reason.
    """
    updates = method.updates_seen(task.problem.steps, task.trunc)
    if last_state is None:
        task.problem.refuse_gradient(method.name, updates)
    elif not updates:
        task.problem.refuse_last_state(method.name, last_state)


def run_and_differentiate(
    method: Method,
    task: Task,
    phase: Phase = unmetered,
    examine: Callable[[Method, Task, Tensor], None] | None = None,
) -> Hypergradient:
    """Run a task and differentiate it, whatever the gradient is worth.

    ``examine`` is given the last state in between.
    """
    from hyperrbp.problems.base import Sensitivity

    problem, theta = task.problem, task.theta
    with phase("inner run"):
        run = method.run(task)
    if examine is not None:
        examine(method, task, run.state)
    with phase("meta-gradient"):
        loss, g = problem.loss_and_gradient(run.state)
        # But for implicit methods, ∂F/∂θ at the last state is there for its diagnosis alone.
        chunks = None if method.horizon is Horizon.STATE else problem.sample()
        sensitivity = Sensitivity(problem, run.state, theta, chunks)
        found = method.differentiate(task, run, g, sensitivity)
        return Hypergradient(
            **vars(found),
            loss=loss,
            state=run.state,
            structurally_zero=sensitivity.structurally_zero(task.generator),
            steady_state_residual=sensitivity.steady_state_residual(),
            trajectory_bytes=method.states_kept(problem.steps, len(theta)) * run.state.nbytes,
        )


def chosen_method(method: str | Method, options: Mapping[str, Any] | None = None) -> Method:
    """Return the method of a registered name with its options, or the object that is given.

    Raises:
        UsageError: for an unknown method or option.
    """
    if not isinstance(method, str):
        return method
    try:
        return method_class(method)(**(options or {}))
    except TypeError as error:
        raise UsageError(f"gradient method '{method}': {error}") from None


def make_task(
    problem: Problem,
    theta: Tensor,
    method: Method,
    trunc: int,
    averaging: Averaging | None = None,
    seed: int = 0,
    step: int = 0,
) -> Task:
    """Return what a method is to differentiate; see ``hypergradient``.

    Raises:
        UsageError: for a run too short for what is asked.
    """
    from hyperrbp.runtime.randomness import generator

    averaging = averaging or Averaging()
    if trunc < 1 or averaging.minibatches < 1 or averaging.series < 1:
        raise UsageError("trunc, minibatches and series are at least 1")
    needed = method.steps_needed(trunc, averaging)
    if needed > problem.steps:
        raise UsageError(
            f"{method.name} with trunc {trunc} over {averaging.minibatches} minibatches needs a run"
            f" of at least {needed} steps, not {problem.steps}"
        )
    return Task(problem, theta, trunc, averaging, generator(seed, method.name, step))


__all__ = [
    "METHODS",
    "Averaging",
    "Hypergradient",
    "Method",
    "chosen_method",
    "hypergradient",
    "make_task",
    "method_class",
    "refuse_blind",
    "run_and_differentiate",
]
