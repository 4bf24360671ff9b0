"""How far a reproduction is: a bar on a screen, a line in a log."""

from __future__ import annotations

import io

import pytest
from factories import recipe, tuning_text
from rich.console import Console

from hyperrbp.experiments.run_folder import RunFolder
from hyperrbp.paper.reproduction import FinishedRun, ReproductionContext
from hyperrbp.paper.run_specs import Outcome, TuneSpec
from hyperrbp.paper.terminal import ReproductionBar, ReproductionLines
from hyperrbp.runtime.callbacks import Progress


@pytest.mark.parametrize("shows", [ReproductionBar, ReproductionLines])
def test_it_names_the_runs_and_those_that_failed(tmp_path, shows):
    screen = io.StringIO()
    callback = shows(Console(file=screen, force_terminal=shows is ReproductionBar, width=120))
    specs = [TuneSpec(name, recipe(tuning_text())) for name in ("one", "two", "three")]
    callback.on_start(ReproductionContext(specs, done=1))
    for spec, failure in ((specs[1], None), (specs[2], "meta step 3: the meta loss is not finite")):
        callback.on_progress(Progress(spec.name, 0, 0, "steps"))
        callback.on_progress(Progress(spec.name, 3, 6, "steps"))
        callback.on_record(FinishedRun(spec, Outcome(RunFolder(tmp_path), None, failure), 2.0))
    callback.on_end()
    shown = screen.getvalue()
    assert "three: meta step 3: the meta loss is not finite" in shown
    if shows is ReproductionLines:
        assert shown.splitlines() == [
            "3 runs, 1 of them done already",
            "two …",
            "two: done | 2.0 s | 1 left | ETA 2.0 s",
            "three …",
            "three: meta step 3: the meta loss is not finite | 2.0 s | 0 left | ETA 0.0 s",
        ]
