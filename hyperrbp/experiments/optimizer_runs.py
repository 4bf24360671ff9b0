"""Runs one optimizer for a number of seconds; what takes part in a benchmark, by name.

What an optimizer needs is imported when its run begins, in a process of its own.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from hyperrbp.config.recipe import Recipe
from hyperrbp.config.recipe_keys import ADAM, OptimizerName
from hyperrbp.exceptions import DivergedError, UsageError
from hyperrbp.experiments.results.benchmark import BenchmarkRun, Box, RunStatus
from hyperrbp.optimizers import OPTIMIZERS
from hyperrbp.optimizers.optuna_samplers import SAMPLERS, check_installed
from hyperrbp.runtime.documents import finite_or_null
from hyperrbp.runtime.suggestions import not_one_of

if TYPE_CHECKING:
    from torch import Tensor

    from hyperrbp.experiments.experiment import Experiment
    from hyperrbp.optimizers.base import Evaluation
    from hyperrbp.runtime.subprocesses import Send


@dataclass(frozen=True)
class OptimizerSpec:
    """A way to tune the hyperparameters of an experiment."""

    sentence: str
    evaluations: Callable[[Experiment], Iterator[Evaluation]]
    """Yields evaluations for as long as they are wanted."""
    sampler: str | None = None
    """The sampler of ``hyperrbp.optimizers.optuna_samplers`` that it needs."""


def _evaluations(name: str | None, experiment: Experiment) -> Iterator[Evaluation]:
    """Yield the evaluations of an optimizer, the recipe's own if not named, for as long as wanted.

    The first one is at the recipe's start, for a search too, or a screening begins with it.
    """
    from hyperrbp.experiments.meta_optimizer import ENDLESS, meta_optimizer
    from hyperrbp.optimizers.base import minimize

    if name in get_args(OptimizerName):
        experiment = experiment.with_meta(with_optimizer(experiment.recipe, str(name)).meta)
    optimizer = meta_optimizer(experiment, name, steps=ENDLESS)
    return minimize(optimizer, experiment.problem, optimizer.init(experiment.theta))


def with_optimizer(recipe: Recipe, optimizer: str) -> Recipe:
    """Return the same recipe with another optimizer, and without what goes with Adam alone."""
    if optimizer == recipe.meta.optimizer:
        return recipe
    of_adam = {} if optimizer == ADAM else {"on_divergence": "stop", "decay": None}
    meta = recipe.meta.model_copy(update={"optimizer": optimizer, **of_adam})
    gradient = recipe.gradient
    if optimizer != ADAM:
        gradient = gradient.model_copy(update={"check_every": 0})
    return recipe.model_copy(update={"meta": meta, "gradient": gradient})


OURS = "hyperrbp"
"""The name of the recipe's own tuning, with which the others are compared."""

OPTIMIZER_SPECS: dict[str, OptimizerSpec] = {
    OURS: OptimizerSpec("the recipe's own tuning", partial(_evaluations, None)),
    **{
        name: OptimizerSpec(
            f"ours with meta.optimizer: {name}" if name not in SAMPLERS else sentence,
            partial(_evaluations, name),
            name if name in SAMPLERS else None,
        )
        for name, sentence in OPTIMIZERS.items()
    },
}


def resolve_names(names: Sequence[str]) -> list[str]:
    """Return ours and the optimizers that are named, each once.

    Raises:
        UsageError: for one that is unknown or not installed, or if none is named.
    """
    others = [name for name in dict.fromkeys(names) if name != OURS]
    known = [name for name in OPTIMIZER_SPECS if name != OURS]
    if not others:
        raise UsageError(f"--against: expected some of {', '.join(known)}")
    for name in others:
        if name not in known:
            raise UsageError(f"--against: {not_one_of(name, known)}")
        if (sampler := OPTIMIZER_SPECS[name].sampler) is not None:
            try:
                check_installed(sampler)
            except UsageError as error:
                raise UsageError(f"--against: {error}") from None
    return [OURS, *others]


# --- one run --------------------------------------------------------------------------------------

REHEARSED = 2
"""Evaluations before the clock starts: imports, tracing, and the first touch of all memory."""


@dataclass(frozen=True)
class EvaluationEnded:
    """The message that an evaluation has ended in time."""

    seconds: float
    """Since the clock started."""
    pruned: bool
    """Whether it was ended early, as unpromising."""
    loss: float


