"""``hyperrbp cat``: prints a recipe."""

from __future__ import annotations

from hyperrbp.cli.exit_codes import faults_to_exit_codes
from hyperrbp.cli.options import RecipeArgument
from hyperrbp.cli.reading import text_of
from hyperrbp.config import presets


def cat(recipe: RecipeArgument) -> None:
    """Print a recipe with its comments."""
    with faults_to_exit_codes():
        print(text_of(presets.find(recipe)), end="")
