"""Reads the recipe that a command line names, with the command line's values over it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hyperrbp.cli.output import notify
from hyperrbp.config import presets
from hyperrbp.exceptions import Fault, RecipeError, UsageError

if TYPE_CHECKING:
    from hyperrbp.config.loading import Override
    from hyperrbp.config.recipe import Recipe
    from hyperrbp.config.schema import BaseRecipe


def tuning_recipe(
    name: str, settings: Sequence[str] | None, overrides: Sequence[Override], run_code: bool
) -> Recipe:
    """Read a recipe that can be tuned; see ``any_recipe``."""
    from hyperrbp.config.loading import read

    file = presets.find(name)
    recipe = read(file, [*set_by(settings), *overrides])
    _permit_code(recipe, file, run_code)
    return recipe


def any_recipe(
    name: str, settings: Sequence[str] | None, overrides: Sequence[Override], run_code: bool
) -> BaseRecipe:
    """Read a recipe of any kind.

    Args:
        name: a recipe file, a run folder, or a built-in recipe.
        settings: what ``--set`` was given.
        overrides: what other options say; they come after ``--set``.
        run_code: whether Python code that the recipe names may run.

    Raises:
        UsageError: if there is no such recipe.
        RecipeError: if it is wrong, or names code that may not run.
    """
    from hyperrbp.config.loading import read_any

    file = presets.find(name)
    recipe = read_any(file, [*set_by(settings), *overrides])
    _permit_code(recipe, file, run_code)
    return recipe


def set_by(settings: Sequence[str] | None) -> list[Override]:
    """Read the values of ``--set``, each ``key=value``.

    Raises:
        RecipeError: if one is not that.
    """
    from hyperrbp.config.loading import scalar

    parsed: list[Override] = []
    for setting in settings or ():
        key, equals, text = setting.partition("=")
        if not equals or not key:
            raise RecipeError([Fault("--set", None, setting, "expected key=value")])
        parsed.append(("--set", key, scalar(text, key)))
    return parsed


def text_of(file: Path) -> str:
    """Read a recipe's text.

    Raises:
        UsageError: if it cannot be read.
    """
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{file}: not a text file in UTF-8") from None


def tuned_hyperparameters(run: Path) -> dict[str, dict[str, float]]:
    """Read the hyperparameters that a tuning run found.

    Raises:
        UsageError: if it is another kind of run.
        CheckpointError: if it has no result.
    """
    from hyperrbp.experiments.results.run import RunResult
    from hyperrbp.experiments.results.train import InnerRunResult
    from hyperrbp.experiments.results.tune import TuneResult
    from hyperrbp.experiments.run_folder import RunFolder

    found = RunFolder(run).result(RunResult)
    if not isinstance(found, TuneResult | InnerRunResult):
        raise UsageError(f"--hyperparameters {run}: not a tuning run")
    return {
        kind: {name: math.nan if value is None else value for name, value in values.items()}
        for kind, values in found.hyperparameters.items()
    }


def _permit_code(recipe: BaseRecipe, file: Path, run_code: bool) -> None:
    """Refuse a recipe that names code of the user's own, unless the command line permits it.

    Raises:
        RecipeError: if it does not.
    """
    for key, code in recipe.code():
        if not run_code:
            message = f"would run {code}; if you trust it, say --run-code"
            raise RecipeError([Fault(str(file), None, key, message)])
        notify(f"hyperrbp: note: runs {code}", style="yellow")
