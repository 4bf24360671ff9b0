"""``hyperrbp compare``: gradient methods, or with ``--against`` ways to tune."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hyperrbp.cli.exit_codes import faults_to_exit_codes
from hyperrbp.cli.options import (
    DataRootOption,
    JsonOption,
    NoProgressOption,
    RecipeArgument,
    RunCodeOption,
    SetOption,
    given,
    listed,
    whole_numbers,
)
from hyperrbp.cli.output import new_folder, notify
from hyperrbp.cli.progress import print_report, progress_callback
from hyperrbp.cli.reading import tuning_recipe
from hyperrbp.exceptions import UsageError
from hyperrbp.optimizers import OPTIMIZERS, SAMPLERS

if TYPE_CHECKING:
    from hyperrbp.config.recipe import Recipe
    from hyperrbp.experiments.method_specs import MethodSpec

_AGAINST = "Against other ways to tune"
_OURS = [name for name in OPTIMIZERS if name not in SAMPLERS]


def compare(
    context: typer.Context,
    recipe: RecipeArgument,
    methods: Annotated[
        str,
        typer.Option(
            metavar="METHOD,…",
            help="Gradient methods, each with options if need be: neumann,bptt:keep=checkpoints."
            " Unrolled bptt is always there: ratios are taken to it.",
        ),
    ] = "bptt,tbptt,rbp,cg,neumann",
    trunc: Annotated[
        str, typer.Option(metavar="K,…", help="Truncations, as for tune.")
    ] = "10,50,100",
    train_steps: Annotated[
        int | None, typer.Option(help="T, training steps of the inner run.")
    ] = None,
    sweep_steps: Annotated[
        str | None,
        typer.Option(metavar="T,…", help="Several T instead, for the figure of cost against T."),
    ] = None,
    repeats: Annotated[int, typer.Option(help="How often each is timed, after a warm-up.")] = 5,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,…",
            help="Compare the recipe's own tuning instead with these, at equal seconds:"
            f" {', '.join(SAMPLERS)} (of Optuna); {', '.join(_OURS)} (our other"
            " meta-optimizers).",
            rich_help_panel=_AGAINST,
        ),
    ] = None,
    budget_seconds: Annotated[
        float | None,
        typer.Option(help="Seconds for each optimizer and seed.", rich_help_panel=_AGAINST),
    ] = None,
    seeds: Annotated[
        int,
        typer.Option(help="Seeds, from the recipe's own on.", rich_help_panel=_AGAINST),
    ] = 3,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.")] = None,
    settings: SetOption = None,
    run_code: RunCodeOption = False,
    data_root: DataRootOption = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="A new folder: tables (Markdown, CSV, JSON), a figure, TensorBoard events.",
            show_default="runs/<recipe>-comparison-<UTC time>, or -benchmark-",
        ),
    ] = None,
    force: Annotated[
        bool,
        typer.Option("--force", help="Also run what should need more memory than there is."),
    ] = False,
    as_json: JsonOption = False,
    quiet: NoProgressOption = False,
) -> None:
    """Compare what each gradient method costs, and how right it is.

    One meta-gradient at the recipe's start, by every method and truncation: seconds, bytes, FLOPs,
    and the agreement with the exact gradient. A method that fails is a row that says so.

    hyperrbp compare digits

    hyperrbp compare mnist --methods bptt,neumann --trunc 50 --data-root data

    hyperrbp compare digits --methods neumann,bptt:keep=states --sweep-steps 100,300,1000

    With --against, compare ways to tune: the recipe's own, and black-box searches of the same box
    on the same inner run, one after the other. This needs pip install 'hyperrbp[search]'.

    hyperrbp compare digits --against random,tpe,cmaes,hyperband --budget-seconds 60
    """
    with faults_to_exit_codes():
        _refuse_mixed_options(context, against is not None)
        if train_steps is not None and sweep_steps is not None:
            raise UsageError("--train-steps and --sweep-steps exclude each other")
        overrides = given(
            ("--device", "device", device), ("--train-steps", "inner.steps", train_steps)
        )
        resolved = tuning_recipe(recipe, settings, overrides, run_code)
        if against is not None:
            if budget_seconds is None:
                raise UsageError("--against needs --budget-seconds")
            names = listed(against)
            _benchmark(resolved, names, budget_seconds, seeds, out, data_root, as_json, quiet)
            return
        if resolved.inner.epochs is not None and sweep_steps is None:
            raise UsageError(
                "compare plans by the number of steps, and inner.epochs is known with the data"
                " alone; expected --train-steps"
            )
        lengths = [resolved.inner.steps]
        if sweep_steps is not None:
            lengths = whole_numbers("--sweep-steps", sweep_steps)
        from hyperrbp.experiments.method_specs import method_specs

        specs = method_specs(listed(methods), whole_numbers("--trunc", trunc), lengths)
        _compare(resolved, specs, out, data_root, repeats, force, as_json, quiet)


_OF_METHODS = ("methods", "trunc", "sweep_steps", "repeats", "force")
_OF_BENCHMARK = ("budget_seconds", "seeds")


def _refuse_mixed_options(context: typer.Context, benchmark: bool) -> None:
    """Check that options of the one comparison are not given to the other.

    Raises:
        UsageError: naming the first that does not belong.
    """
    for name in _OF_METHODS if benchmark else _OF_BENCHMARK:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            option = f"--{name.replace('_', '-')}"
            raise UsageError(
                f"{option} and --against exclude each other"
                if benchmark
                else f"{option}: only with --against"
            )


def _compare(
    recipe: Recipe,
    specs: Sequence[MethodSpec],
    out: Path | None,
    data_root: Path | None,
    repeats: int,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    from hyperrbp.experiments.compare import compare
    from hyperrbp.experiments.run_folder import default_folder
    from hyperrbp.reporting.comparison import tables, write

    with new_folder(out or default_folder(f"{recipe.name}-comparison")) as out:
        report = compare(
            recipe,
            specs,
            repeats=repeats,
            data_root=data_root,
            force=force,
            callback=progress_callback(quiet),
        )
        write(report, out)
    print_report(report, tables, as_json)
    if not quiet:
        notify(f"wrote {out} (comparison.md, .csv, .json, cost.png, events)")


def _benchmark(
    recipe: Recipe,
    names: Sequence[str],
    budget: float,
    seeds: int,
    out: Path | None,
    data_root: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    from hyperrbp.experiments.benchmark import benchmark
    from hyperrbp.experiments.optimizer_runs import resolve_names
    from hyperrbp.experiments.run_folder import default_folder

    optimizers = resolve_names(names)
    from hyperrbp.reporting.benchmark import tables, write

    with new_folder(out or default_folder(f"{recipe.name}-benchmark")) as out:
        report = benchmark(
            recipe,
            optimizers,
            budget,
            seeds=seeds,
            data_root=data_root,
            callback=progress_callback(quiet),
        )
        write(report, out)
    print_report(report, tables, as_json)
    if not quiet:
        notify(f"wrote {out} (benchmark.md, .csv, .json, .png, curves.csv)")
