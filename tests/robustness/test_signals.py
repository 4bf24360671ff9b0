"""Ctrl-C and SIGTERM, at any time."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from factories import memory_text, tuning_text
from processes import FORKS
from runs import records_of

from hyperrbp.cli import app as cli
from hyperrbp.experiments import checkpoint
from hyperrbp.experiments.run_folder import RunFolder
from hyperrbp.runtime import signals

TUNING = tuning_text(data__train_examples=200)
MEMORY = memory_text(training={"epochs": 1_000_000})
STOPPED = {signal.SIGINT: (130, "interrupted"), signal.SIGTERM: (143, "terminated")}
SOON = 60.0
"""Seconds until a test gives up; nothing here takes so long."""


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """A working folder with two recipes; workers are told of it by name."""
    (tmp_path / "tiny.yaml").write_text(TUNING)
    (tmp_path / "memory.yaml").write_text(MEMORY)
    return tmp_path


def enter(place: Path, words: list[str]) -> None:
    """In a fork: the command line, as a shell would enter it in this place."""
    os.chdir(place)
    for stream, file in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPED)
    signals.exit_at_once()  # as from the first line of the command on
    sys.argv = ["hyperrbp", *words]
    Path("entered").touch()
    cli.main()


def entered(place: Path, *words: str) -> BaseProcess:
    """The command, running."""
    (place / "entered").unlink(missing_ok=True)
    process = FORKS.Process(target=enter, args=(place, list(words)))
    process.start()
    wait_for(place / "entered", process)
    return process


def wait_for(file: Path, process: BaseProcess) -> None:
    deadline = time.monotonic() + SOON
    while not file.exists():
        assert process.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.001)


def assert_ends(run: Path, process: BaseProcess, number: int, remedy: str) -> None:
    """Send the signal: the end comes within 5 s, with its code and its word, and no traceback."""
    place, begun = run.parent, run.exists()
    sent = time.monotonic()
    os.kill(process.pid, number)
    process.join(SOON)
    took = time.monotonic() - sent
    code, word = STOPPED[number]
    log = (place / "stderr").read_text()
    assert process.exitcode == code, log
    assert took < 5, log
    last = log.splitlines()[-1]
    assert last == f"hyperrbp: {word}{remedy}" or (not begun and last == f"hyperrbp: {word}"), log
    assert "Traceback" not in log
    assert "Exception" not in log
    assert (place / "stdout").read_text() == ""


def assert_whole(folder: RunFolder, unit: str) -> int:
    """What has been begun can be gone on with; how many records there are."""
    lines = []
    if folder.records_file.exists():
        lines = folder.records_file.read_text().splitlines(keepends=True)
    assert all(line.endswith("\n") for line in lines)
    assert [json.loads(line)[unit] for line in lines] == list(range(len(lines)))
    if lines or checkpoint.exists(folder.checkpoint_file):
        content, _ = checkpoint.load(folder.checkpoint_file)
        position = content[unit]
        assert position in (len(lines) - 1, len(lines))
    return len(lines)


@pytest.mark.parametrize("count", [6, pytest.param(40, marks=pytest.mark.slow)])
def test_signals_end_a_tuning_run_and_leave_it_whole(elsewhere, count):
    """Ctrl-C or SIGTERM from the start to 1.5 s later: code, word, within 5 s, and all is whole.

    Breaks if a signal is not heeded, gets lost, or ends with another code.
    """
    chance, taken = random.Random(8), []
    words = ["tune", "tiny.yaml", "--meta-steps", "1000000"]
    for n in range(count):
        process = entered(elsewhere, *words, "--out", f"run{n}")
        time.sleep(chance.uniform(0, 1.5))
        number = (signal.SIGINT, signal.SIGTERM)[n % 2]
        assert_ends(elsewhere / f"run{n}", process, number, "; go on with --resume")
        taken.append(assert_whole(RunFolder(elsewhere / f"run{n}"), "meta_step"))
    assert max(taken) > 2, "the signals came before there was anything to lose"
    longest = taken.index(max(taken))
    process = entered(
        elsewhere, "tune", f"run{longest}", "--resume", "--meta-steps", str(max(taken))
    )
    process.join(SOON)
    assert process.exitcode == 0


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (["train", "memory.yaml", "--out", "run"], "; go on with --resume"),
        (["train", "tiny.yaml", "--out", "run", "--set", "inner.steps=1000000"],
         "; go on with --resume"),
        (["compare", "tiny.yaml", "--out", "run"], ""),
    ],
)  # fmt: skip
def test_signals_end_a_training_and_a_comparison(elsewhere, words, remedy):
    """The same of train, epochs or steps, and of compare, whose processes end too.

    Breaks if a command does not heed signals.
    """
    chance = random.Random(88)
    for number in STOPPED:
        place = elsewhere / str(int(number))
        place.mkdir()
        for recipe in ("tiny.yaml", "memory.yaml"):
            (place / recipe).write_text((elsewhere / recipe).read_text())
        process = entered(place, *words)
        wait_for(place / "run", process)
        time.sleep(chance.uniform(0, 1))
        assert_ends(place / "run", process, number, remedy)
        if words[0] == "train":
            run = RunFolder(place / "run")
            units = [unit for unit in ("epoch", "step") if unit in next(iter(records_of(run)), {})]
            if units:
                checkpoint.load(run.checkpoint_file)
                numbers = [record[units[0]] for record in records_of(run)]
                assert numbers == sorted(set(numbers))
                assert run.records_file.read_bytes().endswith(b"\n")


STUBBORN = """
import time
from pathlib import Path

