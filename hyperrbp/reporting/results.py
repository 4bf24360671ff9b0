"""Results of tuning and training runs as tables on the terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from hyperrbp.config.recipe import describe_tuner
from hyperrbp.config.recipe_keys import ADAM
from hyperrbp.experiments.results.run import RunResult
from hyperrbp.experiments.results.train import EquilibriumResult, InnerRunResult, TrainResult
from hyperrbp.experiments.results.tune import ReplicateComparison, Spread, TuneResult
from hyperrbp.experiments.summary_statistics import summary
from hyperrbp.reporting.formatting import ROWS, duration, human_bytes, number, sparkline, words

MEASURES = {"rmse": "error (RMS)", "r2": "R²"}
"""Measures whose names are not their keys."""


def result_page(result: RunResult) -> RenderableType:
    """Return the page of a run's result, whatever kind of run it was."""
    if isinstance(result, TuneResult):
        return tuning_page(result)
    assert isinstance(result, TrainResult)
    return training_page(result)


# --- tuning ---------------------------------------------------------------------------------------


def tuning_page(result: TuneResult) -> RenderableType:
    """Return the hyperparameters, the loss before and after, and the cost."""
    facts = Table.grid(padding=(0, 2))
    for name, text in reservations(result):
        facts.add_row(name, text)
    for warning in result.warnings:
        facts.add_row("warning", Text(warning, style="yellow"))
    for choice in result.choices[:1]:
        facts.add_row("auto", f"{choice.label}; {choice.why}")
    if result.meta_loss:
        facts.add_row("meta loss", sparkline(result.meta_loss))
    for row in _loss_rows(result):
        facts.add_row(*row)
    if result.stopped_early is not None:
        facts.add_row("", f"stopped early, after meta step {result.stopped_early.meta_step}")
    for row in _replicate_rows(result.test):
        facts.add_row(*row)
    how = describe_tuner(result.optimizer, result.method, result.trunc)
    facts.add_row("cost", _cost(result, how))
    facts.add_row("run folder", result.run_folder)
    first = [] if result.setback is None else [Text(result.setback, style="bold yellow")]
    return Group(*first, *_hyperparameter_tables(result), facts)


def _loss_rows(result: TuneResult) -> Iterator[tuple[str, str]]:
    """Yield the meta loss of the start and of the best, and how that was chosen."""
    best, common = result.best, result.common_draws
    if common is None:
        # Only Adam always begins with a complete run at the start.
        first = result.meta_loss[:1] if result.optimizer == ADAM else []
        start = "".join(f"{loss:.6g} → " for loss in first)
        at = f"(best, at meta step {best.meta_step} of {result.meta_steps})"
        yield "", f"{start}{best.meta_loss:.6g} {at}"
        return
    yield "", "each on its own draw of initial weights and minibatches"
    for which, candidate in enumerate(common.candidates):
        of = f"meta step {candidate.meta_step}" if which else "start"
        if candidate.averaged is not None:
            of = f"mean θ of the last {candidate.averaged}"
        mean, error = candidate.meta_loss.mean, candidate.standard_error
        text = f"{of}: {number(mean, 4)} ± {number(error, 2)}"
        if which:
            difference, error = candidate.difference, candidate.difference_error
            text += f" ({number(difference)} ± {number(error, 2)})"
        if candidate.diverged:
            text += f", {candidate.diverged} not finite"
        text += ", chosen" if which == common.chosen else ""
        yield "" if which else f"on {common.draws} common draws", text
    yield "", "mean ± standard error (difference to the start)"


def _hyperparameter_tables(result: TuneResult) -> Iterator[Table]:
    """Yield the start and the tuned value of everything: a column a kind, where names agree."""
    by_names: dict[tuple[str, ...], list[str]] = {}
    for kind, values in result.hyperparameters.items():
        by_names.setdefault(tuple(values), []).append(kind)
    for names, kinds in by_names.items():
        many = len(names) > ROWS
        tuned, untuned = (
            {kind: summary(values[kind]) if many else values[kind] for kind in kinds}
            for values in (result.hyperparameters, result.untuned)
        )
        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        table.add_column(f"of {len(names):,} values" if many else result.grains[kinds[0]].by)
        for kind in kinds:
            table.add_column(f"{words(kind)}: start → tuned", justify="right")
        for name in tuned[kinds[0]]:
            pairs = (
                f"{number(untuned[kind][name], 4)} → {number(tuned[kind][name], 4)}"
                for kind in kinds
            )
            table.add_row(name, *pairs)
        yield table


