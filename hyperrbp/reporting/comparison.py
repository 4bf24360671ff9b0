"""Shows a comparison of gradient methods: as tables, as Markdown and as CSV, in a folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Group, RenderableType
from rich.text import Text

from hyperrbp.exceptions import StorageError
from hyperrbp.experiments.results.compare import CompareReport, MethodRow
from hyperrbp.experiments.results.document import to_json
from hyperrbp.experiments.results.examination import AgreementReport
from hyperrbp.reporting.formatting import human_bytes, words
from hyperrbp.reporting.tables import (
    Column,
    comma_separated,
    machine,
    markdown_table,
    terminal_table,
)
from hyperrbp.runtime.files import write_atomically

MethodColumn = Column[MethodRow]


def tables(report: CompareReport) -> RenderableType:
    """Return what each method costs, how right it is, and what went wrong."""
    parts: list[RenderableType] = [Text(headline(report), style="bold")]
    parts += [terminal_table(columns, report.rows, title) for title, columns in _sections(report)]
    return Group(*parts, *(Text(note) for note in _notes(report)))


def markdown(report: CompareReport) -> str:
    """Return the same as Markdown."""
    lines = [headline(report), ""]
    for title, columns in _sections(report):
        lines += [f"**{title}**", "", *markdown_table(columns, report.rows), ""]
    return "\n".join([*lines, *(f"* {note}" for note in _notes(report)), ""])


def write(report: CompareReport, folder: Path) -> None:
    """Write the recipe, the numbers, tables, a figure and TensorBoard events into a folder.

    Raises:
        StorageError: if a file cannot be written.
    """
    from hyperrbp.reporting.figures import draw_costs
    from hyperrbp.reporting.tensorboard import write_comparison

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{folder}: {error.strerror or error}") from error
    for name, text in (
        ("recipe.yaml", report.recipe.to_yaml()),
        ("comparison.json", to_json(report, indent=2) + "\n"),
        ("comparison.md", markdown(report)),
        ("comparison.csv", comma_separated(report.rows)),
    ):
        write_atomically(folder / name, text)
    if any(row.measured for row in report.rows):
        draw_costs(report.rows, folder / "cost.png")
        write_comparison(report, folder / "events")


def headline(report: CompareReport) -> str:
    """Return what was compared, and on what."""
    averaging = report.recipe.gradient.averaging
    return (
        f"{report.recipe.name}: one meta-gradient at the untuned start,"
        f" M = {averaging.minibatches}, {averaging.series} series; median of"
        f" {report.environment['repeats']} on {machine(report.environment)}"
    )


def _sections(report: CompareReport) -> list[tuple[str, list[MethodColumn]]]:
    lengths = {row.train_steps for row in report.rows}
    first = [
        MethodColumn("method", lambda row: row.label, left=True, whole=True),
        MethodColumn("K", lambda row: "–" if row.trunc is None else str(row.trunc)),
    ]
    at = ""
    if len(lengths) > 1:
        first.append(MethodColumn("T", lambda row: str(row.train_steps)))
    else:
        at = f" (T = {next(iter(lengths))})"
    return [
        (f"Time{at}", first + _TIME),
        (f"Memory{at}", first + _MEMORY),
        (
            f"How right it is{at}: cosine, equal signs and norm ratio with the exact",
            first + _rightness(report),
        ),
    ]


_TIME = [
    MethodColumn("seconds", lambda row: _seconds(row), whole=True),
    MethodColumn("inner run", lambda row: _phase(row, "inner run")),
    MethodColumn("meta-gradient", lambda row: _phase(row, "meta-gradient")),
    MethodColumn("time ×", lambda row: _ratio(row.time_ratio, row.paper_time_ratio), whole=True),
    MethodColumn("GFLOP", lambda row: "" if row.flops is None else _digits(row.flops / 1e9)),
    MethodColumn("products", lambda row: "" if row.products is None else str(row.products)),
]
_MEMORY = [
    MethodColumn("kept", lambda row: _bytes(row.saved_bytes)),
    MethodColumn(
        "kept ×", lambda row: _ratio(row.memory_ratio, row.paper_memory_ratio), whole=True
    ),
    MethodColumn("peak", lambda row: _bytes(row.peak_bytes)),
    MethodColumn("peak ×", lambda row: _ratio(row.peak_ratio)),
    MethodColumn("process", lambda row: _bytes(row.process_peak_bytes)),
    MethodColumn("process ×", lambda row: _ratio(row.process_ratio)),
]


def _rightness(report: CompareReport) -> list[MethodColumn]:
    kinds = list(dict.fromkeys(kind for row in report.rows for kind in row.by_kind or ()))
    return [
        MethodColumn("all", _agreement),
        MethodColumn(
            "decrease kept", lambda row: "" if row.descent is None else f"{row.descent:.0%}"
        ),
        *(MethodColumn(words(kind), _of_kind(kind)) for kind in kinds),
        MethodColumn("residual", lambda row: "" if row.residual is None else f"{row.residual:.2g}"),
        MethodColumn("status", lambda row: row.status, left=True),
        MethodColumn("verdict", lambda row: row.verdict or "", left=True),
    ]


def _seconds(row: MethodRow) -> str:
    if row.seconds is None:
        return row.status
    spread = "" if row.seconds_iqr is None else f" ± {row.seconds_iqr / 2:.1g}"
    return f"{row.seconds:.3g}{spread}"


def _phase(row: MethodRow, name: str) -> str:
    return "" if row.seconds_by_phase is None else f"{row.seconds_by_phase[name]:.3g}"


def _ratio(value: float | None, published: float | None = None) -> str:
    if value is None:
        return ""
    return _digits(value) + ("" if published is None else f" ({published:.3g})")


def _digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _bytes(count: int | None) -> str:
    return "" if count is None else human_bytes(count)


def _agreement(part: MethodRow | AgreementReport) -> str:
    if part.sign_agreement is None:
        return ""
    cosine = "–" if part.cosine is None else f"{part.cosine:+.2f}"
    norm = "–" if part.norm_ratio is None else f"×{part.norm_ratio:.2g}"
    return f"{cosine}, {part.sign_agreement:.0%}, {norm}"


def _of_kind(kind: str) -> Callable[[MethodRow], str]:
    return lambda row: "" if row.by_kind is None else _agreement(row.by_kind[kind])


def _notes(report: CompareReport) -> Sequence[str]:
    on_gpu = report.recipe.device == "cuda"
    notes = [
        f"×: {report.baseline.method} (unrolled) over this method, as in the paper's Table 3. kept:"
        " what autograd and the method keep for a backward pass, without the data set. peak:"
        f" {'of the allocator' if on_gpu else 'all live tensors of the meta step'}. process:"
        " resident set, with Python, PyTorch and the data."
    ]
    if any(row.paper_time_ratio for row in report.rows):
        notes.append(
            "(…): Table 3 of Liao et al. 2018 at the same T and K, whose memory metric and GPU"
            " are not named."
        )
    notes += [
        f"T = {steps}: the exact gradient is unknown: {why}"
        for steps, why in report.baseline.exact_unknown.items()
    ]
    notes += [
        f"{row.label}, K = {row.trunc or '–'}, T = {row.train_steps}: {row.status}: {row.message}"
        for row in report.rows
        if row.message
    ]
    return notes