@dataclass
class Score:
    """The count of evaluations of one run, and the best of them."""

    status: RunStatus = RunStatus.DONE
    message: str | None = None
    seconds: float = 0.0
    overrun: float = 0.0
    evaluations: int = 0
    pruned: int = 0
    diverged: int = 0
    best_loss: float = math.inf
    best_theta: Tensor | None = None
    """Shape (p,)."""
    curve: list[tuple[float, float]] = field(default_factory=list)

    def count(self, ended: EvaluationEnded) -> bool:
        """Count an evaluation; return whether it is the best so far."""
        self.seconds = ended.seconds
        self.evaluations += 1
        self.pruned += ended.pruned
        self.diverged += not ended.pruned and not math.isfinite(ended.loss)
        # The loss of a run that was ended early is not the one that is compared.
        if ended.pruned or not math.isfinite(ended.loss) or ended.loss >= self.best_loss:
            return False
        self.best_loss = ended.loss
        self.curve.append((ended.seconds, ended.loss))
        return True

    def to_run(
        self,
        optimizer: str,
        seed: int,
        hyperparameters: dict[str, dict[str, float]] | None = None,
        in_box: bool | None = None,
        heldout_accuracy: float | None = None,
    ) -> BenchmarkRun:
        """Return the run; see ``BenchmarkRun`` for what is known of the best θ."""
        return BenchmarkRun(
            optimizer=optimizer,
            seed=seed,
            status=self.status,
            message=self.message,
            seconds=self.seconds,
            overrun=self.overrun,
            evaluations=self.evaluations,
            pruned=self.pruned,
            diverged=self.diverged,
            final_loss=self.best_loss,
            curve=self.curve,
            hyperparameters=finite_or_null(hyperparameters),
            in_box=in_box,
            heldout_accuracy=heldout_accuracy,
        )


def spend(
    evaluations: Iterator[Evaluation],
    budget: float,
    send: Callable[[EvaluationEnded], None],
    clock: Callable[[], float] = time.perf_counter,
) -> Score:
    """Take evaluations until so many seconds are spent; one that ends later does not count.

    Args:
        evaluations: of an optimizer.
        budget: in seconds.
        send: receives every evaluation that counts.
        clock: returns the time in seconds.
    """
    score, started = Score(), clock()
    try:
        for found in evaluations:
            seconds = clock() - started
            if seconds > budget:
                score.overrun = seconds - budget
                break
            ended = EvaluationEnded(seconds, found.pruned, found.meta_loss)
            if score.count(ended):
                score.best_theta = found.theta
            send(ended)
        else:
            score.status = RunStatus.ENDED_EARLY
            score.message = f"it ended by itself after {score.seconds:.3g} s"
    except DivergedError as error:
        score.status, score.message = RunStatus.DIVERGED, str(error)
    return score


@dataclass(frozen=True)
class Start:
    """What all runs of a benchmark have in common."""

    recipe: Recipe
    """As it is run."""
    environment: dict[str, str | int]
    box: Box
    start_loss: float
    evaluation_seconds: float
    """Of one evaluation, about."""


def measure_start(recipe: Recipe, data_root: Path | None, send: Send) -> Start:
    """Evaluate the recipe's start once."""
    from hyperrbp.experiments.experiment import Experiment

    experiment = Experiment(recipe, data_root)
    problem, (low, high) = experiment.problem(), experiment.box
    problem.prepare(experiment.theta)
    started = time.perf_counter()
    loss = float(problem.loss(problem.last_state(experiment.theta)))
    return Start(
        recipe=experiment.recipe,
        environment=experiment.environment(),
        box=Box(
            low=finite_or_null(problem.describe(low)), high=finite_or_null(problem.describe(high))
        ),
        start_loss=loss,
        evaluation_seconds=time.perf_counter() - started,
    )


def run_optimizer(
    recipe: Recipe, data_root: Path | None, name: str, budget: float, send: Send
) -> BenchmarkRun:
    """Run an optimizer for so many seconds.

    Args:
        recipe: whose inner run is tuned, with its seed.
        data_root: where data sets live.
        name: a key of ``OPTIMIZER_SPECS``.
        budget: in seconds.
        send: receives an ``EvaluationEnded`` for each that counts.
    """
    from hyperrbp.experiments.experiment import Experiment

    logging.getLogger("hyperrbp").addHandler(logging.NullHandler())  # a rollback is in its curve
    experiment = Experiment(recipe, data_root)
    evaluations = OPTIMIZER_SPECS[name].evaluations
    problem, (low, high) = experiment.problem(), experiment.box
    problem.prepare(experiment.theta)
    unscreened = experiment.recipe.meta.model_copy(update={"screened": 1})
    with suppress(DivergedError):  # it will diverge again, where it is reported
        for _ in islice(evaluations(experiment.with_meta(unscreened)), REHEARSED):
            pass
    score = spend(evaluations(experiment), budget, send)
    if (best := score.best_theta) is None:
        return score.to_run(name, recipe.seed)
    return score.to_run(
        name,
        recipe.seed,
        hyperparameters={kind: dict(of) for kind, of in problem.describe(best).items()},
        in_box=bool(((low <= best) & (best <= high)).all()),
        # Outside the clock, on examples that no optimizer has seen.
        heldout_accuracy=_accuracy(experiment, best),
    )


def _accuracy(experiment: Experiment, theta: Tensor) -> float | None:
    """Return the accuracy on the held-out examples; None for a regression, which has none."""
    problem = experiment.problem()
    return experiment.heldout_measures(problem, problem.last_state(theta)).get("accuracy")
