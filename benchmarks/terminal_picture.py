"""Draw what `hyperrbp tune digits` and `hyperrbp check digits` show, for the README.

python benchmarks/terminal_picture.py tune benchmarks/figures/tune-digits.svg
python benchmarks/terminal_picture.py check benchmarks/figures/check-digits.svg

Beside the second, the figure that `check` writes.
"""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from hyperrbp import tune_recipe
from hyperrbp.config.loading import read
from hyperrbp.config.presets import find
from hyperrbp.experiments.check import check_recipe
from hyperrbp.experiments.tune import TuneStep
from hyperrbp.reporting.check import draw_check, page
from hyperrbp.reporting.results import tuning_page
from hyperrbp.reporting.tuning_dashboard import TuningDashboard, state_table


class Halfway(TuningDashboard):
    """A dashboard that keeps the frame of one meta step."""

    def on_record(self, record: TuneStep) -> None:
        super().on_record(record)
        if record.record.meta_step == 20:
            self._console.print(self._bar)
            self._console.print(state_table(self._losses, record.record))
            self._console.print()


def tuned(console: Console) -> None:
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        run = Path("runs/digits-20261122T090000Z")
        result = tune_recipe(read(find("digits")), run, callbacks=[Halfway(console)])
        console.print(tuning_page(result))


def checked(console: Console, figure: Path) -> None:
    report = check_recipe(read(find("digits")))
    console.print(page(report), highlight=False)
    draw_check(report, figure)


def main() -> None:
    what, target = sys.argv[1], Path(sys.argv[2]).resolve()
    width = 88 if what == "tune" else 100
    console = Console(record=True, width=width, file=io.StringIO(), force_terminal=False)
    console.print(f"$ hyperrbp {what} digits", highlight=False)
    target.parent.mkdir(parents=True, exist_ok=True)
    if what == "tune":
        tuned(console)
    else:
        checked(console, target.with_suffix(".png"))
    console.save_svg(str(target), title="hyperrbp")


if __name__ == "__main__":
    main()
