"""What a recipe may say, and what is said when it says something else."""

from __future__ import annotations

import math
import random
import re
import subprocess
import sys
import time

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from hyperrbp.cli.app import app
from hyperrbp.config import presets
from hyperrbp.config.loading import parse, parse_any, read, read_any, scalar
from hyperrbp.config.recipe import Recipe
from hyperrbp.exceptions import RecipeError

INF, NAN = math.inf, math.nan

# --- literals ------------------------------------------------------------------------------------

LITERALS = [
    ("1", 1),
    ("0", 0),
    ("-3", -3),
    ("+7", 7),
    ("010", 10),  # eight in YAML 1.1
    ("-010", -10),
    ("08", 8),  # text in YAML 1.1
    ("1_000", 1000),
    ("1.0", 1.0),
    ("5.", 5.0),
    (".5", 0.5),
    ("-.5", -0.5),
    ("+.5", 0.5),
    ("1e-3", 0.001),  # text in YAML 1.1, as are the next six
    ("1E5", 1e5),
    ("1e5", 1e5),
    ("1e+5", 1e5),
    ("5.e2", 500.0),
    (".5e1", 5.0),
    ("1_0e1", 100.0),
    ("-2.5e+3", -2500.0),
    ("2.5E-3", 0.0025),
    ("1_0.5", 10.5),
    ("0.36787944117144233", math.exp(-1)),
    ("1e999", INF),
    (".inf", INF),
    ("-.Inf", -INF),
    (".nan", NAN),
    (".NaN", NAN),
    ("true", True),
    ("True", True),
    ("FALSE", False),
    ("tRUE", "tRUE"),
    ("yes", "yes"),  # true in YAML 1.1, as are the next three or false
    ("no", "no"),
    ("on", "on"),
    ("Off", "Off"),
    ("null", None),
    ("Null", None),
    ("~", None),
    ("", None),
    ("0x10", "0x10"),  # sixteen in YAML 1.1
    ("0b11", "0b11"),
    ("0o17", "0o17"),
    ("1:30", "1:30"),  # ninety in YAML 1.1
    ("2001-01-01", "2001-01-01"),  # a date in YAML 1.1
    ("2001-01-01 10:00:00", "2001-01-01 10:00:00"),
    ("inf", "inf"),
    ("nan", "nan"),
    ("1e", "1e"),
    ("e5", "e5"),
    ("1.2.3", "1.2.3"),
    ("1,5", "1,5"),
    ("'1e-3'", "1e-3"),
    ('"5"', "5"),
    ("=", "="),
]


def same(one, other):
    return type(one) is type(other) and (one == other or (one != one and other != other))


NUMBERS = '    r"|[0-9][0-9_]*[eE][-+]?[0-9]+|'


@pytest.mark.parametrize(("text", "value"), LITERALS)
def test_a_literal_on_the_command_line(text, value):
    """1e-3, .5 and 1E5 are numbers, 010 is ten, yes is text: value and type, in --set.

    Catches the numbers and truths of YAML 1.1.
    """
    assert same(scalar(text), value)


@pytest.mark.parametrize(("text", "value"), LITERALS)
def test_a_literal_in_a_recipe(text, value):
    """The same as a value in a file: the number meant, or a fault that shows what was read."""
    recipe = f"inner:\n  learning_rate: {text}\n"
    number = type(value) in (int, float)
    if number and 0 < value < INF:
        assert parse(recipe).inner.learning_rate == value
        return
    with pytest.raises(RecipeError) as refused:
        parse(recipe)
    shown = {None: "nothing"}.get(value, str(value).lower() if value in (True, False) else value)
    (fault,) = refused.value.faults
    assert (fault.line, fault.key) == (2, "inner.learning_rate")
    assert fault.message.startswith(
        "expected a finite number" if number else "expected a number"
    ) or (number and "expected a number above 0" in fault.message)
    assert str(shown) in fault.message


@pytest.mark.parametrize("text", ["[1e-3, .5, 1E5]", "\n    - 1e-3\n    - .5\n    - 1E5"])
def test_literals_inside_lists(text):
    (fault,) = faults_of(f"model:\n  options:\n    hidden: {text}", count=None)[:1]
    assert fault.message == "expected a whole number, got 0.001"


