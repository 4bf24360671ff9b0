"""A comparison while it goes on, and as tables: for a terminal, as Markdown and as CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from hyperrbp.config.recipe import Recipe
from hyperrbp.exceptions import StorageError
from hyperrbp.reporting.formatting import duration, human_bytes, words
from hyperrbp.runtime.callbacks import Audience
from hyperrbp.runtime.files import write_atomically

Row = Mapping[str, Any]
Column = tuple[str, Callable[[Row], str]]
"""A title, and what stands under it."""


class Bar(Audience):
    """One bar with its ETA, and what is being done."""

    def __init__(self, console: Console) -> None:
        self._bar = Progress(
            BarColumn(bar_width=24),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
            console=console,
            transient=True,
        )
        self._task = self._bar.add_task("", total=None)
        self._bar.start()

    def expects(self, seconds: float) -> None:
        """Know how long the bar is."""
        self._bar.update(self._task, total=seconds)

    def begins(self, what: str) -> None:
        """Say what is being done."""
        self._bar.update(self._task, description=what)

    def spent(self, seconds: float) -> None:
        """Move on."""
        self._bar.advance(self._task, seconds)

    def ended(self) -> None:
        """Leave the screen clean."""
        self._bar.stop()


class Lines(Audience):
    """One line whenever something else is done, for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self._console, self._said = console, ""

    def expects(self, seconds: float) -> None:
        """Say it."""
        self._print(f"this should take about {duration(seconds)}")

    def begins(self, what: str) -> None:
        """Say it, the repeats of the timing but once."""
        if what.split(" of ")[0] == "seconds":
            what = "seconds of all, in turn"
        if what != self._said:
            self._said = what
            self._print(what)

    def _print(self, line: str) -> None:
        self._console.print(line, highlight=False, soft_wrap=True, markup=False)


