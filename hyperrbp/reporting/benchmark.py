"""Shows a benchmark of optimizers: as tables, as Markdown, as CSV and as a figure."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Group, RenderableType
from rich.text import Text

from hyperrbp.experiments.results.benchmark import BenchmarkReport, BenchmarkRow, CurvePoint
from hyperrbp.experiments.results.document import to_json
from hyperrbp.reporting.tables import (
    Column,
    comma_separated,
    machine,
    markdown_table,
    terminal_table,
)
from hyperrbp.runtime.files import write_atomically

OptimizerColumn = Column[BenchmarkRow]


def tables(report: BenchmarkReport) -> RenderableType:
    """Return the final losses, the seconds to reach them, what went wrong, and the verdict."""
    # Side by side, they are too wide for a terminal.
    parts = [
        terminal_table([_NAME, *columns], report.rows)
        for columns in (_final_losses(report), _seconds_to_reach(report))
    ]
    notes = [Text(note) for note in _notes(report)]
    return Group(
        Text(headline(report), style="bold"), *parts, *notes, Text(), Text(report.verdict, "bold")
    )


def markdown(report: BenchmarkReport) -> str:
    """Return the same as Markdown."""
    columns = [_NAME, *_final_losses(report), *_seconds_to_reach(report)]
    lines = [headline(report), "", *markdown_table(columns, report.rows), ""]
    lines += [f"* {note}" for note in _notes(report)]
    return "\n".join([*lines, "", f"**{report.verdict}**", ""])


def curves(report: BenchmarkReport) -> str:
    """Return the best losses so far as CSV, with their spread over the seeds."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["optimizer", "seconds", "median", "least", "largest"])
    for name, points in report.curves.items():
        writer.writerows([name, p.seconds, p.median, p.least, p.largest] for p in points)
    return text.getvalue()


def write(report: BenchmarkReport, folder: Path) -> None:
    """Write the recipe, the numbers, tables and a figure into a folder.

    Raises:
        StorageError: if a file cannot be written.
    """
    for name, text in (
        ("recipe.yaml", report.recipe.to_yaml()),
        ("benchmark.json", to_json(report, indent=2) + "\n"),
        ("benchmark.md", markdown(report)),
        ("benchmark.csv", comma_separated(report.rows)),
        ("curves.csv", curves(report)),
    ):
        write_atomically(folder / name, text)
    draw_curves(report, folder / "benchmark.png")


