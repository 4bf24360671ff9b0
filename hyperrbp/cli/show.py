"""``hyperrbp show``: prints or draws finished runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hyperrbp.cli.exit_codes import faults_to_exit_codes
from hyperrbp.cli.output import notify, print_answer, print_json
from hyperrbp.exceptions import UsageError

if TYPE_CHECKING:
    from hyperrbp.experiments.run_folder import RunFolder


def show(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN…", help="Run folders.", show_default=False)
    ],
    figure: Annotated[
        Path | None,
        typer.Option(help="Draw the loss of the runs into this file (.png, .svg, .pdf)."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The result as JSON on stdout.")] = False,
) -> None:
    """Print the results of runs again, or draw the runs in one figure."""
    with faults_to_exit_codes():
        from hyperrbp.experiments.run_folder import RunFolder

        folders = [RunFolder(run) for run in runs]
        for folder in folders:
            if not folder.recipe_file.is_file():
                raise UsageError(f"{folder.path} is not a run folder")
        if figure is not None:
            _draw(folders, figure)
            return
        from hyperrbp.experiments.results.run import RunResult

        results = [folder.result(RunResult) for folder in folders]
        if as_json:
            print_json(results[0] if len(results) == 1 else results)
            return
        from hyperrbp.reporting.results import result_page

        for result in results:
            print_answer(result_page(result))


def _draw(folders: Sequence[RunFolder], figure: Path) -> None:
    from hyperrbp.reporting.figures import draw_trainings, draw_tunings

    trained = [folder.verb == "train" for folder in folders]
    if any(trained) and not all(trained):
        raise UsageError("--figure: runs of tune and of train have no picture in common")
    (draw_trainings if trained[0] else draw_tunings)(folders, figure)
    notify(f"wrote {figure}")
