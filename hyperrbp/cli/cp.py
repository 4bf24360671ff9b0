"""``hyperrbp cp``: copies a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hyperrbp.cli.exit_codes import faults_to_exit_codes
from hyperrbp.cli.options import RecipeArgument
from hyperrbp.cli.output import notify
from hyperrbp.cli.reading import text_of
from hyperrbp.config import presets
from hyperrbp.exceptions import StorageError, UsageError


def cp(
    recipe: RecipeArgument,
    to: Annotated[
        Path | None, typer.Argument(help="A new file.", show_default="<name>.yaml")
    ] = None,
) -> None:
    """Copy a recipe to a file of your own, to edit it.

    The recipe template is made for this: every key, each with a comment.

    hyperrbp cp template mine.yaml
    """
    with faults_to_exit_codes():
        source = presets.find(recipe)
        target = to or Path(source.name)
        if target.is_dir():
            target /= source.name
        _write_new(target, text_of(source))
        from hyperrbp.config.loading import read_any
        from hyperrbp.config.recipe import Recipe

        verb = "tune" if isinstance(read_any(target), Recipe) else "train"
        notify(f"wrote {target}; run it with: hyperrbp {verb} {target}")


def _write_new(target: Path, text: str) -> None:
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise UsageError(f"{target} exists already; name another file") from None
    except OSError as error:
        raise StorageError(f"{target}: {error.strerror or error}") from None
