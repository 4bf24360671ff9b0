"""``hyperrbp tune``: tunes the hyperparameters of a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hyperrbp.cli.exit_codes import faults_to_exit_codes
from hyperrbp.cli.options import (
    METHOD_NAMES,
    WHAT,
    DataRootOption,
    DeviceOption,
    InexactOption,
    JsonOption,
    OutOption,
    QuietOption,
    RecipeArgument,
    ResumeOption,
    RunCodeOption,
    SeedOption,
    SetOption,
    TrainStepsOption,
    TruncOption,
    given,
    run_folder,
)
from hyperrbp.cli.output import notify, print_json, stderr
from hyperrbp.cli.progress import print_report
from hyperrbp.cli.reading import tuning_recipe

if TYPE_CHECKING:
    from hyperrbp.config.recipe import Recipe
    from hyperrbp.experiments.results.tune import TuneResult
    from hyperrbp.experiments.run_folder import RunFolder
    from hyperrbp.experiments.tune import TuneCallback


def tune(
    recipe: RecipeArgument,
    method: Annotated[
        str | None,
        typer.Option(
            help=f"{METHOD_NAMES}; or auto, which tries some and says why.", rich_help_panel=WHAT
        ),
    ] = None,
    trunc: TruncOption = None,
    train_steps: TrainStepsOption = None,
    meta_steps: Annotated[
        int | None, typer.Option(help="Updates of the hyperparameters.", rich_help_panel=WHAT)
    ] = None,
    seed: SeedOption = None,
    device: DeviceOption = None,
    check_every: Annotated[
        int | None,
        typer.Option(
            help="Examine the gradient in full every so many meta steps; auto chooses again then.",
            rich_help_panel=WHAT,
        ),
    ] = None,
    cut_growing: Annotated[
        bool,
        typer.Option(
            "--cut-growing",
            help="neumann: sum a growing series to its smallest term only.",
            rich_help_panel=WHAT,
        ),
    ] = False,
    on_divergence: Annotated[
        str | None,
        typer.Option(
            help="stop, or rollback: go back to the best with half the meta step.",
            rich_help_panel=WHAT,
        ),
    ] = None,
    settings: SetOption = None,
    run_code: RunCodeOption = False,
    data_root: DataRootOption = None,
    out: OutOption = None,
    resume: ResumeOption = False,
    inexact_resume: InexactOption = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Print the resolved recipe and what a meta step should cost; stop."
        ),
    ] = False,
    profile: Annotated[
        bool,
        typer.Option(
            "--profile", help="First take a profiler trace and tensor bytes of one meta step."
        ),
    ] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Tune the hyperparameters of a recipe.

    hyperrbp tune digits

    hyperrbp tune mnist --method bptt --train-steps 100 --data-root data

    hyperrbp tune runs/digits-20260101T000000Z --resume --meta-steps 80
    """
    with faults_to_exit_codes(advice="; go on with --resume"):
        from hyperrbp.experiments.run_folder import default_folder, open_run

        out = run_folder(recipe, out, resume)
        overrides = given(
            ("--method", "gradient.method", method),
            ("--trunc", "gradient.trunc", trunc),
            ("--train-steps", "inner.steps", train_steps),
            ("--meta-steps", "meta.steps", meta_steps),
            ("--seed", "seed", seed),
            ("--device", "device", device),
            ("--check-every", "gradient.check_every", check_every),
            ("--on-divergence", "meta.on_divergence", on_divergence),
            ("--cut-growing", "gradient.options.neumann.cut_growing", cut_growing or None),
        )
        resolved = tuning_recipe(recipe, settings, overrides, run_code)
        if dry_run:
            _dry_run(resolved, data_root, as_json)
            return
        # Before PyTorch is imported: whoever comes second learns of it at once.
        with open_run(out or default_folder(resolved.name), resume) as folder:
            result = _run(resolved, folder, data_root, resume, inexact_resume, profile, quiet)
            _print(result, as_json, quiet)
        if profile and not quiet:
            place = folder.path / "profile"
            notify(f"profile of one meta step: {place} (trace.json, bytes.json)")


def _run(
    recipe: Recipe,
    folder: RunFolder,
    data_root: Path | None,
    resume: bool,
    inexact_resume: bool,
    profile: bool,
    quiet: bool,
) -> TuneResult:
    from hyperrbp.experiments.tune import tune_recipe
    from hyperrbp.reporting.tensorboard import TensorBoard
    from hyperrbp.reporting.tuning_dashboard import TuningDashboard
    from hyperrbp.reporting.tuning_lines import TuningLines

    callbacks: list[TuneCallback] = [TensorBoard()]
    if profile:
        from hyperrbp.experiments.profiling import ProfileFirst

        callbacks.insert(0, ProfileFirst())
    if not quiet:
        callbacks.append(TuningDashboard(stderr) if stderr.is_terminal else TuningLines(stderr))
    return tune_recipe(
        recipe,
        folder,
        data_root=data_root,
        resume=resume,
        inexact_resume=inexact_resume,
        callbacks=callbacks,
    )


def _print(result: TuneResult, as_json: bool, quiet: bool) -> None:
    from hyperrbp.reporting.results import tuning_page

    print_report(result, tuning_page, as_json, quiet)


def _dry_run(recipe: Recipe, data_root: Path | None, as_json: bool) -> None:
    from hyperrbp.experiments.dry_run import dry_run
    from hyperrbp.reporting.dry_run import cost_lines

    with stderr.status("timing a few short runs …"):
        report = dry_run(recipe, data_root=data_root)
    if as_json:
        print_json(report)
        return
    print(report.recipe.to_yaml())
    for line in cost_lines(report):
        print(f"# {line}")
