"""``hyperrbp validate``: checks a recipe."""

from __future__ import annotations

from typing import Annotated

import typer

from hyperrbp.cli.exit_codes import faults_to_exit_codes
from hyperrbp.cli.options import RecipeArgument, SetOption
from hyperrbp.cli.output import print_json
from hyperrbp.cli.reading import set_by
from hyperrbp.config import presets


def validate(
    recipe: RecipeArgument,
    settings: SetOption = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="The resolved recipe as JSON on stdout.")
    ] = False,
) -> None:
    """Check a recipe without touching data or device, and print it with every key spelt out."""
    with faults_to_exit_codes():
        from hyperrbp.config.loading import read_any

        resolved = read_any(presets.find(recipe), set_by(settings))
        if as_json:
            print_json(resolved.model_dump())
        else:
            print(resolved.to_yaml(), end="")
