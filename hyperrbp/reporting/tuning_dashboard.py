"""Follows a tuning run in a display that is redrawn in place."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar
from rich.table import Table

from hyperrbp.experiments.results.records import GradientRecord, StepRecord
from hyperrbp.experiments.tune import TuneCallback, TuneContext, TuneStep
from hyperrbp.reporting.formatting import human_bytes, sparkline, value_range, words
from hyperrbp.reporting.tuning_text import gradient_line, headline, progress_line, remarks
from hyperrbp.runtime.callbacks import Progress


class TuningDashboard(TuneCallback):
    """Shows a bar with its ETA, and the state of the run."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def on_start(self, context: TuneContext) -> None:
        """Show the empty bar."""
        self._console.print(headline(context.experiment), highlight=False)
        self._console.print(f"run folder {context.folder.path}", highlight=False, soft_wrap=True)
        self._losses = [record.meta_loss for record in context.earlier]
        self._bar = bar_with_eta("meta step", self._console)
        # N updates are N + 1 evaluations: the bar counts updates, and stands at 0 for the first.
        steps = context.experiment.meta.steps
        self._task = self._bar.add_task("", total=steps, completed=len(context.earlier))
        self._live = Live(self._bar, console=self._console, refresh_per_second=4, transient=True)
        self._live.start()

    def on_progress(self, progress: Progress) -> None:
        """Show how far it has come below the bar."""
        now = time.monotonic()
        if progress.done == 0:
            self._began = now
        line = progress_line(progress, now - self._began)
        self._live.update(Group(self._bar, line), refresh=True)

    def on_record(self, record: TuneStep) -> None:
        """Show the state after it, and print remarks above."""
        step = record.record
        self._losses.append(step.meta_loss)
        for line in remarks(step):
            self._console.print(line, highlight=False, soft_wrap=True)
        self._bar.update(self._task, completed=step.meta_step)
        self._live.update(Group(self._bar, state_table(self._losses, step)))

    def on_end(self) -> None:
        """Leave the last state on the screen."""
        if hasattr(self, "_live"):
            self._live.stop()


def bar_with_eta(unit: str, console: Console) -> Bar:
    """Return a bar: how many of a unit are done, in what time, and how long the rest may take."""
    return Bar(
        TextColumn(unit),
        MofNCompleteColumn(),
        BarColumn(bar_width=None),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        console=console,
        expand=True,
    )


def state_table(losses: Sequence[float], last: StepRecord) -> Table:
    """Return all meta losses, the hyperparameters, and what the last meta step took."""
    best = min(range(len(losses)), key=losses.__getitem__)
    measured = last.measured
    table = Table.grid(padding=(0, 2))
    table.add_row("meta loss", sparkline(losses))
    table.add_row("", f"{losses[-1]:.6g}   best {losses[best]:.6g} at {best}")
    for kind, values in last.hyperparameters.items():
        table.add_row(words(kind), value_range(values))
    if isinstance(last, GradientRecord):
        table.add_row("gradient", gradient_line(last))
    phases = " + ".join(f"{name} {value:.2f}" for name, value in measured.seconds.items())
    table.add_row("seconds", f"{measured.total_seconds:.2f} = {phases}")
    peaks = (f"{name} {human_bytes(peak)}" for name, peak in measured.peak_by_phase.items())
    table.add_row("peak memory", ", ".join(peaks))
    return table
