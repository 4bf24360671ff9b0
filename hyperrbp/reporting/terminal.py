"""What a person sees while a run goes on, and at its end."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from hyperrbp.config.recipe import ADAM, Recipe, how_tuned
from hyperrbp.experiments.summary_statistics import Values, summary
from hyperrbp.hypergradients.diagnostics.verdict import Verdict
from hyperrbp.reporting.evaluation import MEASURES

if TYPE_CHECKING:
    import torch

    from hyperrbp.experiments.experiment import Experiment
    from hyperrbp.experiments.run_folder import RunFolder
    from hyperrbp.experiments.tune import Record

EVERY = 5.0
"""Seconds between two lines that say how far something is."""
ROWS = 24
"""Of a table, or curves of a figure: more values are shown by their quantiles."""


class Plain:
    """One line a meta step, for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def started(self, experiment: Experiment, folder: RunFolder, earlier: Sequence[Record]) -> None:
        """Say what runs, and where it goes."""
        self._last = experiment.meta.steps
        self._best = min((r["meta_loss"] for r in earlier), default=float("inf"))
        self._spent, self._done = 0.0, 0
        self._print(headline(experiment))
        self._print(f"run folder {folder.path}")
        if earlier:
            self._print(f"resumed at meta step {len(earlier)}")

    def stepped(self, record: Record, theta: torch.Tensor) -> None:
        """One line."""
        self._best = min(self._best, record["meta_loss"])
        seconds = record["measured"]["seconds"]
        spent = sum(seconds.values())
        self._spent, self._done = self._spent + spent, self._done + 1
        left = (self._last - record["meta_step"]) * self._spent / self._done
        fields = [
            " ".join([f"meta step {record['meta_step']}/{self._last}", *_source(record)]),
            f"loss {record['meta_loss']:.6g} (best {self._best:.6g})",
            *(f"{words(kind)} {_range(of)}" for kind, of in _first(record["hyperparameters"])),
            *([f"gradient {gradient_line(record)}"] if "status" in record else []),
            f"{spent:.2f} s"
            f" ({', '.join(f'{name} {value:.2f}' for name, value in seconds.items())})",
            f"peak {human_bytes(peak_bytes(record))}",
            f"ETA {duration(left)}",
        ]
        self._print(" | ".join(fields))
        for line in remarks(record):
            self._console.print(line, highlight=False, soft_wrap=True)

    def told(self, what: str, done: int, steps: int) -> None:
        """A line at once, and one every few seconds."""
        now = time.monotonic()
        if done == 0:
            self._began = self._said = now
        elif now - self._said < EVERY:
            return
        self._said = now
        self._print(how_far(what, done, steps, now - self._began))

    def stopped(self) -> None:
        """Nothing is left open."""

    def _print(self, line: str) -> None:
        self._console.print(line, highlight=False, soft_wrap=True, markup=False)