# --- faults --------------------------------------------------------------------------------------


def faults_of(text, *, count=1, overrides=()):
    with pytest.raises(RecipeError) as refused:
        parse(text, source="bad.yaml", overrides=overrides)
    faults = refused.value.faults
    assert str(refused.value).splitlines() == [str(fault) for fault in faults]
    assert count is None or len(faults) == count, str(refused.value)
    return faults


TOP = (
    "name, seed, device, dtype, threads, data, model, inner, hyperparameters, gradient, meta,"
    " record"
)

BAD = [
    # unknown keys
    ("sead: 1", 1, "sead", "unknown key; did you mean seed?"),
    ("xyzzy: 1", 1, "xyzzy", f"unknown key; expected one of {TOP}"),
    ("inner:\n  stepps: 5", 2, "inner.stepps", "did you mean steps?"),
    ("inner:\n  seed: 5", 2, "inner.seed", "did you mean seed at the top level?"),
    ("trunc: 5", 1, "trunc", "did you mean gradient.trunc?"),
    ("steps: 5", 1, "steps", "did you mean inner.steps or meta.steps?"),
    ("gradient.trunc: 5", 1, "gradient.trunc", "write trunc inside gradient"),
    ("meta:\n  decay:\n    fctor: 1", 3, "meta.decay.fctor", "did you mean factor?"),
    ("model: {options: {hiden: [5]}}", 1, "model.options.hiden", "did you mean hidden?"),
    (
        "gradient:\n  options:\n    rbp:\n      z00: zero",
        4,
        "gradient.options.rbp.z00",
        "unknown key; did you mean z0?",
    ),
    ("gradient: {options: {bptt: {a: 1}}}", 1, "gradient.options.bptt.a", "one of keep"),
    ("gradient: {options: {bptt: {keep: graphs}}}", 1, "gradient.options.bptt.keep", "graph"),
    ("<<: {seed: 3}", 1, "<<", "unknown key"),
    ("'': 3", 1, "''", "unknown key"),
    # unknown names
    ("gradient:\n\n  method: newman", 3, "gradient.method", "did you mean neumann?"),
    ("gradient: {method: adam}", 1, "gradient.method", "expected one of auto, bptt, tbptt, rbp"),
    ("data: {name: minst}", 1, "data.name", "did you mean mnist?"),
    ("data: {name: cifar}", 1, "data.name", "expected one of digits, mnist, fashion-mnist"),
    ("model: {name: mpl}", 1, "model.name", "did you mean mlp?"),
    ("model: {options: {activation: tahn}}", 1, "model.options.activation", "mean tanh?"),
    ("gradient: {options: {rpb: {}}}", 1, "gradient.options.rpb", "did you mean rbp?"),
    ("gradient: {options: {rbp: {z0: one}}}", 1, "gradient.options.rbp.z0", "uniform, zero, "),
    ("inner: {update: pytroch}", 1, "inner.update", "did you mean pytorch?"),
    ("device: gpu", 1, "device", "expected one of auto, cpu, cuda, got 'gpu'"),
    ("dtype: 32", 1, "dtype", "expected one of float32, float64, got 32"),
    # wrong types
    ("seed: 1.5", 1, "seed", "expected a whole number, got 1.5"),
    ("seed: '3'", 1, "seed", "expected a whole number, got '3'"),
    ("seed: true", 1, "seed", "expected a whole number, got true"),
    ("seed:", 1, "seed", "expected a whole number, got nothing"),
    ("name: 3", 1, "name", "expected text, got 3"),
    ("name: a/b", 1, "name", "expected letters, digits, '.', '_' and '-'"),
    ("inner: {momentum: '0.5'}", 1, "inner.momentum", "expected a number, got '0.5'"),
    ("inner: {momentum: true}", 1, "inner.momentum", "expected a number, got true"),
    ("inner: {fresh: yes}", 1, "inner.fresh", "expected true or false, got 'yes'"),
    ("inner: 3", 1, "inner", "expected a mapping of steps, batch_size, update, "),
    ("inner:", 1, "inner", "expected a mapping of steps, batch_size, update, "),
    ("meta:\n  decay: 3", 2, "meta.decay", "expected a mapping of factor, from_step, got 3"),
    ("model: {options: [1]}", 1, "model.options", "expected a mapping, got [1]"),
    ("model: {options: {hidden: 5}}", 1, "model.options.hidden", "expected a list, got 5"),
    ("model:\n  options:\n    hidden:\n    - 5\n    - x", 5, "model.options.hidden.1", "whole"),
    ("record: {inner_curves: 3}", 1, "record.inner_curves", "expected a list, got 3"),
    ("gradient: {options: {cg: {damping: x}}}", 1, "gradient.options.cg.damping", "a number"),
    ("gradient: {options: {cg: 1}}", 1, "gradient.options.cg", "expected a mapping, got 1"),
    # numbers out of range
    ("gradient:\n  trunc: 0", 2, "gradient.trunc", "expected at least 1, got 0"),
    ("inner: {momentum: 1}", 1, "inner.momentum", "expected a number below 1, got 1"),
    ("inner: {momentum: 0}", 1, "inner.momentum", "expected a number above 0, got 0"),
    ("inner: {momentum: 1e-400}", 1, "inner.momentum", "expected a number above 0, got 0.0"),
    ("inner: {learning_rate: -0.1}", 1, "inner.learning_rate", "above 0, got -0.1"),
    ("inner: {learning_rate: .inf}", 1, "inner.learning_rate", "expected a finite number"),
    ("inner: {learning_rate: .nan}", 1, "inner.learning_rate", "expected a finite number"),
    ("meta: {learning_rate: -.inf}", 1, "meta.learning_rate", "expected a finite number"),
    ("model: {init_std: 1e999}", 1, "model.init_std", "expected a finite number, got inf"),
    ("meta: {decay: {factor: 2}}", 1, "meta.decay.factor", "expected at most 1, got 2"),
    ("meta: {learning_rate: 1e300}", 1, "meta.learning_rate", "at most 1000, got 1e+300"),
    ("meta: {steps: 0}", 1, "meta.steps", "expected at least 1, got 0"),
    ("seed: -1", 1, "seed", "expected at least 0, got -1"),
    ("seed: 9223372036854775808", 1, "seed", "expected a number below 9223372036854775808"),
    ("threads: 0", 1, "threads", "expected at least 1, got 0"),
    ("model: {options: {hidden: [0]}}", 1, "model.options.hidden.0", "expected at least 1, got 0"),
    (
        "model: {options: {hidden: [5, 100000000000000000000]}}",
        1,
        "model.options.hidden.1",
        "expected at most 10000000",
    ),
    (
        "gradient: {options: {cg: {damping: -1}}}",
        1,
        "gradient.options.cg.damping",
        "expected at least 0, got -1",
    ),
    (
        "gradient: {options: {cg: {damping: .nan}}}",
        1,
        "gradient.options.cg.damping",
        "expected a finite number, got nan",
    ),
    (
        "gradient: {options: {neumann: {tolerance: .inf}}}",
        1,
        "gradient.options.neumann.tolerance",
        "expected a finite number, got inf",
    ),
    # values that do not go together
    ("inner:\n  batch_size: 1201", 2, "inner.batch_size", "at most the 1200 training examples"),
    (
        "data:\n  train_examples: 100\n",
        None,
        "inner.batch_size",
        "expected at most the 100 training examples, got 200, the default",
    ),
    (
        "inner: {batch_size: 100}\ndata:\n  train_examples: 1200\n  validation_examples: 1101",
        1,
        "inner.batch_size",
        "at most the 99 training",
    ),
    ("data: {train_examples: 1201}", 1, "data.train_examples", "at most the 1200 training"),
    ("data: {validation_examples: 1200}", 1, "data.validation_examples", "fewer than the 1200"),
    (
        "data:\n  name: digits\nmeta:\n  loss: validation",
        1,
        "data.validation_examples",
        "meta.loss is 'validation'; expected at least 1, got 0, the default",
    ),
    (
        "inner:\n  steps: 20\ngradient:\n  averaging:\n    minibatches: 21",
        5,
        "gradient.averaging.minibatches",
        "more than the 20 of inner.steps; expected at most 20, got 21",
    ),
    (
        "gradient:\n  method: cg\n  averaging:\n    estimator: resampled",
        4,
        "gradient.averaging.estimator",
        "cg needs one fixed Jacobian and cannot take 'resampled'; expected auto or mean or frozen",
    ),
    (
        "inner: {steps: 60}\ngradient:\n  method: tbptt\n  trunc: 52\n"
        "  averaging: {minibatches: 10}",
        4,
        "gradient.trunc",
        "needs 61 training steps, more than the 60 of inner.steps; expected at most 51, got 52",
    ),
    (
        "inner: {steps: 9}\ngradient:\n  method: tbptt\n  trunc: 9\n  averaging: {minibatches: 10}",
        5,
        "gradient.averaging.minibatches",
        "needs 18 training steps, more than the 9 of inner.steps; expected at most 1, got 10",
    ),
    ("record: {inner_curves: [0, 31]}", 1, "record.inner_curves.1", "from 0 to 30 (or -1), got 31"),
    ("record: {inner_curves: [-2]}", 1, "record.inner_curves.0", "from 0 to 30 (or -1), got -2"),
    # what of YAML a recipe does not take
    ("seed: 1\nname: a\nseed: 2", 3, "seed", "duplicate key, first on line 1"),
    (
        "meta: {steps: 1}\ninner:\n  steps: 3\n  fresh: true\n  steps: 3",
        5,
        "inner.steps",
        "duplicate key, first on line 3",
    ),
    ("'seed': 1\n\"seed\": 1", 2, "seed", "duplicate key, first on line 1"),
    ("seed: &a 1\nthreads: *a", 2, "threads", "anchors and aliases are not supported"),
    ("meta: &a {steps: 3}\ninner: *a", 2, "inner", "anchors and aliases are not supported"),
    (
        "meta: &a {steps: 3}\nrecord:\n  inner_curves:\n  - *a",
        3,
        "record.inner_curves.0",
        "anchors and aliases are not supported",
    ),
    ("inner: &a\n  fresh: *a", 2, "inner.fresh", "anchors and aliases are not supported"),
    ("meta: &a {steps: 3}\ninner:\n  <<: *a", 3, "inner.<<", "anchors and aliases"),
    ("seed: *a", 1, "", "found undefined alias 'a'"),
    ("seed: !!int '3'", 1, "seed", "the tag !!int is not supported; write the plain value"),
    ("name: !!str 3", 1, "name", "the tag !!str is not supported"),
    ("seed: !!bool maybe", 1, "seed", "the tag !!bool is not supported"),
    ("name: !!timestamp x", 1, "name", "the tag !!timestamp is not supported"),
    ("data: !!set {name}", 1, "data", "the tag !!set is not supported"),
    ("name: !mine x", 1, "name", "the tag !mine is not supported"),
    ("name: !!binary eA==", 1, "name", "the tag !!binary is not supported"),
    ("1: 2", 1, "", "expected text for a key, got 1"),
    ("inner:\n  true: 2", 2, "inner", "expected text for a key, got true"),
    ("? [1, 2]\n: 3", 1, "", "expected text for a key, got a list or mapping"),
    ("seed: " + "9" * 5000, 1, "seed", "a number of 5000 digits is too long"),
    ("seed: " + "9" * 100, 1, "seed", "expected a number below"),
    ("inner: {learning_rate: 1" + "0" * 301 + "}", 1, "inner.learning_rate", "302 digits"),
    # no recipe at all
    ("- seed: 1", 1, "", f"expected a mapping of {TOP}, got [{{'seed': 1}}]"),
    ("[1, 2]", 1, "", f"expected a mapping of {TOP}, got [1, 2]"),
    ("hello", 1, "", f"expected a mapping of {TOP}, got 'hello'"),
    ("seed: 1\n---\nseed: 2", 2, "", "not valid YAML: more than one document"),
    ("seed: 1\n  name: a", 2, "", "not valid YAML: a ':' is not allowed here; check the ind"),
    ("inner:\n    steps: 3\n  fresh: true", 3, "", "the indentation does not fit the lines above"),
    ("inner:\n\tsteps: 3", 2, "", "not valid YAML: a tab is not allowed here"),
    ("seed: 1\nhello\nname: a", 3, "", "not valid YAML: expected 'key: value'"),
    ("name: @a", 1, "", "not valid YAML: a value that starts like this one needs quotes"),
    ("seed: 1\n...\nname: a", 3, "", "not valid YAML: more than one document"),
    ("record: {inner_curves: ['1' 2]}", 1, "", "expected ',' or ']', but got more text"),
    ("seed: [1", 1, "", "not valid YAML: expected ',' or ']', but got the end"),
    ("name: 'a", 1, "", "not valid YAML: found unexpected end of stream"),
    ("seed: 1\nname: a\x00b", 2, "", "not valid YAML: the character U+0000 is not allowed"),
    ("\x1b[31m: 1", 1, "", "not valid YAML: the character U+001B is not allowed"),
    ('"\\e[31m": 1', 1, r"'\x1b[31m'", "unknown key"),
    ('"a\\nb": 1', 1, r"'a\nb'", "unknown key"),
    ("[" * 10_000, 1, "", "not valid YAML: nested too deeply"),
    ("[" * 10_000 + "]" * 10_000, 1, "", "not valid YAML: nested too deeply"),
    ("\n\ndata: " + "{a: " * 10_000, 3, "", "not valid YAML: nested too deeply"),
    ("\n".join(" " * n + "a:" for n in range(30)), 21, "", "not valid YAML: nested too deeply"),
]