def draw_curves(report: BenchmarkReport, file: Path) -> None:
    """Draw the best loss so far against seconds: its median over the seeds, and its range.

    Raises:
        UsageError: for an ending that is no image format.
        StorageError: if the file cannot be written.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    from hyperrbp.reporting.figures import save

    figure, axis = plt.subplots(figsize=(7.2, 4.4), layout="constrained")
    for number, (name, points) in enumerate(report.curves.items()):
        ours = name == report.ours
        colour = "black" if ours else f"C{number - 1}"
        at, middle = _known(points, lambda point: [point.median])
        axis.step(at, middle, where="post", color=colour, lw=2 if ours else 1.3, label=name)
        at, least, largest = _known(points, lambda point: [point.least, point.largest])
        axis.fill_between(at, least, largest, step="post", color=colour, alpha=0.15, lw=0)
    recipe, seeds = report.recipe, len(report.seeds)
    axis.set(
        xlabel="seconds",
        ylabel="log₁₀ best meta loss so far",
        xlim=(0, report.budget_seconds),
        title=f"{recipe.name}: T = {recipe.inner.steps}, median and range of {seeds}"
        f" {'seed' if seeds == 1 else 'seeds'}",
    )
    axis.grid(alpha=0.3)
    axis.legend(frameon=False, fontsize="small")
    save(figure, file)


def _known(
    points: Sequence[CurvePoint], losses_of: Callable[[CurvePoint], list[float | None]]
) -> list[list[float]]:
    """Return the seconds and log₁₀ of the losses, of the points where all of these are positive."""
    columns: list[list[float]] = [[] for _ in range(1 + len(losses_of(points[0])))]
    for point in points:
        losses = losses_of(point)
        known = [math.log10(loss) for loss in losses if loss is not None and loss > 0]
        if len(known) == len(losses):
            for column, value in zip(columns, [point.seconds, *known], strict=True):
                column.append(value)
    return columns


def headline(report: BenchmarkReport) -> str:
    """Return what was compared, and on what."""
    recipe = report.recipe
    of = "validation split" if recipe.meta.loss == "validation" else "training examples"
    counted = sum(map(len, report.box.low.values()))
    return (
        f"{recipe.name}: {report.budget_seconds:g} s for each optimizer and seed"
        f" ({', '.join(map(str, report.seeds))}); loss on the {of} after T = {recipe.inner.steps}"
        f" steps, {counted} hyperparameters; {machine(report.environment)}"
    )


_NAME = OptimizerColumn("optimizer", lambda row: row.optimizer, left=True, whole=True)


def _final_losses(report: BenchmarkReport) -> list[OptimizerColumn]:
    columns = [
        OptimizerColumn("final loss", lambda row: _number(row.final_loss)),
        OptimizerColumn("range", _range, whole=True),
        OptimizerColumn("tried", lambda row: f"{row.evaluations:,g}"),
        OptimizerColumn("held-out", lambda row: _percent(row.heldout_accuracy)),
        OptimizerColumn("status", lambda row: row.status, left=True),
    ]
    if any(row.pruned for row in report.rows):
        columns.insert(3, OptimizerColumn("cut short", lambda row: f"{row.pruned:,g}"))
    return columns


def _seconds_to_reach(report: BenchmarkReport) -> list[OptimizerColumn]:
    def of_others(show: Callable[[BenchmarkRow], str]) -> Callable[[BenchmarkRow], str]:
        return lambda row: "" if row.optimizer == report.ours else show(row)

    columns = []
    if report.reference is not None:
        columns += [
            OptimizerColumn(
                f"s to {report.reference}'s", lambda row: _time(row.seconds_to_reference)
            ),
            OptimizerColumn("× ours", lambda row: _number(row.ratio_to_ours)),
        ]
    return [
        *columns,
        OptimizerColumn("ours to its, s", of_others(lambda row: _time(row.ours_reaches_its_final))),
        OptimizerColumn("it to ours, s", of_others(lambda row: _time(row.it_reaches_our_final))),
        OptimizerColumn(
            "ours ≤ it", of_others(lambda row: f"{row.ours_at_or_under} of {row.runs}")
        ),
    ]


def _range(row: BenchmarkRow) -> str:
    return f"{_number(row.final_loss_least)} … {_number(row.final_loss_largest)}"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _time(seconds: float | None) -> str:
    return "never" if seconds is None else f"{seconds:.3g}"


def _notes(report: BenchmarkReport) -> Sequence[str]:
    notes = [f"{row.optimizer}: {row.what}." for row in report.rows]
    timed = (
        "Medians over the seeds. tried: evaluations that ended in time. held-out: accuracy of the"
        " best hyperparameters, on examples that no optimizer has seen."
    )
    if report.reference is not None:
        timed += (
            f" s to {report.reference}'s: seconds until the median of the best so far reaches the"
            f" final one of {report.reference}; × ours: those seconds over ours."
        )
    timed += (
        " ours to its: seconds until our median reaches its final one; it to ours: the same the"
        " other way round. ours ≤ it: seeds at which our final loss is at most its."
    )
    notes.append(timed)
    for row in report.rows:
        notes += [f"{row.optimizer}, {message}" for message in row.messages]
        if row.out_of_box:
            count = f"{row.out_of_box} of {row.runs}"
            notes.append(f"{row.optimizer}: the best of {count} is outside the search box")
    return notes
