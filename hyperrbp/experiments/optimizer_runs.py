"""Who takes part in a contest: a way to tune, as a generator of events; and its turn of seconds.

What tunes is imported when its turn begins, in a process of its own.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from hyperrbp.config.recipe import ADAM, OptimizerName, Recipe
from hyperrbp.config.schema import not_one_of
from hyperrbp.exceptions import DivergedError, UsageError
from hyperrbp.optimizers import OPTIMIZERS
from hyperrbp.optimizers.optuna_samplers import SAMPLERS, check_installed

if TYPE_CHECKING:
    from torch import Tensor

    from hyperrbp.experiments.experiment import Experiment
    from hyperrbp.optimizers.base import Evaluation
    from hyperrbp.runtime.subprocesses import Report


@dataclass(frozen=True)
class OptimizerRun:
    """A way to tune the hyperparameters of an experiment."""

    sentence: str
    evaluations: Callable[[Experiment], Iterator[Evaluation]]
    sampler: str | None = None
    """What it takes of :mod:`hyperrbp.optimizers.optuna_samplers`."""


def _evaluations(name: str | None, experiment: Experiment) -> Iterator[Evaluation]:
    """Yield the evaluations of an optimizer, the recipe's own if not named, for as long as wanted.

    The first one is at the recipe's start, for a search too, or a screening begins with it.
    """
    from hyperrbp.experiments.meta_optimizer import ENDLESS, meta_optimizer
    from hyperrbp.optimizers.base import minimize

    if name in get_args(OptimizerName):
        experiment = _other(experiment, with_optimizer(experiment.recipe, str(name)))
    optimizer = meta_optimizer(experiment, name, steps=ENDLESS)
    return minimize(optimizer, experiment.problem, optimizer.init(experiment.theta))


def with_optimizer(recipe: Recipe, optimizer: str) -> Recipe:
    """The same recipe with another optimizer, and without what goes with Adam alone."""
    if optimizer == recipe.meta.optimizer:
        return recipe
    of_adam = {} if optimizer == ADAM else {"on_divergence": "stop", "decay": None}
    meta = recipe.meta.model_copy(update={"optimizer": optimizer, **of_adam})
    gradient = recipe.gradient
    if optimizer != ADAM:
        gradient = gradient.model_copy(update={"check_every": 0})
    return recipe.model_copy(update={"meta": meta, "gradient": gradient})


def _other(experiment: Experiment, recipe: Recipe) -> Experiment:
    """The same experiment under a recipe with the same inner run."""
    other = copy(experiment)
    other.recipe = recipe
    return other


OURS = "hyperrbp"
"""Whom the others are held against."""

OPTIMIZER_RUNS: dict[str, OptimizerRun] = {
    OURS: OptimizerRun("the recipe's own tuning", partial(_evaluations, None)),
    **{
        name: OptimizerRun(
            f"ours with meta.optimizer: {name}" if name not in SAMPLERS else sentence,
            partial(_evaluations, name),
            name if name in SAMPLERS else None,
        )
        for name, sentence in OPTIMIZERS.items()
    },
}


def optimizer_runs(names: Sequence[str]) -> list[str]:
    """Ours and those named, each once.

    Raises:
        UsageError: for one that is unknown or not installed, or if none is named.
    """
    rivals = [name for name in dict.fromkeys(names) if name != OURS]
    known = [name for name in OPTIMIZER_RUNS if name != OURS]
    if not rivals:
        raise UsageError(f"--against: expected some of {', '.join(known)}")
    for name in rivals:
        if name not in known:
            raise UsageError(f"--against: {not_one_of(name, known)}")
        if (sampler := OPTIMIZER_RUNS[name].sampler) is not None:
            try:
                check_installed(sampler)
            except UsageError as error:
                raise UsageError(f"--against: {error}") from None
    return [OURS, *rivals]


# --- in a process of its own ---------------------------------------------------------------------

REHEARSED = 2
"""Evaluations before the clock starts: imports, tracing, and the first touch of all memory."""


@dataclass
class Score:
    """What came of a turn."""

    status: str = "done"
    message: str | None = None
    seconds: float = 0.0
    """When the last evaluation that counts ended."""
    overrun: float = 0.0
    """How long after the deadline the one ended that does not count."""
    evaluations: int = 0
    pruned: int = 0
    diverged: int = 0
    best_loss: float = math.inf
    best_theta: Tensor | None = None
    curve: list[tuple[float, float]] = field(default_factory=list)
    """(seconds, loss) whenever it found a better one."""

    def count(self, seconds: float, pruned: bool, loss: float) -> bool:
        """Take an evaluation into account; whether it is the best so far."""
        self.seconds = seconds
        self.evaluations += 1
        self.pruned += pruned
        self.diverged += not pruned and not math.isfinite(loss)
        # The loss of a run that was cut short is not the one that is contested.
        if pruned or not math.isfinite(loss) or loss >= self.best_loss:
            return False
        self.best_loss = loss
        self.curve.append((seconds, loss))
        return True

    def to_json(self, **at_best: Any) -> dict[str, Any]:
        """Plain numbers, and what is known of the best θ."""
        unknown = {"hyperparameters": None, "in_box": None, "heldout_accuracy": None}
        return {
            "status": self.status,
            "message": self.message,
            "seconds": self.seconds,
            "overrun": self.overrun,
            "evaluations": self.evaluations,
            "pruned": self.pruned,
            "diverged": self.diverged,
            "final_loss": self.best_loss,
            "curve": [list(point) for point in self.curve],
            **(at_best or unknown),
        }


def play(
    evaluations: Iterator[Evaluation],
    budget: float,
    report: Callable[[Any], None],
    clock: Callable[[], float] = time.perf_counter,
) -> Score:
    """Let a optimizer evaluate until its seconds are spent; what ends later does not count."""
    score, started = Score(), clock()
    try:
        for found in evaluations:
            seconds = clock() - started
            if seconds > budget:
                score.overrun = seconds - budget
                break
            if score.count(seconds, found.pruned, found.meta_loss):
                score.best_theta = found.theta
            report((seconds, found.pruned, found.meta_loss))
        else:
            score.status = "ended early"
            score.message = f"it ended by itself after {score.seconds:.3g} s"
    except DivergedError as error:
        score.status, score.message = "diverged", str(error)
    return score


def opening(recipe: Recipe, data_root: Path | None, report: Report) -> dict[str, Any]:
    """What all have in common, and how long one evaluation takes."""
    from hyperrbp.experiments.experiment import Experiment

    experiment = Experiment(recipe, data_root)
    problem, (low, high) = experiment.problem(), experiment.box
    problem.prepare(experiment.theta)
    started = time.perf_counter()
    loss = float(problem.loss(problem.last_state(experiment.theta)))
    return {
        "environment": experiment.environment(),
        "recipe": experiment.recipe.model_dump(),
        "box": {"low": problem.describe(low), "high": problem.describe(high)},
        "start_loss": loss,
        "evaluation_seconds": time.perf_counter() - started,
    }


def turn(
    recipe: Recipe, data_root: Path | None, name: str, budget: float, report: Report
) -> dict[str, Any]:
    """One optimizer's turn, reported evaluation by evaluation as (seconds, pruned, loss)."""
    from hyperrbp.experiments.experiment import Experiment

    logging.getLogger("hyperrbp").addHandler(logging.NullHandler())  # a rollback is in its curve
    experiment = Experiment(recipe, data_root)
    evaluations = OPTIMIZER_RUNS[name].evaluations
    problem, (low, high) = experiment.problem(), experiment.box
    problem.prepare(experiment.theta)
    alone = experiment.recipe.model_copy(
        update={"meta": experiment.recipe.meta.model_copy(update={"screened": 1})}
    )
    with suppress(DivergedError):  # it will diverge again, where it is told
        for _ in islice(evaluations(_other(experiment, alone)), REHEARSED):
            pass
    score = play(evaluations(experiment), budget, report)
    if (best := score.best_theta) is None:
        return score.to_json()
    return score.to_json(
        hyperparameters=problem.describe(best),
        in_box=bool(((low <= best) & (best <= high)).all()),
        # Outside the clock, on examples that nobody has seen.
        heldout_accuracy=_accuracy(experiment, best),
    )


def _accuracy(experiment: Experiment, theta: Tensor) -> float | None:
    """On the held-out examples; None where there is none, as in a regression."""
    problem = experiment.problem()
    return experiment.heldout_measures(problem, problem.last_state(theta)).get("accuracy")