@pytest.mark.parametrize(("text", "line", "key", "words"), BAD)
def test_a_fault_names_line_key_and_what_was_expected(text, line, key, words):
    """A table of bad recipes: one fault, its line, its key, what was expected, the nearest key.

    Catches raw words of the libraries below, and hints that are lost.
    """
    (fault,) = faults_of(text)
    where = "bad.yaml" if line is None else f"bad.yaml:{line}"
    assert str(fault) == (f"{where}: {key}: " if key else f"{where}: ") + fault.message
    assert (fault.line, fault.key) == (line, key)
    assert words in fault.message
    assert str(fault).isprintable()
    assert not re.search(r"Section|instance|should|None|True|Error|pydantic|dict", fault.message)


def test_every_fault_gets_its_line():
    """Five faults in one recipe: five lines. Catches a reader that stops at the first."""
    faults = faults_of(
        "seed: -1\ninner:\n  steps: many\n  momentum: 2\nmeta: {stepps: 3}\nbogus: 1", count=5
    )
    assert [(fault.line, fault.key) for fault in faults] == [
        (1, "seed"),
        (3, "inner.steps"),
        (4, "inner.momentum"),
        (5, "meta.stepps"),
        (6, "bogus"),
    ]


def test_every_contradiction_gets_its_line():
    faults = faults_of(
        "data: {name: mnits}\nmodel: {name: cnn}\ngradient:\n  method: sgd\n"
        "meta: {loss: validation}",
        count=4,
    )
    assert [fault.line for fault in faults] == [1, 2, 4, 1]


