"""What all optimizers of hyperparameters have in common: a protocol, a state, an evaluation."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Generic, Self, TypeVar

from torch import Tensor

from hyperrbp.hypergradients import Hypergradient
from hyperrbp.hypergradients.settings import GradientSettings
from hyperrbp.problems.base import Problem

Objective = Problem | Callable[[int], Problem]
"""The inner run whose last loss is made small; or a function from the meta step to that run."""


def inner_run(objective: Objective, meta_step: int) -> Problem:
    """Return the inner run of a meta step."""
    return objective if isinstance(objective, Problem) else objective(meta_step)


@dataclass(frozen=True)
class Evaluation:
    """The loss of one inner run at one θ, and how it came about."""

    meta_step: int
    """The number of complete evaluations before this one."""
    meta_loss: float
    """After ``training_steps``; not finite if the run diverged."""
    theta: Tensor
    """Shape (p,)."""
    problem: Problem
    training_steps: int
    """Fewer than T if the run was ended early."""
    pruned: bool = False
    """Whether the run was ended early, for being unpromising."""
    source: str | None = None
    """What proposed θ, where several parts of an optimizer may: ``screening``, ``gradient``, …"""
    hypergradient: Hypergradient | None = None
    """At θ; None where none was taken."""
    settings: GradientSettings | None = None
    """How the hypergradient was taken."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """By phase, since the complete evaluation before this one."""
    peak_bytes: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """By phase, of what is measured."""

    @property
    def complete(self) -> bool:
        """Whether the run came to its end with a finite loss."""
        return not self.pruned and math.isfinite(self.meta_loss)


@dataclass
class OptimizerState:
    """Where an optimizer stands: all that it needs to go on, bit for bit.

    A field with the metadata ``{"saved": False}`` is a cache: it may be lost without consequence.
    """

    theta: Tensor
    """The θ of the next evaluation, or the last one that was proposed; shape (p,)."""
    meta_step: int = 0
    """Complete evaluations so far; see each optimizer for the last one."""
    best_step: int = 0
    best_loss: float = math.inf
    best_theta: Tensor = field(init=False)
    rollbacks: list[Mapping[str, Any]] = field(default_factory=list)
    """At which meta step it went back, why, and to the θ of which one."""
    choice: Mapping[str, Any] | None = None
    """The gradient method that was last chosen, where one is chosen on the way."""
    gradient_information: Mapping[str, Any] | None = None
    """How the gradient that it follows was found, where that was at an earlier evaluation."""

    def __post_init__(self) -> None:
        self.best_theta = self.theta.clone()

    @property
    def updates(self) -> int:
        """The updates of θ so far: the first evaluation is at the start."""
        return max(0, self.meta_step - 1)

    @property
    def given_up(self) -> int:
        """The runs that were not taken to their end, or diverged."""
        return 0

    def state_dict(self) -> dict[str, Any]:
        """Return plain numbers; a float32 survives its journey through a double exactly."""
        return {f.name: _plain(getattr(self, f.name)) for f in _saved(self)}

    @classmethod
    def from_state_dict(cls, content: Mapping[str, Any], like: Tensor) -> Self:
        """Restore what ``state_dict`` returned, in the dtype and on the device of ``like``.

        Raises:
            KeyError, TypeError, ValueError: if the content is not of this version.
        """
        state = cls(like.new_tensor(content["theta"]))
        for f in _saved(state):
            setattr(state, f.name, _restored(getattr(state, f.name), content[f.name], like))
        return state


def _saved(state: OptimizerState) -> Iterator[Any]:
    return (f for f in fields(state) if f.metadata.get("saved", True))


def _plain(value: Any) -> Any:
    """Return numbers as JSON knows them: null stands for infinity."""
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and math.isinf(value) else value


def _restored(default: Any, value: Any, like: Tensor) -> Any:
    if isinstance(default, Tensor):
        return like.new_tensor(value)
    if isinstance(default, bool):
        return value
    if isinstance(default, int):
        return int(value)
    if isinstance(default, float):
        return math.inf if value is None else float(value)
    return list(value) if isinstance(default, list) else value


State = TypeVar("State", bound=OptimizerState)


class Optimizer(ABC, Generic[State]):
    """Proposes θ, has the loss evaluated there, and learns from it.

    An optimizer holds settings only. Where it stands is in its state, which belongs to one run.
    """

    state_class: type[State]

    def init(self, theta: Tensor) -> State:
        """Return the state at a start θ, shape (p,)."""
        return self.state_class(theta.detach().clone())

    def restore(self, content: Mapping[str, Any], like: Tensor) -> State:
        """Return the state whose ``state_dict`` is given; see ``OptimizerState``."""
        return self.state_class.from_state_dict(content, like)

    @abstractmethod
    def step(self, objective: Objective, state: State) -> Evaluation | None:
        """Evaluate once more and update the state in place; None if there is nothing left to do.

        When an evaluation is returned, the state can be saved, and knows of it.

        Raises:
            DivergedError: if something is not finite and there is no way on; the state then keeps
                the last finite θ and the best one.
        """


def minimize(
    optimizer: Optimizer[State], objective: Objective, state: State
) -> Iterator[Evaluation]:
    """Yield the evaluations of an optimizer until it ends; the state goes along."""
    while (evaluation := optimizer.step(objective, state)) is not None:
        yield evaluation
