"""Ours against others: the same recipe, box and seconds, one process each in turn.

Seed n is the recipe's plus n: it draws initial weights, batches and what the optimizer samples.
Whoever began with the last seed is the last to begin with this one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, get_args

from hyperrbp.config.recipe import OptimizerName, Recipe, contradictions
from hyperrbp.exceptions import HyperrbpError, MemoryExhaustedError, UsageError
from hyperrbp.experiments.optimizer_runs import (
    OPTIMIZER_RUNS,
    OURS,
    REHEARSED,
    Score,
    opening,
    turn,
    with_optimizer,
)
from hyperrbp.runtime.callbacks import Audience
from hyperrbp.runtime.documents import finite_or_null
from hyperrbp.runtime.subprocesses import call

REFERENCE = "random"
"""Whose final loss all are timed to, if it takes part."""

Curve = Sequence[tuple[float, float]]
"""(seconds, best loss so far) whenever there was a better one."""

Row = dict[str, Any]


def benchmark(
    recipe: Recipe,
    names: Sequence[str],
    budget: float,
    *,
    seeds: int = 3,
    data_root: Path | None = None,
    audience: Audience | None = None,
) -> dict[str, Any]:
    """Give every optimizer the same seconds on the recipe's inner run, for every seed.

    Args:
        recipe: a validated recipe.
        names: from :func:`hyperrbp.experiments.optimizer_runs.optimizer_runs`; ours is the first.
        budget: seconds for each optimizer and seed; what ends after them does not count.
        seeds: how many.
        data_root: where data sets live.
        audience: told how it goes.

    Returns:
        What ``--json`` prints.

    Raises:
        UsageError: for numbers or a recipe that cannot be.
        HyperrbpError: if the recipe cannot be run at all; what fails in one optimizer is in its
            row.
    """
    check_benchmark(recipe, names, budget, seeds)
    audience = audience or Audience()
    audience.begins("the start of all")
    common = call(opening, recipe, data_root)
    # Besides its budget: the rehearsal, the accuracy at its end, and imports.
    around = (REHEARSED + 1) * common.pop("evaluation_seconds") + _IMPORTS
    audience.expects(seeds * len(names) * (budget + around))
    runs: list[dict[str, Any]] = []
    for n in range(seeds):
        seeded = recipe.model_copy(update={"seed": recipe.seed + n})
        for name in rotated(names, n):
            audience.begins(f"{name}, seed {n + 1} of {seeds}")
            run = _run(seeded, data_root, name, budget, audience)
            runs.append({"optimizer": name, "seed": seeded.seed, **finite_or_null(run)})
            audience.spent(budget - min(run["seconds"], budget) + around)
    rows = table(names, runs, budget)
    return {
        "budget_seconds": budget,
        "seeds": [recipe.seed + n for n in range(seeds)],
        "ours": OURS,
        "reference": REFERENCE if REFERENCE in names else None,
        **finite_or_null(common),
        "verdict": verdict(rows, budget),
        "rows": [finite_or_null(row) for row in rows],
        "curves": {name: _points(of_optimizer(runs, name), budget) for name in names},
        "runs": runs,
    }


_IMPORTS = 3.0
"""About how many seconds a process takes until its optimizer can begin."""


def check_benchmark(recipe: Recipe, names: Sequence[str], budget: float, seeds: int) -> None:
    """Say what cannot be contested.

    Raises:
        UsageError: for numbers out of range, a recipe that changes its inner run on the way, or one
            that a optimizer of ours cannot take.
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
            for key, message in contradictions(with_optimizer(recipe, optimizer)):
                raise UsageError(f"--against {optimizer}: {'.'.join(map(str, key))}: {message}")


def rotated(names: Sequence[str], n: int) -> list[str]:
    """The order of the nth seed: no one is always the first."""
    begin = n % len(names)
    return [*names[begin:], *names[:begin]]


def _run(
    recipe: Recipe, data_root: Path | None, name: str, budget: float, audience: Audience
) -> dict[str, Any]:
    """One optimizer's turn; if its process fails, what was heard of it until then."""
    so_far = Score()

    def heard(content: tuple[float, bool, float]) -> None:
        audience.spent(content[0] - so_far.seconds)
        so_far.count(*content)

    try:
        run = call(turn, recipe, data_root, name, budget, heard=heard)
    except HyperrbpError as error:
        out = isinstance(error, MemoryExhaustedError)
        so_far.status, so_far.message = "out of memory" if out else "failed", str(error)
        run = so_far.to_json()
    if run["status"] == "done" and math.isinf(run["final_loss"]):
        run |= _without_an_answer(run, budget)
    return dict(run)


def _without_an_answer(run: Mapping[str, Any], budget: float) -> dict[str, str]:
    if run["diverged"]:
        return {"status": "diverged", "message": "no evaluation that ended in time was finite"}
    whole = "whole evaluation" if run["pruned"] else "evaluation"
    return {"status": "too slow", "message": f"no {whole} ended within {budget:g} s"}


# --- numbers -------------------------------------------------------------------------------------


def of_optimizer(runs: Sequence[Mapping[str, Any]], name: str) -> list[Mapping[str, Any]]:
    """Its runs, in the order of the seeds."""
    return [run for run in runs if run["optimizer"] == name]


def best_at(curve: Curve, seconds: float) -> float:
    """The best loss so far at a time; infinite before the first."""
    return min((loss for at, loss in curve if at <= seconds), default=math.inf)


