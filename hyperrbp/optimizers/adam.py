"""Adam on the hypergradient: run, differentiate, take one step, again (paper, section 5.3)."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hyperrbp.exceptions import DivergedError
from hyperrbp.hypergradients.method import Status
from hyperrbp.hypergradients.settings import GradientSettings
from hyperrbp.optimizers.base import (
    Evaluation,
    Objective,
    Optimizer,
    OptimizerState,
    inner_run,
    minimize,
)
from hyperrbp.problems.base import Problem
from hyperrbp.runtime.metering import PhaseMeter

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AdamSettings:
    """``steps`` updates of θ at ``learning_rate``, times ``decay`` from ``decay_from`` on.

    Where something turns non-finite, Adam goes back to the best θ and takes half the steps from
    there on, at most ``max_rollbacks`` times; then it stops.
    """

    steps: int = 30
    learning_rate: float = 0.05
    decay: float = 1.0
    decay_from: int = 0
    max_rollbacks: int = 0
    patience: int | None = None
    """End early once the best meta loss is so many meta steps old; None: never."""


@dataclass
class AdamState(OptimizerState):
    """Where Adam stands: ``meta_step`` updates of θ have been made."""

    first_moment: Tensor = field(init=False)
    second_moment: Tensor = field(init=False)
    adam_steps: int = 0
    """Updates since Adam began; it begins anew after a rollback."""
    at_end: bool = field(default=False, metadata={"saved": False})
    """Whether the last evaluation has been made; it is made again by a run that is resumed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.first_moment = torch.zeros_like(self.theta)
        self.second_moment = torch.zeros_like(self.theta)

    @property
    def updates(self) -> int:
        """The updates of θ so far."""
        return self.meta_step


MethodSelector = Callable[[AdamState, Problem], GradientSettings]
"""Settles how to differentiate at ``state.theta``; may leave a note in ``state.choice``."""


class Adam(Optimizer[AdamState]):
    """Adam (Kingma and Ba 2015) on θ, one hypergradient an update.

    Evaluation n is at θ after n updates: 0 is the untuned start. There are ``settings.steps`` + 1
    of them; the last one has no gradient.

    Args:
        gradient: how to differentiate, or who settles it before each update.
        settings: how many updates, and how long.
        seed: of what the gradient method samples.
    """

    state_class = AdamState

    def __init__(
        self,
        gradient: GradientSettings | MethodSelector | None = None,
        settings: AdamSettings | None = None,
        *,
        seed: int = 0,
    ) -> None:
        self._gradient = gradient or GradientSettings()
        self._settings, self._seed = settings or AdamSettings(), seed

    def step(self, objective: Objective, state: AdamState) -> Evaluation | None:
        """Evaluate at ``state.theta``, and make the update that its gradient asks for.

        Raises:
            DivergedError: before anything that is not finite reaches θ; the state keeps the last
                finite θ and the best one, whose loss and gradient were finite.
        """
        while not self._ended(state):
            problem = inner_run(objective, state.meta_step)
            try:
                return self._evaluate(problem, state)
            except DivergedError as error:
                self._roll_back(state, error)
        return None

    def _ended(self, state: AdamState) -> bool:
        patience, steps = self._settings.patience, self._settings.steps
        # The update to come is not one of them: so a resumed run stops where it had stopped.
        impatient = patience is not None and state.meta_step - 1 - state.best_step >= patience
        return impatient or state.meta_step > steps or (state.at_end and state.meta_step == steps)

    def _evaluate(self, problem: Problem, state: AdamState) -> Evaluation:
        n, at = state.meta_step, state.theta
        meter = PhaseMeter(at.device)
        result, settings = None, None
        if n < self._settings.steps:
            if isinstance(self._gradient, GradientSettings):
                settings = self._gradient
            else:
                with meter.phase("choice"):
                    settings = self._gradient(state, problem)
            result = settings.hypergradient(problem, at, seed=self._seed, step=n, phase=meter.phase)
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
                self._update(state, result.gradient)
        state.at_end = result is None
        return Evaluation(
            n,
            float(loss),
            at,
            problem,
            problem.steps,
            hypergradient=result,
            settings=settings,
            seconds=meter.seconds,
            peak_bytes=meter.peak_bytes,
        )

    def _roll_back(self, state: AdamState, error: DivergedError) -> None:
        """Return to the best θ, with Adam as at its start and half the steps from now on.

        Raises:
            DivergedError: if that has been done often enough, or there is nowhere to go back to.
        """
        if len(state.rollbacks) >= self._settings.max_rollbacks or math.isinf(state.best_loss):
            times = f", after {len(state.rollbacks)} rollbacks" if state.rollbacks else ""
            raise DivergedError(f"{error}{times}") from error
        back = {"meta_step": state.meta_step, "reason": str(error), "to_meta_step": state.best_step}
        state.rollbacks = [*state.rollbacks, back]
        state.theta, state.adam_steps = state.best_theta.clone(), 0
        state.first_moment = torch.zeros_like(state.theta)
        state.second_moment = torch.zeros_like(state.theta)
        log.warning(
            "%s; back to the best hyperparameters, those of meta step %d, with meta steps of %g"
            " times their length",
            error,
            state.best_step,
            0.5 ** len(state.rollbacks),
        )

    def _update(self, state: AdamState, gradient: Tensor) -> None:
        """Take one step of Adam; a θ that is not finite never reaches the state."""
        n, settings = state.meta_step, self._settings
        theta = state.theta.clone().requires_grad_()
        decay = settings.decay if n >= settings.decay_from else 1.0
        rate = settings.learning_rate * decay * 0.5 ** len(state.rollbacks)
        adam = torch.optim.Adam([theta], lr=rate)
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


def descend(
    objective: Objective,
    theta: Tensor | AdamState,
    gradient: GradientSettings | MethodSelector | None = None,
    settings: AdamSettings | None = None,
    *,
    seed: int = 0,
) -> Iterator[Evaluation]:
    """Descend the meta loss by Adam, yielding ``settings.steps`` + 1 evaluations of it.

    When an evaluation is yielded, the update that its gradient asks for has been made; a state
    given as ``theta`` is updated in place and can be saved then.

    Args:
        objective: what is run, or a function from the meta step to what is run there.
        theta: the start, shape (p,), or a state to go on from.
        gradient: how to differentiate, or who settles it before each update.
        settings: how many updates, and how long.
        seed: of what the gradient method samples.

    Raises:
        DivergedError: see ``Adam.step``.
    """
    adam = Adam(gradient, settings, seed=seed)
    state = theta if isinstance(theta, AdamState) else adam.init(theta)
    yield from minimize(adam, objective, state)


def _require_finite(what: str, values: Tensor, meta_step: int) -> None:
    if not bool(values.isfinite().all()):
        raise DivergedError(f"meta step {meta_step}: the {what} is not finite")
