"""Runs in their folders as JSON has them, and callbacks that look at a run or end it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hyperrbp.experiments.results.document import Part, to_json
from hyperrbp.experiments.run_folder import RunFolder
from hyperrbp.experiments.tune import TuneStep
from hyperrbp.runtime.callbacks import Callback


def as_json(document: Part) -> dict[str, Any]:
    """Return a record or a result as its JSON."""
    return json.loads(to_json(document))


def records_of(run: RunFolder | Path) -> list[dict[str, Any]]:
    """Read the records of a run as JSON."""
    from hyperrbp.experiments.results.records import Record

    folder = run if isinstance(run, RunFolder) else RunFolder(run)
    return [as_json(record) for record in folder.records(Record)]


def result_of(run: RunFolder | Path) -> dict[str, Any]:
    """Read the result of a run as JSON."""
    from hyperrbp.experiments.results.run import RunResult

    folder = run if isinstance(run, RunFolder) else RunFolder(run)
    return as_json(folder.result(RunResult))


def number_of(record: Any) -> int:
    """The number of what a callback of ``tune`` or of ``train`` receives."""
    return (record.record if isinstance(record, TuneStep) else record).number


class StopsAt(Callback):
    """Interrupts a run before the record with this number, and its checkpoint, are written."""

    def __init__(self, number: int) -> None:
        self._number = number

    def on_record(self, record) -> None:
        if number_of(record) == self._number:
            raise KeyboardInterrupt


class StopsAfter(Callback):
    """Interrupts a run before it has written one more than so many records."""

    def __init__(self, count: int) -> None:
        self._left = count

    def on_record(self, record) -> None:
        self._left -= 1
        if self._left < 0:
            raise KeyboardInterrupt


class Keeps(Callback):
    """Keeps what a callback receives, as JSON, and interrupts a run at a record."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.stop_at, self.calls = stop_at, []
        self.records: list[dict] = []
        self.earlier: list[dict] | None = None
        self.progress = []

    def on_start(self, context) -> None:
        self.calls.append("start")
        self.earlier = [as_json(record) for record in context.earlier]

    def on_progress(self, progress) -> None:
        self.progress.append(progress)

    def on_record(self, record) -> None:
        if number_of(record) == self.stop_at:
            raise KeyboardInterrupt
        self.records.append(as_json(record.record if isinstance(record, TuneStep) else record))

    def on_end(self) -> None:
        self.calls.append("end")