def build(features, classes):
    try:
        Path("building").touch()
        time.sleep(60)
    except KeyboardInterrupt:
        Path("heard").touch()
        time.sleep(60)
"""


@pytest.mark.parametrize(
    ("number", "signals"),
    [
        (signal.SIGINT, 1),
        (signal.SIGTERM, 2),
        pytest.param(signal.SIGTERM, 1, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, 2, marks=pytest.mark.slow),
    ],
)
def test_a_second_signal_ends_at_once_what_does_not_heed_the_first(elsewhere, number, signals):
    """Code that swallows the first signal gets 2 s more, and none after a second one.

    Breaks if the grace has no end, or if the second signal is only noted.
    """
    (elsewhere / "stubborn.py").write_text(STUBBORN)
    model = "model: {name: 'stubborn.py:build', options: {}}"
    (elsewhere / "tiny.yaml").write_text(TUNING.replace("model: {options: {hidden: [4]}}", model))
    process = entered(elsewhere, "tune", "tiny.yaml", "--out", "run", "--run-code")
    wait_for(elsewhere / "building", process)
    os.kill(process.pid, number)
    wait_for(elsewhere / "heard", process)
    if signals == 1:
        process.join(5)
        assert process.exitcode == STOPPED[number][0]
    else:
        began = time.monotonic()
        assert_ends(elsewhere / "run", process, number, "; go on with --resume")
        assert time.monotonic() - began < 1.5


@pytest.mark.parametrize("number", STOPPED)
def test_a_signal_while_modules_are_imported_is_one_too(elsewhere, number):
    """The command has just been typed: code and word all the same. Breaks if Python answers."""
    program = [sys.executable, "-X", "importtime", "-m", "hyperrbp"]
    words = ["tune", "tiny.yaml", "--meta-steps", "1000000", "--out", "run"]
    with subprocess.Popen(
        [*program, *words], cwd=elsewhere, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        for line in process.stderr:
            if line.endswith(" typer.main\n"):  # told when it is done; more follows
                break
        process.send_signal(number)
        _, log = process.communicate(timeout=SOON)
    code, word = STOPPED[number]
    assert process.returncode == code
    assert log.splitlines()[-1].startswith(f"hyperrbp: {word}")
    assert "Traceback" not in log
    assert not (elsewhere / "run").exists()
