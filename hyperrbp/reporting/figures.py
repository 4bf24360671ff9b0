"""Draws figures of runs and comparisons, from their records."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import linear_regression
from typing import TYPE_CHECKING, TypeVar

import matplotlib

from hyperrbp.config.loading import read
from hyperrbp.exceptions import StorageError, UsageError
from hyperrbp.experiments.results.compare import MethodRow
from hyperrbp.experiments.results.records import EpochRecord, Record, StepRecord, TrainRecord
from hyperrbp.experiments.summary_statistics import is_summary, summary
from hyperrbp.reporting.formatting import ROWS, words

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from hyperrbp.experiments.run_folder import RunFolder

R = TypeVar("R", bound=Record)


def draw_tunings(folders: Sequence[RunFolder], file: Path) -> None:
    """Draw the meta loss of every tuning run, and for a single one its hyperparameters too.

    Runs of different lengths T stand side by side. The format is that of the file's ending.

    Raises:
        UsageError: for a run without records, or an ending that is no image format.
        StorageError: if the file cannot be written.
    """
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    runs = []
    for folder in folders:
        runs.append((read(folder.recipe_file), _records(folder, StepRecord)))
    labels = [f"{recipe.gradient.method}, K = {recipe.gradient.trunc}" for recipe, _ in runs]
    colours = {label: f"C{i}" for i, label in enumerate(dict.fromkeys(labels))}
    lengths = sorted({recipe.inner.steps for recipe, _ in runs})
    single = len(runs) == 1
    kinds = list(runs[0][1][0].hyperparameters)
    count = 1 + len(kinds) if single else len(lengths)
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
        shown: list[str] = []  # what one legend names needs no other
        for axis, kind in zip(axes[1:], kinds, strict=True):
            shown = _hyperparameters(axis, runs[0][1], kind, shown)
    save(figure, file)


def _records(folder: RunFolder, expected: type[R]) -> list[R]:
    records = folder.records(expected)
    if not records:
        raise UsageError(f"{folder.path} has no records to draw")
    return records


def _loss(axis: Axes, records: Sequence[StepRecord], label: str, colour: str) -> None:
    losses = [record.meta_loss for record in records]
    values = [math.log10(loss) if loss > 0 else math.nan for loss in losses]
    axis.plot([record.meta_step for record in records], values, label=label, color=colour)
    axis.set(xlabel="meta step", ylabel="log₁₀ meta loss")
    axis.grid(alpha=0.3)


def _hyperparameters(
    axis: Axes, records: Sequence[StepRecord], kind: str, shown: list[str]
) -> list[str]:
    """Draw a curve a value, or the summary statistics of many; return the curves' names."""
    from hyperrbp.problems.training.hyperparameters import KINDS

    steps = [record.meta_step for record in records]
    values = [record.hyperparameters[kind] for record in records]
    if several := len(values[0]) > ROWS or is_summary(values[0]):
        values = [of if is_summary(of) else summary(of) for of in values]
    curves = {
        name: [math.nan if (value := of[name]) is None else value for of in values]
        for name in values[0]
    }
    if several:
        axis.fill_between(steps, curves["min"], curves["max"], color="C0", alpha=0.15, lw=0)
        axis.fill_between(steps, curves["q25"], curves["q75"], color="C0", alpha=0.3, lw=0)
        axis.plot(steps, curves["median"], color="C0", label="median, quartiles, extremes")
    else:
        for name, curve in curves.items():
            axis.plot(steps, curve, "--" if ".bias" in name else "-", label=name)
    axis.set(xlabel="meta step", ylabel=words(kind))
    if math.isinf(KINDS[kind].limits[1]):  # tuned as its logarithm
        axis.set_yscale("log")
    if list(curves) != shown:
        axis.legend(frameon=False, fontsize="x-small", ncols=2)
    axis.grid(alpha=0.3)
    return list(curves)


