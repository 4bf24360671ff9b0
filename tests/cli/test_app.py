"""The command line: what it prints where, and with which exit code it ends."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from commands import assert_refused, command, run
from factories import tuning_text, write_mnist

import hyperrbp
from hyperrbp.cli.exit_codes import EXIT_CODES
from hyperrbp.cli.output import stderr
from hyperrbp.config import presets
from hyperrbp.config.loading import parse, parse_any, read, read_any
from hyperrbp.experiments import checkpoint

TINY = tuning_text(data={"name": "digits"})


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Every test has a working folder of its own, and no data of the user's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYPERRBP_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "tiny.yaml").write_text(TINY)
    return tmp_path


# --- about the tool ------------------------------------------------------------------------------


def test_version():
    done = run("--version")
    assert (done.exit_code, done.stdout) == (0, f"hyperrbp {hyperrbp.__version__}\n")


@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_names_every_command_and_exit_code(option):
    done = run(option)
    assert done.exit_code == 0
    for name in ("tune", "show", "ls", "cat", "cp", "validate"):
        assert re.search(rf"^│ {name} ", done.stdout, re.MULTILINE)
    text = " ".join(re.sub(r"[│╭╰─╯╮•]", " ", done.stdout).split())
    for code, meaning in EXIT_CODES.items():
        assert f"{code}: {meaning}" in text


@pytest.mark.parametrize("name", ["tune", "show", "ls", "cat", "cp", "validate"])
def test_every_command_has_help(name):
    done = run(name, "--help")
    assert done.exit_code == 0
    assert f"Usage: hyperrbp {name} " in done.stdout


def test_an_installed_command_and_the_module_are_the_same():
    done = command("--version")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode() == f"hyperrbp {hyperrbp.__version__}\n"


@pytest.mark.parametrize(
    "words", [["fly"], ["tune"], ["validate"], ["tune", "digits", "--trunc", "x"], ["ls", "--what"]]
)
def test_usage_faults_exit_with_2(words):
    done = run(*words)
    assert done.exit_code == 2
    assert done.stdout == ""
    assert done.stderr


# --- recipes -------------------------------------------------------------------------------------


def test_ls():
    done = run("ls")
    assert done.exit_code == 0
    assert [line.split()[0] for line in done.stdout.splitlines() if line[0] != " "] == [
        "cleaning",
        "conv",
        "cora",
        "decay",
        "digits",
        "hopfield",
        "mnist",
        "pubmed",
    ]


def test_ls_as_json():
    rows = json.loads(run("ls", "--json").stdout)
    assert list(rows) == presets.names()
    assert rows["digits"].startswith("Tunes one learning rate and one momentum for each")


def test_ls_lists_the_built_in_recipes_whatever_lies_around(elsewhere):
    before = run("ls", "--json").stdout
    (elsewhere / "digits").write_text("# mine\n#\n# Another recipe.\n")
    assert run("ls", "--json").stdout == before


@pytest.mark.parametrize("name", presets.names())
def test_cat_prints_the_file_itself(name):
    assert run("cat", name).stdout == presets.built_in(name).read_text(encoding="utf-8")


def test_cat_of_something_else(elsewhere):
    (elsewhere / "a.bin").write_bytes(b"\xff\xfe\x00")
    assert_refused(run("cat", "a.bin"), 2, "a.bin: not a text file in UTF-8")


def test_cp_writes_a_copy_that_runs_as_it_is(elsewhere):
    done = run("cp", "digits")
    assert (done.exit_code, done.stdout) == (0, "")
    assert done.stderr == "wrote digits.yaml; run it with: hyperrbp tune digits.yaml\n"
    assert (elsewhere / "digits.yaml").read_bytes() == presets.built_in("digits").read_bytes()
    assert run("validate", "digits.yaml").stdout == run("validate", "digits").stdout


def test_cp_to_a_name_or_a_folder_of_ones_own(elsewhere):
    (elsewhere / "[red]folder").mkdir()
    for target, file in (("a.yaml", "a.yaml"), ("[red]folder", "[red]folder/mnist.yaml")):
        done = run("cp", "mnist", target)
        assert done.exit_code == 0
        assert done.stderr.startswith(f"wrote {file}; ")
        assert read(elsewhere / file).data.name == "mnist"


def test_cp_overwrites_nothing(elsewhere):
    (elsewhere / "digits.yaml").write_text("mine")
    for words in (["cp", "digits"], ["cp", "mnist", "digits.yaml"]):
        assert_refused(run(*words), 2, "digits.yaml exists already; name another file")
    assert (elsewhere / "digits.yaml").read_text() == "mine"


def test_cp_to_a_place_that_cannot_be_written():
    assert_refused(run("cp", "digits", "no/such/folder.yaml"), 9, "no/such/folder.yaml: No such")


@pytest.mark.parametrize("name", presets.names())
def test_validate_prints_the_same_recipe_with_every_key(name):
    done = run("validate", name)
    assert (done.exit_code, done.stderr) == (0, "")
    assert parse_any(done.stdout) == read_any(presets.built_in(name))
    as_json = run("validate", name, "--json")
    assert json.loads(as_json.stdout) == yaml.safe_load(done.stdout)
    assert as_json.stdout.count("\n") == 1


def test_validate_takes_settings():
    done = run(
        "validate", "digits", "--set", "inner.steps=1_000", "--set", "meta.learning_rate=1e-3"
    )
    recipe = parse(done.stdout)
    assert (recipe.inner.steps, recipe.meta.learning_rate) == (1000, 0.001)


BUILT_IN = "cleaning, conv, cora, decay, digits, hopfield, mnist, pubmed"


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        (
            "digit",
            f"neither a file nor one of {BUILT_IN}; did you mean digits?",
        ),
        ("minst", "did you mean mnist?"),
        (
            "xyzzy",
            f"unknown recipe 'xyzzy': neither a file nor one of {BUILT_IN}",
        ),
        ("mnits.yaml", "mnits.yaml: no such recipe file; did you mean mnist?"),
        ("no/such.yaml", "no/such.yaml: no such recipe file"),
        (".", ".: a folder, but not of a run: it has no recipe.yaml"),
        ("", "a folder, but not of a run"),
        ("x" * 300, "File name too long"),
    ],
)
@pytest.mark.parametrize("verb", ["tune", "validate", "cat", "cp"])
def test_an_unknown_recipe(verb, recipe, words):
    assert_refused(run(verb, recipe), 2, words)


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["--trunc", "0"], "--trunc: gradient.trunc: expected at least 1, got 0"),
        (["--method", "neuman"], "--method: gradient.method: expected one of auto, bptt, "),
        (["--train-steps", "0"], "--train-steps: inner.steps: expected at least 1, got 0"),
        (["--meta-steps", "-1"], "--meta-steps: meta.steps: expected at least 1, got -1"),
        (["--seed", "-1"], "--seed: seed: expected at least 0, got -1"),
        (["--device", "gpu"], "--device: device: expected one of auto, cpu, cuda, got 'gpu'"),
        (["--set", "inner.steps"], "--set: inner.steps: expected key=value"),
        (["--set", "=5"], "--set: =5: expected key=value"),
        (["--set", "trunc=5"], "--set: trunc: unknown key; did you mean gradient.trunc?"),
        (["--set", "seed=[1"], "--set: seed: not valid YAML: expected ',' or ']', but got the end"),
        (["--set", "seed=!!timestamp x"], "--set: seed: the tag !!timestamp is not supported"),
        (["--set", "inner={1: 2}"], "--set: inner: expected text for a key, got 1"),
        (["--set", "inner={steps: 0}"], "--set: inner.steps: expected at least 1, got 0"),
        (["--set", "foo.bar=1"], "--set: foo: unknown key; expected one of name, seed"),
        (["--resume"], "--resume needs --out, or a run folder in place of the recipe"),
        (["--resume", "--out", "nowhere"], "--resume: there is no run in nowhere"),
    ],
)
def test_a_fault_of_the_command_line(words, fault):
    assert_refused(run("tune", "tiny.yaml", *words), 2, fault)


def test_an_option_beats_set_and_set_beats_the_file(monkeypatch):
    truncs = []
    monkeypatch.setattr(
        "hyperrbp.experiments.tune.tune_recipe",
        lambda recipe, *_, **__: truncs.append(recipe.gradient.trunc),
    )
    for words in ([], ["--set", "gradient.trunc=4"], ["--trunc", "2", "--set", "gradient.trunc=4"]):
        assert run("tune", "tiny.yaml", "--quiet", *words).exit_code == 0
    assert truncs == [3, 4, 2]


def test_every_fault_of_a_recipe_gets_its_line(elsewhere):
    (elsewhere / "bad.yaml").write_text("seed: -1\ninner:\n  stepps: 3\n")
    for verb in ("validate", "tune"):
        done = run(verb, "bad.yaml")
        assert_refused(done, 2)
        assert done.stderr.splitlines() == [
            "hyperrbp: bad.yaml:1: seed: expected at least 0, got -1",
            "hyperrbp: bad.yaml:3: inner.stepps: unknown key; did you mean steps?",
        ]


def test_a_long_fault_stays_on_its_line(elsewhere):
    folder = elsewhere / ("[bold]" + "x" * 100)
    folder.mkdir()
    (folder / "bad.yaml").write_text("seed: -1")
    done = run("validate", folder / "bad.yaml")
    assert done.stderr == f"hyperrbp: {folder}/bad.yaml:1: seed: expected at least 0, got -1\n"


def test_a_faulty_recipe_is_refused_before_data_or_device_are_touched(monkeypatch):
    """Three faults with data and device that must not be asked; catches a device chosen first."""

    def touched(*args, **kwargs):
        raise AssertionError("touched")

    monkeypatch.setattr("hyperrbp.experiments.data_module.load_builtin_set", touched)
    monkeypatch.setattr("hyperrbp.experiments.device.choose_device", touched)
    for words in (["--trunc", "0"], ["--set", "inner.steps=x"], ["--dry-run", "--seed", "-1"]):
        assert_refused(run("tune", "mnist", "--device", "cuda", *words), 2)
    assert not Path("runs").exists()


# --- data and device -----------------------------------------------------------------------------


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


# --- tune ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A tiny run with --profile --json: its folder, and what it printed."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "tiny.yaml").write_text(TINY)
    out = folder / "run"
    return out, run("tune", folder / "tiny.yaml", "--out", out, "--json", "--profile")


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
    losses = [json.loads(before.stdout)["meta_loss"], _result("here")["meta_loss"]]
    assert losses[0] == losses[1]  # neither --json nor --profile changes a bit


def _result(folder):
    return json.loads(run("show", folder, "--json").stdout)


def test_show_as_json_is_the_result(finished):
    out, done = finished
    assert _result(out) == json.loads(done.stdout)
    assert json.loads(run("show", out, out, "--json").stdout) == [_result(out)] * 2


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(
    ("ending", "start"), [("png", b"\x89PNG\r\n"), ("svg", b"<?xml"), ("pdf", b"%PDF-")]
)
def test_show_draws(finished, elsewhere, count, ending, start):
    out, _ = finished
    done = run("show", *[out] * count, "--figure", f"figure.{ending}")
    assert (done.exit_code, done.stdout) == (0, "")
    assert done.stderr == f"wrote figure.{ending}\n"
    figure = (elsewhere / f"figure.{ending}").read_bytes()
    assert figure.startswith(start)
    assert len(figure) > 5000


def test_a_figure_that_cannot_be_drawn(finished):
    out, _ = finished
    assert_refused(run("show", out, "--figure", "a.xyz"), 2, "--figure a.xyz: ", "xyz")
    assert_refused(run("show", out, "--figure", "no/a.png"), 9, "no/a.png: No such file")


def test_show_of_what_is_no_run(elsewhere):
    (elsewhere / "folder").mkdir()
    for name in ("folder", "nowhere", "tiny.yaml"):
        assert_refused(run("show", name), 2, f"{name} is not a run folder")


def test_show_of_an_unfinished_run(elsewhere):
    (elsewhere / "begun").mkdir()
    (elsewhere / "begun" / "recipe.yaml").write_text(TINY)
    assert_refused(run("show", "begun"), 7, "begun holds no result", "tune begun --resume")


def test_quiet_prints_nothing(elsewhere):
    done = run("tune", "tiny.yaml", "--out", "here", "--quiet")
    assert (done.exit_code, done.output) == (0, "")
    assert _result("here")["status"] == "done"


def test_on_a_terminal_the_display_is_redrawn(elsewhere, monkeypatch):
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
    assert json.loads(done.stdout)["meta_loss"] == _result("long")["meta_loss"]
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


# --- processes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [(signal.SIGTERM, 143, b"terminated"), (signal.SIGINT, 130, b"interrupted")],
)
def test_a_signal_ends_a_run_at_once_and_leaves_a_checkpoint(elsewhere, number, code, word):
    words = ["tune", "tiny.yaml", "--out", "here", "--meta-steps", "1000000"]
    records = elsewhere / "here" / "records.jsonl"
    with subprocess.Popen(
        [sys.executable, "-m", "hyperrbp", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        deadline = time.monotonic() + 60
        while not (records.exists() and records.read_bytes().count(b"\n") >= 2):
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        sent = time.monotonic()
        process.send_signal(number)
        printed, log = process.communicate(timeout=30)
        took = time.monotonic() - sent
    assert process.returncode == code
    assert took < 5
    assert printed == b""
    assert log.splitlines()[-1] == b"hyperrbp: " + word + b"; go on with --resume"
    assert b"Traceback" not in log
    steps = checkpoint.load(elsewhere / "here" / "checkpoint.json")[0]["meta_step"]
    assert steps in (records.read_bytes().count(b"\n"), records.read_bytes().count(b"\n") - 1)
    assert steps >= 1


def test_a_signal_that_turns_into_another_exception_is_still_a_signal(monkeypatch):
    # As when it comes while a thread's lock is taken: RuntimeError: release unlocked lock.
    def tune_recipe(*args, **kwargs):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        except KeyboardInterrupt:
            raise RuntimeError("release unlocked lock") from None

    monkeypatch.setattr("hyperrbp.experiments.tune.tune_recipe", tune_recipe)
    before = signal.getsignal(signal.SIGTERM)
    assert_refused(run("tune", "tiny.yaml"), 143, "terminated; go on with --resume")
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(("grace", "signals"), [("0.5", 1), ("60", 2)])
def test_a_signal_that_gets_lost_ends_the_run_all_the_same(grace, signals):
    """One swallowed by other code, and a second one; catches a watchdog that never barks."""
    code = f"""
