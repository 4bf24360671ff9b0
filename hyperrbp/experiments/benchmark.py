"""Benchmarks our tuning against others: the same recipe, box and seconds, in turn.

Each run has a process of its own. The nth one has the recipe's seed plus n, which decides initial
weights, batches and what the optimizer samples. The order rotates: no optimizer is always first.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import get_args

from hyperrbp.config.cross_checks import cross_check
from hyperrbp.config.recipe import Recipe
from hyperrbp.config.recipe_keys import OptimizerName
from hyperrbp.exceptions import HyperrbpError, MemoryExhaustedError, UsageError
from hyperrbp.experiments.optimizer_runs import (
    OPTIMIZER_SPECS,
    OURS,
    REHEARSED,
    EvaluationEnded,
    Score,
    Start,
    measure_start,
    run_optimizer,
    with_optimizer,
)
from hyperrbp.experiments.results.benchmark import (
    BenchmarkReport,
    BenchmarkRow,
    BenchmarkRun,
    CurvePoint,
    RunStatus,
)
from hyperrbp.runtime.callbacks import Callback, ProgressTracker
from hyperrbp.runtime.subprocesses import call

REFERENCE = "random"
"""The optimizer whose final loss all are timed to, if it takes part."""

_IMPORTS = 3.0
"""About how many seconds a process takes until its optimizer can begin."""

Curve = Sequence[tuple[float, float]]
"""(seconds, best loss so far) whenever there was a better one."""


@dataclass(frozen=True)
class BenchmarkContext:
    """A benchmark that is about to begin."""

    recipe: Recipe
    optimizers: Sequence[str]
    seeds: Sequence[int]
    budget: float
    """Seconds for each optimizer and seed."""


BenchmarkCallback = Callback[BenchmarkContext, BenchmarkRun]


def benchmark(
    recipe: Recipe,
    names: Sequence[str],
    budget: float,
    *,
    seeds: int = 3,
    data_root: Path | None = None,
    callback: BenchmarkCallback | None = None,
) -> BenchmarkReport:
    """Give every optimizer the same seconds on the recipe's inner run, for every seed.

    Args:
        recipe: a validated recipe.
        names: from ``hyperrbp.experiments.optimizer_runs.resolve_names``; ours is the first.
        budget: seconds for each optimizer and seed; what ends after them does not count.
        seeds: how many.
        data_root: where data sets live.
        callback: receives the progress, in seconds of the expected ones, and every run.

    Raises:
        UsageError: for numbers or a recipe that cannot be.
        HyperrbpError: if the recipe cannot be run at all; what fails in one optimizer is in its
            row.
    """
    check_benchmark(recipe, names, budget, seeds)
    callback = callback or BenchmarkCallback()
    tracker = ProgressTracker(callback.on_progress)
    numbers = [recipe.seed + n for n in range(seeds)]
    try:
        callback.on_start(BenchmarkContext(recipe, names, numbers, budget))
        tracker.begin("the start, which all have in common")
        start: Start = call(measure_start, recipe, data_root)
        # Besides its budget: the rehearsal, the accuracy at its end, and imports.
        around = (REHEARSED + 1) * start.evaluation_seconds + _IMPORTS
        tracker.expect(seeds * len(names) * (budget + around))
        runs: list[BenchmarkRun] = []
        for n, seed in enumerate(numbers):
            seeded = recipe.model_copy(update={"seed": seed})
            for name in rotated(names, n):
                tracker.begin(f"{name}, seed {n + 1} of {seeds}")
                run = _run(seeded, data_root, name, budget, tracker)
                runs.append(run)
                callback.on_record(run)
                tracker.advance(budget - min(run.seconds, budget) + around)
        return _report(names, numbers, budget, start, runs)
    finally:
        callback.on_end()


def check_benchmark(recipe: Recipe, names: Sequence[str], budget: float, seeds: int) -> None:
    """Check that there can be such a benchmark.

    Raises:
        UsageError: for numbers out of range, a recipe that changes its inner run on the way, or one
            that an optimizer of ours cannot take.
    """
    if not (0 < budget < math.inf):
        raise UsageError(f"--budget-seconds: expected a finite number above 0, got {budget:g}")
    if seeds < 1:
        raise UsageError(f"--seeds: expected at least 1, got {seeds}")
    if recipe.seed + seeds > 2**63:
        raise UsageError(f"--seeds: seed {recipe.seed} has fewer than {seeds} seeds after it")
    if recipe.inner.fresh:
        raise UsageError(
            "--against: losses of different inner runs cannot be compared; --set inner.fresh=false"
        )
    for optimizer in get_args(OptimizerName):
        if optimizer in names:
            for key, message in cross_check(with_optimizer(recipe, optimizer)):
                raise UsageError(f"--against {optimizer}: {'.'.join(map(str, key))}: {message}")


def rotated(names: Sequence[str], n: int) -> list[str]:
    """Return the order for the nth seed: no optimizer is always the first."""
    begin = n % len(names)
    return [*names[begin:], *names[:begin]]


def _run(
    recipe: Recipe, data_root: Path | None, name: str, budget: float, tracker: ProgressTracker
) -> BenchmarkRun:
    """Run one optimizer; if its process fails, return what it had sent until then."""
    so_far = Score()

    def count(ended: EvaluationEnded) -> None:
        tracker.advance(ended.seconds - so_far.seconds)
        so_far.count(ended)

    run: BenchmarkRun
    try:
        run = call(run_optimizer, recipe, data_root, name, budget, on_message=count)
    except HyperrbpError as error:
        out = isinstance(error, MemoryExhaustedError)
        so_far.status = RunStatus.OUT_OF_MEMORY if out else RunStatus.FAILED
        so_far.message = str(error)
        return so_far.to_run(name, recipe.seed)
    if run.status is RunStatus.DONE and run.final_loss is None:
        return _without_loss(run, budget)
    return run


def _without_loss(run: BenchmarkRun, budget: float) -> BenchmarkRun:
    """Return a run that has no loss to show, with the reason."""
    status, message = RunStatus.DIVERGED, "no evaluation that ended in time was finite"
    if not run.diverged:
        whole = "whole evaluation" if run.pruned else "evaluation"
        status, message = RunStatus.TOO_SLOW, f"no {whole} ended within {budget:g} s"
    return run.model_copy(update={"status": status, "message": message})


def _report(
    names: Sequence[str],
    seeds: list[int],
    budget: float,
    start: Start,
    runs: list[BenchmarkRun],
) -> BenchmarkReport:
    rows = table(names, runs, budget)
    curves = {name: [run.curve for run in of_optimizer(runs, name)] for name in names}
    return BenchmarkReport(
        budget_seconds=budget,
        seeds=seeds,
        ours=OURS,
        reference=REFERENCE if REFERENCE in names else None,
        environment=start.environment,
        recipe=start.recipe,
        box=start.box,
        start_loss=start.start_loss,
        verdict=verdict(rows, budget),
        rows=rows,
        curves={name: list(envelope(of_name, budget)) for name, of_name in curves.items()},
        runs=runs,
    )


# --- numbers --------------------------------------------------------------------------------------


def of_optimizer(runs: Sequence[BenchmarkRun], name: str) -> list[BenchmarkRun]:
    """Return the runs of an optimizer, in the order of the seeds."""
    return [run for run in runs if run.optimizer == name]


def best_at(curve: Curve, seconds: float) -> float:
    """Return the best loss so far at a time; infinite before the first."""
    return min((loss for at, loss in curve if at <= seconds), default=math.inf)


def envelope(curves: Sequence[Curve], budget: float) -> Iterator[CurvePoint]:
    """Yield median, least and largest of the best losses, wherever any of them changes.

    A run without a loss counts as infinitely bad.
    """
    for at in sorted({budget, *(at for curve in curves for at, _ in curve)}):
        losses = [best_at(curve, at) for curve in curves]
        yield CurvePoint(seconds=at, median=median(losses), least=min(losses), largest=max(losses))


def seconds_to_reach(curves: Sequence[Curve], target: float, budget: float) -> float | None:
    """Return when the median over the seeds is first at or under a target; None if never."""
    if not math.isfinite(target):
        return None
    points = ((point.seconds, point.median) for point in envelope(curves, budget))
    return next((at for at, loss in points if loss is not None and loss <= target), None)


def table(names: Sequence[str], runs: Sequence[BenchmarkRun], budget: float) -> list[BenchmarkRow]:
    """Return one row for each optimizer, each compared with ours."""
    curves = {name: [run.curve for run in of_optimizer(runs, name)] for name in names}
    target = math.inf
    if REFERENCE in names:
        target = median(best_at(curve, budget) for curve in curves[REFERENCE])
    return [
        _row(name, of_optimizer(runs, name), curves[name], curves[OURS], target, budget)
        for name in names
    ]


def _row(
    name: str,
    runs: Sequence[BenchmarkRun],
    curves: Sequence[Curve],
    ours: Sequence[Curve],
    target: float,
    budget: float,
) -> BenchmarkRow:
    final, our_final = ([best_at(curve, budget) for curve in of] for of in (curves, ours))
    to_target = seconds_to_reach(curves, target, budget)
    ours_to_target = seconds_to_reach(ours, target, budget)
    pairs = list(zip(our_final, final, strict=True))
    other = name != OURS
    accuracies = [run.heldout_accuracy for run in runs if run.heldout_accuracy is not None]
    faults = [run for run in runs if run.status is not RunStatus.DONE]
    return BenchmarkRow(
        optimizer=name,
        what=OPTIMIZER_SPECS[name].sentence,
        runs=len(runs),
        final_loss=median(final),
        final_loss_least=min(final),
        final_loss_largest=max(final),
        evaluations=median(run.evaluations for run in runs),
        pruned=median(run.pruned for run in runs),
        diverged=median(run.diverged for run in runs),
        seconds_to_reference=to_target,
        ratio_to_ours=to_target / ours_to_target if to_target and ours_to_target else None,
        ours_reaches_its_final=seconds_to_reach(ours, median(final), budget) if other else None,
        it_reaches_our_final=seconds_to_reach(curves, median(our_final), budget) if other else None,
        ours_at_or_under=sum(a <= b < math.inf or a < b for a, b in pairs) if other else None,
        ours_under=sum(a < b for a, b in pairs) if other else None,
        ours_over=sum(a > b for a, b in pairs) if other else None,
        heldout_accuracy=median(accuracies) if accuracies else None,
        out_of_box=sum(run.in_box is False for run in runs),
        not_done=len(faults),
        status=_statuses(runs),
        messages=[f"seed {run.seed}: {run.status}: {run.message}" for run in faults],
    )


def _statuses(runs: Sequence[BenchmarkRun]) -> str:
    counts = Counter(run.status for run in runs)
    if len(counts) == 1:
        return str(runs[0].status)
    return ", ".join(f"{count} {status}" for status, count in counts.items())


# --- in words -------------------------------------------------------------------------------------


def verdict(rows: Sequence[BenchmarkRow], budget: float) -> str:
    """Return the outcome in three sentences, whichever way it goes."""
    ours, others = rows[0], rows[1:]
    outcome: dict[str, list[str]] = {"ahead of": [], "level with": [], "behind": []}
    for row in others:
        under, over = row.ours_under or 0, row.ours_over or 0
        outcome[list(outcome)[(under < over) - (under > over) + 1]].append(row.optimizer)
    places = ", ".join(f"{place} {_listed(names)}" for place, names in outcome.items() if names)
    seeds = "seed" if ours.runs == 1 else "seeds"
    counts = _listed(
        [f"{row.optimizer} with {row.ours_at_or_under} of {row.runs} {seeds}" for row in others]
    )
    return (
        f"{OURS} is {places}. After {budget:g} s each, its loss is at most that of {counts}."
        f" {_medians(ours, others)}"
    )


def _medians(ours: BenchmarkRow, others: Sequence[BenchmarkRow]) -> str:
    its = "It has no median loss"
    if ours.final_loss is not None:
        its = f"Its median loss is {ours.final_loss:.3g}"
    known = [(row.final_loss, row) for row in others if row.final_loss is not None]
    if not known:
        return f"{its}; no other optimizer has one."
    theirs, best = min(known, key=lambda pair: pair[0])
    reached = best.ours_reaches_its_final
    when = f"{OURS} does not reach" if reached is None else f"{OURS} reaches after {reached:.3g} s"
    return f"{its}; the best of the others, {best.optimizer}, has {theirs:.3g}, which {when}."


def _listed(names: Sequence[str]) -> str:
    return " and ".join(part for part in (", ".join(names[:-1]), names[-1]) if part)