def draw_trainings(folders: Sequence[RunFolder], file: Path) -> None:
    """Draw loss, validation, and how the state becomes steady, of runs of ``hyperrbp train``.

    Raises:
        UsageError: for a run without records, or an ending that is no image format.
        StorageError: if the file cannot be written.
    """
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (loss, validation, steady) = plt.subplots(
        1, 3, figsize=(13.8, 3.6), layout="constrained"
    )
    for folder in folders:
        records = _records(folder, TrainRecord)
        curve = [(record.number, record.loss) for record in records if record.loss]
        loss.plot(*zip(*curve, strict=True), label=folder.path.name)
        unit = "epoch" if isinstance(records[0], EpochRecord) else "step"
        loss.set(xlabel=unit, ylabel="training loss", yscale="log")
        validated = [r for r in records if isinstance(r, EpochRecord) and r.validation is not None]
        if not validated:
            continue
        name = next(name for name in validated[0].validation or {} if name != "loss")
        values = [(record.validation or {})[name] for record in validated]
        validation.plot([record.epoch for record in validated], values)
        validation.set(xlabel="epoch", ylabel=words(name))
        norms = validated[-1].change_norms or []
        steady.plot(range(1, len(norms) + 1), norms)
        steady.set(xlabel="update t", ylabel="‖h_t − h_{t−1}‖", yscale="log")
    for axis in (loss, validation, steady):
        axis.grid(alpha=0.3)
    loss.legend(frameon=False, fontsize="x-small")
    save(figure, file)


def draw_costs(rows: Sequence[MethodRow], file: Path) -> None:
    """Draw seconds and kept bytes against K, and against T if there are several.

    K varies at the longest T. A legend's number is the exponent of a power law: 0 for a cost that
    does not grow, 1 for a linear one.

    Raises:
        UsageError: if nothing was measured, or for an ending that is no image format.
        StorageError: if the file cannot be written.
    """
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    measured = [row for row in rows if row.measured]
    if not measured:
        raise UsageError("no method was measured: there is nothing to draw")
    lengths = sorted({row.train_steps for row in measured})
    truncs = sorted({row.trunc for row in measured if row.trunc is not None})
    middle = truncs[len(truncs) // 2] if truncs else None
    against = []
    if truncs:
        against.append(("trunc", f"K (T = {lengths[-1]})", truncs))
    if len(lengths) > 1 or not truncs:
        against.append(("train_steps", "T" + (f" (K = {middle})" if middle else ""), lengths))
    figure, grid = plt.subplots(
        2, len(against), figsize=(4.6 * len(against), 6.4), layout="constrained", squeeze=False
    )
    labels = list(dict.fromkeys(row.label for row in measured))
    for column, (key, title, ticks) in enumerate(against):
        for axis, (cost, name) in zip(
            grid[:, column],
            (("seconds", "seconds a meta-gradient"), ("saved_bytes", "bytes kept")),
            strict=True,
        ):
            for number, label in enumerate(labels):
                of_label = [row for row in measured if row.label == label]
                if key == "trunc":
                    points = [r for r in of_label if r.train_steps == lengths[-1]]
                    level = [r for r in points if r.trunc is None]
                    if level:
                        height = getattr(level[0], cost)
                        axis.axhline(height, color=f"C{number}", ls="--", label=label)
                        continue
                else:
                    points = [r for r in of_label if r.trunc in (None, middle)]
                _cost_curve(axis, points, key, cost, label, f"C{number}")
            axis.set(xscale="log", yscale="log", xlabel=title, ylabel=name)
            axis.set_xticks(ticks, [str(tick) for tick in ticks])
            axis.xaxis.minorticks_off()
            axis.grid(alpha=0.3)
            axis.legend(frameon=False, fontsize="x-small")
    save(figure, file)


def _cost_curve(
    axis: Axes, rows: Sequence[MethodRow], x: str, y: str, label: str, colour: str
) -> None:
    pairs = ((getattr(row, x), getattr(row, y)) for row in rows)
    points = sorted(pair for pair in pairs if all(pair))
    if not points:
        return
    exponent = log_log_exponent(points)
    name = label if exponent is None else f"{label}: {exponent:.2f}"
    axis.plot(*zip(*points, strict=True), "o-", ms=3, label=name, color=colour)


def log_log_exponent(points: Sequence[tuple[float, float]]) -> float | None:
    """Return c of the least-squares y ∝ x^c; None for fewer than two different x."""
    xs, ys = zip(*((math.log(x), math.log(y)) for x, y in points), strict=True)
    if len(set(xs)) < 2:
        return None
    return linear_regression(xs, ys).slope


def save(figure: Figure, file: Path) -> None:
    """Write a figure and close it.

    Raises:
        UsageError: for an ending that is no image format.
        StorageError: if the file cannot be written.
    """
    from matplotlib import pyplot as plt

    try:
        figure.savefig(file, dpi=144)
    except ValueError as error:
        raise UsageError(f"--figure {file}: {str(error).split('(')[0].strip()}") from None
    except OSError as error:
        raise StorageError(f"{file}: {error.strerror or error}") from error
    finally:
        plt.close(figure)
