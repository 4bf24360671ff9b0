"""Disks that are full and memory that runs out, at every place where they can."""

from __future__ import annotations

import builtins
import errno
import io
import os
import resource
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from factories import memory_text, outcome, tuning_text
from processes import FORKS
from runs import records_of
from typer.testing import CliRunner

from hyperrbp.cli import app as cli
from hyperrbp.config.loading import read_any
from hyperrbp.experiments import checkpoint
from hyperrbp.experiments.run_folder import RunFolder
from hyperrbp.experiments.train import train_recipe
from hyperrbp.experiments.tune import tune_recipe

TUNING = tuning_text(
    model__options__hidden=[2],
    inner__steps=3,
    gradient={"trunc": 2, "averaging": {"minibatches": 1, "series": 1}},
    meta__steps=3,
    record__inner_curves=[],
)
MEMORY = memory_text(inference__updates=3, gradient__trunc=2)
RECIPES = {"tune": TUNING, "train": MEMORY}
UNITS = {"tune": "meta_step", "train": "epoch"}
REMEDY = "; free some space; go on with --resume"
SOON = 120.0
"""Seconds until a test gives up; nothing here takes so long."""


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """A working folder with two recipes."""
    monkeypatch.chdir(tmp_path)
    for verb, text in RECIPES.items():
        (tmp_path / f"{verb}.yaml").write_text(text)
    return tmp_path


def go_on(verb: str, folder: Path, resume: bool) -> None:
    """Without observers: TensorBoard waits for the next second to begin a file."""
    run = {"tune": tune_recipe, "train": train_recipe}[verb]
    run(read_any(Path(f"{verb}.yaml")), folder, resume=resume)


def assert_intact(folder: RunFolder, unit: str) -> None:
    """What has been recorded has its checkpoint."""
    records = records_of(folder)
    assert [record[unit] for record in records] == list(range(len(records)))
    if records:
        assert checkpoint.load(folder.checkpoint_file)[0][unit] in (len(records) - 1, len(records))


# --- a disk that is full from the Nth write on ----------------------------------------------------


