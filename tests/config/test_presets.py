"""The recipes that come with the tool."""

from __future__ import annotations

import pytest

from hyperrbp.config import presets
from hyperrbp.config.loading import parse_any, read_any
from hyperrbp.config.recipe import Recipe


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
