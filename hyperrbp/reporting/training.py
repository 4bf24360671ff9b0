"""Follows a training run on the terminal."""

from __future__ import annotations

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from hyperrbp.experiments.results.records import EpochRecord, TrainRecord
from hyperrbp.experiments.train import TrainCallback, TrainContext
from hyperrbp.reporting.formatting import duration, sparkline
from hyperrbp.reporting.tuning_dashboard import bar_with_eta


class TrainingLines(TrainCallback):
    """Prints a line for every record that validates, and for one in twenty of the others."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def on_start(self, context: TrainContext) -> None:
        """Print what runs, and where it goes."""
        trainer = context.trainer
        self._unit, self._last = trainer.unit, trainer.last
        self._stride = max(1, trainer.last // 20)
        self._spent, self._from = 0.0, trainer.position
        self._print(trainer.headline())
        self._print(f"run folder {context.folder.path}")
        if context.earlier:
            self._print(f"resumed at {self._unit} {trainer.position}")

    def on_record(self, record: TrainRecord) -> None:
        """Print its line, or none."""
        number = record.number
        self._spent += record.measured.total_seconds
        if record.validation is None and number % self._stride and number != self._last:
            return
        done = max(1, number - self._from)
        left = self._spent / done * (self._last - number)
        fields = [
            f"{self._unit} {number}/{self._last}",
            *(" ".join(fact) for fact in facts(record)),
            f"ETA {duration(left)}",
        ]
        self._print(" | ".join(fields))

    def _print(self, line: str) -> None:
        self._console.print(line, highlight=False, soft_wrap=True, markup=False)


class TrainingBar(TrainCallback):
    """Shows a bar with its ETA, and the state of the training, redrawn in place."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def on_start(self, context: TrainContext) -> None:
        """Show the empty bar."""
        trainer = context.trainer
        self._console.print(trainer.headline(), highlight=False)
        self._console.print(f"run folder {context.folder.path}", highlight=False, soft_wrap=True)
        self._losses = [record.any_loss for record in context.earlier]
        self._latest: dict[str, str] = {}
        self._bar = bar_with_eta(trainer.unit, self._console)
        self._task = self._bar.add_task("", total=trainer.last, completed=trainer.position)
        self._live = Live(self._bar, console=self._console, refresh_per_second=4, transient=True)
        self._live.start()

    def on_record(self, record: TrainRecord) -> None:
        """Show it, and the newest of what it does not say."""
        self._losses.append(record.any_loss)
        self._latest |= dict(facts(record))
        self._bar.update(self._task, completed=record.number)
        table = Table.grid(padding=(0, 2))
        table.add_row("loss", sparkline(self._losses))
        for name, value in self._latest.items():
            table.add_row(name, value)
        self._live.update(Group(self._bar, table))

    def on_end(self) -> None:
        """Leave the last state on the screen."""
        if hasattr(self, "_live"):
            self._live.stop()


def facts(record: TrainRecord) -> list[tuple[str, str]]:
    """Return what a record says: a name and a few words each."""
    found = [("loss", f"{record.any_loss:.5g}")]
    for name, value in (record.validation or {}).items():
        if name == "loss":
            found.append(("validation", "not finite" if value is None else f"{value:.5g}"))
        elif value is not None:
            found.append((name.replace("_", "-"), f"{value:.2%}"))
    if isinstance(record, EpochRecord):
        found += _epoch_facts(record)
    return [*found, ("seconds", f"{record.measured.total_seconds:.2f}")]


def _epoch_facts(record: EpochRecord) -> list[tuple[str, str]]:
    found = []
    if (gradient := record.gradient) is not None:
        residual = gradient.steady_state_residual
        away = "" if residual is None else f", ‖h−F(h)‖/‖h‖ {residual:.2g}"
        norm = "unknown" if gradient.norm is None else f"{gradient.norm:.3g}"
        found.append(("gradient", f"{gradient.status}, norm {norm}{away}"))
    if (penalty := record.penalty) is not None and penalty.value is not None:
        error = f" ± {penalty.error:.2g}" if penalty.error else ""
        found.append(("penalty", f"{penalty.value:.4g} (of {penalty.quantity:.4g}{error})"))
    return found
