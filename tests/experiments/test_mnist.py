"""The paper's setting on MNIST (section 5.3): minutes each, so run with ``-m slow``."""

from __future__ import annotations

import math

import pytest
from runs import as_json

from hyperrbp import tune_recipe
from hyperrbp.config.loading import read
from hyperrbp.config.presets import find


def losses(data_root, folder, method: str, steps: int) -> list[float]:
    """log10 of the meta loss of 60 meta steps with K = 50 and seed 1234."""
    overrides = [("", "gradient.method", method), ("", "inner.steps", steps)]
    recipe = read(find("mnist"), overrides)
    assert (recipe.meta.steps, recipe.gradient.trunc, recipe.seed) == (60, 50, 1234)
    result = as_json(tune_recipe(recipe, folder, data_root=data_root))
    return [math.log10(loss) for loss in result["meta_loss"]]


@pytest.mark.slow
def test_neumann_tunes_a_long_run(data_root, tmp_path):
    curve = losses(data_root, tmp_path / "run", "neumann", 1000)
    assert curve[0] == pytest.approx(-1.52, abs=0.03)
    assert min(curve) <= -2.7


@pytest.mark.slow
def test_neumann_tunes_a_short_run(data_root, tmp_path):
    curve = losses(data_root, tmp_path / "run", "neumann", 100)
    assert min(curve) <= -0.66


@pytest.mark.slow
def test_tbptt_makes_a_long_run_worse(data_root, tmp_path):
    """It walks uphill, as the paper found: 'the meta loss of TBPTT becomes worse'."""
    curve = losses(data_root, tmp_path / "run", "tbptt", 1000)
    assert curve[-1] > -1.2
