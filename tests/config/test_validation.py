"""Faults of a recipe: where they are, and what was expected there."""

from __future__ import annotations

import re

import pytest
from recipe_faults import faults_of

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
    ("inner: {optimizer: adamv}", 1, "inner.optimizer", "did you mean adam"),
    ("inner: {update: pytorch}", 1, "inner.update", "it is inner.optimizer now"),
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
    ("inner: 3", 1, "inner", "expected a mapping of steps, epochs, batch_size, "),
    ("inner:", 1, "inner", "expected a mapping of steps, epochs, batch_size, "),
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
    ("inner: {momentum: -0.1}", 1, "inner.momentum", "expected at least 0, got -0.1"),
    ("inner: {learning_rate: 1e-400}", 1, "inner.learning_rate", "a number above 0, got 0.0"),
    (
        "inner: {momentum: 0}\nhyperparameters: {momentum: {}}",
        1,
        "inner.momentum",
        "hyperparameters.momentum starts here; expected a number above 0, got 0",
    ),
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


def test_every_fault_of_a_cross_check_gets_its_line():
    faults = faults_of(
        "data: {name: mnits}\nmodel: {name: cnn}\ngradient:\n  method: sgd\n"
        "meta: {loss: validation}",
        count=4,
    )
    assert [fault.line for fault in faults] == [1, 2, 4, 1]
