"""The command line's verbs together: each parses, calls the library, and prints."""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress
from typing import Annotated, NoReturn

import typer

from hyperrbp import __version__
from hyperrbp.cli.cat import cat
from hyperrbp.cli.check import check
from hyperrbp.cli.compare import compare
from hyperrbp.cli.cp import cp
from hyperrbp.cli.exit_codes import EXIT_CODES
from hyperrbp.cli.ls import ls
from hyperrbp.cli.reproduce import reproduce
from hyperrbp.cli.show import show
from hyperrbp.cli.train import train
from hyperrbp.cli.tune import tune
from hyperrbp.cli.validate import validate
from hyperrbp.runtime import signals

_CODES = "\n".join(f"- {code}: {meaning}" for code, meaning in EXIT_CODES.items())

app = typer.Typer(
    name="hyperrbp",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Tune the hyperparameters of a training run by differentiating the whole run.\n\n"
    "Start with **hyperrbp tune digits**, which needs no data; **hyperrbp ls** lists the recipes,"
    " **hyperrbp cp digits** copies one to edit.",
    epilog=f"Exit codes:\n\n{_CODES}",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
for _panel, _verbs in {
    "Tune": (tune, compare, check, show),
    "Train": (train,),
    "Reproduce": (reproduce,),
    "Recipes": (ls, cat, cp, validate),
}.items():
    for _verb in _verbs:
        app.command(rich_help_panel=_panel)(_verb)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"hyperrbp {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Print the version and stop."
        ),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line of this process, and end it."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # An old locale cannot encode "→" or "×"; that is no reason to lose an answer.
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except SystemExit as error:
        for number in signals.ENDINGS:
            if error.code == signals.exit_code(number):
                _exit_now(signals.exit_code(number))
        raise


def _exit_now(code: int) -> NoReturn:
    """Exit without taking the interpreter down, which takes seconds; all is written."""
    with suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)
