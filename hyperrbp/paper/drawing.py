"""Draws what was reproduced: a figure of the paper, or a table as a picture."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt

from hyperrbp.paper.artifact import Finding
from hyperrbp.paper.figures import Images, Panels, Paths
from hyperrbp.reporting.figures import save

if TYPE_CHECKING:
    from matplotlib.figure import Figure as MatplotlibFigure

COLOURS = {"bptt": "C0", "tbptt": "C1", "rbp": "C2", "cg": "C3", "neumann": "C4"}


def draw(finding: Finding, title: str, note: str, file: Path) -> None:
    """Draw the figure of a finding, or else its table.

    Args:
        finding: what was measured.
        title: above it.
        note: below the title; empty for none.
        file: a PNG.

    Raises:
        StorageError: if the file cannot be written.
    """
    found = finding.figure
    if isinstance(found, Panels):
        figure = _draw_panels(found)
    elif isinstance(found, Images):
        figure = _draw_images(found)
    elif isinstance(found, Paths):
        figure = _draw_paths(found)
    else:
        figure = _draw_table(finding.columns, finding.lines)
    width = int(13 * figure.get_figwidth())  # letters that fit at this size
    lines = [*textwrap.wrap(title, width), *textwrap.wrap(note, width)]
    figure.suptitle("\n".join(lines), fontsize=10)
    save(figure, file)


def _draw_panels(found: Panels) -> MatplotlibFigure:
    panels = found.panels
    across = min(found.columns, len(panels))
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
    return figure


def _draw_table(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> MatplotlibFigure:
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
        for (row, _), cell in table.get_celld().items():
            cell.set_edgecolor("0.85")
            if row == 0:
                cell.set_text_props(weight="bold")
    return figure


def _draw_images(found: Images) -> MatplotlibFigure:
    rows = found.rows
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
    return figure


def _draw_paths(found: Paths) -> MatplotlibFigure:
    panels = found.panels
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
    return figure
