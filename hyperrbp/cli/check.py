"""``hyperrbp check``: judges the gradient of a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hyperrbp.cli.exit_codes import NOT_TRUSTED, faults_to_exit_codes
from hyperrbp.cli.options import (
    DataRootOption,
    DeviceOption,
    HyperparametersOption,
    JsonOption,
    MethodOption,
    NoProgressOption,
    RecipeArgument,
    RunCodeOption,
    SeedOption,
    SetOption,
    TrainStepsOption,
    TruncOption,
    given,
)
from hyperrbp.cli.output import new_folder, notify
from hyperrbp.cli.progress import print_report, progress_callback
from hyperrbp.cli.reading import tuned_hyperparameters, tuning_recipe

if TYPE_CHECKING:
    from hyperrbp.config.recipe import Recipe


def check(
    recipe: RecipeArgument,
    method: MethodOption = None,
    trunc: TruncOption = None,
    train_steps: TrainStepsOption = None,
    hyperparameters: HyperparametersOption = None,
    seed: SeedOption = None,
    device: DeviceOption = None,
    settings: SetOption = None,
    run_code: RunCodeOption = False,
    data_root: DataRootOption = None,
    exact: Annotated[
        bool,
        typer.Option(
            "--exact/--no-exact",
            help="Compare it with the exact gradient, at five to thirty times the cost of the"
            " inner run; or judge from what the method itself shows.",
        ),
    ] = True,
    out: Annotated[
        Path | None,
        typer.Option(
            help="A new folder: check.json, check.png.",
            show_default="runs/<recipe>-check-<UTC time>",
        ),
    ] = None,
    as_json: JsonOption = False,
    quiet: NoProgressOption = False,
) -> None:
    """Ask whether the gradient of a recipe can be trusted, and what to use instead.

    At the recipe's start: how far the run is from a steady state, what the series and the spectrum
    look like, what the minibatches add, and how it compares with the exact gradient. Exits with 0
    if it can be trusted, with 5 if not.

    hyperrbp check digits

    hyperrbp check mnist --method tbptt --train-steps 500 --data-root data

    hyperrbp check digits --hyperparameters runs/digits-20260101T000000Z
    """
    with faults_to_exit_codes():
        overrides = given(
            ("--method", "gradient.method", method),
            ("--trunc", "gradient.trunc", trunc),
            ("--train-steps", "inner.steps", train_steps),
            ("--seed", "seed", seed),
            ("--device", "device", device),
        )
        resolved = tuning_recipe(recipe, settings, overrides, run_code)
        trusted = _check(resolved, hyperparameters, exact, out, data_root, as_json, quiet)
        if not trusted:
            raise typer.Exit(NOT_TRUSTED)


def _check(
    recipe: Recipe,
    tuned: Path | None,
    exact: bool,
    out: Path | None,
    data_root: Path | None,
    as_json: bool,
    quiet: bool,
) -> bool:
    from hyperrbp.experiments.check import check_recipe
    from hyperrbp.experiments.run_folder import default_folder
    from hyperrbp.reporting.check import page, write_check

    with new_folder(out or default_folder(f"{recipe.name}-check")) as out:
        report = check_recipe(
            recipe,
            hyperparameters=None if tuned is None else tuned_hyperparameters(tuned),
            exact=exact,
            data_root=data_root,
            callback=progress_callback(quiet),
        )
        write_check(report, out)
    print_report(report, page, as_json)
    if not quiet:
        notify(f"wrote {out} (check.json, check.png)")
    return report.trusted
