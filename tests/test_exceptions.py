"""A fault in the user's own code is told with the line of theirs that it came from."""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path

import pytest
import torch
from commands import run
from factories import tuning_text
from torch import nn

from hyperrbp.exceptions import UsageError, type_and_message_of, user_line_of
from hyperrbp.problems.training.run import TrainingRun

HERE = Path(__file__)


def caught(function) -> BaseException:
    try:
        function()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def line_with(text: str) -> int:
    """The number of the only line of this file that ends so."""
    (number,) = [
        n for n, line in enumerate(HERE.read_text().splitlines(), 1) if line.endswith(text)
    ]
    return number


def inside_libraries():
    json.dumps(statistics.mean([]))  # innermost


def of_another():
    def explained():
        try:
            raise KeyError("x")  # the cause
        except KeyError as error:
            return error

    namespace = {"cause": explained()}
    exec(compile("raise ValueError('explained') from cause", "<made>", "exec"), namespace)


def test_the_innermost_line_of_the_user_is_named(monkeypatch, tmp_path):
    monkeypatch.chdir(HERE.parent)
    error = caught(inside_libraries)
    place = f"{HERE.name}:{line_with('# innermost')}"
    assert user_line_of(error) == place
    assert type_and_message_of(error).endswith(f" ({place})")
    monkeypatch.chdir(tmp_path)  # from elsewhere, in full
    assert user_line_of(error) == f"{HERE.parent / place}"


def test_an_error_from_another_has_the_line_of_that_if_it_has_none():
    error = caught(of_another)
    error.__traceback__ = None
    assert user_line_of(error).endswith(f":{line_with('# the cause')}")


def test_without_code_of_the_user_there_is_no_line():
    error = caught(inside_libraries)
    error.__traceback__ = error.__traceback__.tb_next.tb_next  # from the library on
    assert user_line_of(error) is None
    assert type_and_message_of(error) == f"{type(error).__name__}: {error}"
    assert type_and_message_of(KeyError()) == "KeyError: "


def test_an_error_that_was_being_handled_is_not_the_reason():
    def unrelated():
        try:
            raise KeyError("unrelated")
        except KeyError:
            exec(compile("raise ValueError('other')", "<made>", "exec"))

    error = caught(unrelated)
    error.__traceback__ = None
    assert error.__context__ is not None
    assert user_line_of(error) is None


# --- in a recipe ----------------------------------------------------------------------------------

OWN = """\
import torch
from torch import nn

def load():
    x = torch.zeros(20, 4)
    return x.reshape(3, 3)          # data

class Net(nn.Module):
    def __init__(self, inputs):
        super().__init__()
        self.linear = nn.Linear(inputs + 1, 10)

    def forward(self, x):
        return self.linear(x)       # model

def make(shape, classes):
    return Net(shape)

def refuses(shape, classes):
    raise ValueError("no such net") # net

def loss(outputs, targets):
    return torch.nn.functional.nll_loss(outputs, targets, reduction="all")  # loss

class Cut(torch.autograd.Function):
    @staticmethod
    def forward(context, x):
        return x.clone()

    @staticmethod
    def backward(context, gradient):
        return gradient.view(-1, 7) # backward

def cut(outputs, targets):
    return nn.functional.cross_entropy(Cut.apply(outputs), targets, reduction="none")

"""


def numbered(mark: str) -> int:
    lines = [n for n, line in enumerate(OWN.splitlines(), 1) if line.endswith(f"# {mark}")]
    return lines[0]


@pytest.mark.parametrize(
    ("key", "code", "mark"),
    [
        ("data", "{name: 'own.py:load'}", "data"),
        ("model.name", "own.py:make", "model"),
        ("model.name", "own.py:refuses", "net"),
        ("inner.loss", "own.py:loss", "loss"),
        ("inner.loss", "own.py:cut", "backward"),
    ],
)
def test_a_recipes_code_that_fails_is_named_with_its_line(tmp_path, monkeypatch, key, code, mark):
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(OWN)
    text = tuning_text(model={}) if key == "model.name" else tuning_text()
    Path("own.yaml").write_text(text)
    done = run("tune", "own.yaml", "--run-code", "--set", f"{key}={code}", "--out", "new")
    assert done.exit_code == 2, done.output
    (*_, said) = done.stderr.splitlines()
    assert said.endswith(f" (own.py:{numbered(mark)})")
    assert re.match(r"hyperrbp: .*\w+Error: ", said)


def test_a_file_that_cannot_be_imported_is_named_with_its_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text("import torch\n\nwidth = 3 / 0\n")
    Path("own.yaml").write_text(tuning_text(model={"name": "own.py:make"}))
    done = run("tune", "own.yaml", "--run-code", "--out", "new", "-q")
    assert done.exit_code == 2, done.output
    assert done.stderr.splitlines()[-1].endswith("ZeroDivisionError: division by zero (own.py:3)")


def test_from_python_too(monkeypatch):
    monkeypatch.chdir(HERE.parent)

    def loss(outputs, targets):
        raise ValueError("not this one")  # of the loss

    problem = TrainingRun(
        nn.Linear(2, 2), [(torch.ones(3, 2), torch.zeros(3, dtype=torch.int64))], steps=1, loss=loss
    )
    with pytest.raises(UsageError) as refused:
        problem.run(problem.initial_theta(0.1, 0.9), 0, 1, problem.initial_state())
    assert str(refused.value).endswith(f"one ({HERE.name}:{line_with('# of the loss')})")
