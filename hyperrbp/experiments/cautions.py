"""What a tuning run says against itself: a loss that rises, a series that grows, no improvement."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from hyperrbp.config.recipe import Recipe
from hyperrbp.config.recipe_keys import ADAM, AUTO
from hyperrbp.experiments.results.records import GradientRecord, StepRecord
from hyperrbp.experiments.results.tune import BestStep, Candidate, CommonDraws
from hyperrbp.hypergradients.diagnostics.verdict import Verdict
from hyperrbp.hypergradients.method import Status

RISES = 3
"""So many rises of the meta loss in a row are worth a warning."""
CERTAIN = 2.0
"""A difference is told from none by so many standard errors."""


def setback(
    recipe: Recipe,
    losses: Sequence[float],
    best: BestStep,
    untuned_loss: float | None,
    improved: bool,
) -> str | None:
    """Return that a run ended above its start, or did not get below it; None if all is well.

    Args:
        recipe: of the run.
        losses: of every meta step that came to its end.
        best: the answer.
        untuned_loss: the meta loss of the start; None if it is not finite.
        improved: whether the answer's is lower.
    """
    start = "not finite" if untuned_loss is None else f"{untuned_loss:.6g}"
    found = None
    if not improved and recipe.inner.fresh:
        found = f"no improvement: on the common draws, nothing is below the start ({start})"
    elif not improved and best.meta_loss == untuned_loss:
        found = f"no improvement: no meta step has a meta loss below that of the start ({start})"
    elif not improved:
        found = f"no improvement: the best meta loss ({best.meta_loss:.6g}) is above the start's"
        found += f" ({start})"
    descended = recipe.meta.optimizer == ADAM and not recipe.inner.fresh
    if descended and losses and losses[-1] > losses[0]:
        ended = f"the run ended above its start: {losses[0]:.6g} → {losses[-1]:.6g}"
        found = f"{found}; {ended}" if found else f"{ended}; the result is its best meta step"
    return found


def cautions(
    recipe: Recipe, records: Sequence[StepRecord], draws: CommonDraws | None
) -> Iterator[str]:
    """Yield the warnings of a whole run, each with its remedy.

    Args:
        recipe: of the run.
        records: of all its meta steps.
        draws: how its best was chosen, if on common draws.
    """
    for record in records:
        if (
            isinstance(record, GradientRecord)
            and record.warning is not None
            and record.verdict is not Verdict.GROWING  # of which there is a better one below
        ):
            yield record.warning
    yield from _growing(recipe, records)
    # A search tries what may be worse, and losses of other draws rise by themselves.
    if recipe.meta.optimizer == ADAM and not recipe.inner.fresh:
        yield from _rising(recipe, records)
    if draws is not None and draws.chosen != 0:
        yield from _uncertain(draws.candidates[draws.chosen])


def _growing(recipe: Recipe, records: Sequence[StepRecord]) -> Iterator[str]:
    """Yield that series grew, if any did that was not held against the exact gradient."""
    followed = dict(found for record in records if (found := _gradient(record)) is not None)
    grew = [meta_step for meta_step, status in followed.items() if status is Status.GROWING]
    if grew:
        cut = ", --cut-growing" if recipe.gradient.template == "neumann" else ""
        yield (
            f"the terms of the series grew at {len(grew)} of {len(followed)} gradients (first at"
            f" meta step {grew[0]}): such a gradient may point uphill; {_exact(recipe)}{cut}, or a"
            " smaller trunc"
        )


def _gradient(record: StepRecord) -> tuple[int, Status] | None:
    """Return at which meta step the gradient was taken that was followed, and how it ended."""
    if isinstance(record, GradientRecord):
        verified = record.verdict is Verdict.AGREES
        return record.meta_step, Status.CONVERGED if verified else record.status
    found = record.gradient_information
    return None if found is None else (found.meta_step, found.status)


def _rising(recipe: Recipe, records: Sequence[StepRecord]) -> Iterator[str]:
    """Yield that the meta loss rose several times in a row: the longest time that it did."""
    longest: list[StepRecord] = []
    run = [*records[:1]]
    for before, after in pairwise(records):
        run = [*run, after] if after.meta_loss > before.meta_loss else [after]
        longest = max(longest, run, key=len)
    if len(longest) <= RISES:
        return
    first, last = longest[0], longest[-1]
    remedy = "a lower meta.learning_rate"
    statuses = {record.status for record in longest if isinstance(record, GradientRecord)}
    if statuses != {Status.EXACT}:
        remedy = f"{_exact(recipe)}, or {remedy}"
    yield (
        f"the meta loss rose {len(longest) - 1} meta steps in a row ({first.meta_loss:.6g} →"
        f" {last.meta_loss:.6g}, meta steps {first.meta_step} to {last.meta_step}); {remedy}"
    )


def _exact(recipe: Recipe) -> str:
    """Return how to get a gradient that can be relied on."""
    exact = "--method bptt --set gradient.options.bptt.keep=checkpoints"
    auto = recipe.meta.optimizer == ADAM and recipe.gradient.method != AUTO
    return f"use --method auto, {exact}" if auto else f"use {exact}"


def _uncertain(chosen: Candidate) -> Iterator[str]:
    """Yield that the answer cannot be told from the start, if it cannot."""
    difference, error = chosen.difference, chosen.difference_error
    if difference is not None and error is not None and -difference < CERTAIN * error:
        yield (
            f"the meta loss of what was chosen is within the noise of the draws: {difference:+.3g}"
            f" ± {error:.2g} (standard error) to the start; it may be no better than that"
        )
