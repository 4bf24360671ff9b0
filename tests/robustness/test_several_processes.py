"""Several processes that are started on one run are each told what to do, and touch nothing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from commands import assert_refused, run
from factories import memory_text, tuning_text

from hyperrbp import train_recipe, tune_recipe
from hyperrbp.config.loading import parse, parse_any
from hyperrbp.exceptions import UsageError
from hyperrbp.experiments.check import check_recipe
from hyperrbp.runtime.single_process import refuse_several_processes

TUNING = tuning_text(data={"name": "digits"})
WHAT_TO_DO = r"started by {} as process {} of {}: hyperrbp runs in one process; start it without {}"
OF_TORCHRUN = {"TORCHELASTIC_RUN_ID": "none"}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(TUNING)
    (tmp_path / "memory.yaml").write_text(memory_text())


@pytest.fixture
def second_of_four(monkeypatch):
    for name, value in {"RANK": "1", "WORLD_SIZE": "4", **OF_TORCHRUN}.items():
        monkeypatch.setenv(name, value)


COMMANDS = [
    ["tune", "tiny.yaml"],
    ["tune", "tiny.yaml", "--dry-run"],
    ["train", "tiny.yaml"],
    ["train", "memory.yaml"],
    ["check", "tiny.yaml"],
    ["compare", "tiny.yaml"],
    ["compare", "tiny.yaml", "--against", "random", "--budget-seconds", "1"],
]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_that_runs_something_says_so(tmp_path, second_of_four, words):
    before = set(tmp_path.rglob("*"))
    out = [] if "--dry-run" in words else ["--out", "new"]
    assert_refused(run(*words, *out), 2, WHAT_TO_DO.format("torchrun", 2, 4, "torchrun"))
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("words", [["ls"], ["cat", "digits"], ["validate", "tiny.yaml"]])
def test_what_only_reads_is_not_refused(second_of_four, words):
    assert run(*words).exit_code == 0


@pytest.mark.parametrize(
    "call",
    [
        lambda: tune_recipe(parse(TUNING), Path("new")),
        lambda: train_recipe(parse(TUNING), Path("new")),
        lambda: train_recipe(parse_any(memory_text()), Path("new")),
        lambda: check_recipe(parse(TUNING)),
    ],
)
def test_the_calls_from_python_say_so_too(second_of_four, call):
    with pytest.raises(UsageError, match=WHAT_TO_DO.format("torchrun", 2, 4, "torchrun")):
        call()
    assert not Path("new").exists()


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"RANK": "0", "WORLD_SIZE": "1", **OF_TORCHRUN},  # torchrun with one process
        {"WORLD_SIZE": "4"},  # of something else
        {"RANK": "", "WORLD_SIZE": "many"},
    ],
)
def test_one_process_is_not_refused(monkeypatch, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    refuse_several_processes()


def test_another_launcher_is_not_called_torchrun(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match=WHAT_TO_DO.format("a launcher of processes", 1, 2, "it")):
        refuse_several_processes()


GROUP = """
import sys, torch.distributed as distributed
from datetime import timedelta
store = distributed.FileStore(sys.argv[1], 2)
distributed.init_process_group("gloo", store=store, rank=int(sys.argv[2]), world_size=2,
                               timeout=timedelta(seconds=60))
from hyperrbp.exceptions import UsageError
from hyperrbp.experiments.check import check_recipe
from hyperrbp.runtime.single_process import refuse_several_processes
try:
    refuse_several_processes()
except UsageError as error:
    print(error)
"""


def clean() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}


@pytest.mark.slow
def test_processes_that_have_joined_a_group_by_themselves_are_told(tmp_path):
    started = [
        subprocess.Popen(
            [sys.executable, "-c", GROUP, str(tmp_path / "store"), str(rank)],
            stdout=subprocess.PIPE, text=True, env=clean(),
        )
        for rank in range(2)
    ]  # fmt: skip
    for rank, process in enumerate(started):
        said, _ = process.communicate(timeout=120)
        assert re.match(WHAT_TO_DO.format("a launcher of processes", rank + 1, 2, "it"), said)


def test_torchrun_itself_with_one_folder(tmp_path):
    """Two real processes; before, one of them took the folder, and the other had a lock error."""
    pytest.importorskip("torch.distributed.run")
    done = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
            "-m", "hyperrbp", "tune", "tiny.yaml", "--out", "new",
        ],
        capture_output=True, text=True, timeout=300, env=clean(),
    )  # fmt: skip
    assert done.returncode != 0
    ours = {line for line in done.stderr.splitlines() if line.startswith("hyperrbp: ")}
    told = {"hyperrbp: " + WHAT_TO_DO.format("torchrun", n, 2, "torchrun") for n in (1, 2)}
    # torchrun ends the others as soon as one has ended, while they still load perhaps.
    assert ours & told
    assert {line for line in ours - told if "terminated" not in line} == set()
    assert "exitcode  : 2" in done.stderr
    assert not (tmp_path / "new").exists()