DUPLICATES = [
    ("seed: 1\nname: a\nseed: 2", 3, "seed"),
    ("seed: 1\nseed: 1", 2, "seed"),
    ("'seed': 1\nseed: 1", 2, "seed"),
    ("inner:\n  steps: 3\nmeta: {steps: 1}\ninner:\n  fresh: true", 4, "inner"),
    ("meta: {steps: 1,\n  steps: 3}", 2, "meta.steps"),
    ("model:\n  options:\n    hidden: [4]\n    hidden: [5]", 4, "model.options.hidden"),
    ("gradient:\n  options:\n    cg: {damping: 0.1}\n    cg: {}", 4, "gradient.options.cg"),
    ("system: cora\nsystem: hopfield", 2, "system"),
]


@pytest.mark.parametrize(("text", "line", "key"), DUPLICATES)
def test_a_duplicate_key_is_refused(text, line, key):
    """At every depth, quoted or not, with the same value or another: the line of the second.

    Catches a YAML reader that takes the last of two.
    """
    with pytest.raises(RecipeError) as refused:
        parse_any(text, source="bad.yaml")
    (fault,) = refused.value.faults
    assert (fault.line, fault.key) == (line, key)
    assert re.fullmatch(r"duplicate key, first on line \d+", fault.message)


def test_equal_keys_in_different_sections_are_no_duplicates():
    """steps of inner and of meta are two keys. Catches keys that are compared without place."""
    recipe = parse("inner: {steps: 300}\nmeta: {steps: 3}")
    assert (recipe.inner.steps, recipe.meta.steps) == (300, 3)


