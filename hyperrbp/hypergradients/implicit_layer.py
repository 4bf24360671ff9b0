"""The steady state of a recurrent map as a layer: forward iterates it, backward differentiates it.

For networks with a convergent part that are trained in an ordinary loop, by ``loss.backward()``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hyperrbp.exceptions import UsageError
from hyperrbp.hypergradients import Averaging, Method, chosen_method, make_task
from hyperrbp.hypergradients.method import Run, Status, Task, largest_last
from hyperrbp.problems.base import Sensitivity
from hyperrbp.problems.fixed_point import FixedPoint, Flattened, Parameters, Structure, Update


@dataclass
class Diagnosis:
    """How a backward pass went; one that is given to ``steady_state`` is filled by it."""

    status: Status | None = None
    """How the gradient came to its end; None before the first backward pass."""
    residuals: list[list[float]] = field(default_factory=list)
    """One residual trace a solve."""
    products: int = 0
    """Jacobian products spent."""
    steady_state_residual: float | None = None
    """‖h_T − F(h_T)‖ / ‖h_T‖: zero at a fixed point."""

    @property
    def residual(self) -> float | None:
        """Return the largest last residual of the solves; None if there were none."""
        return largest_last(self.residuals)


def steady_state(
    F: Update,
    h0: Tensor,
    params: Parameters,
    x: Any = None,
    method: str | Method = "neumann",
    steps: int = 20,
    *,
    updates: int = 100,
    settled: float = 0.0,
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
    diagnosis: Diagnosis | None = None,
) -> Tensor:
    """Return h_T of h ← F(h, params, x), differentiable by ``backward()`` without unrolling.

    With an implicit method the memory grows neither with T nor with K. The gradient reaches
    ``params`` and ``x``; a steady state does not depend on where it was approached from, so none
    reaches ``h0``. It can be differentiated once, not twice.

    Args:
        F: the map, from a state of any shape to one of that shape. Whatever it is to be
            differentiated with respect to has to come in by ``params`` or ``x``.
        h0: the state to begin with.
        params: a tensor, or a list or mapping of tensors; F gets them in the same form.
        x: whatever else F takes; the gradient reaches a tensor, and those in a list or mapping.
        method: ``neumann``, ``rbp``, ``cg``, ``tbptt``, ``bptt``, or a method object.
        steps: K; how it counts for each method is stated in ``hyperrbp.hypergradients.method``.
        updates: T.
        settled: the relative change of the state at which the remaining updates are taken as done;
            see ``hyperrbp.problems.fixed_point.FixedPoint``.
        options: of a method given by name.
        seed: of what the method samples (the first guess of ``rbp``).
        diagnosis: filled by the backward pass.

    Returns:
        h_T, in the shape of ``h0``.

    Raises:
        UsageError: for a gradient that would be lost (``h0`` requires one, or F depends on a tensor
            that does and is in neither of the two), and for arguments that make no sense.
    """
    if h0.requires_grad and torch.is_grad_enabled():
        raise UsageError(
            "h0 requires a gradient, but a steady state does not depend on where it was approached"
            " from: pass h0.detach(), and what it depends on as x"
        )
    if steps < 1:
        raise UsageError(f"steps, the truncation K, is at least 1, not {steps}")
    if updates < 1:
        raise UsageError(f"a steady state takes at least 1 update, not {updates}")
    chosen, arguments = chosen_method(method, options), _Arguments(params, x)
    needed = chosen.steps_needed(steps, Averaging())
    if needed > updates:
        raise UsageError(
            f"{chosen.name} with steps = {steps} differentiates {needed} updates; there are only"
            f" {updates}"
        )

    def update(h: Tensor, wanted: Sequence[Tensor], _: Any) -> Tensor:
        return F(h, *arguments.filled(wanted))

    problem = FixedPoint(update, h0, arguments.wanted or [h0], updates=updates, settled=settled)
    if torch.is_grad_enabled():
        _refuse_lost_gradients(problem)
        if arguments.wanted:
            backward = _Backward(problem, chosen, steps, seed, diagnosis)
            h = _SteadyState.apply(
                backward, len(arguments.wanted), *arguments.wanted, *arguments.held, h0
            )
            return problem.shaped(h)
    with torch.no_grad():
        h = problem.run(problem.initial_theta(), 0, updates, problem.initial_state())
    return problem.shaped(h)


class _Arguments:
    """Which tensors of params and x are to have a gradient, and how to put others there."""

    def __init__(self, params: Parameters, x: Any) -> None:
        self._params, self._x = Structure(params), Structure(x)
        leaves = self._params.leaves
        if not leaves or not all(isinstance(leaf, Tensor) for leaf in leaves):
            raise UsageError("params are a tensor, or a non-empty list or mapping of tensors")
        whole = [*self._params.leaves, *self._x.leaves]
        tensors = {i: leaf for i, leaf in enumerate(whole) if isinstance(leaf, Tensor)}
        self._at = [i for i, tensor in tensors.items() if tensor.requires_grad]
        self._whole = [leaf.detach() if i in tensors else leaf for i, leaf in enumerate(whole)]
        self.wanted = [whole[i] for i in self._at]
        self.held = [self._whole[i] for i, tensor in tensors.items() if not tensor.requires_grad]
        """Tensors that F reads again on the way back, and that must not change until then."""

    def filled(self, wanted: Sequence[Tensor]) -> tuple[Any, Any]:
        """Return (params, x) with these in place of those that are wanted."""
        whole = list(self._whole)
        for i, tensor in zip(self._at, wanted, strict=False):  # there may be none wanted
            whole[i] = tensor
        split = len(self._params.leaves)
        return self._params.arrange(whole[:split]), self._x.arrange(whole[split:])


def _refuse_lost_gradients(problem: FixedPoint) -> None:
    """Check that one update on constants is a constant."""
    with torch.enable_grad():
        image = problem.step(problem.initial_state(), problem.initial_theta(), None)
    if image.requires_grad:
        raise UsageError(
            "F depends on a tensor that requires a gradient and is neither in params nor in x: it"
            " would get none; pass it in params"
        )


@dataclass
class _Backward:
    """What the backward pass needs besides the tensors."""

    problem: FixedPoint
    method: Method
    trunc: int
    seed: int
    diagnosis: Diagnosis | None

    def task(self, theta: Tensor) -> Task:
        """Make it anew for every pass, so that each samples the same numbers."""
        return make_task(self.problem, theta, self.method, self.trunc, seed=self.seed)

    def __call__(self, theta: Tensor, run: Run, g: Tensor) -> Tensor:
        """Return dL/dθ from g = ∂L/∂h, shape (p,)."""
        sensitivity = Sensitivity(self.problem, run.state, theta)
        found = self.method.differentiate(self.task(theta), run, g, sensitivity)
        if self.diagnosis is not None:
            self.diagnosis.status = found.status
            self.diagnosis.residuals = found.residuals
            self.diagnosis.products = found.products
            self.diagnosis.steady_state_residual = sensitivity.steady_state_residual()
        return found.gradient


class _SteadyState(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, backward: _Backward, wanted: int, *tensors: Tensor) -> Tensor:
        theta = Flattened(tensors[:wanted]).vector().detach()
        ctx.backward_pass, ctx.wanted = backward, wanted
        ctx.run = backward.method.run(backward.task(theta))
        ctx.save_for_backward(*tensors)  # PyTorch refuses them if they change before the way back
        state: Tensor = ctx.run.state.clone()
        return state

    @staticmethod
    def backward(ctx: Any, *along: Tensor) -> tuple[Tensor | None, ...]:
        (g,) = along
        if torch.is_grad_enabled():
            raise UsageError("a steady state can be differentiated once, not twice (create_graph)")
        wanted = Flattened(ctx.saved_tensors[: ctx.wanted])
        others = len(ctx.saved_tensors) - ctx.wanted
        theta = wanted.vector().detach()
        backward: _Backward = ctx.backward_pass
        # What a run kept is used up by one way back; a second one, of a retained graph, runs again.
        run = ctx.run or backward.method.run(backward.task(theta))
        ctx.run = Run(run.state) if run.kept is None else None
        gradients = wanted.split(backward(theta, run, g.contiguous()))
        return (None, None, *gradients, *[None] * others)
