"""The command line: parses, calls the library, prints, and sets the exit code."""

from __future__ import annotations

import difflib
import io
import json
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from errno import EDQUOT, EFBIG, ENOSPC
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TextIO

import typer
from rich.console import Console

from hyperrbp import __version__
from hyperrbp.config import presets
from hyperrbp.exceptions import (
    EXIT_CODES,
    NOT_TRUSTED,
    Fault,
    HyperrbpError,
    MemoryExhaustedError,
    RecipeError,
    StorageError,
    UsageError,
    is_out_of_memory,
)

if TYPE_CHECKING:
    from rich.console import RenderableType

    from hyperrbp.config.recipe import Override, Recipe
    from hyperrbp.config.schema import AnyRecipe
    from hyperrbp.experiments.method_specs import MethodSpec
    from hyperrbp.experiments.run_folder import RunFolder
    from hyperrbp.experiments.tune import Observer
    from hyperrbp.runtime.callbacks import Audience

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


class _Stdout(Console):
    """Answers."""

    def on_broken_pipe(self) -> None:
        """Their reader has left: see _faults_to_exit_codes."""
        raise BrokenPipeError


class _Stderr(Console):
    """Progress and faults; if their reader leaves, the run goes on without them."""

    def on_broken_pipe(self) -> None:
        """Print to nowhere from now on."""
        _silence(sys.stderr)


# No markup: a path may have brackets in it.
stderr = _Stderr(stderr=True, markup=False)


_STOPPED = {
    signal.SIGINT: "interrupted",
    signal.SIGTERM: "terminated",
}
_ENDED_BY = {128 + number for number in _STOPPED}
"""Exit codes of a run that a signal has ended."""
_GRACE = 2.0
"""Seconds from a signal to the end, come what may: a checkpoint is whole at any time."""


@contextmanager
def _faults_to_exit_codes(when_stopped: str = "", runs: str = "tune") -> Iterator[None]:
    """One line on stderr and a documented exit code, for everything that can be foreseen.

    Args:
        when_stopped: what to do after an interruption.
        runs: what is run, a key of _OUT_OF_MEMORY.
    """
    received: list[int] = []
    watchdog: list[threading.Timer] = []

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        if received:
            _leave(received[0], when_stopped)
        received.append(number)
        # What is raised between any two instructions can get lost, or leave a lock behind that
        # somebody waits for on the way out.
        watchdog.append(threading.Timer(_GRACE, _leave, [number, when_stopped]))
        watchdog[0].daemon = True
        watchdog[0].start()
        raise KeyboardInterrupt

    # A signal that our parent told us to ignore, as nohup does, stays ignored.
    heeded = [n for n in _STOPPED if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in heeded}
    notes, log = _Warnings(logging.WARNING), logging.getLogger("hyperrbp")
    log.addHandler(notes)
    hook, threading.excepthook = threading.excepthook, _unless_handed_on
    try:
        yield
        sys.stdout.flush()
    except BaseException as error:
        if received or isinstance(error, KeyboardInterrupt):
            # Whatever it has become on its way here.
            number = received[0] if received else signal.SIGINT
            _fail(_STOPPED[signal.Signals(number)] + when_stopped, 128 + number)
        if isinstance(error, HyperrbpError):
            cause = error.__cause__ if isinstance(error, StorageError) else None
            _fail(str(error) + _remedy(cause, when_stopped), error.exit_code)
        if is_out_of_memory(error):
            traceback.clear_frames(error.__traceback__)  # what they hold is needed to say so
            intact = "; the last checkpoint is intact" if when_stopped else ""
            said = f"out of memory; use {_OUT_OF_MEMORY[runs]}{intact}"
            _fail(said, MemoryExhaustedError.exit_code)
        if isinstance(error, OSError):
            # Nothing is wrong if whoever read our answer has left.
            _silence(sys.stdout)
            if isinstance(error, BrokenPipeError):
                raise typer.Exit(0) from None
            name = error.filename or "output"
            said = f"{name}: {error.strerror or error}{_remedy(error, when_stopped)}"
            _fail(said, StorageError.exit_code)
        raise
    finally:
        log.removeHandler(notes)
        threading.excepthook = hook
        for timer in watchdog:
            timer.cancel()
        for number, handler in before.items():
            signal.signal(number, handler)


