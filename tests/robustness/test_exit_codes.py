"""Every exit code of the table, by a cause of its own, in a process of its own."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from commands import run
from factories import memory_text, tuning_text
from processes import FORKS, heed_signals

from hyperrbp import exceptions as errors
from hyperrbp.cli.exit_codes import EXIT_CODES, NOT_TRUSTED
from hyperrbp.runtime.locks import held

# --- what goes wrong -----------------------------------------------------------------------------


def nothing() -> None:
    """Nothing does."""


def a_fault_of_our_own() -> None:
    from hyperrbp.optimizers.adam import Adam

    def step(*args, **kwargs):
        raise RuntimeError("this cannot be")

    Adam.step = step


def no_gpu() -> None:
    torch.cuda.is_available = lambda: False


def no_memory() -> None:
    from hyperrbp.problems.training.run import TrainingRun

    def loss_and_gradient(self, h):
        return torch.empty(2**60)  # for real: PyTorch is refused it

    TrainingRun.loss_and_gradient = loss_and_gradient


def a_full_disk() -> None:
    real, calls = os.fsync, []

    def fsync(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > 12:
            raise OSError(28, "No space left on device")
        real(descriptor)

    os.fsync = fsync


def a_disk_that_fills_up_under_tensorboard() -> None:
    from hyperrbp.reporting.tensorboard import TensorBoard

    def on_record(self, record):
        raise OSError(28, "No space left on device", "new/events")

    TensorBoard.on_record = on_record


class Row(NamedTuple):
    code: int
    words: list[str]
    said: str
    """On stderr."""
    goes_wrong: Callable[[], None] = nothing
    signal: int = 0
    """Sent when there is a record."""


LONG = ["tune", "tiny.yaml", "--meta-steps", "1000000", "--out", "new"]
POOR_GRADIENT = ["--method", "rbp", "--trunc", "1", "--seed", "3"]
ROWS = {
    "tuned": Row(0, ["tune", "tiny.yaml", "--out", "new"], ""),
    "trained": Row(0, ["train", "memory.yaml", "--out", "new"], ""),
    "shown": Row(0, ["show", "tuned"], ""),
    "our fault": Row(
        1, ["tune", "tiny.yaml", "--out", "new"], "this cannot be", a_fault_of_our_own
    ),
    "a key": Row(2, ["tune", "bad.yaml", "--out", "new"], "bad.yaml:1: sead: unknown key"),
    "an option": Row(
        2, ["check", "tiny.yaml", "--trunc", "0"], "--trunc: gradient.trunc: expected"
    ),
    "a folder with a run": Row(2, ["tune", "tiny.yaml", "--out", "tuned"], "not empty"),
    "a recipe": Row(2, ["train", "digit"], "did you mean digits?"),
    "no data": Row(3, ["tune", "mnist", "--data-root", "nowhere"], "MNIST not found"),
    "no network": Row(3, ["train", "cora", "--data-root", "nowhere"], "Cora not found"),
    "no gpu": Row(4, ["tune", "tiny.yaml", "--device", "cuda"], "cuda was asked for", no_gpu),
    "a gradient": Row(5, ["check", "tiny.yaml", *POOR_GRADIENT, "--out", "new"], ""),
    "overflow": Row(
        6,
        ["tune", "tiny.yaml", "--set", "meta.learning_rate=1000", "--out", "new"],
        "is not finite",
    ),
    "another recipe": Row(7, ["tune", "tuned", "--resume", "--seed", "5"], "seed: 1234 → 5"),
    "no result": Row(7, ["show", "begun"], "begun holds no result"),
    "memory": Row(8, ["tune", "tiny.yaml", "--out", "new"], "out of memory; use", no_memory),
    "a full disk": Row(9, ["tune", "tiny.yaml", "--out", "new"], "free some space", a_full_disk),
    "curves": Row(
        9,
        ["tune", "tiny.yaml", "--out", "new"],
        "new/events: No space left on device; free some space",
        a_disk_that_fills_up_under_tensorboard,
    ),
    "no folder": Row(9, ["tune", "tiny.yaml", "--out", "tiny.yaml/new"], "Not a directory"),
    "in use": Row(10, ["tune", "tiny.yaml", "--out", "used"], "used is in use by process "),
    "in use, too": Row(10, ["check", "tiny.yaml", "--out", "used"], "used is in use by process "),
    "ctrl-c": Row(130, LONG, "interrupted; go on with --resume", signal=signal.SIGINT),
    "killed": Row(143, LONG, "terminated; go on with --resume", signal=signal.SIGTERM),
}

# --- a process to each ---------------------------------------------------------------------------


def command(folder: str, words: list[str], goes_wrong: Callable[[], None]) -> None:
    """The command as it is started from a shell, its output in files."""
    os.chdir(folder)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(name, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), descriptor)
    heed_signals()
    goes_wrong()
    from hyperrbp.__main__ import main

    sys.argv = ["hyperrbp", *words]
    main()


def holder(folder: str, held_now, let_go) -> None:
    with held(Path(folder)):
        held_now.set()
        let_go.wait(600)


def ended(folder: Path, row: Row) -> tuple[int, str, str]:
    """Exit code, stdout and stderr."""
    quiet = [] if row.words[0] == "show" else ["--quiet"]
    process = FORKS.Process(
        target=command, args=(str(folder), [*row.words, "--json", *quiet], row.goes_wrong)
    )
    process.start()
    if row.signal:
        records, deadline = folder / "new" / "records.jsonl", time.monotonic() + 120
        while not (records.exists() and b"\n" in records.read_bytes()):
            assert process.is_alive(), (folder / "stderr").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(process.pid, row.signal)
    process.join(60)
    if process.exitcode is None:
        process.kill()
        pytest.fail("it has not ended")
    return process.exitcode, (folder / "stdout").read_text(), (folder / "stderr").read_text()


@pytest.fixture(scope="module")
def tuned(tmp_path_factory) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("tuned")
    (folder / "tiny.yaml").write_text(tuning_text(data={"name": "digits"}))
    (folder / "memory.yaml").write_text(memory_text())
    (folder / "bad.yaml").write_text("sead: 1\n")
    (folder / "begun").mkdir()
    (folder / "begun" / "recipe.yaml").write_text(tuning_text(data={"name": "digits"}))
    row = Row(0, ["tune", "tiny.yaml", "--out", "tuned"], "")
    assert ended(folder, row)[0] == 0
    return folder


@pytest.mark.parametrize("name", ROWS)
def test_every_cause_has_its_exit_code(tmp_path, tuned, name):
    """A real process: its exit code; stdout has the JSON answer or nothing, stderr our own lines.

    Catches a wrong code, an answer or a fault on the wrong stream, and a traceback.
    """
    row = ROWS[name]
    folder = tmp_path / "folder"
    shutil.copytree(tuned, folder)
    if row.code == errors.LockError.exit_code:
        held_now, let_go = FORKS.Event(), FORKS.Event()
        other = FORKS.Process(target=holder, args=(str(folder / "used"), held_now, let_go))
        other.start()
        assert held_now.wait(60)
        code, stdout, stderr = ended(folder, row)
        let_go.set()
        other.join(60)
        assert f"in use by process {other.pid} " in stderr
        assert other.exitcode == 0
    else:
        code, stdout, stderr = ended(folder, row)
    assert code == row.code, stderr
    assert row.said in stderr
    if code in (0, NOT_TRUSTED):
        assert isinstance(json.loads(stdout), dict)
        assert stdout.count("\n") == 1
        assert stderr == ""
    else:
        assert stdout == ""
    if code == 1:  # what nobody has foreseen is to be reported in full
        assert stderr.splitlines()[-1] == "RuntimeError: this cannot be"
    else:
        assert all(line.startswith("hyperrbp: ") for line in stderr.splitlines())
    made = (folder / "new").exists()
    assert made == (code in (0, 1, 5, 6, 8, 9, 130, 143) and "new" in row.words)


# --- the table -----------------------------------------------------------------------------------


def test_the_table_has_every_code_and_every_code_a_cause():
    """What can be raised stands in the table, and what stands there was caused above."""
    raised = {kind.exit_code for kind in vars(errors).values() if isinstance(kind, type)
              and issubclass(kind, errors.HyperrbpError)}  # fmt: skip
    assert raised | {0, NOT_TRUSTED, 130, 143} == set(EXIT_CODES)
    assert {row.code for row in ROWS.values()} == set(EXIT_CODES)


def test_help_has_the_table():
    """The codes and their meanings, word by word, and no others."""
    done = run("--help")
    assert done.exit_code == 0
    text = " ".join(re.sub(r"[│╭╰─╯╮•]", " ", done.stdout).split())
    listed = text.partition("Exit codes:")[2]
    assert listed.strip() == " ".join(f"{code}: {meaning}" for code, meaning in EXIT_CODES.items())
