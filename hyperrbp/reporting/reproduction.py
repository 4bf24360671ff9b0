"""Pictures of what was reproduced, and what a person sees while it is."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from hyperrbp.paper import Audience
from hyperrbp.paper.run_specs import Outcome, RunSpec, Watch
from hyperrbp.reporting.figures import save
from hyperrbp.reporting.formatting import duration

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = {"bptt": "C0", "tbptt": "C1", "rbp": "C2", "cg": "C3", "neumann": "C4"}


@dataclass
class Panel:
    """Curves by method."""

    x: str
    y: str
    log: bool = False
    title: str = ""
    curves: dict[str, list[tuple[float, float]]] = field(default_factory=dict)

    def add(self, method: str, x: float, y: float | None) -> None:
        """One more point; a value that was not finite leaves a gap."""
        self.curves.setdefault(method, []).append((x, float("nan") if y is None else y))

    def rows(self, fixed: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        """Every point, for CSV."""
        return [
            {**(fixed or {}), "panel": self.y, "method": method, self.x: x, "value": y}
            for method, points in self.curves.items()
            for x, y in points
        ]


def draw_panels(
    file: Path, title: str, panels: Sequence[Panel], *, columns: int = 4, note: str = ""
) -> None:
    """Panels side by side, with one legend."""
    plt = _pyplot()
    across = min(columns, len(panels))
    down = -(-len(panels) // across)
    figure, grid = plt.subplots(
        down, across, figsize=(4.2 * across, 3.4 * down + 0.6), layout="constrained", squeeze=False
    )
    for axis, panel in zip(grid.flat, panels, strict=False):
        for method, points in panel.curves.items():
            axis.plot(*zip(*points, strict=True), label=method, color=COLOURS[method], lw=1.2)
        axis.set(xlabel=panel.x, ylabel=panel.y, title=panel.title)
        if panel.log and panel.curves:
            axis.set_yscale("log")
        axis.grid(alpha=0.3)
    for axis in grid.flat[len(panels) :]:
        axis.set_axis_off()
    handles = {line.get_label(): line for axis in grid.flat for line in axis.get_lines()}
    if handles:
        figure.legend(
            handles.values(), handles.keys(), loc="outside lower center", ncols=5, frameon=False
        )
    _finish(figure, file, title, note)


def draw_table(
    file: Path,
    title: str,
    columns: Sequence[str],
    lines: Sequence[Sequence[str]],
    *,
    note: str = "",
) -> None:
    """A table as a picture."""
    plt = _pyplot()
    figure, axis = plt.subplots(
        figsize=(1.9 * len(columns), 0.3 * (len(lines) + 1) + 0.9), layout="constrained"
    )
    axis.set_axis_off()
    if lines:
        table = axis.table(
            cellText=[list(line) for line in lines], colLabels=list(columns), loc="center"
        )
        table.auto_set_font_size(False)
        table.set_fontsize(9)
        table.auto_set_column_width(list(range(len(columns))))
        for (row, _), spec in table.get_celld().items():
            spec.set_edgecolor("0.85")
            if row == 0:
                spec.set_text_props(weight="bold")
    _finish(figure, file, title, note)


def draw_pictures(file: Path, title: str, rows: Mapping[str, Any], *, note: str = "") -> None:
    """Rows of images, each with its name: of shape (columns, height, width)."""
    plt = _pyplot()
    across = max((len(images) for images in rows.values()), default=1)
    figure, grid = plt.subplots(
        max(1, len(rows)),
        across,
        figsize=(0.8 * across + 1.2, 0.8 * max(1, len(rows)) + 0.8),
        layout="constrained",
        squeeze=False,
    )
    for axes, (name, images) in zip(grid, rows.items(), strict=False):
        for axis, image in zip(axes, images, strict=True):
            axis.imshow(image.numpy(), cmap="gray_r", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
        axes[0].set_ylabel(name, rotation=0, ha="right", va="center")
    _finish(figure, file, title, note)


def draw_scatter(
    file: Path, title: str, panels: Mapping[str, Mapping[str, Any]], *, note: str = ""
) -> None:
    """Paths in the plane, coloured by time, their ends annotated by method."""
    plt = _pyplot()
    count = max(1, len(panels))
    figure, grid = plt.subplots(
        1, count, figsize=(5 * count, 4.6), layout="constrained", squeeze=False
    )
    for axis, (name, paths) in zip(grid.flat, panels.items(), strict=False):
        for (method, path), marker in zip(paths.items(), "o^", strict=False):
            axis.plot(path[:, 0], path[:, 1], lw=0.4, color="0.7", zorder=1)
            points = axis.scatter(
                path[:, 0], path[:, 1], c=range(len(path)), marker=marker, s=14, label=method
            )
            axis.annotate(
                method, path[-1], xytext=(6, 6), textcoords="offset points", weight="bold"
            )
        figure.colorbar(points, ax=axis, label="time")
        axis.set(title=name, xticks=[], yticks=[])
        axis.legend(frameon=False)
    _finish(figure, file, title, note)


def _pyplot() -> Any:
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    return plt


def _finish(figure: Figure, file: Path, title: str, note: str) -> None:
    width = int(13 * figure.get_figwidth())  # letters that fit at this size
    lines = [*textwrap.wrap(title, width), *textwrap.wrap(note, width)]
    figure.suptitle("\n".join(lines), fontsize=10)
    save(figure, file)


# --- in a terminal --------------------------------------------------------------------------------


class ReproductionLines(Audience):
    """A line a run."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def begun(self, run_specs: Sequence[RunSpec], done: int) -> None:
        """How much there is to do."""
        self._left, self._spent, self._ran = len(run_specs) - done, 0.0, 0
        self._say(f"{len(run_specs)} runs, {done} of them done already")

    def watch(self, spec: RunSpec) -> Watch:
        """Say what begins."""
        self._say(f"{spec.name} …")
        return Watch()

    def ended(self, spec: RunSpec, outcome: Outcome, seconds: float) -> None:
        """What it came to, and how long the rest may take."""
        self._left -= 1
        self._ran, self._spent = self._ran + 1, self._spent + seconds
        left = self._left * self._spent / self._ran
        self._say(
            f"{spec.name}: {outcome.failure or 'done'} | {duration(seconds)} | {self._left} left |"
            f" ETA {duration(left)}"
        )

    def _say(self, line: str) -> None:
        self._console.print(line, highlight=False, soft_wrap=True, markup=False)


