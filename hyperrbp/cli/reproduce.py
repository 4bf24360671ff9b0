"""``hyperrbp reproduce``: repeats tables and figures of the paper."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hyperrbp.cli.exit_codes import faults_to_exit_codes
from hyperrbp.cli.options import WHERE, DataRootOption, JsonOption, QuietOption
from hyperrbp.cli.output import notify, print_answer, print_json, stderr
from hyperrbp.exceptions import UsageError
from hyperrbp.runtime.suggestions import did_you_mean

if TYPE_CHECKING:
    from hyperrbp.paper.plan import Plan
    from hyperrbp.paper.results import ReproductionReport


def reproduce(
    target: Annotated[
        str,
        typer.Argument(
            metavar="ARTIFACT",
            help="table1, table2, table3, tableA1, figure1 … figure6, figureA1, or all.",
            show_default=False,
        ),
    ],
    quick: Annotated[
        bool,
        typer.Option(
            "--quick", help="Scale it down to minutes on two cores; the results are labelled so."
        ),
    ] = False,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="How many seeds, where the paper has several runs.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    data_root: DataRootOption = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Where runs, tables and figures go; what is there already is not run again.",
            show_default="runs/reproduction, or runs/reproduction-quick",
            rich_help_panel=WHERE,
        ),
    ] = None,
    inexact_resume: Annotated[
        bool,
        typer.Option(
            "--inexact-resume",
            help="Go on with interrupted runs also where versions, threads or device have changed.",
        ),
    ] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Repeat a table or figure of the paper, with its numbers beside the measured ones.

    hyperrbp reproduce table3 --quick --data-root data

    hyperrbp reproduce figure4 --quick

    hyperrbp reproduce all --device cuda --data-root data
    """
    with faults_to_exit_codes(advice="; the same command goes on from here"):
        names = _artifacts(target)
        if device not in ("auto", "cpu", "cuda"):
            raise UsageError(f"--device: expected one of auto, cpu, cuda, got '{device}'")
        from hyperrbp.paper.plan import Plan

        out = out or Path("runs") / ("reproduction-quick" if quick else "reproduction")
        plan = Plan(quick, seeds, device, data_root, inexact_resume)
        reports = _run(names, plan, out, quiet)
        if as_json:
            print_json(reports if target == "all" else reports[0])
        elif not quiet:
            _print(reports)
            notify(f"wrote {out} (PNG, CSV and JSON of each)")


def _artifacts(target: str) -> list[str]:
    """Return the tables and figures that are meant.

    Raises:
        UsageError: if there is no such table or figure.
    """
    from hyperrbp.paper.reproduction import ARTIFACTS

    if target == "all":
        return list(ARTIFACTS)
    if target not in ARTIFACTS:
        raise UsageError(
            f"unknown table or figure '{target}'; there are {', '.join(ARTIFACTS)} and"
            f" all{did_you_mean(target, [*ARTIFACTS, 'all'])}"
        )
    return [target]


def _run(names: list[str], plan: Plan, out: Path, quiet: bool) -> list[ReproductionReport]:
    from hyperrbp.paper.reproduction import reproduce
    from hyperrbp.paper.terminal import ReproductionBar, ReproductionLines

    if quiet:
        return reproduce(names, plan, out)
    callback = ReproductionBar(stderr) if stderr.is_terminal else ReproductionLines(stderr)
    return reproduce(names, plan, out, callback)


def _print(reports: list[ReproductionReport]) -> None:
    from hyperrbp.paper.terminal import page

    for report in reports:
        print_answer(page(report))
