"""Training on the command line: what it prints where, and with which exit code it ends."""

from __future__ import annotations

import json

import pytest
import torch
import yaml
from commands import assert_refused, run
from factories import memory_text, tuning_text
from runs import StopsAt, result_of

from hyperrbp.config import presets
from hyperrbp.config.loading import read_any
from hyperrbp.experiments.checkpoint import read_tensors
from hyperrbp.experiments.train import train_recipe
from hyperrbp.experiments.trainers.equilibrium import EquilibriumTrainer

MEMORY = memory_text(training__epochs=4, training__validate_every=2)
INNER = tuning_text(meta__steps=1)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Every test has a working folder of its own, and no data of the user's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYPERRBP_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "memory.yaml").write_text(MEMORY)
    (tmp_path / "inner.yaml").write_text(INNER)
    before = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(before)


# --- answers and progress ------------------------------------------------------------------------


def test_one_json_document_and_nothing_else(elsewhere):
    done = run("train", "memory.yaml", "--out", "run", "--json")
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert done.stdout.count("\n") == 1
    assert result == result_of(elsewhere / "run")
    lines = done.stderr.splitlines()
    assert lines[0].startswith("memory: 132 neurons, 2 images of 8×8;")
    assert "run folder run" in lines
    assert [line.split(" | ")[0] for line in lines[3:]] == [f"epoch {n}/4" for n in range(5)]
    assert "pixel-error" in lines[3]
    assert "validation" not in lines[4]
    assert all("ETA" in line for line in lines[3:])
    shown = run("show", "run", "--json")
    assert json.loads(shown.stdout) == result


def test_a_table_for_people_and_silence(elsewhere):
    done = run("train", "memory.yaml", "--out", "run")
    assert done.exit_code == 0
    for word in ("best epoch", "tested", "corrupted pixel error", "neumann with K = 3, T = 5",
                 "run/weights.safetensors"):  # fmt: skip
        assert word in done.stdout
    shown = run("show", "run")
    assert (shown.exit_code, shown.stdout) == (0, done.stdout)
    silent = run("train", "memory.yaml", "--out", "silent", "-q")
    assert (silent.exit_code, silent.output) == (0, "")
    assert run("train", "inner.yaml", "--out", "inner").stdout == run("show", "inner").stdout
    inner = run("show", "inner").stdout
    assert "training loss" in inner
    assert "held-out accuracy" in inner
    assert "6 training steps on cpu" in inner
    both = json.loads(run("show", "run", "inner", "--json").stdout)
    assert [document["status"] for document in both] == ["done", "done"]


def test_options_are_keys(elsewhere):
    words = ["--method", "cg", "--trunc", "2", "--epochs", "1", "--seed", "9", "--device", "cpu"]
    done = run("train", "memory.yaml", *words, "--set", "network.a=2", "--out", "run", "--json")
    result = json.loads(done.stdout)
    assert [result[key] for key in ("method", "trunc", "epochs", "seed")] == ["cg", 2, 1, 9]
    recipe = yaml.safe_load((elsewhere / "run" / "recipe.yaml").read_text())
    assert recipe["network"]["a"] == 2.0
    assert recipe["name"] == "memory"
    assert run("validate", "run").exit_code == 0


def test_a_run_in_the_default_folder(elsewhere):
    result = json.loads(run("train", "memory.yaml", "--epochs", "1", "--json", "-q").stdout)
    assert result["run_folder"].startswith("runs/memory-2")
    assert (elsewhere / result["run_folder"] / "result.json").is_file()


# --- refusals ------------------------------------------------------------------------------------


def test_what_is_refused(elsewhere):
    run("train", "memory.yaml", "--out", "run", "--epochs", "2", "-q")
    assert_refused(run("train", "memory.yaml", "--out", "run"), 2, "not empty", "--resume")
    assert_refused(run("train", "memory.yaml", "--resume"), 2, "--resume needs --out")
    assert_refused(
        run("train", "memory.yaml", "--out", "new", "--resume"), 2, "there is no run in new"
    )
    assert_refused(run("train", "hopfeild"), 2, "did you mean hopfield?")
    assert_refused(run("train", "memory.yaml", "--epochs", "0"), 2, "--epochs: training.epochs")
    assert_refused(run("train", "inner.yaml", "--epochs", "3"), 2, "--epochs: training: unknown")
    assert_refused(run("tune", "memory.yaml"), 2, "hyperrbp train memory.yaml")
    assert_refused(run("compare", "memory.yaml"), 2, "hyperrbp train memory.yaml")
    assert_refused(run("train", "hopfield", "--data-root", "none"), 3, "MNIST not found")
    assert not (elsewhere / "runs").exists()
    assert_refused(
        run("train", "run", "--resume", "--seed", "3"), 7, "seed: 1234 → 3", "training.epochs"
    )
    for file in ("checkpoint.json", "checkpoint.previous.json"):
        (elsewhere / "run" / file).write_text("{")
    assert_refused(run("train", "run", "--resume", "--epochs", "3"), 7, "checkpoint.json")


