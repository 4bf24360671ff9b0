"""The meta loop: run, differentiate, take one step of Adam, again (section 5.3)."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hyperrbp.exceptions import DivergedError
from hyperrbp.hypergradients import Hypergradient
from hyperrbp.hypergradients.method import Status
from hyperrbp.hypergradients.settings import GradientSettings
from hyperrbp.problems.base import Problem
from hyperrbp.runtime.metering import PhaseMeter

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MetaSettings:
    """Adam on θ: ``steps`` updates at ``learning_rate``, times ``decay`` from ``decay_from`` on.

    Where something turns non-finite, it goes back to the best θ and takes half the steps from there
    on, at most ``max_rollbacks`` times; then it stops.
    """

    steps: int = 30
    learning_rate: float = 0.05
    decay: float = 1.0
    decay_from: int = 0
    max_rollbacks: int = 0
    patience: int | None = None
    """It ends early once the best meta loss is so many meta steps old."""


@dataclass
class MetaState:
    """Where the meta loop stands: all that is needed to go on, bit for bit."""

    theta: Tensor
    meta_step: int = 0
    first_moment: Tensor = field(init=False)
    second_moment: Tensor = field(init=False)
    best_step: int = 0
    best_loss: float = math.inf
    best_theta: Tensor = field(init=False)
    adam_steps: int = 0
    """Updates since Adam began; it begins anew after a rollback."""
    rollbacks: list[Mapping[str, Any]] = field(default_factory=list)
    """At which meta step, why, and to the θ of which one."""
    choice: Mapping[str, Any] | None = None
    """What a :data:`Chooser` last chose, as it wants to remember it."""

    def __post_init__(self) -> None:
        self.first_moment = torch.zeros_like(self.theta)
        self.second_moment = torch.zeros_like(self.theta)
        self.best_theta = self.theta.clone()

    def to_json(self) -> dict[str, Any]:
        """Plain numbers; a float32 survives its journey through a double exactly."""
        return {
            "meta_step": self.meta_step,
            "theta": self.theta.tolist(),
            "first_moment": self.first_moment.tolist(),
            "second_moment": self.second_moment.tolist(),
            "best_step": self.best_step,
            "best_loss": None if math.isinf(self.best_loss) else self.best_loss,
            "best_theta": self.best_theta.tolist(),
            "adam_steps": self.adam_steps,
            "rollbacks": self.rollbacks,
            "choice": self.choice,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any], like: Tensor) -> MetaState:
        """What :meth:`to_json` wrote, in the dtype and on the device of ``like``."""
        state = cls(like.new_tensor(content["theta"]), int(content["meta_step"]))
        state.first_moment = like.new_tensor(content["first_moment"])
        state.second_moment = like.new_tensor(content["second_moment"])
        state.best_step = int(content["best_step"])
        best = content["best_loss"]
        state.best_loss = math.inf if best is None else float(best)
        state.best_theta = like.new_tensor(content["best_theta"])
        state.adam_steps = int(content["adam_steps"])
        state.rollbacks = list(content["rollbacks"])
        state.choice = content["choice"]
        return state


Chooser = Callable[[MetaState, Problem], GradientSettings]
"""Settles how to differentiate at ``state.theta``; may leave a note in ``state.choice``."""


@dataclass(frozen=True)
class MetaStep:
    """One evaluation of the meta loss, and its gradient there (None after the last update)."""

    meta_step: int
    meta_loss: float
    theta: Tensor
    hypergradient: Hypergradient | None
    settings: GradientSettings | None
    """How it was differentiated."""
    problem: Problem
    seconds: Mapping[str, float]
    peak_bytes: Mapping[str, Mapping[str, int]]
    source: str | None = None
    """What proposed it, where there are several that may."""


def descend(
    problem: Problem | Callable[[int], Problem],
    theta: Tensor | MetaState,
    gradient: GradientSettings | Chooser | None = None,
    meta: MetaSettings | None = None,
    *,
    seed: int = 0,
) -> Iterator[MetaStep]:
    """Descend the meta loss, yielding ``meta.steps`` + 1 evaluations of it.

    Evaluation n is at θ after n updates: 0 is the untuned start. When one is yielded, the update
    that its gradient asks for has been made; a :class:`MetaState` given as ``theta`` is updated in
    place and can be saved then.

    Args:
        problem: what is run, or a function from the meta step to what is run there.
        theta: the start, shape (p,), or a state to go on from.
        gradient: how to differentiate, or who settles it before each step.
        meta: how many steps of Adam, and how long.
        seed: of what the gradient method draws.

    Raises:
        DivergedError: before anything that is not finite reaches θ; the state keeps the last
            finite θ and the best one, of which loss and gradient were finite.
    """
    gradient, meta = gradient or GradientSettings(), meta or MetaSettings()
    state = theta if isinstance(theta, MetaState) else MetaState(theta.detach().clone())
    while state.meta_step <= meta.steps and not _out_of_patience(state, meta):
        n = state.meta_step
        now = problem if isinstance(problem, Problem) else problem(n)
        try:
            step = _step(now, state, gradient, meta, seed)
        except DivergedError as error:
            _roll_back(state, meta, error)
            continue
        yield step
        if n == meta.steps:
            return


def _step(
    problem: Problem,
    state: MetaState,
    gradient: GradientSettings | Chooser,
    meta: MetaSettings,
    seed: int,
) -> MetaStep:
    """One evaluation at ``state.theta``, and the update that its gradient asks for."""
    n, at = state.meta_step, state.theta
    meter = PhaseMeter(at.device)
    result, settings = None, None
    if n < meta.steps:
        if isinstance(gradient, GradientSettings):
            settings = gradient
        else:
            with meter.phase("choice"):
                settings = gradient(state, problem)
        result = settings.hypergradient(problem, at, seed=seed, step=n, phase=meter.phase)
        loss, h = result.loss, result.state
    else:
        with meter.phase("inner run"):
            h = problem.last_state(at)
            loss, _ = problem.loss_and_gradient(h)
    _require_finite("state of the inner run", h, n)
    _require_finite("meta loss", loss, n)
    if result is not None:
        _require_finite("hypergradient", result.gradient, n)
        if result.status is Status.NON_FINITE:  # a solver may have stopped short of it
            raise DivergedError(f"meta step {n}: the hypergradient is not finite")
    if float(loss) < state.best_loss:
        state.best_step, state.best_loss, state.best_theta = n, float(loss), at.clone()
    if result is not None:
        with meter.phase("meta step"):
            _update(state, result.gradient, meta)
    return MetaStep(n, float(loss), at, result, settings, problem, meter.seconds, meter.peak_bytes)


def _out_of_patience(state: MetaState, meta: MetaSettings) -> bool:
    # The step to come is not one of them: so a run that is resumed stops where it had stopped.
    return meta.patience is not None and state.meta_step - 1 - state.best_step >= meta.patience


def _roll_back(state: MetaState, meta: MetaSettings, error: DivergedError) -> None:
    """Stand at the best θ, with Adam as at its start; half a step is then left of a step.

    Raises:
        DivergedError: if that has been done often enough, or there is nowhere to go back to.
    """
    if len(state.rollbacks) >= meta.max_rollbacks or math.isinf(state.best_loss):
        times = f", after {len(state.rollbacks)} rollbacks" if state.rollbacks else ""
        raise DivergedError(f"{error}{times}") from error
    back = {"meta_step": state.meta_step, "reason": str(error), "to_meta_step": state.best_step}
    state.rollbacks = [*state.rollbacks, back]
    state.theta, state.adam_steps = state.best_theta.clone(), 0
    state.first_moment = torch.zeros_like(state.theta)
    state.second_moment = torch.zeros_like(state.theta)
    log.warning(
        "%s; back to the best hyperparameters, those of meta step %d, with meta steps of %g times"
        " their length",
        error,
        state.best_step,
        0.5 ** len(state.rollbacks),
    )


def _update(state: MetaState, gradient: Tensor, meta: MetaSettings) -> None:
    """One step of Adam, and the state after it; a θ that is not finite never reaches the state."""
    n = state.meta_step
    theta = state.theta.clone().requires_grad_()
    decay = meta.decay if n >= meta.decay_from else 1.0
    adam = torch.optim.Adam([theta], lr=meta.learning_rate * decay * 0.5 ** len(state.rollbacks))
    adam.state[theta] = {
        "step": torch.tensor(float(state.adam_steps)),
        "exp_avg": state.first_moment.clone(),
        "exp_avg_sq": state.second_moment.clone(),
    }
    theta.grad = gradient
    adam.step()
    _require_finite("hyperparameters after the update", theta.detach(), n)
    moments = adam.state[theta]
    _require_finite("square of the hypergradient", moments["exp_avg_sq"], n)
    state.theta, state.meta_step = theta.detach().clone(), n + 1
    state.adam_steps += 1
    state.first_moment, state.second_moment = moments["exp_avg"], moments["exp_avg_sq"]


def _require_finite(what: str, values: Tensor, meta_step: int) -> None:
    if not bool(values.isfinite().all()):
        raise DivergedError(f"meta step {meta_step}: the {what} is not finite")
