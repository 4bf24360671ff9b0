"""``hyperrbp tune``: what it prints where, and what it leaves behind."""

from __future__ import annotations

import io
import json
import re

import pytest
import torch
from commands import assert_refused, run
from factories import write_mnist
from runs import result_of

from hyperrbp.cli.output import stderr
from hyperrbp.config.loading import parse

SMALL_MNIST = ["--set", "data.name=mnist", "--set", "data.train_examples=null", "--device", "cpu"]


def test_missing_data(elsewhere):
    done = run("tune", "mnist", "--data-root", "nowhere", "--device", "cpu")
    assert_refused(done, 3, "MNIST not found", "nowhere/MNIST/raw", "--data-root", "HYPERRBP_DATA")
    assert not (elsewhere / "runs").exists()


def test_the_environment_names_the_data_root(elsewhere, monkeypatch):
    monkeypatch.setenv("HYPERRBP_DATA", "from-environment")
    assert_refused(run("tune", "mnist", "--device", "cpu"), 3, "from-environment/MNIST/raw")


def test_damaged_data(elsewhere):
    write_mnist(elsewhere, 60)
    (elsewhere / "MNIST" / "raw" / "train-images-idx3-ubyte").write_bytes(b"\x00\x00\x08\x03junk")
    done = run("tune", "tiny.yaml", *SMALL_MNIST, "--data-root", ".")
    assert_refused(done, 3, "the training part of MNIST cannot be read from MNIST/raw: ")


def test_labels_that_are_no_classes(elsewhere):
    write_mnist(elsewhere, 60, label=10)
    done = run("tune", "tiny.yaml", *SMALL_MNIST, "--data-root", ".")
    assert_refused(done, 3, "labels outside 0 … 9")


@pytest.mark.parametrize("words", [[], ["--set", "data.train_examples=55"]])
def test_too_few_examples(elsewhere, words):
    write_mnist(elsewhere, 49)
    done = run("tune", "tiny.yaml", *SMALL_MNIST, "--data-root", ".", *words)
    assert_refused(done, 3, "data set 'mnist' has 49 training examples; the recipe needs 5")
    assert not (elsewhere / "runs").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there(elsewhere):
    done = run("tune", "tiny.yaml", "--device", "cuda")
    assert_refused(done, 4, "device cuda was asked for, but", "use --device cpu")
    assert not (elsewhere / "runs").exists()


def test_tune_as_json_prints_one_document(finished):
    out, done = finished
    assert done.exit_code == 0, done.output
    assert done.stdout.count("\n") == 1
    result = json.loads(done.stdout)
    assert result["status"] == "done"
    assert {key: result[key] for key in ("method", "trunc", "train_steps", "meta_steps")} == {
        "method": "neumann",
        "trunc": 3,
        "train_steps": 6,
        "meta_steps": 2,
    }
    assert (result["seed"], result["device"]) == (1234, "cpu")
    losses = result["meta_loss"]
    assert len(losses) == 3
    assert all(0 < loss < 10 for loss in losses)
    best = min(range(3), key=losses.__getitem__)
    assert result["best"] == {"meta_step": best, "meta_loss": losses[best]}
    tensors = ["hidden1.weight", "hidden1.bias", "output.weight", "output.bias"]
    assert {kind: list(values) for kind, values in result["hyperparameters"].items()} == {
        "learning_rate": tensors,
        "momentum": tensors,
    }
    assert all(rate > 0 for rate in result["hyperparameters"]["learning_rate"].values())
    assert all(0 < beta < 1 for beta in result["hyperparameters"]["momentum"].values())
    test = result["test"]
    assert test["seeds"] == 3
    for which in ("tuned", "untuned"):
        assert len(test[which]["accuracy"]["values"]) == 3
        assert all(0 <= share <= 1 for share in test[which]["accuracy"]["values"])
    assert 0 < result["seconds"] < 60
    assert 10**7 < result["peak_bytes"] < 10**11
    assert result == json.loads((out / "result.json").read_text())


def test_progress_goes_to_stderr_line_by_line(finished):
    out, done = finished
    lines = done.stderr.splitlines()
    assert lines[0].startswith("tiny: 310 weights, 8 hyperparameters; ")
    assert f"run folder {out}" in lines
    steps = [line for line in lines if line.startswith("meta step")]
    assert [line.split(" |")[0] for line in steps] == [f"meta step {n}/2" for n in range(3)]
    assert all("loss 2." in line and "ETA" in line for line in steps)
    assert "\x1b" not in done.stderr