class Dashboard:
    """A display that is redrawn in place: a bar with its ETA, and the state of the run."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def started(self, experiment: Experiment, folder: RunFolder, earlier: Sequence[Record]) -> None:
        """Draw the empty bar."""
        self._console.print(headline(experiment), highlight=False)
        self._console.print(f"run folder {folder.path}", highlight=False, soft_wrap=True)
        self._losses = [float(record["meta_loss"]) for record in earlier]
        self._bar = bar_with_eta("meta step", self._console)
        # N updates are N + 1 evaluations: the bar counts updates, and stands at 0 for the first.
        self._task = self._bar.add_task("", total=experiment.meta.steps, completed=len(earlier))
        self._live = Live(self._bar, console=self._console, refresh_per_second=4, transient=True)
        self._live.start()

    def stepped(self, record: Record, theta: torch.Tensor) -> None:
        """Redraw."""
        self._losses.append(float(record["meta_loss"]))
        for line in remarks(record):
            self._console.print(line, highlight=False, soft_wrap=True)
        self._bar.update(self._task, completed=record["meta_step"])
        self._live.update(Group(self._bar, state_table(self._losses, record)))

    def told(self, what: str, done: int, steps: int) -> None:
        """Redraw, with how far that is."""
        now = time.monotonic()
        if done == 0:
            self._began = now
        line = how_far(what, done, steps, now - self._began)
        self._live.update(Group(self._bar, line), refresh=True)

    def stopped(self) -> None:
        """Leave the last state on the screen."""
        if hasattr(self, "_live"):
            self._live.stop()


def bar_with_eta(unit: str, console: Console) -> Progress:
    """How many of a unit are done, how long that took, and how long the rest should take."""
    return Progress(
        TextColumn(unit),
        MofNCompleteColumn(),
        BarColumn(bar_width=None),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        console=console,
        expand=True,
    )


def how_far(what: str, done: int, steps: int, seconds: float) -> str:
    """Of what goes on between meta steps."""
    line = f"{what}: {done:,} of {steps:,} training steps"
    return line + (f" | ETA {duration(seconds * (steps - done) / done)}" if done else "")


def headline(experiment: Experiment) -> str:
    """What is tuned, how, and on what."""
    recipe, problem = experiment.recipe, experiment.problem()
    gradient = recipe.gradient
    threads = f"{recipe.threads} thread{'' if recipe.threads == 1 else 's'}"
    return (
        f"{recipe.name}: {problem.weights:,} weights, {len(experiment.theta)} hyperparameters;"
        f" {how_tuned(recipe.meta.optimizer, gradient.method, gradient.trunc)} on {recipe.device},"
        f" {threads}\n"
        f"{recipe.meta.steps} meta steps of {recipe.inner.steps} training steps{_screening(recipe)}"
    )


def _screening(recipe: Recipe) -> str:
    """How long it will be until the first meta step, where others are tried before."""
    screened = recipe.meta.screened
    if recipe.meta.optimizer == ADAM or screened == 1:
        return ""
    from hyperrbp.optimizers.successive_halving import screening_steps

    runs = round(screening_steps(recipe.inner.steps, screened) / recipe.inner.steps)
    return f"; before them, {screened} points are screened, for as long as about {runs} take"


def state_table(losses: Sequence[float], last: Record) -> Table:
    """The meta loss of every meta step, the hyperparameters, and what the last one took."""
    best = min(range(len(losses)), key=losses.__getitem__)
    seconds = last["measured"]["seconds"]
    table = Table.grid(padding=(0, 2))
    table.add_row("meta loss", sparkline(losses))
    table.add_row("", f"{losses[-1]:.6g}   best {losses[best]:.6g} at {best}")
    for kind, of in last["hyperparameters"].items():
        table.add_row(words(kind), _range(of))
    if "status" in last:
        table.add_row("gradient", gradient_line(last))
    table.add_row(
        "seconds",
        f"{sum(seconds.values()):.2f} = "
        + " + ".join(f"{name} {seconds[name]:.2f}" for name in seconds),
    )
    by_phase = {name: _peak(peaks) for name, peaks in last["measured"]["peak_bytes"].items()}
    table.add_row(
        "peak memory", ", ".join(f"{name} {human_bytes(b)}" for name, b in by_phase.items())
    )
    return table


def gradient_line(record: Record) -> Text:
    """What the gradient of a meta step is worth, in one line, coloured by its verdict."""
    verdict = Verdict(record["verdict"])
    colour = "green" if verdict.trusted else "yellow" if verdict.usable else "red"
    line = Text(str(verdict), style=colour)
    known = record["diagnostics"]
    parts = [
        "" if record["status"] == verdict else record["status"],
        f"norm {number(record['gradient_norm'])}",
        f"‖h−F(h)‖/‖h‖ {number(record['steady_state_residual'])}",
        "" if known["growth_rate"] is None else f"terms ×{known['growth_rate']:.3f}",
        "" if known["above_noise"] is None else f"{known['above_noise']:.0%} above noise",
    ]
    line.append(f" ({', '.join(part for part in parts if part)})", style="default")
    return line


def remarks(record: Record) -> list[Text]:
    """What is said once: a choice, the outcome of a full examination, a warning."""
    lines = []
    at = f"meta step {record['meta_step']}: "
    if "choice" in record:
        choice = record["choice"]
        lines.append(Text(f"{at}auto takes {choice['label']}; {choice['why']}", style="cyan"))
    if "check" in record:
        found = record["check"]
        colour = "green" if found["trusted"] else "red"
        held, spectrum = found["agreement"], found["spectrum"]
        lines.append(
            Text(
                f"{at}check: {found['verdict']}; cosine {number(held['cosine'])} with the exact"
                f" gradient, {number(held['descent'])} of the steepest decrease kept, spectral"
                f" radius {number(spectrum['radius'])}, ‖J‖ {number(spectrum['norm'])}",
                style=colour,
            )
        )
    if "warning" in record:
        lines.append(Text(f"warning: {record['warning']}", style="bold yellow"))
    return lines


def number(value: float | None, digits: int = 3) -> str:
    """A number for a reader, who may have to do without it."""
    return "unknown" if value is None else f"{value:.{digits}g}"


def answer(result: Mapping[str, Any]) -> RenderableType:
    """A run's answer: the hyperparameters, the loss before and after, and the cost."""
    losses, best, optimizer = result["meta_loss"], result["best"], result.get("optimizer", ADAM)
    facts = Table.grid(padding=(0, 2))
    for name, text in reservations(result):
        facts.add_row(name, text)
    for warning in result.get("warnings", []):
        facts.add_row("warning", Text(warning, style="yellow"))
    for choice in result.get("choices", [])[:1]:
        facts.add_row("auto", f"{choice['label']}; {choice['why']}")
    facts.add_row("meta loss", sparkline(losses))
    facts.add_row(
        "",
        # A optimizer need not have run the start to its end.
        (f"{losses[0]:.6g} → " if optimizer == ADAM else "") + f"{best['meta_loss']:.6g}"
        f" (best, at meta step {best['meta_step']} of {result['meta_steps']})",
    )
    if early := result.get("stopped_early"):
        facts.add_row("", f"stopped early, after meta step {early['meta_step']}")
    for row in _test(result.get("test")):
        facts.add_row(*row)
    facts.add_row(
        "cost",
        f"{duration(result['seconds'])}, peak memory {human_bytes(result['peak_bytes'])},"
        f" {how_tuned(optimizer, result['method'], result['trunc'])} on {result['device']}",
    )
    facts.add_row("run folder", result["run_folder"])
    return Group(*_tables(result), facts)


