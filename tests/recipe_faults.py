"""What is found wrong with the text of a recipe."""

from __future__ import annotations

import pytest

from hyperrbp.config.loading import parse
from hyperrbp.exceptions import RecipeError


def faults_of(text, *, count=1, overrides=()):
    """Return the faults of a bad tuning recipe, so many of them; any number for None."""
    with pytest.raises(RecipeError) as refused:
        parse(text, source="bad.yaml", overrides=overrides)
    faults = refused.value.faults
    assert str(refused.value).splitlines() == [str(fault) for fault in faults]
    assert count is None or len(faults) == count, str(refused.value)
    return faults
