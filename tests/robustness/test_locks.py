"""One process to a folder, and a folder that nobody is left to hold."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from factories import memory_text, tuning_text
from processes import FORKS
from typer.testing import CliRunner

from hyperrbp.cli import app as cli
from hyperrbp.config.loading import parse, parse_any
from hyperrbp.exceptions import DataError, LockError
from hyperrbp.experiments.run_folder import open_run
from hyperrbp.experiments.tune import tune_recipe
from hyperrbp.paper.plan import Plan
from hyperrbp.paper.run_specs import CompareSpec, TrainSpec, TuneSpec
from hyperrbp.runtime.callbacks import ignore
from hyperrbp.runtime.locks import LOCK, held

TUNING = tuning_text(meta__steps=1)
MEMORY = memory_text(training={"epochs": 1})
PROCESSES, STARTS = 10, 20
KILLED = f"process 9999999 on {platform.node()} since ever\n"
"""What an owner that was killed leaves in the lock's file; there are no such numbers."""
SOON = 60.0
"""Seconds until a test gives up; nothing here takes one."""


# --- who comes second ----------------------------------------------------------------------------


def start_over_and_over(path: Path, resume: bool, line, told: Connection) -> None:
    """Try to open the folder whenever all others do; who gets it keeps it until all have tried."""
    line.wait(SOON)  # until everybody is there
    for _ in range(STARTS):
        line.wait(SOON)
        try:
            with open_run(path, resume):
                told.send((os.getpid(), None, ""))
                line.wait(SOON)
            if resume:
                (path / LOCK).write_text(KILLED)
        except LockError as error:
            told.send((os.getpid(), error.exit_code, str(error)))
            line.wait(SOON)


@pytest.mark.parametrize("resume", [False, True])
def test_of_ten_processes_that_start_at_once_one_gets_the_folder(tmp_path, resume):
    """Ten processes start twenty times: one winner each, whose number all others are told.

    Breaks if nothing is locked, or if the owner is not the one that is named.
    """
    path = tmp_path / "run"
    if resume:
        path.mkdir()
        (path / "recipe.yaml").write_text(TUNING)
    line, ends = FORKS.Barrier(PROCESSES), []
    processes = []
    for _ in range(PROCESSES):
        ours, theirs = FORKS.Pipe(duplex=False)
        ends.append(ours)
        arguments = (path, resume, line, theirs)
        processes.append(FORKS.Process(target=start_over_and_over, args=arguments, daemon=True))
        processes[-1].start()
        theirs.close()
    for _ in range(STARTS):
        told = [end.recv() for end in ends]
        winners = [owner for owner, code, _ in told if code is None]
        assert len(winners) == 1, told
        named = f"{path} is in use by process {winners[0]} on "
        losers = [(code, said) for owner, code, said in told if owner != winners[0]]
        wrong = [loser for loser in losers if loser[0] != 10 or not loser[1].startswith(named)]
        assert not wrong, winners
    for process in processes:
        process.join(SOON)
        assert process.exitcode == 0


def come_and_go(path: Path, inside: Path, times: int, told: Connection) -> None:
    """Open the folder again and again; what is not right is told."""
    won = refused = 0
    for _ in range(times):
        try:
            with held(path):
                inside.touch(exist_ok=False)  # FileExistsError: another one is in here too
                inside.unlink()
                won += 1
        except LockError:
            refused += 1
    told.send((won, refused))


def test_processes_that_come_and_go_never_meet_in_a_folder(tmp_path):
    """Four processes open and close one folder without waiting for each other; never two inside.

    Breaks if the file is removed when it is no longer held.
    """
    times, ends = 150, []
    for _ in range(4):
        ours, theirs = FORKS.Pipe(duplex=False)
        arguments = (tmp_path / "run", tmp_path / "inside", times, theirs)
        FORKS.Process(target=come_and_go, args=arguments, daemon=True).start()
        theirs.close()
        ends.append(ours)
    for end in ends:
        won, refused = end.recv()
        assert won + refused == times
        assert won


# --- a dead owner --------------------------------------------------------------------------------


def hold(path: Path, child: str, told: Connection) -> None:
    """Hold the folder until killed."""
    with held(path):
        owner, other = os.getpid(), 0
        if child == "stopped":
            other = subprocess.Popen(["sleep", "60"]).pid
            os.kill(other, signal.SIGSTOP)
        elif child == "forked" and not os.fork():
            owner, other = os.getppid(), os.getpid()
        if child != "forked" or other:
            told.send((owner, other))
        signal.pause()


@contextmanager
def held_elsewhere(path: Path, child: str = "none") -> Iterator[int]:
    """The folder is another process's, who is killed in the end; gives its number."""
    ours, theirs = FORKS.Pipe(duplex=False)
    process = FORKS.Process(target=hold, args=(path, child, theirs), daemon=True)
    process.start()
    theirs.close()
    owner, other = ours.recv()
    try:
        yield owner
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        with held(path):  # at once, while the child lives on
            assert f"process {os.getpid()} " in (path / LOCK).read_text()
    finally:
        process.kill()
        if other:
            os.kill(other, signal.SIGKILL)