def test_profile_writes_a_trace_and_bytes(finished):
    out, _ = finished
    trace = json.loads((out / "profile" / "trace.json").read_text())
    names = {event.get("name") for event in trace["traceEvents"]}
    assert {"inner run", "meta-gradient"} <= names
    counts = json.loads((out / "profile" / "bytes.json").read_text())
    assert set(counts) == {"live_tensor_bytes", "saved_bytes"}
    assert 0 < counts["saved_bytes"] <= counts["live_tensor_bytes"]


def test_tune_prints_a_table_and_show_prints_it_again(finished, elsewhere):
    _, before = finished
    done = run("tune", "tiny.yaml", "--out", "here")
    assert done.exit_code == 0
    assert "learning rate: start → tuned" in done.stdout
    assert "meta step" in done.stderr
    assert run("show", "here").stdout == done.stdout
    losses = [json.loads(before.stdout)["meta_loss"], result_of(elsewhere / "here")["meta_loss"]]
    assert losses[0] == losses[1]  # neither --json nor --profile changes a bit


def test_quiet_prints_nothing(elsewhere):
    done = run("tune", "tiny.yaml", "--out", "here", "--quiet")
    assert (done.exit_code, done.output) == (0, "")
    assert result_of(elsewhere / "here")["status"] == "done"


def test_on_a_terminal_the_display_is_updated(elsewhere, monkeypatch):
    screen = io.StringIO()
    for name, value in (("_file", screen), ("_force_terminal", True), ("is_interactive", True)):
        monkeypatch.setattr(stderr, name, value)
    done = run("tune", "tiny.yaml", "--out", "a[/b]")  # brackets are no markup
    assert done.exit_code == 0
    assert "run folder a[/b]" in screen.getvalue()
    assert "a[/b]" in run("show", "a[/b]").stdout
    assert "\x1b[" in screen.getvalue()
    assert "2/2" in screen.getvalue()
    assert "meta step 2/2 |" not in screen.getvalue()


def test_a_folder_that_is_not_empty_is_left_alone(finished, elsewhere):
    out, _ = finished
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert_refused(run("tune", "tiny.yaml", "--out", out), 2, "the folder is not empty", "--resume")
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    assert_refused(run("tune", "tiny.yaml", "--out", "tiny.yaml"), 2, "tiny.yaml: not a folder")


def test_without_out_the_folder_is_named_after_recipe_and_time(elsewhere):
    assert run("tune", "tiny.yaml", "--quiet", "--meta-steps", "1").exit_code == 0
    (folder,) = (elsewhere / "runs").iterdir()
    assert re.fullmatch(r"tiny-\d{8}T\d{6}Z", folder.name)


def test_resume_goes_on_with_the_run_in_a_folder(elsewhere):
    run("tune", "tiny.yaml", "--out", "long", "--quiet")
    run("tune", "tiny.yaml", "--out", "short", "--quiet", "--meta-steps", "1")
    done = run("tune", "short", "--resume", "--meta-steps", "2", "--json")
    assert done.exit_code == 0, done.output
    assert "resumed at meta step 1" in done.stderr
    assert json.loads(done.stdout)["meta_loss"] == result_of(elsewhere / "long")["meta_loss"]
    done = run("tune", "short", "--resume", "--seed", "5")
    assert_refused(done, 7, "begun with another recipe", "seed: 1234 → 5")


def test_a_dry_run_prints_the_recipe_and_its_cost(elsewhere):
    before = sorted(elsewhere.iterdir())
    done = run("tune", "tiny.yaml", "--dry-run", "--trunc", "2")
    assert done.exit_code == 0
    assert done.stderr == ""
    recipe = parse(done.stdout)
    assert (recipe.gradient.trunc, recipe.device) == (2, "cpu")
    assert "# 310 weights, 8 hyperparameters\n" in done.stdout
    assert re.search(r"^# a meta step: about [\d.]+ s; autograd keeps", done.stdout, re.MULTILINE)
    assert re.search(r"^# the run: 2 meta steps, about [\d.]+ s$", done.stdout, re.MULTILINE)
    assert sorted(elsewhere.iterdir()) == before


def test_a_dry_run_as_json(elsewhere):
    before = sorted(elsewhere.iterdir())
    done = run("tune", "tiny.yaml", "--dry-run", "--json")
    assert done.exit_code == 0
    assert done.stdout.count("\n") == 1
    document = json.loads(done.stdout)
    assert (document["weights"], document["hyperparameters"]) == (310, 8)
    for key in ("seconds", "saved_bytes", "peak_bytes"):
        assert document[key] > 0
    assert document["recipe"]["gradient"]["trunc"] == 3
    assert sorted(elsewhere.iterdir()) == before