class FullDisk:
    """Calls of the file system fail from the Nth on; half of what should be written arrives."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, first: int) -> None:
        self.first, self.calls = first, 0
        for place, name in ((os, "mkdir"), (os, "fsync"), (os, "replace")):
            monkeypatch.setattr(place, name, self._failing(getattr(place, name)))
        opened, created = io.open, os.open

        def open_file(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
            if not set(mode) & set("wax+"):
                return opened(file, mode, *arguments, **options)
            self.call()
            return Page(self, opened(file, mode, *arguments, **options))

        def create(path: Any, flags: int, *arguments: Any, **options: Any) -> int:
            if flags & os.O_CREAT:
                self.call()
            return created(path, flags, *arguments, **options)

        monkeypatch.setattr(io, "open", open_file)
        monkeypatch.setattr(builtins, "open", open_file)
        monkeypatch.setattr(os, "open", create)

    @property
    def full(self) -> bool:
        return self.calls >= self.first

    def call(self) -> None:
        # Those of TensorBoard's thread come at any time: they fail with the others, uncounted.
        self.calls += threading.current_thread() is threading.main_thread()
        if self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _failing(self, real: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            self.call()
            return real(*arguments, **options)

        return call


class Page:
    """A file on it."""

    def __init__(self, disk: FullDisk, file: Any) -> None:
        self._disk, self._file = disk, file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> Page:
        return self

    def __exit__(self, *fault: object) -> None:
        self._file.close()

    def write(self, content: Any) -> int:
        try:
            self._disk.call()
        except OSError:
            self._file.write(content[: len(content) // 2])
            raise
        return int(self._file.write(content))


@pytest.mark.parametrize("verb", ["tune", "train"])
@pytest.mark.parametrize("stride", [24, pytest.param(1, marks=pytest.mark.slow)])
def test_whichever_write_fails_first_nothing_is_lost(elsewhere, monkeypatch, verb, stride):
    """The Nth call of the file system fails, for every N: code 9, and a resume to the same bits.

    Breaks if a checkpoint is overwritten in place, or a failed write goes unnoticed.
    """
    go_on(verb, elsewhere / "whole", resume=False)
    truth = outcome(elsewhere / "whole")
    for first in range(1, 1000, stride):
        run = RunFolder(elsewhere / f"run{first}")
        with monkeypatch.context() as patch:
            disk = FullDisk(patch, first)
            words = [verb, f"{verb}.yaml", "--out", run.path.name, "--quiet"]
            done = CliRunner().invoke(cli.app, words)
        if not disk.full:
            break
        assert done.exit_code == 9, (first, done.output)
        assert "No space left on device" in done.stderr
        assert done.stderr.endswith(f"{REMEDY}\n"), done.stderr
        assert_intact(run, UNITS[verb])
        go_on(verb, run.path, resume=run.recipe_file.exists())
        assert outcome(run.path) == truth
    assert done.exit_code == 0
    assert outcome(run.path) == truth
    assert first > 50


# --- limits of the kernel -------------------------------------------------------------------------


def enter(place: Path, words: list[str], kind: int, limit: int) -> None:
    """In a fork: the command line in this place, with a limit; of memory, more than is used now."""
    os.chdir(place)
    for stream, file in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    if kind == resource.RLIMIT_DATA:
        told = Path("/proc/self/status").read_text().partition("VmData:")[2]
        limit += 1024 * int(told.split()[0])
    resource.setrlimit(kind, (limit, limit))
    sys.argv = ["hyperrbp", *words]
    cli.main()


def limited(place: Path, kind: int, limit: int, *words: str) -> tuple[int | None, str]:
    """The exit code and the log of a command under a limit."""
    process = FORKS.Process(target=enter, args=(place, list(words), kind, limit))
    process.start()
    process.join(SOON)
    return process.exitcode, (place / "stderr").read_text()


@pytest.mark.parametrize("verb", ["tune", "train"])
def test_files_that_may_not_grow_end_a_run_with_its_checkpoint_intact(elsewhere, verb):
    """The kernel refuses files above a limit: code 9, what to do, and a resume to the same bits.

    Breaks if a full disk is no failure of its own, or names no remedy.
    """
    go_on(verb, elsewhere / "whole", resume=False)
    truth = outcome(elsewhere / "whole")
    for limit in (400, 900, 2000, 3200):
        run = RunFolder(elsewhere / f"{limit}")
        words = [verb, f"{verb}.yaml", "--out", run.path.name, "--quiet"]
        code, log = limited(elsewhere, resource.RLIMIT_FSIZE, limit, *words)
        assert code == 9, log
        assert "File too large" in log
        assert log.endswith(f"{REMEDY}\n")
        assert "Traceback" not in log
        assert_intact(run, UNITS[verb])
        go_on(verb, run.path, resume=run.recipe_file.exists())
        assert outcome(run.path) == truth


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no limit of memory here")
def test_memory_that_runs_out_ends_a_run_with_its_checkpoint_intact(elsewhere):
    """A resume that needs far more memory than it may take: code 8, what to change, all intact.

    Breaks if the failure of an allocation is not recognized.
    """
    large = ["--set", "inner.steps=400", "--set", "model.options.hidden=[400]"]
    for method, extra in (("bptt", 100), ("bptt", 200), ("bptt", 300)):
        out = f"{method}{extra}"
        words = ["tune", "tune.yaml", "--out", out, "--quiet", "--method", method, *large]
        code, log = limited(elsewhere, resource.RLIMIT_DATA, extra << 20, *words)
        assert code == 8, log
        assert log.startswith("hyperrbp: out of memory; use an implicit method (--method neumann)")
        assert log.endswith("; the last checkpoint is intact\n")
        assert log.count("\n") == 1
        run = RunFolder(elsewhere / out)
        assert checkpoint.load(run.checkpoint_file)[0]["meta_step"] == 0
        assert records_of(run) == []
