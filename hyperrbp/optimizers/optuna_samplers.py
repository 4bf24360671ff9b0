"""Black-box search of hyperparameters: Optuna's samplers on the same inner run, nothing but losses.

θ is searched in its unconstrained coordinates, log learning rates and logit momenta, evenly over a
box. Optuna is imported when a search begins; the samplers are those of its defaults.
"""

from __future__ import annotations

import importlib.util
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hyperrbp.config.schema import not_one_of
from hyperrbp.exceptions import UsageError

if TYPE_CHECKING:
    from optuna.study import Study
    from torch import Tensor

    from hyperrbp.problems.base import Problem


@dataclass(frozen=True)
class Sampler:
    """A sampler of Optuna by the name of its class, and what else it takes."""

    kind: str
    sentence: str
    options: Mapping[str, Any] = field(default_factory=dict)
    prunes: bool = False
    """Whether Hyperband ends unpromising runs at its rungs."""
    needs: tuple[str, ...] = ("optuna",)


SAMPLERS: dict[str, Sampler] = {
    "random": Sampler("RandomSampler", "uniform in the box"),
    "sobol": Sampler("QMCSampler", "a scrambled Sobol sequence", {"scramble": True}),
    "tpe": Sampler("TPESampler", "tree-structured Parzen estimator"),
    "cmaes": Sampler("CmaEsSampler", "CMA-ES", needs=("optuna", "cmaes")),
    "hyperband": Sampler("TPESampler", "TPE, runs ended early by Hyperband", prunes=True),
}

REDUCTION = 3
"""A run goes on at a rung if it is in the best third; the next rung is three times as far."""
FIRST_RUNG = 27
"""The first rung is at so small a part of the run."""
WORST = 1e30
"""Told for a loss that is not finite: to samplers that rank losses, what is worse than any."""


@dataclass(frozen=True)
class Trial:
    """One θ that was tried."""

    number: int
    theta: Tensor
    steps: int
    """Of the inner run; fewer than T if it was ended early."""
    loss: float
    """After those steps; not finite if the run diverged."""
    pruned: bool
    """Ended early for being unpromising: the loss is not that of a whole run."""


def check_installed(name: str) -> None:
    """Say how to install what a sampler needs, without importing it.

    Raises:
        UsageError: if it is not there, or there is no such sampler.
    """
    missing = [module for module in _sampler(name).needs if not _is_there(module)]
    if missing:
        raise UsageError(
            f"{name} needs {' and '.join(missing)}, which {'are' if missing[1:] else 'is'} not"
            " installed: pip install 'hyperrbp[search]'"
        )


def search(
    problem: Problem,
    low: Tensor,
    high: Tensor,
    sampler: str,
    seed: int,
    start: Tensor | None = None,
) -> Iterator[Trial]:
    """Search the box without end.

    Args:
        problem: what is run, its last loss to be made small.
        low: the corner of the box where all is least, shape (p,).
        high: the opposite one.
        sampler: a name in :data:`SAMPLERS`.
        seed: of what the sampler draws.
        start: a θ to try first; the nearest in the box, if it is outside.

    Raises:
        UsageError: at once, for an unknown sampler, one that is not installed, or an empty box.
    """
    check_installed(sampler)
    if not (low.isfinite() & high.isfinite() & (low <= high)).all():
        raise UsageError("the search box: expected finite bounds, the lower ones first")
    stops = rungs(problem.steps) if _sampler(sampler).prunes else []
    study = _study(_sampler(sampler), problem.steps, stops, seed)
    return _trials(problem, low, high, study, stops, start)


def rungs(steps: int) -> list[int]:
    """The steps, all before the last, after which Hyperband looks at a run of ``steps`` steps."""
    found, rung = [], max(1, steps // FIRST_RUNG)
    while 2 * rung <= steps:  # one that is nearly at the end would save nothing
        found.append(rung)
        rung *= REDUCTION
    return found


def _trials(
    problem: Problem,
    low: Tensor,
    high: Tensor,
    study: Study,
    stops: Sequence[int],
    start: Tensor | None,
) -> Iterator[Trial]:
    from optuna.distributions import BaseDistribution, FloatDistribution
    from optuna.trial import TrialState

    from hyperrbp.problems.base import loss_where_finite

    corners = zip(low.tolist(), high.tolist(), strict=True)
    box: dict[str, BaseDistribution] = {
        str(i): FloatDistribution(*bounds) for i, bounds in enumerate(corners)
    }
    with _quiet():
        if start is not None:
            nearest = start.clamp(low, high).tolist()
            study.enqueue_trial(dict(zip(box, nearest, strict=True)))
    while True:
        with _quiet():
            asked = study.ask(box)
        theta = low.new_tensor([asked.params[name] for name in box])
        h, done, pruned = problem.initial_state(theta), 0, False
        for stop in [*stops, problem.steps]:
            h = problem.run(theta, done, stop, h)  # a paused run just goes on
            loss = loss_where_finite(problem, h)
            finite, done = math.isfinite(loss), stop
            if stop < problem.steps:
                with _quiet():
                    asked.report(loss if finite else WORST, stop)
                    pruned = asked.should_prune()
                if pruned or not finite:
                    break
        with _quiet():
            # TPE ranks every whole run above every pruned one: where some are, a diverged one is
            # told as pruned.
            if pruned or (stops and not finite):
                study.tell(asked, state=TrialState.PRUNED)
            else:
                study.tell(asked, loss if finite else WORST)
        yield Trial(asked.number, theta, done, loss, pruned and finite)


def _study(sampler: Sampler, steps: int, stops: Sequence[int], seed: int) -> Study:
    import optuna

    pruner: optuna.pruners.BasePruner = optuna.pruners.NopPruner()
    if stops:
        pruner = optuna.pruners.HyperbandPruner(stops[0], steps, REDUCTION)
    with _quiet():
        return optuna.create_study(
            # Hyperband takes a trial's bracket from the name, which would be drawn at random.
            study_name=f"seed {seed}",
            sampler=getattr(optuna.samplers, sampler.kind)(seed=seed % 2**32, **sampler.options),
            pruner=pruner,
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Optuna's log, and its warnings of what is experimental, kept from the terminal.

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


def _sampler(name: str) -> Sampler:
    if name not in SAMPLERS:
        raise UsageError(f"sampler: {not_one_of(name, SAMPLERS)}")
    return SAMPLERS[name]


def _is_there(module: str) -> bool:
    return importlib.util.find_spec(module) is not None
