"""The strict reader of YAML: literals, duplicate keys, tags, aliases, line numbers."""

from __future__ import annotations

import math
import re

import pytest
import yaml
from recipe_faults import faults_of

from hyperrbp.config.loading import parse, parse_any, scalar
from hyperrbp.exceptions import RecipeError

INF, NAN = math.inf, math.nan


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
    if value is None:  # the optimizer's own
        assert parse(recipe).inner.learning_rate == parse("").inner.learning_rate
        return
    if number and 0 < value < INF:
        assert parse(recipe).inner.learning_rate == value
        return
    with pytest.raises(RecipeError) as refused:
        parse(recipe)
    shown = str(value).lower() if value in (True, False) else value
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
