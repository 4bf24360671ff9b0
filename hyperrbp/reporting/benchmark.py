"""A contest as tables, for a terminal, as Markdown and as CSV, and its curves as a figure."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from hyperrbp.config.recipe import Recipe
from hyperrbp.reporting.comparison import comma_separated
from hyperrbp.runtime.files import write_atomically

Row = Mapping[str, Any]
Column = tuple[str, Callable[[Row], str]]
"""A title, and what stands under it."""


def tables(document: Mapping[str, Any]) -> RenderableType:
    """Who ended where and how soon, what went wrong, and the verdict."""
    parts: list[RenderableType] = [Text(headline(document), style="bold")]
    for columns in _sections(document):  # side by side, they are too wide for a terminal
        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        for name, _ in columns:
            left = name in _LEFT
            whole = name in ("optimizer", "range")
            table.add_column(name, justify="left" if left else "right", no_wrap=whole)
        for row in document["rows"]:
            table.add_row(*(show(row) for _, show in columns))
        parts.append(table)
    notes = [Text(note) for note in _notes(document)]
    return Group(*parts, *notes, Text(), Text(document["verdict"], "bold"))


def markdown(document: Mapping[str, Any]) -> str:
    """The same as Markdown."""
    ends, (_, *reaches) = _sections(document)
    columns = [*ends, *reaches]
    cells = [[name for name, _ in columns]]
    cells.append(["---" if name in _LEFT else "---:" for name, _ in columns])
    cells += [[show(row) for _, show in columns] for row in document["rows"]]
    lines = [headline(document), "", *(f"| {' | '.join(row)} |" for row in cells), ""]
    lines += [f"* {note}" for note in _notes(document)]
    return "\n".join([*lines, "", f"**{document['verdict']}**", ""])


def curves(document: Mapping[str, Any]) -> str:
    """Best so far as CSV, with its spread over the seeds."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["optimizer", "seconds", "median", "least", "largest"])
    for name, points in document["curves"].items():
        writer.writerows([name, *point.values()] for point in points)
    return text.getvalue()


def write(document: Mapping[str, Any], folder: Path) -> None:
    """All of it into a folder: the recipe, the numbers, tables and a figure.

    Raises:
        StorageError: if a file cannot be written.
    """
    for name, text in (
        ("recipe.yaml", Recipe.model_validate(document["recipe"]).to_yaml()),
        ("benchmark.json", json.dumps(document, indent=2) + "\n"),
        ("benchmark.md", markdown(document)),
        ("benchmark.csv", comma_separated(document)),
        ("curves.csv", curves(document)),
    ):
        write_atomically(folder / name, text)
    draw(document, folder / "benchmark.png")


