"""Figures of finished runs: readers of run folders."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib

from hyperrbp.errors import StorageError, UsageError
from hyperrbp.recipe import read

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from hyperrbp.run_folder import RunFolder

KINDS = {"learning_rate": "learning rate", "momentum": "momentum"}


def draw(folders: Sequence[RunFolder], file: Path) -> None:
    """The meta loss of every run, and for a single one its hyperparameters too.

    Runs of different lengths T stand side by side. The format is that of the file's ending.

    Raises:
        UsageError: for a run without records, or an ending that is no image format.
        StorageError: if the file cannot be written.
    """
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    runs = []
    for folder in folders:
        records = folder.records()
        if not records:
            raise UsageError(f"{folder.path} has no records to draw")
        runs.append((read(folder.recipe_file), records))
    labels = [f"{recipe.gradient.method}, K = {recipe.gradient.trunc}" for recipe, _ in runs]
    colours = {label: f"C{i}" for i, label in enumerate(dict.fromkeys(labels))}
    lengths = sorted({recipe.inner.steps for recipe, _ in runs})
    single = len(runs) == 1
    count = 3 if single else len(lengths)
    figure, grid = plt.subplots(
        1, count, figsize=(4.6 * count, 3.6), layout="constrained", squeeze=False
    )
    axes = list(grid[0])
    for (recipe, records), label in zip(runs, labels, strict=True):
        axis = axes[0 if single else lengths.index(recipe.inner.steps)]
        _loss(axis, records, label, colours[label])
        axis.set_title(f"{recipe.name}: T = {recipe.inner.steps} training steps")
    if not single:
        handles = {line.get_label(): line for axis in axes for line in axis.get_lines()}
        figure.legend(handles.values(), handles.keys(), loc="outside right upper", frameon=False)
    else:
        axes[0].legend(frameon=False)
        for axis, kind in zip(axes[1:], KINDS, strict=True):
            _hyperparameters(axis, runs[0][1], kind)
    try:
        figure.savefig(file, dpi=144)
    except ValueError as error:
        raise UsageError(f"--figure {file}: {str(error).split('(')[0].strip()}") from None
    except OSError as error:
        raise StorageError(f"{file}: {error.strerror or error}") from error
    finally:
        plt.close(figure)


def _loss(axis: Axes, records: Sequence[dict[str, Any]], label: str, colour: str) -> None:
    losses = [record["meta_loss"] for record in records]
    values = [math.log10(loss) if loss > 0 else math.nan for loss in losses]
    axis.plot([record["meta_step"] for record in records], values, label=label, color=colour)
    axis.set(xlabel="meta step", ylabel="log₁₀ meta loss")
    axis.grid(alpha=0.3)


def _hyperparameters(axis: Axes, records: Sequence[dict[str, Any]], kind: str) -> None:
    steps = [record["meta_step"] for record in records]
    for name in records[0]["hyperparameters"][kind]:
        values = [record["hyperparameters"][kind][name] for record in records]
        axis.plot(steps, values, "--" if name.endswith("bias") else "-", label=name)
    axis.set(xlabel="meta step", ylabel=KINDS[kind])
    if kind == "learning_rate":
        axis.set_yscale("log")
        axis.legend(frameon=False, fontsize="x-small", ncols=2)
    axis.grid(alpha=0.3)
