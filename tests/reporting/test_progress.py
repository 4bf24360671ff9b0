"""How far something long has come, on a screen and in a log."""

from __future__ import annotations

import io

from rich.console import Console

from hyperrbp.reporting.progress import ProgressBar, ProgressLines
from hyperrbp.runtime.callbacks import ProgressTracker


def test_lines_name_each_task_once_and_the_seconds_to_come():
    text = io.StringIO()
    tracker = ProgressTracker(ProgressLines(Console(file=text)).on_progress)
    tracker.begin("short runs")
    tracker.expect(3)
    for _ in range(3):
        tracker.begin("bytes and FLOPs of bptt")
    for _ in range(3):
        tracker.begin("seconds of all", "bptt")
        tracker.begin("seconds of all", "cg")
        tracker.advance(1)
    assert text.getvalue().splitlines() == [
        "short runs",
        "this should take about 3.0 s",
        "bytes and FLOPs of bptt",
        "seconds of all",
    ]


def test_a_bar_names_the_task_with_its_detail_and_goes_away():
    text = io.StringIO()
    bar = ProgressBar(Console(file=text, force_terminal=True, width=100))
    tracker = ProgressTracker(bar.on_progress)
    bar.on_start(None)
    tracker.expect(2)
    tracker.begin("seconds of all", "cg")
    tracker.advance(1)
    bar._bar.refresh()
    bar.on_end()
    assert "seconds of all: cg" in text.getvalue()