def draw(document: Mapping[str, Any], file: Path) -> None:
    """The best meta loss so far against seconds: its median over the seeds, and all of its range.

    Raises:
        UsageError: for an ending that is no image format.
        StorageError: if the file cannot be written.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    from hyperrbp.reporting.figures import save

    figure, axis = plt.subplots(figsize=(7.2, 4.4), layout="constrained")
    for number, (name, points) in enumerate(document["curves"].items()):
        ours = name == document["ours"]
        colour = "black" if ours else f"C{number - 1}"
        at, middle = _known(points, "median")
        axis.step(at, middle, where="post", color=colour, lw=2 if ours else 1.3, label=name)
        at, least, largest = _known(points, "least", "largest")
        axis.fill_between(at, least, largest, step="post", color=colour, alpha=0.15, lw=0)
    recipe, seeds = document["recipe"], len(document["seeds"])
    axis.set(
        xlabel="seconds",
        ylabel="log₁₀ best meta loss so far",
        xlim=(0, document["budget_seconds"]),
        title=f"{recipe['name']}: T = {recipe['inner']['steps']}, median and range of {seeds}"
        f" {'seed' if seeds == 1 else 'seeds'}",
    )
    axis.grid(alpha=0.3)
    axis.legend(frameon=False, fontsize="small")
    save(figure, file)


def _known(points: Sequence[Mapping[str, float | None]], *keys: str) -> list[list[float]]:
    """The seconds and log₁₀ of what is known: from where all of these losses are positive."""
    found: list[list[float]] = [[] for _ in range(1 + len(keys))]
    for point in points:
        losses = [point[key] for key in keys]
        if all(loss is not None and loss > 0 for loss in losses):
            values = [point["seconds"], *(math.log10(loss) for loss in losses if loss)]
            for column, value in zip(found, values, strict=True):
                column.append(float(value or 0.0))
    return found


def headline(document: Mapping[str, Any]) -> str:
    """What was contested, on what."""
    recipe, environment, seeds = document["recipe"], document["environment"], document["seeds"]
    threads = environment["threads"]
    place = environment.get("cuda_device") or f"{threads} CPU thread{'' if threads == 1 else 's'}"
    of = "validation split" if recipe["meta"]["loss"] == "validation" else "training examples"
    counted = sum(map(len, document["box"]["low"].values()))
    return (
        f"{recipe['name']}: {document['budget_seconds']:g} s for each optimizer and seed"
        f" ({', '.join(map(str, seeds))}); loss on the {of} after T = {recipe['inner']['steps']}"
        f" steps, {counted} hyperparameters; {place}, {environment['machine']},"
        f" torch {environment['torch']}"
    )


def _sections(document: Mapping[str, Any]) -> tuple[list[Column], list[Column]]:
    """Where each ended, and how soon; who it is first in both."""
    who: Column = ("optimizer", lambda row: row["optimizer"])
    ends: list[Column] = [
        who,
        ("final loss", lambda row: _number(row["final_loss"])),
        ("range", _range),
        ("tried", lambda row: f"{row['evaluations']:,g}"),
        ("held-out", lambda row: _percent(row["heldout_accuracy"])),
        ("status", lambda row: row["status"]),
    ]
    if any(row["pruned"] for row in document["rows"]):
        ends.insert(4, ("cut short", lambda row: f"{row['pruned']:,g}"))
    reaches: list[Column] = [who]
    if document["reference"] is not None:
        reaches += [
            (f"s to {document['reference']}'s", lambda row: _time(row, "seconds_to_reference")),
            ("× ours", lambda row: _number(row["ratio_to_ours"])),
        ]

    def of_rivals(show: Callable[[Row], str]) -> Callable[[Row], str]:
        return lambda row: "" if row["optimizer"] == document["ours"] else show(row)

    reaches += [
        ("ours to its, s", of_rivals(lambda row: _time(row, "ours_reaches_its_final"))),
        ("it to ours, s", of_rivals(lambda row: _time(row, "it_reaches_our_final"))),
        ("ours ≤ it", of_rivals(lambda row: f"{row['ours_at_or_under']} of {row['runs']}")),
    ]
    return ends, reaches


_LEFT = ("optimizer", "status")


def _range(row: Row) -> str:
    return f"{_number(row['final_loss_least'])} … {_number(row['final_loss_largest'])}"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _time(row: Row, key: str) -> str:
    return "never" if row[key] is None else f"{row[key]:.3g}"


def _notes(document: Mapping[str, Any]) -> Sequence[str]:
    notes = [f"{row['optimizer']}: {row['what']}." for row in document["rows"]]
    timed = (
        "Medians over the seeds. tried: evaluations that ended in time. held-out: accuracy of the"
        " best hyperparameters, on examples that no optimizer has seen."
    )
    if document["reference"] is not None:
        timed += (
            f" s to {document['reference']}'s: when the median of the best so far reaches the"
            f" final one of {document['reference']}; × ours: over the seconds of ours."
        )
    timed += " ours to its, it to ours: the same for each other's final ones."
    notes.append(timed)
    for row in document["rows"]:
        notes += [f"{row['optimizer']}, {message}" for message in row["messages"]]
        if row["out_of_box"]:
            count = f"{row['out_of_box']} of {row['runs']}"
            notes.append(f"{row['optimizer']}: the best of {count} is outside the search box")
    return notes