def _tables(result: Mapping[str, Any]) -> Iterator[Table]:
    """The start and the tuned value of everything: a column a kind, where names are the same."""
    together: dict[tuple[str, ...], list[str]] = {}
    for kind, values in result["hyperparameters"].items():
        together.setdefault(tuple(values), []).append(kind)
    for names, kinds in together.items():
        several = len(names) > ROWS
        tuned, untuned = (
            {kind: summary(of[kind]) if several else of[kind] for kind in kinds}
            for of in (result["hyperparameters"], result["untuned"])
        )
        part = result["grains"][kinds[0]]["by"]
        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        table.add_column(f"of {len(names):,} values" if several else part)
        for kind in kinds:
            table.add_column(f"{words(kind)}: start → tuned", justify="right")
        for name in tuned[kinds[0]]:
            cells = (
                f"{number(untuned[kind][name], 4)} → {number(tuned[kind][name], 4)}"
                for kind in kinds
            )
            table.add_row(name, *cells)
        yield table


def _test(test: Mapping[str, Any] | None) -> Iterator[tuple[str, str]]:
    """What the held-out examples say, before and after."""
    if test is None:
        return
    before, after = test["untuned"], test["tuned"]
    for measure in after:
        if measure != "diverged":
            told = " → ".join(_spread(measure, of[measure]) for of in (before, after))
            yield f"held-out {MEASURES.get(measure, measure)}", told
    draws = f"{test['seeds']} other draw{'' if test['seeds'] == 1 else 's'}"
    yield "", f"untuned → tuned, from {draws} of initial weights and batches"
    for name, of in (("untuned", before), ("tuned", after)):
        if of["diverged"]:
            yield "", f"{of['diverged']} of {test['seeds']} {name} runs turned non-finite"


def _spread(measure: str, of: Mapping[str, Any]) -> str:
    def written(value: float | None) -> str:
        share = measure == "accuracy" and value is not None
        return f"{value:.2%}" if share else number(value, 4)

    deviation = of["deviation"]
    return written(of["mean"]) + ("" if deviation is None else f" ± {written(deviation)}")


def words(key: str) -> str:
    """A key as it is read."""
    return key.replace("_", " ")


def reservations(result: Mapping[str, Any]) -> Iterator[tuple[str, Text]]:
    """What a reader of a result should know before all else, with a word for each."""
    if result["status"] != "done":
        yield "status", Text(str(result["status"]), style="bold red")
    if back := result.get("rollbacks"):
        times = "once" if len(back) == 1 else f"{len(back)} times, the last time"
        yield "rolled back", Text(f"{times} at {back[-1]['reason']}", style="yellow")
    for changed in result.get("inexact_resumes", []):
        listed = "; ".join(f"{key}: {old} → {new}" for key, (old, new) in changed.items())
        yield "went on elsewhere", Text(f"{listed}: not to be repeated bit for bit", style="yellow")


def sparkline(values: Sequence[float], width: int = 48) -> str:
    """A curve in one line of text, on a logarithmic scale where all values are positive."""
    if len(values) > width:
        values = [values[round(i * (len(values) - 1) / (width - 1))] for i in range(width)]
    heights = [math.log(v) for v in values] if min(values) > 0 else list(values)
    low, high = min(heights), max(heights)
    scale = (high - low) or 1.0
    return "".join("▁▂▃▄▅▆▇█"[min(7, int(8 * (h - low) / scale))] for h in heights)


def peak_bytes(record: Record) -> int:
    """The largest peak of any phase."""
    return max(map(_peak, record["measured"]["peak_bytes"].values()), default=0)


def _peak(peaks: Mapping[str, int]) -> int:
    """Of the allocator where there is one, else of the process."""
    return peaks.get("allocator", peaks["process"])


def human_bytes(count: float) -> str:
    """Bytes in powers of 1000, three digits."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def duration(seconds: float) -> str:
    """Seconds for a reader."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02} min"


def _source(record: Record) -> list[str]:
    return [f"({record['source']})"] if "source" in record else []


def _first(of: Mapping[str, Values]) -> Sequence[tuple[str, Values]]:
    """The kind that a line has room for."""
    return list(of.items())[:1]


def _range(values: Values) -> str:
    """From the smallest to the largest, also of a summary."""
    known = summary(values)
    return f"{number(known['min'])} … {number(known['max'])}"
