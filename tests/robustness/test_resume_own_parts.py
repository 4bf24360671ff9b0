"""A run does not go on with other data or code than it was begun with."""

from __future__ import annotations

from pathlib import Path

import pytest
from own_parts import images, npz, own_everything, short
from runs import as_json

from hyperrbp import train_recipe, tune_recipe
from hyperrbp.exceptions import CheckpointError

pytestmark = pytest.mark.usefixtures("elsewhere")


def change(what):
    if what == "data":
        (x, y), (tx, ty) = images(30, seed=5), images(12, seed=1)
        npz(x_train=x, y_train=y, x_test=tx, y_test=ty)
    else:
        file = Path("net.py" if what == "model code" else "loss.py")
        file.write_text(file.read_text() + "\n# another day\n")


@pytest.mark.parametrize("changed", ["data", "model code", "loss code"])
def test_a_run_does_not_go_on_with_other_data_or_code_unseen(changed):
    """Each file changed in turn. Catches one whose digest is not compared."""
    recipe = own_everything()
    tune_recipe(recipe, Path("run"))
    longer = recipe.model_copy(update={"meta": recipe.meta.model_copy(update={"steps": 3})})
    change(changed)
    with pytest.raises(CheckpointError, match=f"{changed}: "):
        tune_recipe(longer, Path("run"), resume=True)


@pytest.mark.parametrize("changed", ["data", "model code", "loss code"])
def test_a_training_does_not_go_on_with_other_data_or_code_unseen(changed):
    """Each file changed in turn. Catches one whose digest is not compared."""
    recipe = own_everything()
    known = as_json(train_recipe(recipe, Path("run")))["environment"]
    assert {"data", "model code", "loss code"} <= set(known)
    train_recipe(recipe, Path("run"), resume=True)
    change(changed)
    with pytest.raises(CheckpointError, match=f"{changed}: "):
        train_recipe(recipe, Path("run"), resume=True)
    result = as_json(train_recipe(recipe, Path("run"), resume=True, inexact_resume=True))
    assert [list(resume) for resume in result["inexact_resumes"]] == [[changed]]


def test_a_run_does_not_go_on_with_other_options_of_its_data():
    x, y = images(40)
    npz(inputs=x, targets=y)
    tune_recipe(short(data__name="mine.npz"), Path("run"))
    other = short(data__name="mine.npz", data__options={"heldout": 0.3}, meta__steps=3)
    with pytest.raises(CheckpointError, match=r"data\.options"):
        tune_recipe(other, Path("run"), resume=True)
