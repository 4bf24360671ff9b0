"""Recipes that a command line names, and values that it puts over them."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import assert_refused, run

BUILT_IN = "cleaning, conv, cora, decay, digits, gpt, hopfield, mnist, pubmed, template"


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

    monkeypatch.setattr("hyperrbp.experiments.prepared_data.load_builtin_set", touched)
    monkeypatch.setattr("hyperrbp.experiments.device.choose_device", touched)
    for words in (["--trunc", "0"], ["--set", "inner.steps=x"], ["--dry-run", "--seed", "-1"]):
        assert_refused(run("tune", "mnist", "--device", "cuda", *words), 2)
    assert not Path("runs").exists()