def test_every_duplicate_gets_its_line():
    faults = faults_of("seed: 1\nseed: 2\nname: a\nseed: 3\nname: b", count=3)
    assert [(f.line, f.message[-1]) for f in faults] == [(2, "1"), (4, "1"), (5, "3")]


def test_an_alias_bomb_costs_nothing():
    rows = ["a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    rows += [f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in zip("abcdefgh", "bcdefghi")]  # noqa: B905
    assert all("aliases" in fault.message for fault in faults_of("\n".join(rows), count=None))


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


# --- code in recipes -----------------------------------------------------------------------------

PAYLOADS = [
    "!!python/object/apply:os.system ['touch {}']",
    "!!python/object/new:os.system ['touch {}']",
    "!!python/object/apply:subprocess.check_output [[touch, {}]]",
    "!<tag:yaml.org,2002:python/object/apply:os.system> ['touch {}']",
    '!!python/object/apply:builtins.eval [\'__import__("pathlib").Path("{}").touch()\']',
]


@pytest.mark.parametrize("place", ["{}", "seed: {}", "data: [1, {}]", "? {}\n: 1", "name: &a {}"])
@pytest.mark.parametrize("payload", PAYLOADS)
def test_a_tag_runs_nothing(tmp_path, place, payload):
    ran = tmp_path / "ran"
    with pytest.raises(RecipeError, match=r"not supported|text for a key"):
        parse(place.format(payload.format(ran)))
    with pytest.raises(RecipeError, match=r"the tag .* is not supported"):
        scalar(payload.format(ran))
    assert not ran.exists()


@pytest.mark.parametrize("payload", PAYLOADS)
def test_the_payloads_would_run_where_tags_are_obeyed(tmp_path, payload):
    ran = tmp_path / "ran"
    yaml.unsafe_load(payload.format(ran))
    assert ran.exists()


@pytest.mark.parametrize("tag", ["!!python/name:os.system", "!!python/module:os"])
def test_a_tag_names_nothing(tag):
    (fault,) = faults_of(f"name: a\nseed: {tag}")
    assert (fault.line, fault.key) == (2, "seed")
    assert tag in fault.message


# --- the command line's values -------------------------------------------------------------------

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


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[", "--set: k: not valid YAML: expected the node content, but found the end"),
        ("a: b: c", "--set: k: not valid YAML: a ':' is not allowed here"),
        ("!!timestamp x", "--set: k: the tag !!timestamp is not supported"),
        ("{a: 1, a: 2}", "--set: k.a: duplicate key"),
        ("&x [*x]", "--set: k.0: anchors and aliases are not supported"),
        ("9" * 5000, "--set: k: a number of 5000 digits is too long"),
        ("[" * 10_000, "--set: k: not valid YAML: nested too deeply"),
        ("\x00", "--set: k: not valid YAML: the character U+0000 is not allowed"),
    ],
)
def test_a_bad_value_on_the_command_line(text, words):
    with pytest.raises(RecipeError) as refused:
        scalar(text, "k")
    assert str(refused.value).startswith(words)