import contextlib, os, signal, time
from hyperrbp.cli import app as cli
from hyperrbp.config import presets
from hyperrbp.runtime import signals

def names():
    for _ in range({signals}):
        with contextlib.suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)

signals.GRACE, presets.names = {grace}, names
cli.app(["ls"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=20)
    assert (done.returncode, done.stdout) == (143, b"")
    assert done.stderr == b"hyperrbp: terminated\n"


def test_a_signal_that_is_to_be_ignored_is_ignored(monkeypatch):
    def tune_recipe(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr("hyperrbp.experiments.tune.tune_recipe", tune_recipe)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert run("tune", "tiny.yaml", "--quiet").exit_code == 0
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("words", "shown"), [(["ls"], rb"8\xd78 digits"), (["cat", "mnist"], rb"\u03b2v \u2212")]
)
def test_an_old_locale_loses_no_answer(words, shown):
    done = command(*words, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stderr) == (0, b"")
    assert shown in done.stdout


BUFFERED = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}


@pytest.mark.parametrize("words", [["ls"], ["cat", "digits"]])
def test_a_reader_that_leaves_is_no_fault(words):
    with subprocess.Popen(
        [sys.executable, "-m", "hyperrbp", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=BUFFERED,
    ) as process:
        process.stdout.close()
        log = process.stderr.read()
    assert (process.returncode, log) == (0, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("words", [["ls"], ["cat", "digits"]])
def test_an_answer_that_cannot_be_written(words):
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "hyperrbp", *words],
            stdout=full,
            stderr=subprocess.PIPE,
            env=BUFFERED,
        )
    assert done.returncode == 9
    assert done.stderr == b"hyperrbp: output: No space left on device; free some space\n"