def _replicate_rows(test: ReplicateComparison | None) -> Iterator[tuple[str, str]]:
    """Yield the held-out measures of the start and of the tuned hyperparameters."""
    if test is None:
        return
    before, after = test.untuned.measures(), test.tuned.measures()
    for measure in after:
        change = " → ".join(_spread_text(measure, of[measure]) for of in (before, after))
        yield f"held-out {MEASURES.get(measure, measure)}", change
    seeds = f"{test.seeds} other seed{'' if test.seeds == 1 else 's'}"
    yield "", f"untuned → tuned, from {seeds} of initial weights and batches"
    for name, of in (("untuned", test.untuned), ("tuned", test.tuned)):
        if of.diverged:
            yield "", f"{of.diverged} of {test.seeds} {name} runs turned non-finite"


def _spread_text(measure: str, spread: Spread) -> str:
    def text(value: float | None) -> str:
        share = measure == "accuracy" and value is not None
        return f"{value:.2%}" if share else number(value, 4)

    deviation = spread.deviation
    return text(spread.mean) + ("" if deviation is None else f" ± {text(deviation)}")


# --- training -------------------------------------------------------------------------------------


def training_page(result: TrainResult) -> RenderableType:
    """Return what the trained network is worth, and what it cost."""
    table = Table.grid(padding=(0, 2))
    for name, text in reservations(result):
        table.add_row(name, text)
    if isinstance(result, EquilibriumResult):
        how = f"{result.method} with K = {result.trunc}, T = {result.updates}"
        rows = _equilibrium_rows(result)
    else:
        assert isinstance(result, InnerRunResult)
        how = f"{result.train_steps} training steps"
        rows = _inner_run_rows(result)
    for row in rows:
        table.add_row(*row)
    table.add_row("cost", _cost(result, how))
    table.add_row("weights", result.weights)
    return table


def _equilibrium_rows(result: EquilibriumResult) -> Iterator[tuple[str, str]]:
    best = result.best
    measures = ", ".join(f"{words(k)} {number(v, 4)}" for k, v in best.validation.items())
    yield "best epoch", f"{best.epoch} of {result.epochs}: {measures}"
    tested = (
        f"{words(name)} {'not finite' if value is None else f'{value:.2%}'}"
        for name, value in result.test.items()
    )
    yield "tested", ", ".join(tested)


def _inner_run_rows(result: InnerRunResult) -> Iterator[tuple[str, str]]:
    loss = result.meta_loss
    yield "training loss", "not finite" if loss is None else f"{loss:.6g}"
    for name, value in result.heldout.items():
        if name == "loss" and len(result.heldout) > 1:
            continue  # the others give it in units that mean something
        yield f"held-out {MEASURES.get(name, name)}", _measure_text(name, value)


def _measure_text(name: str, value: float | None) -> str:
    if value is None:
        return "not finite"
    return f"{value:.2%}" if name == "accuracy" else f"{value:.4g}"


# --- both -----------------------------------------------------------------------------------------


def _cost(result: RunResult, how: str) -> str:
    return (
        f"{duration(result.seconds)}, peak memory {human_bytes(result.peak_bytes)},"
        f" {how} on {result.device}"
    )


def reservations(result: RunResult) -> Iterator[tuple[str, Text]]:
    """Yield what a reader of a result should know before all else, with a name for each."""
    if not result.finished:
        yield "status", Text(result.status, style="bold red")
    if isinstance(result, TuneResult) and (back := result.rollbacks):
        times = "once" if len(back) == 1 else f"{len(back)} times, the last time"
        yield "rolled back", Text(f"{times} at {back[-1].reason}", style="yellow")
    if result.population is not None:
        yield "examples", Text(result.population)
    for changed in result.inexact_resumes:
        listed = "; ".join(f"{key}: {old} → {new}" for key, (old, new) in changed.items())
        yield (
            "resumed inexactly",
            Text(f"{listed}: not repeatable bit for bit", style="yellow"),
        )
