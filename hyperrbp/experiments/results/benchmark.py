"""The report of ``hyperrbp compare --against``."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Strict

from hyperrbp.config.recipe import Recipe
from hyperrbp.experiments.results.document import Document, Environment, Number, Part, Values


class RunStatus(StrEnum):
    """How an optimizer's run ended."""

    DONE = "done"
    """Its seconds were spent."""
    ENDED_EARLY = "ended early"
    DIVERGED = "diverged"
    TOO_SLOW = "too slow"
    """No evaluation ended in time."""
    OUT_OF_MEMORY = "out of memory"
    FAILED = "failed"


class BenchmarkRun(Part):
    """One optimizer with one seed."""

    optimizer: str
    seed: int
    status: Annotated[RunStatus, Strict(False)]
    message: str | None
    """Why it did not go as planned."""
    seconds: float
    """When the last evaluation that counts ended."""
    overrun: float
    """How long after the deadline the evaluation ended that does not count."""
    evaluations: int
    """That count."""
    pruned: int
    """Of them, those ended early as unpromising."""
    diverged: int
    """Of them, those whose loss is not finite."""
    final_loss: Number
    """The best; None if there is none."""
    curve: list[tuple[float, float]]
    """(seconds, loss) of every evaluation that was better than all before."""
    hyperparameters: dict[str, Values] | None
    """The best ones."""
    in_box: bool | None
    """Whether those are in the search box."""
    heldout_accuracy: Number
    """At the best hyperparameters; None without such a measure."""


class BenchmarkRow(Part):
    """One optimizer over all seeds, compared with ours; medians, unless it says otherwise."""

    optimizer: str
    what: str
    """The optimizer in a few words."""
    runs: int
    final_loss: Number
    final_loss_least: Number
    final_loss_largest: Number
    evaluations: int | float
    pruned: int | float
    diverged: int | float
    seconds_to_reference: Number
    """Until its median best loss is the reference's final one; None: never."""
    ratio_to_ours: Number
    """Those seconds over ours."""
    ours_reaches_its_final: Number
    """Seconds until our median best loss is its final one; None: never, or it is ours."""
    it_reaches_our_final: Number
    ours_at_or_under: int | None
    """Seeds at which our final loss is at most its; None for ours itself."""
    ours_under: int | None
    ours_over: int | None
    heldout_accuracy: Number
    out_of_box: int
    """Runs whose best hyperparameters are outside the search box."""
    not_done: int
    """Runs that did not go as planned."""
    status: str
    """The one status of all runs, or how many there are of each."""
    messages: list[str]


class CurvePoint(Part):
    """The best losses so far over the seeds; a run without any counts as infinite."""

    seconds: float
    median: Number
    least: Number
    largest: Number


class Box(Part):
    """The search box, by kind of hyperparameter, in natural units."""

    low: dict[str, Values]
    high: dict[str, Values]


class BenchmarkReport(Document):
    """``benchmark.json``."""

    kind: Literal["benchmark"] = "benchmark"
    budget_seconds: float
    """For each optimizer and seed."""
    seeds: list[int]
    ours: str
    """The optimizer that the others are compared with."""
    reference: str | None
    """Whose final loss all are timed to, if it takes part."""
    environment: Environment
    recipe: Recipe
    box: Box
    start_loss: Number
    """At the recipe's start, with its own seed."""
    verdict: str
    """The outcome in words."""
    rows: list[BenchmarkRow]
    curves: dict[str, list[CurvePoint]]
    """By optimizer."""
    runs: list[BenchmarkRun]