# --- writing recipes -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", presets.names())
def test_a_built_in_recipe_reads_back_as_written(name):
    recipe = read_any(presets.find(name))
    assert recipe.name == name
    assert parse_any(recipe.to_yaml()) == recipe


def test_yaml_spells_every_key_out():
    def keys(value):
        return {k: keys(v) for k, v in value.items()} if isinstance(value, dict) else None

    written = yaml.safe_load(Recipe().to_yaml())
    assert keys(written) == keys(Recipe().model_dump())


POSITIVE = st.floats(1e-300, 1e300)
VARIATIONS = st.fixed_dictionaries(
    {},
    optional={
        "name": st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True),
        "seed": st.integers(0, 2**63 - 1),
        "device": st.sampled_from(["auto", "cpu", "cuda"]),
        "dtype": st.sampled_from(["float32", "float64"]),
        "threads": st.none() | st.integers(1, 1024),
        "data": st.fixed_dictionaries(
            {"name": st.sampled_from(["digits", "mnist", "kmnist"])},
            optional={
                "train_examples": st.none() | st.integers(1000, 1200),
                "validation_examples": st.integers(0, 200),
                "center": st.booleans(),
            },
        ),
        "model": st.fixed_dictionaries(
            {"init_std": POSITIVE},
            optional={
                "options": st.fixed_dictionaries(
                    {},
                    optional={
                        "hidden": st.lists(st.integers(1, 10**6), max_size=3),
                        "activation": st.sampled_from(["tanh", "relu", "softplus"]),
                    },
                )
            },
        ),
        "inner": st.fixed_dictionaries(
            {
                "steps": st.integers(200, 10**9),
                "batch_size": st.integers(1, 800),
                "learning_rate": POSITIVE,
                "momentum": st.floats(0, 1, exclude_min=True, exclude_max=True),
                "update": st.sampled_from(["maclaurin", "pytorch"]),
                "fresh": st.booleans(),
            }
        ),
        "gradient": st.fixed_dictionaries(
            {
                "method": st.sampled_from(["bptt", "tbptt", "rbp", "cg", "neumann"]),
                "trunc": st.integers(1, 100),
                "averaging": st.fixed_dictionaries({"minibatches": st.integers(1, 100)}),
                "options": st.fixed_dictionaries(
                    {},
                    optional={
                        "cg": st.fixed_dictionaries({"damping": st.floats(0, 1)}),
                        "rbp": st.fixed_dictionaries({"z0": st.sampled_from(["zero", "uniform"])}),
                    },
                ),
            }
        ),
        "meta": st.fixed_dictionaries(
            {"steps": st.integers(1, 10**7), "learning_rate": st.floats(1e-300, 1000)},
            optional={
                "decay": st.none()
                | st.fixed_dictionaries(
                    {"factor": st.floats(0, 1, exclude_min=True), "from_step": st.integers(1, 99)}
                )
            },
        ),
    },
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(VARIATIONS)
@example({"name": "1e3"})  # text that our YAML takes for a number and YAML 1.1 does not
@example({"name": "08"})
@example({"name": "1_0."})
@example({"name": "0x10"})  # and the other way round
@example({"name": "on"})
@example({"name": "null"})
@example({"name": "2001-01-01"})
def test_any_recipe_reads_back_as_written(content):
    recipe = Recipe.model_validate(content)
    assert parse(recipe.to_yaml()) == recipe
    assert yaml.safe_load(recipe.to_yaml())["name"] == recipe.name  # so do other readers


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


