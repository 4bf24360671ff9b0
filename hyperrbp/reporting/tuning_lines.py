"""Follows a tuning run in plain lines, for logs and pipes."""

from __future__ import annotations

import math
import time

from rich.console import Console

from hyperrbp.experiments.results.records import GradientRecord
from hyperrbp.experiments.tune import TuneCallback, TuneContext, TuneStep
from hyperrbp.reporting.formatting import duration, human_bytes, value_range, words
from hyperrbp.reporting.tuning_text import gradient_line, headline, progress_line, remarks
from hyperrbp.runtime.callbacks import Progress

EVERY = 5.0
"""Seconds between two lines of progress."""


class TuningLines(TuneCallback):
    """Prints one line for each meta step."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def on_start(self, context: TuneContext) -> None:
        """Print what runs, and where it goes."""
        self._last = context.experiment.meta.steps
        self._best = min((record.meta_loss for record in context.earlier), default=math.inf)
        self._spent, self._done = 0.0, 0
        self._print(headline(context.experiment))
        self._print(f"run folder {context.folder.path}")
        if context.earlier:
            self._print(f"resumed at meta step {len(context.earlier)}")

    def on_progress(self, progress: Progress) -> None:
        """Print a line at once, and then one every few seconds."""
        now = time.monotonic()
        if progress.done == 0:
            self._began = self._printed = now
        elif now - self._printed < EVERY:
            return
        self._printed = now
        self._print(progress_line(progress, now - self._began))

    def on_record(self, record: TuneStep) -> None:
        """Print its line, and remarks."""
        step = record.record
        self._best = min(self._best, step.meta_loss)
        measured = step.measured
        spent = measured.total_seconds
        self._spent, self._done = self._spent + spent, self._done + 1
        left = (self._last - step.meta_step) * self._spent / self._done
        source = "" if step.source is None else f" ({step.source})"
        first = next(iter(step.hyperparameters.items()))  # the kind that a line has room for
        phases = ", ".join(f"{name} {value:.2f}" for name, value in measured.seconds.items())
        fields = [
            f"meta step {step.meta_step}/{self._last}{source}",
            f"loss {step.meta_loss:.6g} (best {self._best:.6g})",
            f"{words(first[0])} {value_range(first[1])}",
            *([f"gradient {gradient_line(step)}"] if isinstance(step, GradientRecord) else []),
            f"{spent:.2f} s ({phases})",
            f"peak {human_bytes(measured.largest_peak)}",
            f"ETA {duration(left)}",
        ]
        self._print(" | ".join(fields))
        for line in remarks(step):
            self._console.print(line, highlight=False, soft_wrap=True)

    def _print(self, line: str) -> None:
        self._console.print(line, highlight=False, soft_wrap=True, markup=False)