def _unless_handed_on(fault: threading.ExceptHookArgs) -> None:
    """A full disk in TensorBoard's thread is raised in ours too, where it gets its line."""
    if not isinstance(fault.exc_value, OSError):
        threading.__excepthook__(fault)


def _leave(number: int, when_stopped: str) -> NoReturn:
    """End at once."""
    os.write(2, f"hyperrbp: {_STOPPED[signal.Signals(number)]}{when_stopped}\n".encode())
    os._exit(128 + number)


def _silence(stream: TextIO) -> None:
    """What is printed goes nowhere, and so does what is buffered: flushing it fails no more."""
    if stream in (sys.__stdout__, sys.__stderr__):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


_OUT_OF_MEMORY = {
    "tune": "an implicit method (--method neumann), for bptt --set"
    " gradient.options.bptt.keep=checkpoints or fewer --train-steps, for a search fewer"
    " meta.screened, or a smaller inner.batch_size",
    "train": "an implicit method (--method neumann), or a smaller training.batch_size",
}
"""What to change where memory runs out."""


def _remedy(error: BaseException | None, when_stopped: str) -> str:
    """What to do about a full disk."""
    full = isinstance(error, OSError) and error.errno in (ENOSPC, EDQUOT, EFBIG)
    return f"; free some space{when_stopped}" if full else ""


class _Warnings(logging.Handler):
    """Notes of the library, a line each."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print it as what it is: no fault, but something to know."""
        _say(f"hyperrbp: note: {record.getMessage()}", style="yellow")


def _say(line: str, style: str | None = None) -> None:
    try:
        stderr.print(line, style=style, highlight=False, soft_wrap=True)
    except OSError:  # a full disk, again: the exit code has to say it
        _silence(sys.stderr)


def _fail(message: str, code: int) -> NoReturn:
    for line in message.splitlines():
        _say(f"hyperrbp: {line}", style="red")
    raise typer.Exit(code) from None


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

_METHODS = "neumann, cg, rbp, lsqr, gmres, anderson, tbptt, bptt or forward"
MethodOption = Annotated[
    str | None, typer.Option(help=f"{_METHODS}.", rich_help_panel="What is run")
]
TruncOption = Annotated[
    int | None,
    typer.Option(
        help="K. tbptt: differentiated steps. neumann: products after the first term. rbp,"
        " anderson: iterations. gmres: products. cg, lsqr: steps of two products. bptt, forward:"
        " not used.",
        rich_help_panel="What is run",
    ),
]
TrainStepsOption = Annotated[
    int | None,
    typer.Option(help="T, training steps of an inner run.", rich_help_panel="What is run"),
]
HyperparametersOption = Annotated[
    Path | None,
    typer.Option(
        metavar="RUN",
        help="For a tuning recipe: with what this tuning run found, not the recipe's start.",
        rich_help_panel="What is run",
    ),
]
SeedOption = Annotated[
    int | None, typer.Option(help="Of everything random.", rich_help_panel="What is run")
]
DeviceOption = Annotated[
    str | None, typer.Option(help="auto, cpu or cuda.", rich_help_panel="What is run")
]
DataRootOption = Annotated[
    Path | None,
    typer.Option(
        help="Where data sets live; else $HYPERRBP_DATA, else the user's cache folder.",
        rich_help_panel="Where",
    ),
]
OutOption = Annotated[
    Path | None,
    typer.Option(
        help="The run folder.",
        show_default="runs/<recipe>-<UTC time>",
        rich_help_panel="Where",
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
        help="With --resume: go on also where versions, threads or device have changed, and give up"
        " that the run can be repeated bit for bit.",
    ),
]
RunCodeOption = Annotated[
    bool,
    typer.Option("--run-code", help="Run the Python code that the recipe names; else refuse it."),
]
DocumentOption = Annotated[
    bool, typer.Option("--json", help="One JSON document on stdout, and nothing else there.")
]
QuietOption = Annotated[
    bool, typer.Option("--quiet", "-q", help="No progress, no table; faults only.")
]


