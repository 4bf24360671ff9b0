"""Black-box search by Optuna, which knows nothing of the inner run but its losses.

θ is searched in its unconstrained coordinates, log learning rates and logit momenta, evenly over a
box. Optuna is imported when a search begins.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from torch import Tensor

from hyperrbp.exceptions import UsageError
from hyperrbp.optimizers.base import Evaluation, Objective, Optimizer, OptimizerState, inner_run
from hyperrbp.optimizers.optuna_samplers import check_installed, sampler
from hyperrbp.problems.base import Problem, loss_where_finite

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.study import Study
    from optuna.trial import Trial

REDUCTION = 3
"""A run goes on at a rung if it is in the best third; the next rung is three times as far."""
FIRST_RUNG = 27
"""The first rung is at so small a part of the run."""
WORST_LOSS = 1e30
"""Reported for a loss that is not finite: worse than any to samplers, which rank losses."""


def hyperband_rungs(steps: int) -> list[int]:
    """Return the steps, all before the last, after which Hyperband compares runs of ``steps``."""
    found, rung = [], max(1, steps // FIRST_RUNG)
    while 2 * rung <= steps:  # one that is nearly at the end would save nothing
        found.append(rung)
        rung *= REDUCTION
    return found


@dataclass
class SearchState(OptimizerState):
    """Where a search stands: what Optuna was told of every trial, from which its study is remade.

    A sampler that is given the same seed and the same losses proposes the same again.
    """

    start: Tensor = field(init=False)
    """The θ that is tried first, shape (p,)."""
    trials: list[dict[str, Any]] = field(default_factory=list)
    """For each: the losses reported at its rungs, the one at its end, and whether it was pruned."""
    study: Study | None = field(default=None, repr=False, metadata={"saved": False})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.start = self.theta.clone()

    @property
    def given_up(self) -> int:
        """The runs that were ended early, or diverged."""
        return len(self.trials) - self.meta_step


class OptunaSearch(Optimizer[SearchState]):
    """Search a box without end by one of Optuna's samplers.

    Args:
        box: the lowest and the highest θ, shape (p,) each.
        sampler_name: a name in ``.optuna_samplers.SAMPLERS``.
        seed: of what the sampler samples.

    Raises:
        UsageError: for an unknown sampler, one that is not installed, or an empty box.
    """

    state_class = SearchState

    def __init__(self, box: tuple[Tensor, Tensor], sampler_name: str, *, seed: int = 0) -> None:
        check_installed(sampler_name)
        self._low, self._high = box
        if not (self._low.isfinite() & self._high.isfinite() & (self._low <= self._high)).all():
            raise UsageError("the search box: expected finite bounds, the lower ones first")
        self._sampler, self._seed = sampler(sampler_name), seed

    def step(self, objective: Objective, state: SearchState) -> Evaluation:
        """Run one trial, to its end or until it is pruned."""
        problem = inner_run(objective, state.meta_step)
        study = self._study(state, problem.steps)
        with _quiet():
            trial = study.ask(self._distributions)
        theta = self._low.new_tensor([trial.params[name] for name in self._distributions])
        found = self._run(problem, theta, study, trial, state)
        if found.complete:
            if found.meta_loss < state.best_loss:
                state.best_step, state.best_loss = state.meta_step, found.meta_loss
                state.best_theta = theta.clone()
            state.meta_step += 1
        state.theta = theta
        return found

    def _run(
        self, problem: Problem, theta: Tensor, study: Study, trial: Trial, state: SearchState
    ) -> Evaluation:
        h, done, pruned = problem.initial_state(theta), 0, False
        rungs = self._rungs(problem.steps)
        reported: list[tuple[int, float]] = []
        for stop in [*rungs, problem.steps]:
            h = problem.run(theta, done, stop, h)  # a paused run just goes on
            loss = loss_where_finite(problem, h)
            finite, done = math.isfinite(loss), stop
            if stop < problem.steps:
                reported.append((stop, loss if finite else WORST_LOSS))
                pruned = _report(trial, *reported[-1])
                if pruned or not finite:
                    break
        # TPE ranks every whole run above every pruned one: where some are pruned, a diverged one
        # counts as pruned.
        cut_short = pruned or (bool(rungs) and not finite)
        value = None if cut_short else (loss if finite else WORST_LOSS)
        _tell(study, trial, value)
        state.trials.append({"reported": reported, "value": value})
        return Evaluation(
            state.meta_step, loss, theta, problem, done, pruned=pruned and finite, source="search"
        )

    def _rungs(self, steps: int) -> list[int]:
        return hyperband_rungs(steps) if self._sampler.prunes else []

    @cached_property
    def _distributions(self) -> dict[str, BaseDistribution]:
        """The box, for Optuna: a name for each coordinate of θ, in its order."""
        from optuna.distributions import FloatDistribution

        corners = zip(self._low.tolist(), self._high.tolist(), strict=True)
        return {str(i): FloatDistribution(*bounds) for i, bounds in enumerate(corners)}

    def _study(self, state: SearchState, steps: int) -> Study:
        """Return the study of a state, remade from its trials if this process has none."""
        if state.study is None:
            state.study = self._new_study(state.start, steps)
            for outcome in state.trials:
                with _quiet():
                    trial = state.study.ask(self._distributions)
                for rung, loss in outcome["reported"]:
                    _report(trial, rung, loss)
                _tell(state.study, trial, outcome["value"])
        return state.study

    def _new_study(self, start: Tensor, steps: int) -> Study:
        import optuna

        pruner: optuna.pruners.BasePruner = optuna.pruners.NopPruner()
        if rungs := self._rungs(steps):
            pruner = optuna.pruners.HyperbandPruner(rungs[0], steps, REDUCTION)
        with _quiet():
            study = optuna.create_study(
                # Hyperband takes a trial's bracket from the name, which would be random.
                study_name=f"seed {self._seed}",
                sampler=getattr(optuna.samplers, self._sampler.class_name)(
                    seed=self._seed % 2**32, **self._sampler.options
                ),
                pruner=pruner,
            )
            nearest = start.clamp(self._low, self._high).tolist()
            study.enqueue_trial(dict(zip(self._distributions, nearest, strict=True)))
        return study


def _report(trial: Trial, rung: int, loss: float) -> bool:
    """Report a loss at a rung, and return whether the trial should be pruned."""
    with _quiet():
        trial.report(loss, rung)
        return bool(trial.should_prune())


def _tell(study: Study, trial: Trial, value: float | None) -> None:
    from optuna.trial import TrialState

    with _quiet():
        if value is None:
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, value)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Optuna's log, and its warnings of what is experimental, from the terminal.

    Around single calls only: a generator that yields inside would silence its caller too.
    """
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(before)
