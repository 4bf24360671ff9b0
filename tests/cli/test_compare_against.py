"""``hyperrbp compare --against``."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from commands import assert_refused, run

from benchmarks import TINY, pretend
from hyperrbp.exceptions import DataError
from hyperrbp.experiments.optimizer_runs import (
    OURS,
)

pytest.importorskip("optuna")


@pytest.fixture
def machine(monkeypatch):
    return lambda **options: pretend(monkeypatch, **options)


@pytest.mark.parametrize(
    ("gone", "sampler", "words"),
    [
        ({"optuna"}, "tpe", "tpe needs optuna, which is not installed"),
        ({"cmaes"}, "cmaes", "cmaes needs cmaes, which is not installed"),
        ({"optuna", "cmaes"}, "cmaes", "cmaes needs optuna and cmaes, which are not installed"),
        ({"optuna"}, "sobol", "needs optuna, which is not installed"),
    ],
)
def test_a_missing_package_is_one_line_with_the_command(
    gone, sampler, words, monkeypatch, tmp_path
):
    monkeypatch.setattr(
        "hyperrbp.optimizers.optuna_samplers._is_installed", lambda module: module not in gone
    )
    monkeypatch.chdir(tmp_path)
    done = run("compare", "digits", "--against", f"random,{sampler}"[7 * ("optuna" in gone) :],
               "--budget-seconds", 1)  # fmt: skip
    assert_refused(done, 2, words, "pip install 'hyperrbp[search]'")
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "runs").exists()


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(TINY)
    return tmp_path


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--against", "random"], ["--budget-seconds"]),
        (["--against", "", "--budget-seconds", 1], ["--against", "expected some of", "tpe"]),
        (["--against", "randon", "--budget-seconds", 1], ["'randon'", "did you mean random?"]),
        (["--against", "random", "--budget-seconds", 0], ["--budget-seconds", "above 0"]),
        (["--against", "random", "--budget-seconds", "nan"], ["--budget-seconds", "above 0"]),
        (["--against", "random", "--budget-seconds", 1, "--seeds", 0], ["--seeds", "at least 1"]),
        (["--against", "random", "--budget-seconds", 1, "--methods", "bptt"], ["--methods"]),
        (["--against", "random", "--budget-seconds", 1, "--trunc", 5], ["--trunc and --against"]),
        (["--against", "random", "--budget-seconds", 1, "--repeats", 5], ["--repeats"]),
        (["--against", "random", "--budget-seconds", 1, "--force"], ["--force and --against"]),
        (["--against", "tpe", "--budget-seconds", 1, "--sweep-steps", "5"], ["--sweep-steps"]),
        (["--budget-seconds", 1], ["--budget-seconds: only with --against"]),
        (["--seeds", 3], ["--seeds: only with --against"]),
        (["--against", "random", "--budget-seconds", 1, "--set", "inner.fresh=true"],
         ["inner.fresh=false"]),
        (["--against", "random", "--budget-seconds", 1, "--out", "tiny.yaml"], ["--out"]),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_one_line(words, named, here, machine):
    fake = machine()
    done = run("compare", "tiny.yaml", *words)
    assert_refused(done, 2, *named)
    assert len(done.stderr.splitlines()) == 1
    assert fake.turns == []
    assert [file.name for file in here.iterdir()] == ["tiny.yaml"]


def test_help_shows_a_benchmark():
    done = run("compare", "--help")
    assert done.exit_code == 0
    for words in ("--against", "--budget-seconds", "--seeds", "hyperrbp[search]"):
        assert words in done.stdout


def test_the_command_prints_tables_and_writes_a_folder(here, machine):
    fake = machine(finals={OURS: 3.0})
    done = run("compare", "tiny.yaml", "--against", "random, tpe", "--budget-seconds", 8,
               "--train-steps", 9, "--quiet")  # fmt: skip
    assert done.exit_code == 0, done.output
    assert done.stderr == ""
    assert {(r.inner.steps, b) for _, r, b in fake.turns} == {(9, 8.0)}
    assert len(fake.turns) == 9
    said = " ".join(done.stdout.split())
    assert "hyperrbp is behind random and tpe. After 8 s each" in said
    (folder,) = (here / "runs").iterdir()
    assert folder.name.startswith("tiny-benchmark-")
    assert json.loads((folder / "benchmark.json").read_text())["verdict"] in said


def test_a_recipe_without_data_ends_with_its_exit_code(here, machine):
    machine(fails={"opening": DataError("no data")})
    done = run("compare", "tiny.yaml", "--against", "random", "--budget-seconds", 8, "-q")
    assert_refused(done, 3, "no data")
    assert not (here / "runs").exists() or not list((here / "runs").iterdir())


def test_a_real_benchmark(here):
    words = ["tiny.yaml", "--against", "random,hyperband", "--budget-seconds", "0.8"]
    words += ["--seeds", "2", "--json", "--out", "out"]
    done = subprocess.run(
        [sys.executable, "-m", "hyperrbp", "compare", *words],
        cwd=here, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    document = json.loads(line)
    assert json.dumps(document, allow_nan=False) == line
    assert [row["status"] for row in document["rows"]] == ["done"] * 3
    for run_ in document["runs"]:
        assert 0 < run_["seconds"] <= 0.8
        assert run_["overrun"] > 0
        losses = [loss for _, loss in run_["curve"]]
        assert losses == sorted(losses, reverse=True)
        assert run_["final_loss"] == losses[-1] <= losses[0]
        assert 0 < run_["heldout_accuracy"] <= 1
    # The same start for all, another one for another seed.
    for seed, other in ((7, 8), (8, 7)):
        starts = {
            round(r["curve"][0][1], 4)
            for r in document["runs"]
            if r["seed"] == seed and r["optimizer"] != "hyperband"
        }
        assert len(starts) == 1
        assert starts != {
            round(r["curve"][0][1], 4) for r in document["runs"] if r["seed"] == other
        }
    said = done.stderr.splitlines()
    assert said[1].startswith("this should take about ")
    assert "hyperband, seed 2 of 2" in said
    assert said[-1] == "wrote out (benchmark.md, .csv, .json, .png, curves.csv)"
    assert "Warning" not in done.stderr
    assert "Trial" not in done.stderr
    assert not [file for file in (here / "out").iterdir() if file.name == ".lock"]
    assert (here / "out" / "benchmark.png").exists()