@app.command(rich_help_panel="Tune")
def tune(
    recipe: RecipeArgument,
    method: Annotated[
        str | None,
        typer.Option(
            help=f"{_METHODS}; or auto, which tries some and says why.",
            rich_help_panel="What is run",
        ),
    ] = None,
    trunc: TruncOption = None,
    train_steps: TrainStepsOption = None,
    meta_steps: Annotated[
        int | None,
        typer.Option(help="Updates of the hyperparameters.", rich_help_panel="What is run"),
    ] = None,
    seed: SeedOption = None,
    device: DeviceOption = None,
    check_every: Annotated[
        int | None,
        typer.Option(
            help="Examine the gradient in full every so many meta steps; auto chooses again then.",
            rich_help_panel="What is run",
        ),
    ] = None,
    cut_growing: Annotated[
        bool,
        typer.Option(
            "--cut-growing",
            help="neumann: sum a growing series to its smallest term only.",
            rich_help_panel="What is run",
        ),
    ] = False,
    on_divergence: Annotated[
        str | None,
        typer.Option(
            help="stop, or rollback: go back to the best with half the meta step.",
            rich_help_panel="What is run",
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
    as_json: DocumentOption = False,
    quiet: QuietOption = False,
) -> None:
    """Tune the hyperparameters of a recipe.

    hyperrbp tune digits

    hyperrbp tune mnist --method bptt --train-steps 100 --data-root data

    hyperrbp tune runs/digits-20260101T000000Z --resume --meta-steps 80
    """
    with _faults_to_exit_codes(when_stopped="; go on with --resume"):
        overrides = _given(
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
        from hyperrbp.experiments.run_folder import default_folder, open_run

        file, out = presets.find(recipe), _where(recipe, out, resume)
        resolved = _read(file, settings, overrides, run_code)
        if dry_run:
            _dry_run(resolved, data_root, as_json)
            return
        # Before PyTorch is imported: whoever comes second is told at once.
        with open_run(out or default_folder(resolved.name), resume) as folder:
            _tune(resolved, folder, data_root, resume, inexact_resume, profile, as_json, quiet)


def _given(*flags: tuple[str, str, Any]) -> list[Override]:
    """Those flags (what was typed, the recipe's key, the value) that were given."""
    return [flag for flag in flags if flag[2] is not None]


def _where(recipe: str, out: Path | None, resume: bool) -> Path | None:
    """The run folder that is asked for, if any."""
    if resume and out is None:
        if not Path(recipe).is_dir():
            raise UsageError("--resume needs --out, or a run folder in place of the recipe")
        return Path(recipe)
    return out


@app.command(rich_help_panel="Train")
def train(
    recipe: RecipeArgument,
    method: MethodOption = None,
    trunc: Annotated[
        int | None,
        typer.Option(help="K; see hyperrbp tune --help.", rich_help_panel="What is run"),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(help="Passes over the training examples.", rich_help_panel="What is run"),
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
    as_json: DocumentOption = False,
    quiet: QuietOption = False,
) -> None:
    """Train a network with a convergent part, or a tuning recipe's network once.

    hyperrbp train cora --method neumann --trunc 5 --data-root data

    hyperrbp train hopfield --epochs 100 --set training.batch_size=10

    hyperrbp train digits --hyperparameters runs/digits-20260101T000000Z
    """
    with _faults_to_exit_codes(when_stopped="; go on with --resume", runs="train"):
        overrides = _given(
            ("--method", "gradient.method", method),
            ("--trunc", "gradient.trunc", trunc),
            ("--epochs", "training.epochs", epochs),
            ("--seed", "seed", seed),
            ("--device", "device", device),
        )
        from hyperrbp.experiments.run_folder import default_folder, open_run

        file, out = presets.find(recipe), _where(recipe, out, resume)
        resolved = _read_any(file, settings, overrides, run_code)
        tuned = None if hyperparameters is None else _tuned(hyperparameters)
        with open_run(out or default_folder(resolved.name), resume) as folder:
            _train(resolved, tuned, folder, data_root, resume, inexact_resume, as_json, quiet)


def _train(
    recipe: AnyRecipe,
    tuned: dict[str, dict[str, float]] | None,
    folder: RunFolder,
    data_root: Path | None,
    resume: bool,
    inexact_resume: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    from hyperrbp.experiments.train import TrainingObserver, train_recipe
    from hyperrbp.reporting.training import TrainingBar, TrainingLines, answer
    from hyperrbp.reporting.training_tensorboard import TrainingBoard

    observers: list[TrainingObserver] = [TrainingBoard()]
    if not quiet:
        observers.append(TrainingBar(stderr) if stderr.is_terminal else TrainingLines(stderr))
    result = train_recipe(
        recipe,
        folder,
        hyperparameters=tuned,
        data_root=data_root,
        resume=resume,
        inexact_resume=inexact_resume,
        observers=observers,
    )
    if as_json:
        print(json.dumps(result))
    elif not quiet:
        _Stdout(markup=False).print(answer(result))


def _tuned(run: Path) -> dict[str, dict[str, float]]:
    """The hyperparameters that a tuning run found."""
    from hyperrbp.experiments.run_folder import RunFolder

    found = RunFolder(run).result()
    if "hyperparameters" not in found:
        raise UsageError(f"--hyperparameters {run}: not a tuning run")
    hyperparameters: dict[str, dict[str, float]] = found["hyperparameters"]
    return hyperparameters


_BENCHMARK = "Against other ways to tune"


@app.command(rich_help_panel="Tune")
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
    repeats: Annotated[int, typer.Option(help="Times that each is timed, after a warm-up.")] = 5,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,…",
            help="Contest the recipe's own tuning instead, at equal seconds: random, sobol, tpe,"
            " cmaes, hyperband (of Optuna); adam, gradient, surrogate, both (other walks of ours).",
            rich_help_panel=_BENCHMARK,
        ),
    ] = None,
    budget_seconds: Annotated[
        float | None,
        typer.Option(help="Of each optimizer and seed.", rich_help_panel=_BENCHMARK),
    ] = None,
    seeds: Annotated[
        int, typer.Option(help="Repeats, from the recipe's seed on.", rich_help_panel=_BENCHMARK)
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
    as_json: DocumentOption = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
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
    with _faults_to_exit_codes():
        _check_excluded(context, against is not None)
        overrides: list[Override] = []
        if device is not None:
            overrides.append(("--device", "device", device))
        if train_steps is not None:
            if sweep_steps is not None:
                raise UsageError("--train-steps and --sweep-steps exclude each other")
            overrides.append(("--train-steps", "inner.steps", train_steps))
        resolved = _read(presets.find(recipe), settings, overrides, run_code)
        if against is not None:
            names = against.split(",")
            _benchmark(resolved, names, budget_seconds, seeds, out, data_root, as_json, quiet)
            return
        lengths = [resolved.inner.steps]
        if sweep_steps is not None:
            lengths = _numbers("--sweep-steps", sweep_steps)
        from hyperrbp.experiments.method_specs import method_specs

        names = [name.strip() for name in methods.split(",") if name.strip()]
        _compare(
            resolved,
            method_specs(names, _numbers("--trunc", trunc), lengths),
            out,
            data_root,
            repeats,
            force,
            as_json,
            quiet,
        )


@app.command(rich_help_panel="Tune")
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
            help="Hold it against the exact gradient, at five to thirty times the cost of the"
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
    as_json: DocumentOption = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Ask whether the gradient of a recipe can be trusted, and what to use instead.

    At the recipe's start: how far the run is from a steady state, what the series and the spectrum
    look like, what the minibatches add, and how it compares with the exact gradient. Exits with 0
    to trust it, with 5 not to.

    hyperrbp check digits

    hyperrbp check mnist --method tbptt --train-steps 500 --data-root data

    hyperrbp check digits --hyperparameters runs/digits-20260101T000000Z
    """
    with _faults_to_exit_codes():
        overrides = _given(
            ("--method", "gradient.method", method),
            ("--trunc", "gradient.trunc", trunc),
            ("--train-steps", "inner.steps", train_steps),
            ("--seed", "seed", seed),
            ("--device", "device", device),
        )
        resolved = _read(presets.find(recipe), settings, overrides, run_code)
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

    def found(audience: Audience) -> dict[str, Any]:
        return check_recipe(
            recipe,
            hyperparameters=None if tuned is None else _tuned(tuned),
            exact=exact,
            data_root=data_root,
            audience=audience,
        )

    with _new_folder(out or default_folder(f"{recipe.name}-check")) as out:
        document = _watched(found, quiet)
        write_check(document, out)
    _answer(document, page, as_json, None if quiet else f"wrote {out} (check.json, check.png)")
    return bool(document["trusted"])


def _watched(work: Callable[[Audience], dict[str, Any]], quiet: bool) -> dict[str, Any]:
    """What comes of it, its progress on stderr."""
    from hyperrbp.reporting.comparison import Bar, Lines
    from hyperrbp.runtime.callbacks import Audience

    audience = Audience()
    if not quiet:
        audience = Bar(stderr) if stderr.is_terminal else Lines(stderr)
    try:
        return work(audience)
    finally:
        audience.ended()


def _answer(
    document: dict[str, Any],
    page: Callable[[dict[str, Any]], RenderableType],
    as_json: bool,
    note: str | None,
) -> None:
    if as_json:
        print(json.dumps(document))
    else:
        _Stdout(markup=False).print(page(document))
    if note is not None:
        _say(note)


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A folder with nothing in it, for this process alone."""
    from hyperrbp.runtime.locks import LOCK, held

    if out.exists() and not (out.is_dir() and {p.name for p in out.iterdir()} <= {LOCK}):
        raise UsageError(f"--out {out}: not a new or empty folder; choose another")
    with held(out):
        yield out


def _numbers(option: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(
            f"{option}: expected whole numbers with commas between them, got '{text}'"
        ) from None


def _compare(
    recipe: Recipe,
    field: Sequence[MethodSpec],
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

    def found(audience: Audience) -> dict[str, Any]:
        return compare(
            recipe, field, repeats=repeats, data_root=data_root, force=force, audience=audience
        )

    with _new_folder(out or default_folder(f"{recipe.name}-comparison")) as out:
        document = _watched(found, quiet)
        write(document, out)
    note = f"wrote {out} (comparison.md, .csv, .json, cost.png, events)"
    _answer(document, tables, as_json, None if quiet else note)


_OF_THE_METHODS = ("methods", "trunc", "sweep_steps", "repeats", "force")
_OF_THE_BENCHMARK = ("budget_seconds", "seeds")


def _check_excluded(context: typer.Context, benchmark: bool) -> None:
    """Compare takes one kind of option or the other.

    Raises:
        UsageError: naming the first that does not belong.
    """
    for name in _OF_THE_METHODS if benchmark else _OF_THE_BENCHMARK:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            option = f"--{name.replace('_', '-')}"
            raise UsageError(
                f"{option} and --against exclude each other"
                if benchmark
                else f"{option}: only with --against"
            )


def _benchmark(
    recipe: Recipe,
    names: Sequence[str],
    budget: float | None,
    seeds: int,
    out: Path | None,
    data_root: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    from hyperrbp.experiments.benchmark import benchmark
    from hyperrbp.experiments.optimizer_runs import optimizer_runs
    from hyperrbp.experiments.run_folder import default_folder

    if budget is None:
        raise UsageError("--against: say for how long, with --budget-seconds")
    field = optimizer_runs([name.strip() for name in names if name.strip()])
    from hyperrbp.reporting.benchmark import tables, write

    def found(audience: Audience) -> dict[str, Any]:
        return benchmark(recipe, field, budget, seeds=seeds, data_root=data_root, audience=audience)

    with _new_folder(out or default_folder(f"{recipe.name}-benchmark")) as out:
        document = _watched(found, quiet)
        write(document, out)
    note = f"wrote {out} (benchmark.md, .csv, .json, .png, curves.csv)"
    _answer(document, tables, as_json, None if quiet else note)


def _tune(
    recipe: Recipe,
    folder: RunFolder,
    data_root: Path | None,
    resume: bool,
    inexact_resume: bool,
    profile: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    from hyperrbp.experiments.tune import tune_recipe
    from hyperrbp.reporting.tensorboard import TensorBoard
    from hyperrbp.reporting.terminal import Dashboard, Plain, answer

    screen = Dashboard(stderr) if stderr.is_terminal else Plain(stderr)
    observers: list[Observer] = [TensorBoard()]
    if profile:
        from hyperrbp.experiments.profiling import ProfileFirst

        observers.insert(0, ProfileFirst())
    if not quiet:
        observers.append(screen)
    result = tune_recipe(
        recipe,
        folder,
        data_root=data_root,
        resume=resume,
        inexact_resume=inexact_resume,
        observers=observers,
        told=(lambda *_: None) if quiet else screen.told,
    )
    if as_json:
        print(json.dumps(result))
    elif not quiet:
        _Stdout(markup=False).print(answer(result))
    if profile and not quiet:
        _say(f"profile of one meta step: {folder.path / 'profile'} (trace.json, bytes.json)")


def _dry_run(recipe: Recipe, data_root: Path | None, as_json: bool) -> None:
    from hyperrbp.config.recipe import ADAM
    from hyperrbp.experiments.experiment import Experiment
    from hyperrbp.hypergradients.cost_model import forecast
    from hyperrbp.reporting.terminal import duration, human_bytes

    experiment = Experiment(recipe, data_root)
    problem = experiment.problem()
    with stderr.status("timing a few short runs …"):
        cost = forecast(problem, experiment.theta, experiment.gradient)
    if as_json:
        document = {
            "recipe": experiment.recipe.model_dump(),
            "weights": problem.weights,
            "hyperparameters": len(experiment.theta),
            "seconds": cost.seconds,
            "saved_bytes": cost.saved_bytes,
            "peak_bytes": cost.process_bytes,
        }
        print(json.dumps(document))
        return
    print(experiment.recipe.to_yaml())
    steps, screening = recipe.meta.steps, ""
    if recipe.meta.optimizer != ADAM:
        screening = " after the screening; those without a gradient cost less"
    print(f"# {problem.weights:,} weights, {len(experiment.theta)} hyperparameters")
    print(
        f"# a meta step: about {duration(cost.seconds)}; autograd keeps"
        f" {human_bytes(cost.saved_bytes)}, the process peaks near"
        f" {human_bytes(cost.process_bytes)}"
    )
    total = duration((steps + 1) * cost.seconds)
    print(f"# the run: {steps} meta steps, about {total}{screening}")


@app.command(rich_help_panel="Reproduce")
def reproduce(
    target: Annotated[
        str,
        typer.Argument(
            help="table1, table2, table3, tableA1, figure1 … figure6, figureA1, or all.",
            show_default=False,
        ),
    ],
    quick: Annotated[
        bool, typer.Option("--quick", help="Scaled down: minutes on two cores, and labelled so.")
    ] = False,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Runs with other seeds, where there are several.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    data_root: DataRootOption = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Where runs, tables and figures go; what is there already is not run again.",
            show_default="runs/reproduction, or runs/reproduction-quick",
            rich_help_panel="Where",
        ),
    ] = None,
    inexact_resume: Annotated[
        bool,
        typer.Option(
            "--inexact-resume",
            help="Go on with interrupted runs also where versions, threads or device have changed.",
        ),
    ] = False,
    as_json: DocumentOption = False,
    quiet: QuietOption = False,
) -> None:
    """Repeat a table or figure of the paper, with its numbers beside the measured ones.

    hyperrbp reproduce table3 --quick --data-root data

    hyperrbp reproduce figure4 --quick

    hyperrbp reproduce all --device cuda --data-root data
    """
    with _faults_to_exit_codes(when_stopped="; the same command goes on from here"):
        from hyperrbp.paper import ARTIFACTS

        if target != "all" and target not in ARTIFACTS:
            near = difflib.get_close_matches(target, [*ARTIFACTS, "all"], n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UsageError(
                f"unknown table or figure '{target}'; there are {', '.join(ARTIFACTS)} and"
                f" all{hint}"
            )
        if device not in ("auto", "cpu", "cuda"):
            raise UsageError(f"--device: expected one of auto, cpu, cuda, got '{device}'")
        from hyperrbp import paper as reproduction
        from hyperrbp.paper.artifact import Plan
        from hyperrbp.reporting.reproduction import ReproductionBar, ReproductionLines, verdict

        out = out or Path("runs") / ("reproduction-quick" if quick else "reproduction")
        audience = reproduction.Audience()
        if not quiet:
            audience = ReproductionBar(stderr) if stderr.is_terminal else ReproductionLines(stderr)
        documents = reproduction.reproduce(
            list(ARTIFACTS) if target == "all" else [target],
            Plan(quick, seeds, device, data_root, inexact_resume),
            out,
            audience,
        )
        if as_json:
            print(json.dumps(documents if target == "all" else documents[0]))
        elif not quiet:
            for document in documents:
                _Stdout(markup=False).print(verdict(document))
            _say(f"wrote {out} (PNG, CSV and JSON of each)")


def _read(
    file: Path,
    settings: Sequence[str] | None,
    overrides: Sequence[Override] = (),
    run_code: bool = False,
) -> Recipe:
    from hyperrbp.config.recipe import read

    recipe = read(file, [*_settings(settings), *overrides])
    _let_run(recipe, file, run_code)
    return recipe


def _read_any(
    file: Path,
    settings: Sequence[str] | None,
    overrides: Sequence[Override] = (),
    run_code: bool = False,
) -> AnyRecipe:
    from hyperrbp.config.recipe import read_any

    recipe = read_any(file, [*_settings(settings), *overrides])
    _let_run(recipe, file, run_code)
    return recipe


def _let_run(recipe: AnyRecipe, file: Path, run_code: bool) -> None:
    """Code that a recipe names runs only if the command line says so.

    Raises:
        RecipeError: if it does not.
    """
    for key, code in recipe.code():
        if not run_code:
            message = f"would run {code}; if you trust it, say --run-code"
            raise RecipeError([Fault(str(file), None, key, message)])
        _say(f"hyperrbp: note: runs {code}", style="yellow")


def _settings(settings: Sequence[str] | None) -> list[Override]:
    from hyperrbp.config.recipe import scalar

    parsed: list[Override] = []
    for setting in settings or ():
        key, equals, text = setting.partition("=")
        if not equals or not key:
            raise RecipeError([Fault("--set", None, setting, "expected key=value")])
        parsed.append(("--set", key, scalar(text, key)))
    return parsed


@app.command(rich_help_panel="Tune")
def show(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN…", help="Run folders.", show_default=False)
    ],
    figure: Annotated[
        Path | None,
        typer.Option(help="Draw the runs' meta loss into this file (.png, .svg, .pdf)."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The result as JSON on stdout.")] = False,
) -> None:
    """Print a run's answer again, or draw one or several runs."""
    with _faults_to_exit_codes():
        from hyperrbp.experiments.run_folder import RunFolder

        folders = [RunFolder(run) for run in runs]
        for folder in folders:
            if not folder.recipe_file.is_file():
                raise UsageError(f"{folder.path} is not a run folder")
        if figure is not None:
            from hyperrbp.reporting.figures import draw, draw_trainings

            trained = [folder.verb == "train" for folder in folders]
            if any(trained) and not all(trained):
                raise UsageError("--figure: runs of tune and of train have no picture in common")
            (draw_trainings if trained[0] else draw)(folders, figure)
            _say(f"wrote {figure}")
            return
        results = [folder.result() for folder in folders]
        if as_json:
            print(json.dumps(results[0] if len(results) == 1 else results))
            return
        from hyperrbp.reporting import terminal as console
        from hyperrbp.reporting import training

        for result in results:
            show_one = console.answer if "meta_loss" in result and "best" in result else None
            _Stdout(markup=False).print((show_one or training.answer)(result))


@app.command(rich_help_panel="Recipes")
def ls(
    as_json: Annotated[bool, typer.Option("--json", help="As JSON on stdout.")] = False,
) -> None:
    """List the built-in recipes."""
    with _faults_to_exit_codes():
        rows = {name: presets.summary(presets.built_in(name)) for name in presets.names()}
        if as_json:
            print(json.dumps(rows))
            return
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 2))
        for name, text in rows.items():
            table.add_row(Text(name, style="bold"), text)
        _Stdout(markup=False).print(table)


@app.command(rich_help_panel="Recipes")
def cat(recipe: RecipeArgument) -> None:
    """Print a recipe, comments and all."""
    with _faults_to_exit_codes():
        print(_text(presets.find(recipe)), end="")


@app.command(rich_help_panel="Recipes")
def cp(
    recipe: RecipeArgument,
    to: Annotated[
        Path | None, typer.Argument(help="A new file.", show_default="<name>.yaml")
    ] = None,
) -> None:
    """Copy a recipe to a file of your own, to edit it."""
    with _faults_to_exit_codes():
        source = presets.find(recipe)
        target = to or Path(source.name)
        if target.is_dir():
            target /= source.name
        text = _text(source)
        try:
            with target.open("x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError:
            raise UsageError(f"{target} exists already; name another file") from None
        except OSError as error:
            raise StorageError(f"{target}: {error.strerror or error}") from None
        from hyperrbp.config.recipe import Recipe, read_any

        verb = "tune" if isinstance(read_any(target), Recipe) else "train"
        _say(f"wrote {target}; run it with: hyperrbp {verb} {target}")


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{file}: not a text file in UTF-8") from None


@app.command(rich_help_panel="Recipes")
def validate(
    recipe: RecipeArgument,
    settings: SetOption = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="The resolved recipe as JSON on stdout.")
    ] = False,
) -> None:
    """Check a recipe without touching data or device, and print it with every key spelt out."""
    with _faults_to_exit_codes():
        from hyperrbp.config.recipe import read_any

        resolved = read_any(presets.find(recipe), _settings(settings))
        if as_json:
            print(json.dumps(resolved.model_dump()))
        else:
            print(resolved.to_yaml(), end="")


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
    """The entry point of the ``hyperrbp`` command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # An old locale cannot encode "→" or "×"; that is no reason to lose an answer.
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except SystemExit as error:
        if error.code in _ENDED_BY:  # what there is to write is written: taking down takes seconds
            with suppress(OSError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(int(error.code))
        raise
