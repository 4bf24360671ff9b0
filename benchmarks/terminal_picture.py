"""Draw what `hyperrbp tune digits` shows in a terminal, as the SVG of the README.

python benchmarks/terminal_picture.py benchmarks/figures/tune-digits.svg
"""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from hyperrbp import tune_recipe
from hyperrbp.cookbook import find
from hyperrbp.recipe import read
from hyperrbp.report.console import Dashboard, answer, state_table


class Halfway(Dashboard):
    """A dashboard that keeps the frame of one meta step."""

    def stepped(self, record, theta) -> None:  # type: ignore[no-untyped-def]
        super().stepped(record, theta)
        if record["meta_step"] == 20:
            self._console.print(self._bar)
            self._console.print(state_table(self._records))
            self._console.print()


def main() -> None:
    console = Console(record=True, width=88, file=io.StringIO(), force_terminal=False)
    console.print("$ hyperrbp tune digits", highlight=False)
    target = Path(sys.argv[1]).resolve()
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        run = Path("runs/digits-20261122T090000Z")
        result = tune_recipe(read(find("digits")), run, observers=[Halfway(console)])
        console.print(answer(result))
    target.parent.mkdir(parents=True, exist_ok=True)
    console.save_svg(str(target), title="hyperrbp")


if __name__ == "__main__":
    main()
