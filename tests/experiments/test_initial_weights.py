"""A network may begin with the weights of a file, and parts of it may be held fixed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from commands import assert_refused, run
from own_parts import SHOW, Marker, npz, short
from safetensors.torch import save_file
from torch import nn

from hyperrbp.exceptions import DataError, UsageError
from hyperrbp.experiments.experiment import Experiment

pytestmark = pytest.mark.usefixtures("elsewhere")


@pytest.fixture(autouse=True)
def net(elsewhere):
    npz()
    Path("net.py").write_text(
        "from torch import nn\n\ndef make(features, classes):\n"
        "    return nn.Sequential(nn.Linear(features, 4), nn.BatchNorm1d(4), nn.Tanh(),"
        " nn.Linear(4, classes))\n"
    )


def saved() -> dict[str, torch.Tensor]:
    torch.manual_seed(5)
    made = nn.Sequential(nn.Linear(36, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3))
    made[1].running_mean.fill_(0.5)
    return made.state_dict()


def flat(state: dict[str, torch.Tensor], *without: str) -> torch.Tensor:
    trained = [name for name in state if name.endswith(("weight", "bias")) and name not in without]
    return torch.cat([state[name].flatten() for name in trained])


def experiment(weights: str | None = None, frozen: tuple[str, ...] = ()) -> Experiment:
    section = {"name": "net.py:make", "weights": weights, "frozen": list(frozen)}
    return Experiment(short(data__name="mine.npz", model=section))


def written(content: object, name: str = "w.pt") -> str:
    if name.endswith(".safetensors"):
        save_file(content, name)
    else:
        torch.save(content, name)
    return name


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (lambda: saved(), "w.safetensors"),
        (lambda: saved(), "w.pt"),
        (lambda: {"state_dict": saved(), "epoch": 3}, "w.ckpt"),
    ],
)
def test_a_run_begins_with_the_weights_of_a_file(content, name, caplog):
    problem = experiment(written(content(), name)).problem()
    start = problem.initial_state()[: problem.weights]
    assert torch.equal(start, flat(saved()))
    assert not caplog.records
    again = experiment(name).replicate(1).initial_state()[: problem.weights]
    assert torch.equal(again, start), "a replicate begins with other weights"


def test_without_a_file_they_are_fresh():
    problem = experiment().problem()
    assert not torch.equal(problem.initial_state()[: problem.weights], flat(saved()))


def test_a_recipe_finds_the_file_beside_it(elsewhere):
    Path("there").mkdir()
    for name in ("mine.npz", "net.py"):
        Path(name).rename(Path("there", name))
    written(saved(), "there/w.pt")
    Path("there/own.yaml").write_text(
        "threads: 1\ndevice: cpu\ndata: {name: mine.npz}\n"
        "model: {name: 'net.py:make', weights: w.pt, frozen: ['0', '1']}\n"
        "inner: {steps: 4, batch_size: 10}\ngradient: {method: bptt}\nmeta: {steps: 1}\n"
    )
    done = run("tune", "there/own.yaml", "--run-code", "--out", "run", *SHOW)
    assert done.exit_code == 0, done.output


def test_names_that_are_missing_or_unexpected_are_listed_once(caplog):
    content = saved()
    del content["0.weight"], content["1.running_mean"]
    content |= {"head.weight": torch.zeros(2), "head.bias": torch.zeros(2)}
    made = experiment(written(content))
    problem = made.problem()
    made.replicate(1)
    made.draw(1)
    file = Path("w.pt").resolve()
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        f"{file}: without 0.weight, 1.running_mean, which keep fresh values",
        f"{file}: head.bias, head.weight are not in the network, and are left out",
    ]
    start = problem.initial_state()[: problem.weights]
    assert torch.equal(start[36 * 4 :], flat(saved())[36 * 4 :])


def test_a_file_that_runs_code_is_refused_and_does_not(elsewhere):
    written({"0.weight": Marker()})
    with pytest.raises(DataError, match=r"w\.pt: not a file of weights") as refused:
        experiment("w.pt").problem()
    assert "\n" not in str(refused.value)
    assert not Path("ran").exists()
    Path("own.yaml").write_text(
        "device: cpu\ndata: {name: mine.npz}\nmodel: {name: 'net.py:make', weights: w.pt}\n"
        "inner: {steps: 4, batch_size: 10}\ngradient: {method: bptt}\nmeta: {steps: 1}\n"
    )
    done = run("tune", "own.yaml", "--run-code", "--out", "run", *SHOW)
    assert_refused(done, 3, "w.pt: not a file of weights")
    assert not Path("ran").exists()


def other_shape() -> dict[str, torch.Tensor]:
    return saved() | {"3.weight": torch.zeros(5, 4)}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (other_shape, r"'3.weight' has shape \(5, 4\); the network's has \(3, 4\)"),
        (lambda: {"a": torch.zeros(2)}, "none of its tensors is one of the network; it has a"),
        (dict, "none of its tensors"),
        (lambda: [torch.zeros(2)], "expected tensors by the names"),
        (lambda: {"0.weight": 3}, "expected tensors by the names"),
        (lambda: {"model": saved()}, "expected tensors by the names"),
    ],
)
def test_a_file_of_other_things_is_refused(content, words):
    written(content())
    with pytest.raises(DataError, match=words):
        experiment("w.pt").problem()


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_a_file_that_cannot_be_read_is_refused(name):
    with pytest.raises(DataError, match="no such file"):
        experiment(name).problem()
    for damaged in (b"", b"no weights at all", torch.arange(40).numpy().tobytes()):
        Path(name).write_bytes(damaged)
        with pytest.raises(DataError, match="not a file of weights"):
            experiment(name).problem()
    Path(name).unlink()
    Path(name).mkdir()
    with pytest.raises(DataError, match="not a file of weights"):
        experiment(name).problem()


def test_frozen_parts_keep_the_weights_of_the_file():
    problem = experiment(written(saved()), frozen=("0", "3.bias")).problem()
    assert problem.tensors == ("1.weight", "1.bias", "3.weight")
    start = problem.initial_state()[: problem.weights]
    assert torch.equal(start, flat(saved(), "0.weight", "0.bias", "3.bias"))
    held = dict(problem.objective.model.named_parameters())
    assert torch.equal(held["0.weight"], saved()["0.weight"])
    by_kind = problem.by_name(torch.zeros(problem.layout.count)).values()
    assert all(list(of) == list(problem.tensors) for of in by_kind)


@pytest.mark.parametrize("prefix", ["2", "0.weights", "ne", ""])
def test_a_prefix_of_no_parameter_is_refused(prefix):
    with pytest.raises(UsageError, match=r"model\.frozen: no parameter") as refused:
        experiment(frozen=(prefix,)).problem()
    if prefix == "0.weights":
        assert "did you mean 0.weight?" in str(refused.value)


def test_nothing_to_train_is_refused():
    with pytest.raises(UsageError, match=r"no parameter of the model .* requires a gradient"):
        experiment(frozen=("0", "1", "3")).problem()
    with pytest.raises(UsageError, match=r"no parameter of the model .* requires a gradient"):
        experiment(written(saved()), frozen=("0", "1", "3")).problem()
