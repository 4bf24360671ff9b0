"""Code of the user's own: read once, imported once, seeded."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from own_parts import NET, npz, own_everything, short
from runs import as_json

from hyperrbp import train_recipe, tune_recipe
from hyperrbp.exceptions import CheckpointError, UsageError
from hyperrbp.experiments.experiment import Experiment
from hyperrbp.runtime.callbacks import Callback
from hyperrbp.runtime.randomness import seeded

pytestmark = pytest.mark.usefixtures("elsewhere")


class Edits(Callback):
    """Someone who edits the network while it is tuned."""

    def on_record(self, record):
        Path("net.py").write_text("raise RuntimeError('edited')\n")


def test_an_edit_during_a_run_does_not_reach_it():
    """The draws to come, the final test and the digest are of what was there."""
    recipe = own_everything(inner__fresh=True, record__test_seeds=2)
    whole = as_json(tune_recipe(recipe, Path("whole")))
    found = as_json(tune_recipe(recipe, Path("edited"), callbacks=[Edits()]))
    for key in ("meta_loss", "test", "hyperparameters", "environment"):
        assert found[key] == whole[key]
    longer = recipe.model_copy(update={"meta": recipe.meta.model_copy(update={"steps": 3})})
    with pytest.raises(CheckpointError, match="model code: "):
        tune_recipe(longer, Path("edited"), resume=True)
    with pytest.raises(UsageError, match="RuntimeError: edited"):
        Experiment(recipe).problem()


def test_an_experiment_runs_the_files_of_its_beginning(elsewhere):
    recipe = own_everything()
    experiment = Experiment(recipe)
    known, start = experiment.environment(), experiment.problem().initial_state()
    later = Experiment(recipe)
    Path("net.py").write_text(NET.replace("width=4", "width=5"))
    assert later.environment() == known
    assert torch.equal(later.problem().initial_state(), start), "read again when it is imported"
    edited = Experiment(recipe)
    assert edited.environment()["model code"] != known["model code"]
    assert len(edited.problem().initial_state()) > len(start)


ONE_FILE = """\
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

with Path(__file__).with_name("ran").open("a") as log:
    log.write("ran\\n")

@dataclass
class Sizes:
    count: int
    width: int = 3

noise = torch.randn(28, 5)

def load(name, self, module):
    sizes = Sizes(20)
    x = noise + torch.randn(28, 5)
    y = (x[:, 0] > 0).long()
    return (x[: sizes.count], y[: sizes.count]), (x[sizes.count :], y[sizes.count :])

def make(features, classes, name, self):
    return nn.Sequential(nn.Linear(features, Sizes(1).width), nn.Linear(Sizes(1).width, classes))

def loss(outputs, targets):
    return nn.functional.cross_entropy(outputs, targets, reduction="none")
"""


def one_file(folder="."):
    names = {"name": "a", "self": "b"}
    return short(data={"name": f"{folder}/all.py:load", "options": names | {"module": "c"}},
                 model={"name": f"{folder}/all.py:make", "options": names},
                 inner__loss=f"{folder}/all.py:loss", inner__fresh=True)  # fmt: skip


def test_data_network_and_loss_of_one_file_are_one_module():
    """Whatever its options are called, with a dataclass, and imported once for all draws."""
    Path("all.py").write_text(ONE_FILE)
    experiment = Experiment(one_file())
    assert len({experiment.problem(n) for n in range(3)}) == 3
    assert Path("ran").read_text() == "ran\n"
    result = as_json(tune_recipe(one_file(), Path("run")))
    digests = {result["environment"][key] for key in ("data code", "model code", "loss code")}
    assert len(digests) == 1


def test_what_a_module_samples_is_seeded():
    """Whoever imports it; PyTorch's generator stands afterwards as before."""
    Path("all.py").write_text(ONE_FILE)
    first = Experiment(one_file()).data.train.inputs
    torch.rand(3)
    state = torch.get_rng_state()
    assert torch.equal(Experiment(one_file()).data.train.inputs, first)
    # Here the loss has it imported.
    npz()
    Experiment(short(data__name="mine.npz", inner__loss="all.py:loss"))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_module_that_fails_is_not_left_behind():
    before = set(sys.modules)
    npz()
    Path("net.py").write_text("import all_of_it_gone\n")
    with pytest.raises(UsageError, match="ModuleNotFoundError"):
        Experiment(short(data__name="mine.npz", model__name="net.py:make")).problem()
    assert not [name for name in set(sys.modules) - before if "net" in name]


def test_a_tilde_is_the_home_folder(elsewhere, monkeypatch):
    monkeypatch.setenv("HOME", str(elsewhere / "home"))
    (elsewhere / "home").mkdir()
    (elsewhere / "home" / "all.py").write_text(ONE_FILE)
    recipe = one_file("~")
    assert recipe.data.name == f"{elsewhere}/home/all.py:load"
    assert recipe.model.name == f"{elsewhere}/home/all.py:make"
    assert recipe.inner.loss == f"{elsewhere}/home/all.py:loss"
    assert short(data__name="~/a.npz").data.name == f"{elsewhere}/home/a.npz"
    assert short(data__name="~nobody-of-that-name/a.npz").data.name.endswith("/a.npz")
    Experiment(recipe).problem()


def test_gpus_are_not_seeded_before_they_are_in_use(monkeypatch):
    """A seed would wait until they are, and replace whatever they were to have."""
    if torch.cuda.is_initialized():
        pytest.skip("CUDA is in use")
    seeds = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    Path("all.py").write_text(ONE_FILE)
    Experiment(one_file()).problem()
    assert seeds == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_the_generators_of_gpus_are_seeded_and_stand_as_they_stood():
    torch.cuda.init()
    torch.cuda.manual_seed_all(7)
    before = torch.cuda.get_rng_state_all()
    sampled = []
    for _ in range(2):
        with seeded(3):
            sampled.append(torch.rand(4, device="cuda"))
    assert torch.equal(*sampled)
    for state, now in zip(before, torch.cuda.get_rng_state_all(), strict=True):
        assert torch.equal(state, now)


def test_a_training_of_ones_own_network_is_its_run():
    npz()
    Path("net.py").write_text(NET)
    recipe = short(data={"name": "mine.npz", "shape": "image"}, model__name="net.py:make",
                   model__init_std=None)  # fmt: skip
    result = as_json(train_recipe(recipe, Path("run")))
    experiment = Experiment(recipe)
    problem = experiment.problem()
    h = problem.run(experiment.theta, 0, problem.steps, problem.initial_state())
    assert result["heldout"] == experiment.heldout_measures(problem, h)
    assert result["heldout_accuracy"] == problem.evaluated(h).accuracy(experiment.data.heldout)
