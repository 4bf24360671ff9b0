"""The one way to follow something long: a callback, and a tracker of progress that feeds it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Context = TypeVar("Context", contravariant=True)
Record = TypeVar("Record", contravariant=True)


@dataclass(frozen=True)
class Progress:
    """How far a task has come."""

    task: str
    """What is being done, for a reader: ``screening``, ``bytes and FLOPs of neumann``."""
    done: float
    total: float
    """Zero where it is not known yet."""
    unit: str
    """Of ``done`` and ``total``: ``seconds``, ``training steps``."""
    detail: str = ""
    """Which of many short parts of the task is on, for a display that is redrawn."""


class Callback(Generic[Context, Record]):
    """Receives the events of one run, and cannot change it; override what is of use.

    ``Context`` is what is known when the run begins, ``Record`` what it yields on its way. Both are
    stated by the function that takes the callback.
    """

    def on_start(self, context: Context) -> None:
        """Receive what is about to run."""

    def on_progress(self, progress: Progress) -> None:
        """Receive how far the current task has come."""

    def on_record(self, record: Record) -> None:
        """Receive one more record."""

    def on_end(self) -> None:
        """Learn that no event will follow, for whatever reason."""


class Callbacks(Callback[Context, Record]):
    """Passes every event on to several callbacks, in their order."""

    def __init__(self, callbacks: Sequence[Callback[Context, Record]]) -> None:
        self._callbacks = tuple(callbacks)

    def on_start(self, context: Context) -> None:
        """Pass it on."""
        for callback in self._callbacks:
            callback.on_start(context)

    def on_progress(self, progress: Progress) -> None:
        """Pass it on."""
        for callback in self._callbacks:
            callback.on_progress(progress)

    def on_record(self, record: Record) -> None:
        """Pass it on."""
        for callback in self._callbacks:
            callback.on_record(record)

    def on_end(self) -> None:
        """Pass it on."""
        for callback in self._callbacks:
            callback.on_end()


Report = Callable[[Progress], None]
"""Receives progress: ``callback.on_progress``, or any function."""


def ignore(progress: Progress) -> None:
    """Report to nobody."""


class ProgressTracker:
    """Adds up what is done of a job of several tasks, and reports it.

    Args:
        report: receives the progress, as ``callback.on_progress`` does.
        unit: of what is added up.
    """

    def __init__(self, report: Report = ignore, unit: str = "seconds") -> None:
        self._report_to, self._unit = report, unit
        self._task, self._detail, self._done, self._total = "", "", 0.0, 0.0

    def expect(self, amount: float) -> None:
        """Add to what there is to do."""
        self._total += amount
        self._report()

    def begin(self, task: str, detail: str = "") -> None:
        """Name the task that begins, or which part of it does."""
        self._task, self._detail = task, detail
        self._report()

    def advance(self, amount: float) -> None:
        """Add to what is done."""
        self._done += amount
        self._report()

    def _report(self) -> None:
        self._report_to(Progress(self._task, self._done, self._total, self._unit, self._detail))
