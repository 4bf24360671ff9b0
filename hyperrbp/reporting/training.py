"""What a person sees while a network is trained, and at its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table

from hyperrbp.reporting import evaluation as heldout
from hyperrbp.reporting.terminal import (
    bar_with_eta,
    duration,
    human_bytes,
    reservations,
    sparkline,
    words,
)

if TYPE_CHECKING:
    from hyperrbp.experiments.run_folder import RunFolder
    from hyperrbp.experiments.train import Record
    from hyperrbp.experiments.trainers.base import Trainer


class TrainingLines:
    """A line for every record that validates, and for one in twenty of the others."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def started(self, trainer: Trainer, folder: RunFolder, earlier: Sequence[Record]) -> None:
        """Say what runs, and where it goes."""
        self._unit, self._last = trainer.unit, trainer.last
        self._stride = max(1, trainer.last // 20)
        self._spent, self._from = 0.0, trainer.position
        self._print(trainer.headline())
        self._print(f"run folder {folder.path}")
        if earlier:
            self._print(f"resumed at {self._unit} {trainer.position}")

    def stepped(self, record: Record) -> None:
        """One line, or none."""
        number = record[self._unit]
        self._spent += sum(record["measured"]["seconds"].values())
        if not ("validation" in record or number % self._stride == 0 or number == self._last):
            return
        done = max(1, number - self._from)
        left = self._spent / done * (self._last - number)
        fields = [f"{self._unit} {number}/{self._last}", *facts(record), f"ETA {duration(left)}"]
        self._print(" | ".join(fields))

    def stopped(self) -> None:
        """Nothing is left open."""

    def _print(self, line: str) -> None:
        self._console.print(line, highlight=False, soft_wrap=True, markup=False)


class TrainingBar:
    """A bar with its ETA, and the state of the training, redrawn in place."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def started(self, trainer: Trainer, folder: RunFolder, earlier: Sequence[Record]) -> None:
        """Draw the empty bar."""
        self._unit = trainer.unit
        self._console.print(trainer.headline(), highlight=False)
        self._console.print(f"run folder {folder.path}", highlight=False, soft_wrap=True)
        self._losses = [loss_of(record) for record in earlier]
        self._latest: dict[str, Any] = {}
        self._bar = bar_with_eta(trainer.unit, self._console)
        self._task = self._bar.add_task("", total=trainer.last, completed=trainer.position)
        self._live = Live(self._bar, console=self._console, refresh_per_second=4, transient=True)
        self._live.start()

    def stepped(self, record: Record) -> None:
        """Redraw."""
        self._losses.append(loss_of(record))
        self._latest |= record
        self._bar.update(self._task, completed=record[self._unit])
        table = Table.grid(padding=(0, 2))
        table.add_row("loss", sparkline(self._losses))
        for fact in facts(self._latest):
            name, _, value = fact.partition(" ")
            table.add_row(name, value)
        self._live.update(Group(self._bar, table))

    def stopped(self) -> None:
        """Leave the last state on the screen."""
        if hasattr(self, "_live"):
            self._live.stop()


def loss_of(record: Record) -> float:
    """The loss of a record: of an epoch, of a minibatch, or the last one of an inner run."""
    return float(record["loss"] if "loss" in record else record["meta_loss"])


def facts(record: Record) -> list[str]:
    """What a record says, in a few words each."""
    found = [f"loss {loss_of(record):.5g}"]
    for name, value in record.get("validation", {}).items():
        if name == "loss":
            found.append(f"validation {value:.5g}")
        else:
            found.append(f"{name.replace('_', '-')} {value:.2%}")
    gradient = record.get("gradient")
    if gradient:
        residual = gradient.get("steady_state_residual")
        away = "" if residual is None else f", ‖h−F(h)‖/‖h‖ {residual:.2g}"
        found.append(f"gradient {gradient['status']}, norm {gradient['norm']:.3g}{away}")
    if "penalty" in record:
        penalty = record["penalty"]
        error = "" if penalty["error"] in (None, 0.0) else f" ± {penalty['error']:.2g}"
        found.append(f"penalty {penalty['value']:.4g} (of {penalty['quantity']:.4g}{error})")
    found.append(f"seconds {sum(record['measured']['seconds'].values()):.2f}")
    return found


def answer(result: Mapping[str, Any]) -> RenderableType:
    """A training's answer: what the network is worth, and what it cost."""
    table = Table.grid(padding=(0, 2))
    for name, text in reservations(result):
        table.add_row(name, text)
    if "best" in result:
        best = result["best"]
        measures = ", ".join(f"{words(k)} {v:.4g}" for k, v in best["validation"].items())
        table.add_row("best epoch", f"{best['epoch']} of {result['epochs']}: {measures}")
        table.add_row("tested", ", ".join(f"{words(k)} {v:.2%}" for k, v in result["test"].items()))
        how = f"{result['method']} with K = {result['trunc']}, T = {result['updates']}"
    else:
        loss = result["meta_loss"]
        table.add_row("training loss", "not finite" if loss is None else f"{loss:.6g}")
        for name, value in heldout.rows(result):
            table.add_row(name, value)
        how = f"{result['train_steps']} training steps"
    table.add_row(
        "cost",
        f"{duration(result['seconds'])}, peak memory {human_bytes(result['peak_bytes'])},"
        f" {how} on {result['device']}",
    )
    table.add_row("weights", result["weights"])
    return table
