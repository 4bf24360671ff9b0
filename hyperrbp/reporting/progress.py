"""Shows how far a check, a comparison or a benchmark has come."""

from __future__ import annotations

from rich import progress as bars
from rich.console import Console

from hyperrbp.reporting.formatting import duration
from hyperrbp.runtime.callbacks import Callback, Progress


class ProgressBar(Callback[object, object]):
    """Draws one bar with its ETA, and names the task, for a terminal."""

    def __init__(self, console: Console) -> None:
        self._bar = bars.Progress(
            bars.BarColumn(bar_width=24),
            bars.TimeElapsedColumn(),
            bars.TextColumn("ETA"),
            bars.TimeRemainingColumn(),
            bars.TextColumn("{task.description}"),
            console=console,
            transient=True,
        )
        self._task = self._bar.add_task("", total=None)

    def on_start(self, context: object) -> None:
        """Draw the empty bar."""
        self._bar.start()

    def on_progress(self, progress: Progress) -> None:
        """Redraw the bar."""
        described = f"{progress.task}: {progress.detail}" if progress.detail else progress.task
        self._bar.update(
            self._task,
            description=described,
            completed=progress.done,
            total=progress.total or None,
        )

    def on_end(self) -> None:
        """Remove the bar."""
        self._bar.stop()


class ProgressLines(Callback[object, object]):
    """Prints one line for each task, for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self._console, self._task, self._total = console, "", 0.0

    def on_progress(self, progress: Progress) -> None:
        """Print a task that is new, and once how long all of them should take."""
        if progress.task != self._task:
            self._task = progress.task
            self._print(progress.task)
        if progress.total and not self._total:
            self._total = progress.total
            self._print(f"this should take about {duration(progress.total)}")

    def _print(self, line: str) -> None:
        self._console.print(line, highlight=False, soft_wrap=True, markup=False)