class ReproductionBar(Audience):
    """A bar over all runs, and one over the steps of the present one."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def begun(self, run_specs: Sequence[RunSpec], done: int) -> None:
        """Draw both."""
        self._bar = Progress(
            TextColumn("{task.description}"),
            MofNCompleteColumn(),
            BarColumn(bar_width=None),
            TimeElapsedColumn(),
            TextColumn("{task.fields[eta]}"),
            console=self._console,
            expand=True,
            transient=True,
        )
        self._spent, self._ran, self._left = 0.0, 0, len(run_specs) - done
        self._all = self._bar.add_task("runs", total=len(run_specs), completed=done, eta="")
        self._one: Any = self._bar.add_task("", total=None, eta="")
        self._bar.start()

    def watch(self, spec: RunSpec) -> Watch:
        """A new inner bar."""
        self._bar.remove_task(self._one)
        self._one = self._bar.add_task(spec.name, total=None, eta="")
        bar = self

        class Steps(Watch):
            def at(self, position: int, last: int) -> None:
                bar._bar.update(bar._one, completed=position, total=last)

        return Steps()

    def ended(self, spec: RunSpec, outcome: Outcome, seconds: float) -> None:
        """One more run is done."""
        self._left -= 1
        self._ran, self._spent = self._ran + 1, self._spent + seconds
        eta = f"ETA {duration(self._left * self._spent / self._ran)}"
        self._bar.update(self._all, advance=1, eta=eta)
        if outcome.failure:
            self._console.print(f"{spec.name}: {outcome.failure}", highlight=False, markup=False)

    def left(self) -> None:
        """Take the bars away."""
        if hasattr(self, "_bar"):
            self._bar.stop()


def verdict(document: Mapping[str, Any]) -> RenderableType:
    """A table or figure in the terminal: its numbers, and whether the claim held."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in document["columns"]:
        table.add_column(column)
    for line in document["lines"]:
        table.add_row(*line)
    word, style = {
        True: ("held here", "bold green"),
        False: ("did not hold here", "bold red"),
        None: ("cannot be said from what was run", "bold yellow"),
    }[document["held"]]
    claim = Text.assemble("The paper's claim ", (word, style), f": {document['claim']}.")
    parts: list[RenderableType] = [Text(document["title"], style="bold"), Text(document["scale"])]
    if document["lines"]:
        parts.append(table)
    return Group(*parts, Text(document["verdict"]), claim, Text(""))
