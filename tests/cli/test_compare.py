"""``hyperrbp compare`` for gradient methods."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from commands import run
from comparisons import TINY, pretend

from hyperrbp.experiments import measurement
from hyperrbp.experiments.method_specs import method_specs


@pytest.fixture
def machine(monkeypatch):
    return lambda **options: pretend(monkeypatch, **options)


@pytest.fixture
def tiny(tmp_path, monkeypatch, machine):
    """The name of a recipe in a working folder of its own, where nothing is really run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(TINY)
    machine()
    return "tiny.yaml"


def test_compare_has_help():
    done = run("compare", "--help")
    assert done.exit_code == 0
    assert "Usage: hyperrbp compare " in done.stdout
    for option in ("--methods", "--trunc", "--sweep-steps", "--repeats", "--force", "--json"):
        assert option in done.stdout
    assert re.search(r"^│ compare ", run("--help").stdout, re.MULTILINE)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--trunc", "x"], ["--trunc", "'x'"]),
        (["--trunc", "10,,50"], ["--trunc", "'10,,50'"]),
        (["--trunc", "0"], ["--trunc", "at least 1"]),
        (["--sweep-steps", "a,b"], ["--sweep-steps", "'a,b'"]),
        (["--repeats", "0"], ["--repeats", "at least 1"]),
        (["--train-steps", "9", "--sweep-steps", "9,10"], ["--train-steps", "--sweep-steps"]),
        (["--methods", "newmann"], ["'newmann'", "did you mean neumann?"]),
        (["--methods", "neumann:tol=1"], ["neumann:tol=1", "did you mean tolerance?"]),
        (["--methods", "bptt:keep=all"], ["bptt:keep=all", "'all'"]),
        (["--methods", "bptt:keep"], ["bptt:keep", "METHOD:option=value"]),
        (["--out", "full"], ["--out full", "not a new or empty folder"]),
        (["--out", "tiny.yaml"], ["--out tiny.yaml", "not a new or empty folder"]),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(tiny, machine, tmp_path, words, named):
    fake = machine()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("precious")
    done = run("compare", tiny, *words)
    assert done.exit_code == 2, done.output
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("hyperrbp: ")
    assert all(word in line for word in named)
    assert fake.calls == []
    assert [file.name for file in (tmp_path / "full").iterdir()] == ["mine"]
    assert (tmp_path / "full" / "mine").read_text() == "precious"
    assert {file.name for file in tmp_path.iterdir()} == {"full", "tiny.yaml"}


def test_the_command_prints_tables_and_writes_a_folder(tiny, machine, tmp_path):
    fake = machine()
    done = run(
        "compare", tiny, "--methods", "neumann, cg", "--trunc", "5,10", "--sweep-steps", "40,20",
        "--repeats", 2, "--quiet",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert done.stderr == ""
    ((_, field),) = [asked for asked in fake.calls if asked[0] is measurement.plan]
    assert field == method_specs(["neumann", "cg"], [5, 10], [40, 20])
    for word in ("Time", "Memory", "How right it is"):
        assert word in done.stdout
    (folder,) = (tmp_path / "runs").iterdir()
    assert re.fullmatch(r"tiny-comparison-\d{8}T\d{6}Z", folder.name)
    document = json.loads((folder / "comparison.json").read_text())
    assert len(document["rows"]) == len(field)
    assert document["environment"]["repeats"] == 2


def test_the_length_of_run_is_the_recipes_or_the_flags(tiny, machine, tmp_path):
    for words, steps in (([], 30), (["--train-steps", "50"], 50)):
        fake = machine()
        (tmp_path / f"out{steps}").mkdir()  # an empty one is as good as a new one
        words += ["--methods", "cg", "--out", f"out{steps}"]
        done = run("compare", tiny, *words)
        assert done.exit_code == 0, done.output
        assert {c.train_steps for c in fake.calls[0][1]} == {steps}
        assert [c.trunc for c in fake.calls[0][1]] == [None, 10, 50, 100]
        assert f"wrote out{steps}" in done.stderr


def test_force_reaches_the_comparison(tiny, machine):
    for words, status in (([], "skipped"), (["--force"], "exact")):
        machine(available=1)
        done = run("compare", tiny, "--methods", "cg", "--json", "--out", f"out-{status}", *words)
        assert done.exit_code == 0, done.output
        assert {row["status"] for row in json.loads(done.stdout)["rows"]} == {status}


@pytest.mark.parametrize("seconds", [1.5, 6.0])
def test_ctrl_c_ends_a_comparison_with_one_line_and_no_process_left(tmp_path, seconds):
    """Before the server of fresh processes has started, or while one of them works."""
    command = [sys.executable, "-m", "hyperrbp", "compare", "digits", "--out", str(tmp_path / "o")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    time.sleep(seconds)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert said.splitlines()[-1] == "hyperrbp: interrupted"
    assert "Traceback" not in said
    for _ in range(50):
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail("a process was left behind")
