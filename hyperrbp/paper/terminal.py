"""Shows a reproduction in a terminal: how far it is, and what came of it."""

from __future__ import annotations

from rich import progress as bars
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from hyperrbp.paper.reproduction import FinishedRun, ReproductionCallback, ReproductionContext
from hyperrbp.paper.results import ReproductionReport
from hyperrbp.reporting.formatting import duration
from hyperrbp.runtime.callbacks import Progress


class _TimeLeft:
    """Estimates the seconds that are left from those of the runs that are done."""

    def __init__(self, context: ReproductionContext) -> None:
        self.runs_left = len(context.run_specs) - context.done
        self._ran, self._spent = 0, 0.0

    def after(self, run: FinishedRun) -> str:
        """Count a finished run, and return how long the others may take."""
        self.runs_left -= 1
        self._ran, self._spent = self._ran + 1, self._spent + run.seconds
        return f"ETA {duration(self.runs_left * self._spent / self._ran)}"


class ReproductionLines(ReproductionCallback):
    """Prints a line when a run begins and one when it ends, for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self._console, self._name = console, ""

    def on_start(self, context: ReproductionContext) -> None:
        """Print how much there is to do."""
        self._left = _TimeLeft(context)
        self._print(f"{len(context.run_specs)} runs, {context.done} of them done already")

    def on_progress(self, progress: Progress) -> None:
        """Print the name of a run that begins."""
        if progress.task != self._name:
            self._name = progress.task
            self._print(f"{progress.task} …")

    def on_record(self, record: FinishedRun) -> None:
        """Print what came of a run, and how long the rest may take."""
        eta = self._left.after(record)
        self._print(
            f"{record.spec.name}: {record.outcome.failure or 'done'} | {duration(record.seconds)} |"
            f" {self._left.runs_left} left | {eta}"
        )

    def _print(self, line: str) -> None:
        self._console.print(line, highlight=False, soft_wrap=True, markup=False)


class ReproductionBar(ReproductionCallback):
    """Draws a bar over all runs, and one over the steps of the present one."""

    def __init__(self, console: Console) -> None:
        self._console, self._name = console, ""
        self._bar = bars.Progress(
            bars.TextColumn("{task.description}"),
            bars.MofNCompleteColumn(),
            bars.BarColumn(bar_width=None),
            bars.TimeElapsedColumn(),
            bars.TextColumn("{task.fields[eta]}"),
            console=console,
            expand=True,
            transient=True,
        )

    def on_start(self, context: ReproductionContext) -> None:
        """Draw both bars."""
        self._left = _TimeLeft(context)
        total = len(context.run_specs)
        self._all = self._bar.add_task("runs", total=total, completed=context.done, eta="")
        self._one = self._bar.add_task("", total=None, eta="")
        self._bar.start()

    def on_progress(self, progress: Progress) -> None:
        """Redraw the bar of the present run."""
        if progress.task != self._name:
            self._name = progress.task
            self._bar.remove_task(self._one)
            self._one = self._bar.add_task(progress.task, total=None, eta="")
        total = round(progress.total) or None
        self._bar.update(self._one, completed=round(progress.done), total=total)

    def on_record(self, record: FinishedRun) -> None:
        """Count one more run."""
        self._bar.update(self._all, advance=1, eta=self._left.after(record))
        if record.outcome.failure:
            self._console.print(
                f"{record.spec.name}: {record.outcome.failure}", highlight=False, markup=False
            )

    def on_end(self) -> None:
        """Remove the bars."""
        self._bar.stop()


def page(report: ReproductionReport) -> RenderableType:
    """Return the numbers of a table or figure, and whether the paper's claim held."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in report.columns:
        table.add_column(column)
    for line in report.lines:
        table.add_row(*line)
    word, style = {
        True: ("held here", "bold green"),
        False: ("did not hold here", "bold red"),
        None: ("cannot be judged by what was run", "bold yellow"),
    }[report.held]
    claim = Text.assemble("The paper's claim ", (word, style), f": {report.claim}.")
    parts: list[RenderableType] = [Text(report.title, style="bold"), Text(report.scale)]
    if report.lines:
        parts.append(table)
    return Group(*parts, Text(report.verdict), claim, Text(""))