def envelope(curves: Sequence[Curve], budget: float) -> Iterator[tuple[float, float, float, float]]:
    """(seconds, median, least, largest) of the best losses, wherever any of them changes.

    A run without an answer counts as infinitely bad.
    """
    for at in sorted({budget, *(at for curve in curves for at, _ in curve)}):
        losses = [best_at(curve, at) for curve in curves]
        yield at, median(losses), min(losses), max(losses)


def seconds_to_reach(curves: Sequence[Curve], target: float, budget: float) -> float | None:
    """When the median over the seeds is first at or under a target; None if never."""
    if not math.isfinite(target):
        return None
    return next((at for at, middle, *_ in envelope(curves, budget) if middle <= target), None)


def table(names: Sequence[str], runs: Sequence[Mapping[str, Any]], budget: float) -> list[Row]:
    """One row a optimizer, each held against ours."""
    curves = {name: [run["curve"] for run in of_optimizer(runs, name)] for name in names}
    final = {name: [best_at(c, budget) for c in of_name] for name, of_name in curves.items()}
    middle = {name: median(losses) for name, losses in final.items()}
    target = middle.get(REFERENCE, math.inf)
    ours_to_target = seconds_to_reach(curves[OURS], target, budget)
    rows = []
    for name in names:
        of_name = of_optimizer(runs, name)
        to_target = seconds_to_reach(curves[name], target, budget)
        pairs = list(zip(final[OURS], final[name], strict=True))
        rival = name != OURS
        accuracies = [r["heldout_accuracy"] for r in of_name if r["heldout_accuracy"] is not None]
        faults = [run for run in of_name if run["status"] != "done"]
        rows.append(
            {
                "optimizer": name,
                "what": OPTIMIZER_RUNS[name].sentence,
                "runs": len(of_name),
                "final_loss": middle[name],
                "final_loss_least": min(final[name]),
                "final_loss_largest": max(final[name]),
                "evaluations": median(run["evaluations"] for run in of_name),
                "pruned": median(run["pruned"] for run in of_name),
                "diverged": median(run["diverged"] for run in of_name),
                "seconds_to_reference": to_target,
                "ratio_to_ours": to_target / ours_to_target
                if to_target and ours_to_target
                else None,
                "ours_reaches_its_final": seconds_to_reach(curves[OURS], middle[name], budget)
                if rival
                else None,
                "it_reaches_our_final": seconds_to_reach(curves[name], middle[OURS], budget)
                if rival
                else None,
                "ours_at_or_under": sum(a <= b < math.inf or a < b for a, b in pairs)
                if rival
                else None,
                "ours_under": sum(a < b for a, b in pairs) if rival else None,
                "ours_over": sum(a > b for a, b in pairs) if rival else None,
                "heldout_accuracy": median(accuracies) if accuracies else None,
                "out_of_box": sum(run["in_box"] is False for run in of_name),
                "not_done": len(faults),
                "status": _statuses(of_name),
                "messages": [
                    f"seed {run['seed']}: {run['status']}: {run['message']}" for run in faults
                ],
            }
        )
    return rows


def _statuses(runs: Sequence[Mapping[str, Any]]) -> str:
    counts = {run["status"]: 0 for run in runs}
    for run in runs:
        counts[run["status"]] += 1
    if len(counts) == 1:
        return str(next(iter(counts)))
    return ", ".join(f"{count} {status}" for status, count in counts.items())


def verdict(rows: Sequence[Row], budget: float) -> str:
    """One sentence, whichever way it goes."""
    ours, rivals = rows[0], rows[1:]
    outcome: dict[str, list[str]] = {"ahead of": [], "level with": [], "behind": []}
    for row in rivals:
        sign = (row["ours_under"] < row["ours_over"]) - (row["ours_under"] > row["ours_over"])
        outcome[list(outcome)[sign + 1]].append(row["optimizer"])
    places = ", ".join(f"{place} {_and(who)}" for place, who in outcome.items() if who)
    counts = _and(
        [f"{row['optimizer']} in {row['ours_at_or_under']} of {row['runs']}" for row in rivals]
    )
    return (
        f"{OURS} is {places}: after {budget:g} s each, its loss is at or under that of {counts}"
        f" {'seed' if ours['runs'] == 1 else 'seeds'}; {_medians(ours, rivals)}"
    )


def _medians(ours: Row, rivals: Sequence[Row]) -> str:
    best = min(rivals, key=lambda row: float(row["final_loss"]))
    theirs = best["final_loss"]
    its = f"its median is {ours['final_loss']:.3g}"
    if math.isinf(ours["final_loss"]):
        its = "it has no median"
    if math.isinf(theirs):
        return f"{its}, and no rival has one."
    reached = best["ours_reaches_its_final"]
    when = "which it does not reach" if reached is None else f"which it reaches in {reached:.3g} s"
    return f"{its}, the best rival's ({best['optimizer']}) {theirs:.3g}, {when}."


def _and(names: Sequence[str]) -> str:
    return " and ".join(part for part in (", ".join(names[:-1]), names[-1]) if part)


def _points(runs: Sequence[Mapping[str, Any]], budget: float) -> list[dict[str, float | None]]:
    """Best so far over the seeds, as JSON has it."""
    keys = ("seconds", "median", "least", "largest")
    points = envelope([run["curve"] for run in runs], budget)
    return [finite_or_null(dict(zip(keys, point, strict=True))) for point in points]