# --- the presets --------------------------------------------------------------------------------


def test_every_built_in_recipe_says_what_it_is():
    for name in presets.names():
        lines = presets.built_in(name).read_text(encoding="utf-8").splitlines()
        verb = "tune" if isinstance(read_any(presets.built_in(name)), Recipe) else "train"
        assert lines[0] == f"# hyperrbp {verb} {name}"
        summary = presets.summary(presets.built_in(name))
        assert 20 < len(summary) < 200
        assert summary.count("(") == summary.count(")")  # not cut at the dot of "et al."


def test_a_file_or_a_run_folder_comes_before_a_built_in_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert presets.find("digits") == presets.built_in("digits")
    (tmp_path / "digits").mkdir()
    assert presets.find("digits") == presets.built_in("digits")
    (tmp_path / "digits" / "recipe.yaml").touch()
    assert str(presets.find("digits")) == "digits/recipe.yaml"


# --- no numerics ---------------------------------------------------------------------------------


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


# --- mutants -------------------------------------------------------------------------------------

JUNK = [
    b"[", b"]", b"{", b"}", b":", b": ", b"- ", b"#", b"&a", b"*a", b"!!python/name:os.system",
    b"!", b"'", b'"', b"|", b">", b"%", b"@", b"?", b"\t", b"---", b"...", b"<<", b"~", b"null",
    b"true", b"yes", b".inf", b"-.inf", b".nan", b"1e999", b"-1", b"0", b"", b"''", b"[[]]",
    b"{a: b}", b"9" * 400, b"-" + b"9" * 40, b"1e-320", b"0x1F", b"\xff", b"\x00", b"\xc3\xa9",
    b"\xe2\x80\xa8", b"\r", b"\xed\xa0\x80", b"\x1b[0m", b"neumann", b"cg", b"bptt", b"tbptt",
    b"resampled", b"validation", b"mnist", b"steps", b"gradient.trunc", b"tanh", b"10000000000",
]  # fmt: skip


