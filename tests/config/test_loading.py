"""Recipes in files, and values of the command line over them."""

from __future__ import annotations

import subprocess
import sys

import pytest
from recipe_faults import faults_of

from hyperrbp.config.loading import parse, read
from hyperrbp.config.recipe import Recipe
from hyperrbp.exceptions import RecipeError


def test_line_numbers_survive_windows_and_byte_order_marks(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_bytes(b"\xef\xbb\xbfname: a\r\ninner:\r\n  steps: 0\r\n")
    with pytest.raises(RecipeError, match=r"a\.yaml:3: inner\.steps: expected at least 1"):
        read(file)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"name: caf\xe9", "not a text file in UTF-8"),
        ("seed: 1".encode("utf-16"), "not a text file in UTF-8"),
        (b"\x89PNG\r\n\x1a\n\x00\x00", "not a text file in UTF-8"),
        (b"\x00\x01\x02", "not valid YAML: the character U+0000 is not allowed"),
    ],
)
def test_a_file_that_is_no_text(tmp_path, content, words):
    file = tmp_path / "a.yaml"
    file.write_bytes(content)
    with pytest.raises(RecipeError) as refused:
        read(file)
    assert str(refused.value).startswith(str(file))
    assert words in str(refused.value)


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(RecipeError, match="No such file"):
        read(tmp_path / "none.yaml")
    with pytest.raises(RecipeError, match="Is a directory"):
        read(tmp_path)


@pytest.mark.parametrize("text", ["", "\n\n", "# a comment\n", "---\n", "null", "{}"])
def test_an_empty_recipe_is_all_defaults(text):
    assert parse(text) == Recipe()


FILE = (
    "inner:\n  steps: 100\n  batch_size: 50\ngradient:\n  trunc: 20\nrecord:\n  inner_curves: [0]"
)


@pytest.mark.parametrize(
    ("origin", "key", "value", "where", "words"),
    [
        ("--trunc", "gradient.trunc", 0, "gradient.trunc", "expected at least 1, got 0"),
        ("--method", "gradient.method", "nuemann", "gradient.method", "did you mean neumann?"),
        ("--device", "device", "gpu", "device", "expected one of auto, cpu, cuda"),
        ("--seed", "seed", -1, "seed", "expected at least 0, got -1"),
        ("--meta-steps", "meta.steps", 0, "meta.steps", "expected at least 1, got 0"),
        ("--set", "inner.batch_size", 5000, "inner.batch_size", "at most the 1200 training"),
        ("--set", "inner", {"steps": 0}, "inner.steps", "expected at least 1, got 0"),
        ("--set", "inner", 3, "inner", "expected a mapping of steps"),
        ("--set", "record.inner_curves", [99], "record.inner_curves.0", "from 0 to 30"),
        ("--set", "foo.bar.baz", 1, "foo", "unknown key; expected one of name, "),
        ("--set", "inner.stepps", 1, "inner.stepps", "unknown key; did you mean steps?"),
        ("--set", "trunc", 1, "trunc", "did you mean gradient.trunc?"),
        ("--set", "meta.decay.fctor", 1, "meta.decay.fctor", "did you mean factor?"),
        ("--set", "inner.steps.x", 1, "inner.steps.x", "inner.steps is not a section"),
        ("--set", "gradient.options.rbp.z00", 1, "gradient.options.rbp.z00", "did you mean z0?"),
        ("--set", "inner..steps", 1, "inner..steps", "expected a dotted key"),
        ("--set", ".", 1, ".", "expected a dotted key"),
    ],
)
def test_a_fault_names_the_option_that_it_came_with(origin, key, value, where, words):
    (fault,) = faults_of(FILE, overrides=[(origin, key, value)])
    assert (fault.source, fault.line, fault.key) == (origin, None, where)
    assert words in fault.message


def test_a_fault_of_the_file_is_not_blamed_on_an_option():
    (fault,) = faults_of("inner:\n  steps: 0\n  fresh: 1", overrides=[("--set", "inner.steps", 5)])
    assert str(fault) == "bad.yaml:3: inner.fresh: expected true or false, got 1"


def test_options_beat_the_file_and_later_ones_the_earlier():
    recipe = parse(FILE, overrides=[("--set", "gradient.trunc", 30), ("--seed", "seed", 7)])
    assert (recipe.gradient.trunc, recipe.seed, recipe.inner.steps) == (30, 7, 100)
    twice = [("--set", "gradient.trunc", 30), ("--trunc", "gradient.trunc", 40)]
    assert parse(FILE, overrides=twice).gradient.trunc == 40


def test_an_option_reaches_into_sections_that_the_file_leaves_out():
    recipe = parse("meta:\n", overrides=[("--set", "meta.decay.factor", 0.5)])
    assert recipe.meta.decay is not None
    assert (recipe.meta.decay.factor, recipe.meta.decay.from_step) == (0.5, 50)


def test_an_option_that_replaces_a_section_replaces_all_of_it():
    recipe = parse(FILE, overrides=[("--set", "inner", {"steps": 90})])
    assert (recipe.inner.steps, recipe.inner.batch_size) == (90, Recipe().inner.batch_size)