def test_hyperparameters_of_a_tuned_run(elsewhere):
    assert run("tune", "inner.yaml", "--out", "tuned", "-q").exit_code == 0
    done = run("train", "inner.yaml", "--hyperparameters", "tuned", "--out", "run", "--json")
    result = json.loads(done.stdout)
    tuned = result_of(elsewhere / "tuned")["hyperparameters"]
    for kind, values in tuned.items():
        assert result["hyperparameters"][kind] == pytest.approx(values, rel=1e-5)
    plain = json.loads(run("train", "inner.yaml", "--out", "plain", "--json").stdout)
    assert plain["hyperparameters"] != result["hyperparameters"]
    words = ["train", "inner.yaml", "--out", "new", "--hyperparameters"]
    assert_refused(run(*words, "nowhere"), 7, "nowhere holds no result")
    run("train", "memory.yaml", "--out", "memory", "--epochs", "1", "-q")
    assert_refused(run(*words, "memory"), 2, "not a tuning run")
    assert_refused(
        run("train", "memory.yaml", "--hyperparameters", "tuned", "--out", "new"),
        2,
        "memory has none",
    )
    other = ["--set", "model.options.hidden=[4, 4]"]
    assert_refused(run(*words, "tuned", *other), 2, "tensors that differ: hidden2.bias")
    assert not (elsewhere / "new").exists()


def test_divergence_has_its_exit_code(elsewhere, monkeypatch):
    real = EquilibriumTrainer._gradient_norm
    monkeypatch.setattr(
        EquilibriumTrainer,
        "_gradient_norm",
        lambda self: float("nan") if self.position == 3 else real(self),
    )
    done = run("train", "memory.yaml", "--out", "run", "--json")
    assert done.exit_code == 6
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1] == "hyperrbp: epoch 3: the gradient is not finite"
    shown = run("show", "run")
    assert "epoch 3: the gradient is not finite" in shown.stdout
    assert "of 2" in shown.stdout
    weights = read_tensors(elsewhere / "run" / "weights.safetensors")
    assert all(tensor.isfinite().all() for tensor in weights.values())


def test_an_untrained_network_that_overflows_has_its_exit_code():
    words = ["--set", "network.a=0.05", "--set", "inference.updates=60"]
    assert run("train", "memory.yaml", *words, "--out", "run").exit_code == 6


def test_a_diverged_inner_training_can_be_shown():
    words = ["--set", "inner.learning_rate=1e30", "--set", "inner.steps=450"]
    words += ["--set", "model.options.activation=relu"]
    assert run("train", "inner.yaml", *words, "--out", "run", "-q").exit_code == 6
    assert run("show", "run").exit_code == 0


def test_copies_say_how_to_run_them(elsewhere):
    done = run("cp", "hopfield", "x.yaml")
    assert (done.exit_code, done.stdout) == (0, "")
    assert done.stderr == "wrote x.yaml; run it with: hyperrbp train x.yaml\n"
    assert run("cp", "digits", "y.yaml").stderr.endswith("hyperrbp tune y.yaml\n")


def test_an_unfinished_run_says_how_to_go_on(elsewhere):
    with pytest.raises(KeyboardInterrupt):
        train_recipe(read_any(elsewhere / "memory.yaml"), elsewhere / "run", callbacks=[StopsAt(3)])
    assert_refused(run("show", "run"), 7, "unfinished: hyperrbp train run --resume")
    done = run("train", "run", "--resume", "--json")
    assert done.exit_code == 0
    whole = json.loads(run("train", "memory.yaml", "--out", "whole", "--json").stdout)
    result = json.loads(done.stdout)
    for key in ("best", "test", "epochs", "method"):
        assert result[key] == whole[key]


def test_built_in_recipes_are_listed():
    rows = json.loads(run("ls", "--json").stdout)
    assert {"cora", "hopfield", "pubmed"} <= set(rows) == set(presets.names())
