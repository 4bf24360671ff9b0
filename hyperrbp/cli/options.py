"""The arguments and options that several verbs share, and how their values are read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hyperrbp.exceptions import UsageError
from hyperrbp.hypergradients import METHODS

if TYPE_CHECKING:
    from hyperrbp.config.loading import Override

WHAT, WHERE = "What is run", "Where"
"""Panels of the help."""

METHOD_NAMES = " or ".join(", ".join(METHODS).rsplit(", ", 1))
"""The gradient methods, for a help."""

RecipeArgument = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE",
        help="A recipe file, a run folder, or the name of a built-in recipe (hyperrbp ls).",
        show_default=False,
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Any key of the recipe, dotted, over the file: --set inner.batch_size=100.",
    ),
]
MethodOption = Annotated[str | None, typer.Option(help=f"{METHOD_NAMES}.", rich_help_panel=WHAT)]
TruncOption = Annotated[
    int | None,
    typer.Option(
        help="K. tbptt: differentiated steps. neumann: products after the first term. rbp,"
        " anderson: iterations. gmres: products. cg, lsqr: steps of two products. bptt, forward:"
        " not used.",
        rich_help_panel=WHAT,
    ),
]
TrainStepsOption = Annotated[
    int | None, typer.Option(help="T, training steps of an inner run.", rich_help_panel=WHAT)
]
HyperparametersOption = Annotated[
    Path | None,
    typer.Option(
        metavar="RUN",
        help="For a tuning recipe: use what this tuning run found, not the recipe's start.",
        rich_help_panel=WHAT,
    ),
]
SeedOption = Annotated[
    int | None, typer.Option(help="Seed of everything random.", rich_help_panel=WHAT)
]
DeviceOption = Annotated[str | None, typer.Option(help="auto, cpu or cuda.", rich_help_panel=WHAT)]
DataRootOption = Annotated[
    Path | None,
    typer.Option(
        help="Where data sets live; else $HYPERRBP_DATA, else the user's cache folder.",
        rich_help_panel=WHERE,
    ),
]
OutOption = Annotated[
    Path | None,
    typer.Option(
        help="The run folder.", show_default="runs/<recipe>-<UTC time>", rich_help_panel=WHERE
    ),
]
ResumeOption = Annotated[
    bool,
    typer.Option("--resume", help="Go on with the run in --out (or in RECIPE, a run folder)."),
]
InexactOption = Annotated[
    bool,
    typer.Option(
        "--inexact-resume",
        help="With --resume: go on also where versions, threads or device have changed. The run can"
        " then not be repeated bit for bit.",
    ),
]
RunCodeOption = Annotated[
    bool,
    typer.Option(
        "--run-code",
        help="Run the Python code that the recipe names; without this, refuse it.",
    ),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="One JSON document on stdout, and nothing else there.")
]
QuietOption = Annotated[
    bool, typer.Option("--quiet", "-q", help="No progress, no table; faults only.")
]
NoProgressOption = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]


def given(*options: tuple[str, str, Any]) -> list[Override]:
    """Keep those options, as (option, key of the recipe, value), that the user gave."""
    return [option for option in options if option[2] is not None]


def whole_numbers(option: str, text: str) -> list[int]:
    """Read whole numbers with commas between them.

    Raises:
        UsageError: if the text is not that.
    """
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(
            f"{option}: expected whole numbers with commas between them, got '{text}'"
        ) from None


def listed(text: str) -> list[str]:
    """Read names with commas between them."""
    return [name.strip() for name in text.split(",") if name.strip()]


def run_folder(recipe: str, out: Path | None, resume: bool) -> Path | None:
    """Find the run folder that the user asked for, if any.

    Raises:
        UsageError: if a run shall be resumed, and none is named.
    """
    if resume and out is None:
        if not Path(recipe).is_dir():
            raise UsageError("--resume needs --out, or a run folder in place of the recipe")
        return Path(recipe)
    return out