def test_a_run_goes_on_when_nobody_reads_its_progress():
    code = (
        "from hyperrbp.cli.output import stderr\n"
        "for n in range(9): stderr.print(n)\n"
        "print('went on')"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stderr.close()
        printed = process.stdout.read()
    assert (process.returncode, printed) == (0, b"went on\n")


def raising(error):
    def tune_recipe(*args, **kwargs):
        raise error

    return tune_recipe


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (MemoryError(), 8, "out of memory; use an implicit method"),
        (torch.cuda.OutOfMemoryError("CUDA out of memory"), 8, "out of memory; use an implicit"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), 8, "out of m"),
        (OSError(28, "No space left on device", "events/x"), 9, "events/x: No space left on dev"),
    ],
)
def test_what_can_be_foreseen_has_an_exit_code(monkeypatch, error, code, words):
    monkeypatch.setattr("hyperrbp.experiments.tune.tune_recipe", raising(error))
    assert_refused(run("tune", "tiny.yaml"), code, words)


def test_what_cannot_be_foreseen_is_not_hidden(monkeypatch):
    error = RuntimeError("a fault of our own")
    monkeypatch.setattr("hyperrbp.experiments.tune.tune_recipe", raising(error))
    done = run("tune", "tiny.yaml")
    assert (done.exit_code, done.exception) == (1, error)