def tables(document: Mapping[str, Any]) -> RenderableType:
    """What each method costs, how right it is, and what went wrong."""
    parts: list[RenderableType] = [Text(headline(document), style="bold")]
    for title, columns in _sections(document):
        table = Table(box=SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left")
        for name, _ in columns:
            table.add_column(
                name, justify="left" if name in _LEFT else "right", no_wrap=name in _WHOLE
            )
        for row in document["rows"]:
            table.add_row(*(show(row) for _, show in columns))
        parts.append(table)
    parts.extend(Text(note) for note in _notes(document))
    return Group(*parts)


def markdown(document: Mapping[str, Any]) -> str:
    """The same as Markdown."""
    lines = [headline(document), ""]
    for title, columns in _sections(document):
        rule = ["---" if name in _LEFT else "---:" for name, _ in columns]
        cells = [[name for name, _ in columns], rule]
        cells += [[show(row) for _, show in columns] for row in document["rows"]]
        lines += [f"**{title}**", "", *(f"| {' | '.join(row)} |" for row in cells), ""]
    return "\n".join([*lines, *(f"* {note}" for note in _notes(document)), ""])


def comma_separated(document: Mapping[str, Any]) -> str:
    """Every number of every row, nested ones as ``a.b``; what is missing is empty."""
    rows = [dict(_flattened(row)) for row in document["rows"]]
    names = list(dict.fromkeys(name for row in rows for name in row))
    # A failed row has nothing in place of what is nested in the others.
    names = [name for name in names if not any(other.startswith(f"{name}.") for other in names)]
    text = io.StringIO()
    writer = csv.DictWriter(text, names, restval="", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def write(document: Mapping[str, Any], folder: Path) -> None:
    """All of it into a folder: the recipe, the numbers, tables, a figure, and TensorBoard events.

    Raises:
        StorageError: if a file cannot be written.
    """
    from hyperrbp.reporting.figures import draw_costs
    from hyperrbp.reporting.tensorboard import write_comparison

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{folder}: {error.strerror or error}") from error
    recipe = Recipe.model_validate(document["recipe"]).to_yaml()
    for name, text in (
        ("recipe.yaml", recipe),
        ("comparison.json", json.dumps(document, indent=2) + "\n"),
        ("comparison.md", markdown(document)),
        ("comparison.csv", comma_separated(document)),
    ):
        write_atomically(folder / name, text)
    if any(row["seconds"] is not None for row in document["rows"]):
        draw_costs(document["rows"], folder / "cost.png")
        write_comparison(document, folder / "events")


def headline(document: Mapping[str, Any]) -> str:
    """What was compared, on what."""
    recipe, environment = document["recipe"], document["environment"]
    threads = environment["threads"]
    averaging = recipe["gradient"]["averaging"]
    place = environment.get("cuda_device") or f"{threads} CPU thread{'' if threads == 1 else 's'}"
    return (
        f"{recipe['name']}: one meta-gradient at the untuned start, M = {averaging['minibatches']},"
        f" {averaging['series']} series; median of {environment['repeats']} on {place},"
        f" {environment['machine']}, torch {environment['torch']}"
    )


def _sections(document: Mapping[str, Any]) -> list[tuple[str, list[Column]]]:
    lengths = {row["train_steps"] for row in document["rows"]}
    who: list[Column] = [
        ("method", lambda row: row["label"]),
        ("K", lambda row: "–" if row["trunc"] is None else str(row["trunc"])),
    ]
    at = ""
    if len(lengths) > 1:
        who.append(("T", lambda row: str(row["train_steps"])))
    else:
        at = f" (T = {next(iter(lengths))})"
    time: list[Column] = [
        ("seconds", _seconds),
        ("inner run", lambda row: _phase(row, "inner run")),
        ("meta-gradient", lambda row: _phase(row, "meta-gradient")),
        ("time ×", lambda row: _ratio(row, "time_ratio", "paper_time_ratio")),
        ("GFLOP", lambda row: "" if row["flops"] is None else _digits(row["flops"] / 1e9)),
        ("products", lambda row: "" if row["products"] is None else str(row["products"])),
    ]
    memory: list[Column] = [
        ("kept", lambda row: _bytes(row["saved_bytes"])),
        ("kept ×", lambda row: _ratio(row, "memory_ratio", "paper_memory_ratio")),
        ("peak", lambda row: _bytes(row["peak_bytes"])),
        ("peak ×", lambda row: _ratio(row, "peak_ratio")),
        ("process", lambda row: _bytes(row["process_peak_bytes"])),
        ("process ×", lambda row: _ratio(row, "process_ratio")),
    ]
    kinds = list(dict.fromkeys(kind for row in document["rows"] for kind in row["by_kind"] or ()))
    right: list[Column] = [
        ("all", _agreement),
        ("decrease kept", lambda row: "" if row["descent"] is None else f"{row['descent']:.0%}"),
        *((words(kind), _of_kind(kind)) for kind in kinds),
        ("residual", lambda row: "" if row["residual"] is None else f"{row['residual']:.2g}"),
        ("status", lambda row: row["status"]),
        ("verdict", lambda row: row["verdict"] or ""),
    ]
    return [
        (f"Time{at}", who + time),
        (f"Memory{at}", who + memory),
        (f"How right it is{at}: cosine, equal signs and norm ratio with the exact", who + right),
    ]


_LEFT = ("method", "status", "verdict")
_WHOLE = ("method", "seconds", "time ×", "kept ×")


def _seconds(row: Row) -> str:
    if row["seconds"] is None:
        return str(row["status"])
    spread = "" if row["seconds_iqr"] is None else f" ± {row['seconds_iqr'] / 2:.1g}"
    return f"{row['seconds']:.3g}{spread}"


def _phase(row: Row, name: str) -> str:
    return "" if row["seconds_by_phase"] is None else f"{row['seconds_by_phase'][name]:.3g}"


def _ratio(row: Row, key: str, paper: str | None = None) -> str:
    if row[key] is None:
        return ""
    published = row[paper] if paper else None
    return _digits(row[key]) + ("" if published is None else f" ({published:.3g})")


def _digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _bytes(count: int | None) -> str:
    return "" if count is None else human_bytes(count)


def _agreement(part: Mapping[str, Any]) -> str:
    if part["sign_agreement"] is None:
        return ""
    cosine = "–" if part["cosine"] is None else f"{part['cosine']:+.2f}"
    norm = "–" if part["norm_ratio"] is None else f"×{part['norm_ratio']:.2g}"
    return f"{cosine}, {part['sign_agreement']:.0%}, {norm}"


def _of_kind(kind: str) -> Callable[[Row], str]:
    return lambda row: _agreement(row["by_kind"][kind]) if row["by_kind"] else ""


def _notes(document: Mapping[str, Any]) -> Sequence[str]:
    rows, gpu = document["rows"], "cuda_device" in document["environment"]
    notes = [
        f"×: {document['baseline']['method']} (unrolled) over this method, as in the paper's"
        " Table 3. kept: what autograd and the method keep for a backward pass, the data set left"
        f" out. peak: {'of the allocator' if gpu else 'all live tensors of the meta step'}."
        " process: resident set, with Python, PyTorch and the data."
    ]
    if any(row["paper_time_ratio"] for row in rows):
        notes.append(
            "(…): Table 3 of Liao et al. 2018 at the same T and K, whose memory metric and GPU"
            " are not named."
        )
    notes += [
        f"T = {steps}: the exact gradient is unknown: {why}"
        for steps, why in document["baseline"]["exact_unknown"].items()
    ]
    notes += [
        f"{row['label']}, K = {row['trunc'] or '–'}, T = {row['train_steps']}:"
        f" {row['status']}: {row['message']}"
        for row in rows
        if row["message"]
    ]
    return notes


def _flattened(row: Mapping[str, Any], prefix: str = "") -> Sequence[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for key, value in row.items():
        if isinstance(value, Mapping):
            pairs += _flattened(value, f"{prefix}{key}.")
        else:
            pairs.append((prefix + key, json.dumps(value) if isinstance(value, list) else value))
    return pairs
