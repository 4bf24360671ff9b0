"""The recipes that come with the tool."""

from __future__ import annotations

import re
from typing import get_args

import pytest
import yaml

from hyperrbp import tune_recipe
from hyperrbp.config import presets
from hyperrbp.config.loading import parse, parse_any, read_any
from hyperrbp.config.recipe import Recipe
from hyperrbp.config.recipe_keys import OptimizerName
from hyperrbp.hypergradients import METHODS
from hyperrbp.problems.losses import LOSSES
from hyperrbp.problems.networks import MODELS
from hyperrbp.problems.training.schedules import SHAPES
from hyperrbp.problems.training.update_rules import UPDATE_RULES

PARTS = ("net", "layer", "tensor", "weight")


@pytest.mark.parametrize("name", presets.names())
def test_a_built_in_recipe_reads_back_as_written(name):
    recipe = read_any(presets.find(name))
    assert recipe.name == name
    assert parse_any(recipe.to_yaml()) == recipe


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


# --- the template --------------------------------------------------------------------------------

TEMPLATE = presets.built_in("template").read_text(encoding="utf-8")


def leaves(content, prefix=""):
    """The dotted keys of a recipe, but for options, whose keys depend on what they are of."""
    for key, value in content.items():
        if isinstance(value, dict) and not key.endswith("options"):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def alternatives():
    """What the comments of keys that are null propose in their place, by dotted key."""
    section = ""
    for line in TEMPLATE.splitlines():
        section = line.partition(":")[0] if line[:1].isalpha() else section
        if found := re.match(r"  (\w+): null +# (\{[^}]*\})", line):
            yield f"{section}.{found[1]}", found[2]


IN_PLACE = {
    "beta1": {"inner.optimizer": "adam"},
    "beta2": {"inner.optimizer": "adamw"},
    "eps": {"inner.optimizer": "adam"},
    "alpha": {"inner.optimizer": "rmsprop"},
    "warmup_share": {"inner.schedule.warmup_share": 0.1},
    "end_share": {"inner.schedule.shape": "cosine", "inner.schedule.end_share": 0.1},
    "knots": {"inner.schedule.shape": "knots", "inner.schedule.knots": [1.0, 0.5]},
}
"""What else a recipe needs that tunes a kind."""


def with_alternative(key: str, text: str):
    """The template with what a comment proposes for a key that is null."""
    also = IN_PLACE.get(key.rpartition(".")[2], {})
    pairs = [*also.items(), (key, yaml.safe_load(text))]
    return parse(TEMPLATE, overrides=[("test", k, value) for k, value in pairs])


def test_the_template_has_every_key_and_a_comment_for_each():
    """Catches a key that is added, renamed or taken away without the template."""
    content = yaml.safe_load(TEMPLATE)
    there = {*leaves(content)}
    assert there == {*leaves(parse(TEMPLATE).model_dump())} - {"name"}
    for key, text in alternatives():
        inside = {k for k in leaves(with_alternative(key, text).model_dump()) if f"{key}." in k}
        assert inside == {f"{key}.{name}" for name in yaml.safe_load(text)}
    for key in {path.rpartition(".")[2] for path in leaves(content)}:
        assert re.search(rf"^ *{key}: .*#|^ *{key}: +#", TEMPLATE, re.MULTILINE), key


def test_each_alternative_that_the_template_names_is_one():
    assert {key for key, _ in alternatives()} == {
        *(f"hyperparameters.{kind}" for kind in ("weight_decay", "init_scale", "example_weight")),
        *(f"hyperparameters.{kind}" for kind in IN_PLACE),
        "meta.decay",
    }
    for key, text in alternatives():
        # Of the method auto too, which takes an exact one where another cannot see them.
        assert with_alternative(key, text)
    for name in (
        *METHODS, *MODELS, *get_args(OptimizerName), *LOSSES, *PARTS, *UPDATE_RULES, *SHAPES
    ):  # fmt: skip
        assert re.search(rf"(?<![\w-]){name}(?![\w-])", TEMPLATE), name


def test_the_template_finds_a_gradient_by_itself_and_improves_on_its_start(tmp_path):
    recipe = parse(TEMPLATE)
    assert recipe.gradient.method == "auto"
    small = [("test", "meta.steps", 1), ("test", "inner.steps", 30), ("test", "device", "cpu"),
             ("test", "gradient.trunc", 10), ("test", "record.test_seeds", 0)]  # fmt: skip
    result = tune_recipe(parse(TEMPLATE, overrides=small), tmp_path / "run")
    assert (result.improved, result.setback) == (True, None)