# --- keys that an option leaves without a use ----------------------------------------------------


def notes_of(text, *overrides, caplog):
    """The recipe under these values of --set, and what was noted."""
    caplog.clear()
    recipe = parse(text, overrides=[("--set", key, value) for key, value in overrides])
    return recipe, [record.getMessage() for record in caplog.records]


OF_ADAM = "meta: {decay: {factor: 0.5}, on_divergence: rollback}\ngradient: {check_every: 3}"


def test_what_an_option_leaves_without_a_use_is_dropped_with_a_note(caplog):
    recipe, notes = notes_of(OF_ADAM, ("meta.optimizer", "surrogate"), caplog=caplog)
    assert notes == [
        f"dropped {key}: it goes with meta.optimizer adam"
        for key in ("gradient.check_every", "meta.on_divergence", "meta.decay")
    ]
    assert recipe == parse("meta: {optimizer: surrogate}")
    # In sections that an option replaces, and after another option that changes nothing of it.
    whole = ("meta", {"optimizer": "surrogate", "steps": 7})
    recipe, notes = notes_of(OF_ADAM, ("seed", 3), whole, caplog=caplog)
    assert notes == ["dropped gradient.check_every: it goes with meta.optimizer adam"]
    assert (recipe.meta.steps, recipe.meta.decay, recipe.seed) == (7, None, 3)


@pytest.mark.parametrize(
    ("text", "override", "note", "equal"),
    [
        (
            "model: {name: conv, options: {kernel: 5, activation: relu}}",
            ("model.name", "mlp"),
            "model.options.kernel: mlp has no such option",
            "model: {name: mlp, options: {activation: relu}}",
        ),
        (
            "data: {name: a.npz, options: {heldout: 0.5}}",
            ("data.name", "digits"),
            "data.options.heldout: digits has no such option",
            "",
        ),
        (
            "gradient: {averaging: {estimator: resampled}}",
            ("gradient.method", "cg"),
            "gradient.averaging.estimator: cg needs one fixed Jacobian and cannot take 'resampled'",
            "gradient: {method: cg}",
        ),
    ],
)
def test_options_of_another_part_are_dropped(text, override, note, equal, caplog):
    recipe, notes = notes_of(text, override, caplog=caplog)
    assert notes == [f"dropped {note}"]
    assert recipe == parse(equal)


@pytest.mark.parametrize(
    ("text", "overrides", "where"),
    [
        # The file contradicts itself; the option is about something else, or does not mend it.
        (OF_ADAM.replace("{decay", "{optimizer: both, decay"), [("seed", 3)], "bad.yaml"),
        ("model: {options: {kernel: 5}}", [("model.options.hidden", [3])], "bad.yaml"),
        ("data: {options: {heldout: 0.5}}", [("model.name", "conv")], "bad.yaml"),
        # Two options contradict each other.
        ("", [("meta.optimizer", "both"), ("meta.decay", {"factor": 0.5})], "--set"),
        ("", [("meta.decay.factor", 0.5), ("meta.optimizer", "both")], "--set"),
        ("", [("meta", {"optimizer": "both", "decay": {"factor": 0.5}})], "--set"),
        ("", [("model.name", "mlp"), ("model.options", {"kernel": 5})], "--set"),
        # The option is the one without a use.
        ("meta: {optimizer: both}", [("meta.on_divergence", "rollback")], "--set"),
    ],
)
def test_what_the_file_or_the_options_contradict_is_refused(text, overrides, where, caplog):
    faults = faults_of(text, count=None, overrides=[("--set", *pair) for pair in overrides])
    assert {fault.source for fault in faults} == {where}
    assert not caplog.records


def test_a_key_whose_default_is_of_no_use_either_is_dropped_by_null(caplog):
    for text in ("inner: {momentum: 0.5}", "hyperparameters: {momentum: {by: net}}"):
        recipe, notes = notes_of(text, ("inner.optimizer", "adamw"), caplog=caplog)
        assert any("momentum: adamw has no" in note for note in notes), notes
        assert set(recipe.hyperparameters.tuned()) == {"learning_rate"}
        assert recipe.inner.momentum is None



@pytest.mark.parametrize(
    ("stem", "name"),
    [
        ("mine", "mine"),
        ("1e5", "1e5"),
        ("x" * 64, "x" * 64),
        ("x" * 65, "recipe"),
        ("my recipe", "recipe"),
        ("größe", "recipe"),
    ],
)
def test_a_recipe_without_a_name_takes_that_of_its_file(tmp_path, stem, name):
    file = tmp_path / f"{stem}.yaml"
    file.write_text("seed: 3", encoding="utf-8")
    recipe = read(file)
    assert recipe.name == name
    assert parse(recipe.to_yaml()) == recipe


def test_reading_a_recipe_imports_no_numerics():
    code = (
        "import sys, hyperrbp.config.loading as r, hyperrbp.config.presets as c\n"
        "import hyperrbp.cli.app\n"
        "r.read(c.find('digits'), [('--method', 'gradient.method', 'rbp'),"
        " ('--set', 'gradient.options.cg.damping', 0.1)])\n"
        "print(sorted({'torch', 'torchvision', 'numpy', 'sklearn', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
