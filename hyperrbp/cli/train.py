"""``hyperrbp train``: trains one network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hyperrbp.cli.exit_codes import TRAINING_MEMORY, faults_to_exit_codes
from hyperrbp.cli.options import (
    WHAT,
    DataRootOption,
    DeviceOption,
    HyperparametersOption,
    InexactOption,
    JsonOption,
    MethodOption,
    OutOption,
    QuietOption,
    RecipeArgument,
    ResumeOption,
    RunCodeOption,
    SeedOption,
    SetOption,
    given,
    run_folder,
)
from hyperrbp.cli.output import stderr
from hyperrbp.cli.progress import print_report
from hyperrbp.cli.reading import any_recipe, tuned_hyperparameters

if TYPE_CHECKING:
    from hyperrbp.config.schema import BaseRecipe
    from hyperrbp.experiments.results.train import TrainResult
    from hyperrbp.experiments.run_folder import RunFolder
    from hyperrbp.experiments.train import TrainCallback


def train(
    recipe: RecipeArgument,
    method: MethodOption = None,
    trunc: Annotated[
        int | None, typer.Option(help="K; see hyperrbp tune --help.", rich_help_panel=WHAT)
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(help="Passes over the training examples.", rich_help_panel=WHAT),
    ] = None,
    hyperparameters: HyperparametersOption = None,
    seed: SeedOption = None,
    device: DeviceOption = None,
    settings: SetOption = None,
    run_code: RunCodeOption = False,
    data_root: DataRootOption = None,
    out: OutOption = None,
    resume: ResumeOption = False,
    inexact_resume: InexactOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Train a network with a convergent part, or a tuning recipe's network once.

    hyperrbp train cora --method neumann --trunc 5 --data-root data

    hyperrbp train hopfield --epochs 100 --set training.batch_size=10

    hyperrbp train digits --hyperparameters runs/digits-20260101T000000Z
    """
    with faults_to_exit_codes(advice="; go on with --resume", memory=TRAINING_MEMORY):
        from hyperrbp.experiments.run_folder import default_folder, open_run

        out = run_folder(recipe, out, resume)
        overrides = given(
            ("--method", "gradient.method", method),
            ("--trunc", "gradient.trunc", trunc),
            ("--epochs", "training.epochs", epochs),
            ("--seed", "seed", seed),
            ("--device", "device", device),
        )
        resolved = any_recipe(recipe, settings, overrides, run_code)
        tuned = None if hyperparameters is None else tuned_hyperparameters(hyperparameters)
        # Before PyTorch is imported: whoever comes second learns of it at once.
        with open_run(out or default_folder(resolved.name), resume) as folder:
            result = _run(resolved, tuned, folder, data_root, resume, inexact_resume, quiet)
            _print(result, as_json, quiet)


def _run(
    recipe: BaseRecipe,
    tuned: dict[str, dict[str, float]] | None,
    folder: RunFolder,
    data_root: Path | None,
    resume: bool,
    inexact_resume: bool,
    quiet: bool,
) -> TrainResult:
    from hyperrbp.experiments.train import train_recipe
    from hyperrbp.reporting.training import TrainingBar, TrainingLines
    from hyperrbp.reporting.training_tensorboard import TrainingBoard

    callbacks: list[TrainCallback] = [TrainingBoard()]
    if not quiet:
        callbacks.append(TrainingBar(stderr) if stderr.is_terminal else TrainingLines(stderr))
    return train_recipe(
        recipe,
        folder,
        hyperparameters=tuned,
        data_root=data_root,
        resume=resume,
        inexact_resume=inexact_resume,
        callbacks=callbacks,
    )


def _print(result: TrainResult, as_json: bool, quiet: bool) -> None:
    from hyperrbp.reporting.results import training_page

    print_report(result, training_page, as_json, quiet)
