"""Gradient methods with their options, K and T."""

from __future__ import annotations

import pytest
from comparisons import TINY, T

from hyperrbp.config.loading import parse
from hyperrbp.exceptions import (
    UsageError,
)
from hyperrbp.experiments.experiment import gradient_settings
from hyperrbp.experiments.method_specs import MethodSpec, method_specs, parsed


def test_specs_are_ordered_by_steps_method_and_trunc():
    field = method_specs(["neumann", "bptt:keep=states"], [10, 5], [300, 100])
    assert [(c.label, c.trunc, c.train_steps) for c in field] == [
        (label, trunc, steps)
        for steps in (300, 100)
        for label, trunc in [
            ("bptt", None), ("neumann", 10), ("neumann", 5), ("bptt:keep=states", None),
        ]
    ]  # fmt: skip


@pytest.mark.parametrize("methods", [[], ["bptt"], ["bptt", "bptt"]])
def test_the_baseline_is_always_there_once(methods):
    assert method_specs(methods, [3], [7]) == [MethodSpec("bptt", (), None, 7)]


def test_the_baseline_is_first_wherever_it_is_named():
    labels = [c.label for c in method_specs(["neumann", "bptt", "cg", "neumann"], [3], [7])]
    assert labels == ["bptt", "neumann", "cg"]


def test_a_number_that_is_named_twice_counts_once():
    field = method_specs(["cg"], [3, 3, 4, 3], [7, 7])
    assert [(c.method, c.trunc) for c in field] == [("bptt", None), ("cg", 3), ("cg", 4)]


def test_options_have_types():
    assert parsed("cg:tolerance=1e-5:damping=0") == ("cg", (("tolerance", 1e-5), ("damping", 0)))
    assert isinstance(parsed("cg:tolerance=1e-5")[1][0][1], float)
    assert parsed("rbp:z0=zero") == ("rbp", (("z0", "zero"),))
    assert method_specs(["rbp:z0=zero"], [3], [7])[1].label == "rbp:z0=zero"


@pytest.mark.parametrize(
    ("methods", "truncs", "steps", "words"),
    [
        (["newmann"], [1], [1], ["'newmann'", "did you mean neumann?"]),
        (["neumann:tolerance"], [1], [1], ["--methods neumann:tolerance", "METHOD:option=value"]),
        (["neumann:=1"], [1], [1], ["--methods neumann:=1", "METHOD:option=value"]),
        (["neumann"], [5, 0], [1], ["--trunc", "at least 1"]),
        (["neumann"], [], [1], ["--trunc", "at least 1"]),
        (["neumann"], [1], [-1], ["--train-steps", "at least 1"]),
        (["neumann"], [1], [], ["--train-steps", "at least 1"]),
    ],
)
def test_specs_that_cannot_be(methods, truncs, steps, words):
    with pytest.raises(UsageError) as caught:
        method_specs(methods, truncs, steps)
    assert all(word in str(caught.value) for word in words)


def test_a_spec_changes_a_recipe():
    text = TINY.replace("series: 2}", "series: 2, estimator: resampled}, method: neumann")
    text = text.replace("method: neumann}", "method: neumann, options: {cg: {damping: 0.1}}}")
    recipe = parse(text)
    spec = MethodSpec("cg", (("tolerance", 1e-3),), 9, 70)
    changed = spec.recipe(recipe)
    assert (changed.gradient.method, changed.gradient.trunc, changed.inner.steps) == ("cg", 9, 70)
    assert changed.gradient.options == {"cg": {"damping": 0.1, "tolerance": 1e-3}}
    # cg cannot resample, and has a default of its own.
    assert changed.gradient.averaging.estimator == "auto"
    assert changed.gradient.averaging.minibatches == 3
    kept = MethodSpec("rbp", (), 9, 70).recipe(recipe)
    assert kept.gradient.averaging.estimator == "resampled"
    assert recipe == parse(text)


def test_the_baseline_is_unrolled_whatever_the_recipe_says():
    recipe = parse(TINY.replace("trunc: 2,", "trunc: 2, options: {bptt: {keep: checkpoints}},"))
    (baseline,) = method_specs([], [2], [T])
    options = gradient_settings(baseline.recipe(recipe)).options
    assert options.get("keep", "graph") == "graph"
