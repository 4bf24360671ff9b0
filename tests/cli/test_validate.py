"""``hyperrbp validate``."""

from __future__ import annotations

import json

import pytest
import yaml
from commands import run

from hyperrbp.config import presets
from hyperrbp.config.loading import parse, parse_any, read_any


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


def test_a_key_of_the_file_that_a_setting_leaves_without_a_use_is_dropped_with_a_note():
    done = run("validate", "mnist", "--set", "meta.optimizer=surrogate")
    assert done.exit_code == 0
    assert done.stderr == "hyperrbp: note: dropped meta.decay: it goes with meta.optimizer adam\n"
    assert parse(done.stdout).meta.decay is None