def mutant(text: bytes, source: random.Random) -> bytes:
    for _ in range(source.choice([1, 1, 1, 2, 5])):
        lines = text.split(b"\n")
        i, j = source.randrange(len(lines)), source.randrange(len(lines))
        what = source.randrange(7)
        if what == 0:
            del lines[i]
        elif what == 1:
            lines.insert(j, lines[i])
        elif what == 2:
            lines[i], lines[j] = lines[j], lines[i]
        elif what == 3:
            lines[i] = b" " * source.randrange(8) + lines[i].lstrip()
        elif what == 4:
            tokens = lines[i].split(b" ")
            tokens[source.randrange(len(tokens))] = source.choice(JUNK)
            lines[i] = b" ".join(tokens)
        elif what == 5:
            place = source.randrange(len(lines[i]) + 1)
            inserted = source.choice([bytes([source.randrange(256)]), source.choice(JUNK)])
            lines[i] = lines[i][:place] + inserted + lines[i][place:]
        else:
            values = [n for n, line in enumerate(lines) if b": " in line.split(b"#")[0]] or [i]
            n = source.choice(values)
            lines[n] = lines[n].split(b": ")[0] + b": " + source.choice(JUNK)
        text = b"\n".join(lines) or b"\n"
    return text


ORIGINALS = ("mnist", "digits", "cora", "hopfield")


def mutants(count: int, seed: int):
    source = random.Random(seed)
    originals = [presets.built_in(name).read_bytes() for name in ORIGINALS]
    for n in range(count):
        yield mutant(originals[n % len(originals)], source)


def outcomes(tmp_path, count: int, seed: int) -> tuple[int, int]:
    """How many mutants are recipes, and how many are refused; there is nothing else."""
    file = tmp_path / "mutant.yaml"
    accepted = refused = 0
    for content in mutants(count, seed):
        file.write_bytes(content)
        began = time.process_time()
        try:
            recipe = read_any(file)
        except RecipeError as error:
            refused += 1
            for line in str(error).splitlines():
                assert line.startswith(f"{file}:"), content
                assert line.isprintable(), content
        else:
            accepted += 1
            assert parse_any(recipe.to_yaml()) == recipe, content
        assert time.process_time() - began < 2, content
    return accepted, refused


def test_a_mutated_recipe_is_a_recipe_or_is_refused(tmp_path):
    """Random damage to four recipes: a recipe that reads back, or lines that name the file.

    Catches any exception that is no RecipeError, and a reader that takes 2 s.
    """
    accepted, refused = outcomes(tmp_path, 500, seed=1)
    assert accepted >= 50
    assert refused >= 200


@pytest.mark.slow
def test_many_mutated_recipes_are_recipes_or_are_refused(tmp_path):
    """The same, many times over."""
    accepted, refused = outcomes(tmp_path, 20_000, seed=2)
    assert accepted >= 2000
    assert refused >= 8000


def test_mutated_recipes_on_the_command_line(tmp_path):
    """Exit code 0 and the recipe, or 2 and a line a fault on stderr. Catches a traceback."""
    codes = set()
    for n, content in enumerate(mutants(25, seed=3)):
        file = tmp_path / f"mutant{n}.yaml"
        file.write_bytes(content)
        done = CliRunner().invoke(app, ["validate", str(file)])
        assert done.exception is None or isinstance(done.exception, SystemExit)
        assert (done.exit_code == 0) == (done.stderr == "") == (done.stdout != "")
        assert all(line.startswith(f"hyperrbp: {file}:") for line in done.stderr.splitlines())
        codes.add(done.exit_code)
    assert codes == {0, 2}