@pytest.mark.parametrize("child", ["none", "stopped", "forked"])
def test_the_lock_of_a_killed_owner_is_free_at_once(tmp_path, child):
    """SIGKILL, also with a child that lives on: the next start has the folder at once.

    Breaks if the lock is a file's existence and not the kernel's.
    """
    path = tmp_path / "run"
    path.mkdir()
    (path / "recipe.yaml").write_text(TUNING)
    for _ in range(5):
        with (
            held_elsewhere(path, child) as owner,
            pytest.raises(LockError, match=f"process {owner} "),
            open_run(path, resume=True),
        ):
            pass
        with open_run(path, resume=True):
            pass
    assert [file.name for file in path.iterdir()] == ["recipe.yaml"]


def test_a_killed_owner_is_not_taken_for_the_one_that_came_after(tmp_path):
    """The new owner has the lock but has not yet signed. Breaks if the dead one is named."""
    file = tmp_path / LOCK
    file.write_text(KILLED)
    named = f"process {os.getpid()} on {platform.node()} since now\n"
    with file.open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        signs = threading.Timer(0.1, file.write_text, [named])
        signs.start()
        with pytest.raises(LockError, match=f"process {os.getpid()} on"), held(tmp_path):
            pass
        signs.join()


# --- folders that were made ----------------------------------------------------------------------


def test_a_folder_is_removed_if_it_was_made_and_is_empty(tmp_path):
    """What was made and has nothing in it goes again, and nothing that was there before.

    Breaks if empty folders are left behind, or if somebody's own is removed.
    """
    with held(tmp_path / "a" / "b" / "c"):
        assert (tmp_path / "a" / "b" / "c" / LOCK).exists()
    assert not (tmp_path / "a").exists()
    mine = tmp_path / "mine"
    mine.mkdir()
    with held(mine):
        pass
    assert list(tmp_path.iterdir()) == [mine]
    with held(mine / "a" / "b"):
        pass
    assert not any(mine.iterdir())
    with held(mine / "a" / "b"):
        (mine / "a" / "b" / "notes").write_text("worth keeping")
    assert [path.name for path in (mine / "a" / "b").iterdir()] == ["notes"]
    with held(mine / "a" / "c" / "d"):
        (mine / "a" / "c" / "notes").write_text("worth keeping")
    assert [path.name for path in (mine / "a" / "c").iterdir()] == ["notes"]


def test_a_run_that_cannot_begin_leaves_no_folder(tmp_path):
    """A recipe whose data are not there: no folder. Breaks if an empty one stays."""
    recipe = parse("data: {name: mnist}\ndevice: cpu\nthreads: 1\n")
    with pytest.raises(DataError):
        tune_recipe(recipe, tmp_path / "runs" / "one", data_root=tmp_path)
    assert not any(tmp_path.iterdir())


# --- every command -------------------------------------------------------------------------------

_IMPORTS_NOTHING = """
import contextlib, io, json, sys
from hyperrbp.cli import app as cli

ends = []
for verb in ("tune", "train"):
    for resume in ([], ["--resume"]):
        log = io.StringIO()
        with contextlib.redirect_stderr(log):
            try:
                cli.app([verb, sys.argv[1], "--out", sys.argv[2], *resume])
            except SystemExit as error:
                ends.append([error.code, log.getvalue(), "torch" in sys.modules])
print(json.dumps(ends))
"""


def test_who_comes_second_is_refused_before_pytorch_is_imported(tmp_path):
    """tune and train in a folder in use: code 10, one line, and no torch. Breaks if it comes first.

    Whoever comes second would otherwise wait for seconds.
    """
    (tmp_path / "tiny.yaml").write_text(TUNING)
    path = tmp_path / "run"
    path.mkdir()
    with held(path):
        (path / "recipe.yaml").write_text(TUNING)
        done = subprocess.run(
            [sys.executable, "-c", _IMPORTS_NOTHING, tmp_path / "tiny.yaml", path],
            capture_output=True,
            text=True,
            timeout=SOON,
        )
    assert done.returncode == 0, done.stderr
    said = re.escape(f"{path} is in use by process {os.getpid()} on ")
    for code, log, torch in json.loads(done.stdout):
        assert code == 10
        assert re.fullmatch(rf"hyperrbp: {said}.*; wait for its end, or.*\n", log)
        assert not torch


@pytest.mark.parametrize("verb", ["tune", "train", "check", "compare"])
@pytest.mark.parametrize("new", [True, False])
def test_every_command_refuses_a_folder_in_use(tmp_path, verb, new):
    """Also one that writes a page into a folder ends with 10 and names the owner. Breaks if not."""
    (tmp_path / "tiny.yaml").write_text(TUNING)
    path = tmp_path / "out"
    if not new:
        path.mkdir()
    with held_elsewhere(path) as owner:
        words = [verb, str(tmp_path / "tiny.yaml"), "--out", str(path), "--quiet"]
        done = CliRunner().invoke(cli.app, words)
        assert [file.name for file in path.iterdir()] == [LOCK]
    assert done.exit_code == 10, done.output
    assert done.stderr.startswith(f"hyperrbp: {path} is in use by process {owner} on ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("spec", [CompareSpec, TuneSpec, TrainSpec])
def test_a_run_spec_of_a_reproduction_refuses_a_folder_in_use(tmp_path, spec):
    """Two reproductions in one folder: the second is told whose the spec is. Breaks if it runs."""
    text = MEMORY if spec is TrainSpec else TUNING
    one = spec("reproduced", parse_any(text))
    with (
        held_elsewhere(tmp_path / "reproduced") as owner,
        pytest.raises(LockError, match=f" {owner} "),
    ):
        one.outcome(tmp_path, Plan(quick=True, device="cpu"), ignore)
