"""Data that a function of the user's returns."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import assert_refused, run
from own_parts import SHORT, SHOW, short

from hyperrbp.exceptions import DataError
from hyperrbp.experiments.experiment import Experiment

pytestmark = pytest.mark.usefixtures("elsewhere")


DATA = """\
from pathlib import Path
import torch

Path(__file__).with_name("ran").touch()

def load(count=20, kind="tensor"):
    x = torch.randn(count + 8, 5)
    y = (x[:, 0] > 0).long()
    if kind == "list":
        x, y = x.tolist(), y.tolist()
    if kind == "numpy":
        x, y = x.numpy(), y.numpy()
    return (x[:count], y[:count]), (x[count:], y[count:])

def nothing():
    return None

def three():
    return 1, 2, 3

def ragged():
    return ([[1.0], [1.0, 2.0]], [0, 1]), ([[1.0]], [0])
"""


@pytest.mark.parametrize("kind", ["tensor", "list", "numpy"])
def test_data_may_come_from_code_behind_run_code(elsewhere, kind):
    """Refused without it, before anything runs. Catches code that runs unasked."""
    (elsewhere / "mine").mkdir()
    (elsewhere / "mine" / "data.py").write_text(DATA)
    recipe = elsewhere / "mine" / "own.yaml"
    recipe.write_text(
        f'data: {{name: "data.py:load", options: {{count: 24, kind: {kind}}}}}\n{SHORT}'
    )
    ran = elsewhere / "mine" / "ran"
    for words in (["tune", recipe], ["train", recipe], ["check", recipe], ["compare", recipe]):
        done = run(*words)
        assert_refused(done, 2, "data.name: would run 'load' of ")
        assert not ran.exists()
    assert run("validate", recipe).exit_code == 0
    assert not ran.exists()
    done = run("tune", recipe, "--run-code", "--out", "run", *SHOW)
    assert done.exit_code == 0, done.output
    assert f"hyperrbp: note: runs 'load' of {elsewhere}/mine/data.py" in done.stderr
    assert ran.exists()
    # From anywhere, with the same bits: the path is absolute, the generator seeded.
    again = run("tune", "run", "--run-code", "--out", "again", *SHOW)
    assert json.loads(again.stdout)["meta_loss"] == json.loads(done.stdout)["meta_loss"]


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("nothing", "returned NoneType; expected ((train_x, train_y), (test_x, test_y))"),
        ("three", "returned tuple; expected ((train_x, train_y)"),
        ("ragged", "train_x is no array of numbers: "),
    ],
)
def test_code_that_returns_no_data_is_refused(function, words):
    Path("data.py").write_text(DATA)
    with pytest.raises(DataError) as refused:
        Experiment(short(data__name=f"data.py:{function}"))
    assert words in str(refused.value)
