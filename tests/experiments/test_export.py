"""The code that a run leaves for the next training script trains what was tuned."""

from __future__ import annotations

import copy
import json
import runpy
import textwrap
from pathlib import Path

import pytest
import torch
from runs import as_json
from torch import nn
from torch.nn.functional import cross_entropy

from hyperrbp import tune_recipe
from hyperrbp.config.loading import parse
from hyperrbp.config.recipe import Recipe
from hyperrbp.experiments.checkpoint import read_tensors
from hyperrbp.experiments.experiment import Experiment
from hyperrbp.experiments.export import EXAMPLE_WEIGHTS, WEIGHT_DECAY, export_groups
from hyperrbp.experiments.results.tune import BestStep, TuneResult
from hyperrbp.experiments.run_folder import RunFolder
from hyperrbp.problems.training.hyperparameters import Grain
from hyperrbp.problems.training.schedules import SHAPES
from hyperrbp.problems.training.update_rules import UPDATE_RULES
from hyperrbp.runtime.randomness import generator, seeded

BASE = """
name: exported
threads: 1
dtype: float64
data: {name: digits, train_examples: 240, validation_examples: 60}
model: {options: {hidden: [5]}, init_std: 0.3}
inner: {steps: 23, batch_size: 30}
gradient: {method: bptt}
meta: {steps: 1, loss: validation}
record: {test_seeds: 0}
"""
NET = """
import torch
from torch import nn

from hyperrbp.problems.training.update_rules import UpdateRule
from hyperrbp.problems.training.update_rules.adam import Adam

def dropping(features, outputs):
    return nn.Sequential(
        nn.Linear(features, 5), nn.Dropout(0.2), nn.Tanh(), nn.Linear(5, 5), nn.Linear(5, outputs)
    )

class Damped(UpdateRule):
    name = "damped"
    kinds = ("learning_rate", "momentum", "weight_decay")
    slots = ("velocity",)

    def defaults(self):
        return {"learning_rate": 0.05, "momentum": 0.5, "weight_decay": 0.01}

    def update(self, w, slots, g, rates, t):
        v = rates["momentum"] * slots[0] + torch.tanh(g)
        return w - rates["learning_rate"] * (v + rates["weight_decay"] * w), (v,)

class Halved(Adam):
    def update(self, w, slots, g, rates, t):
        return super().update(w, slots, g / 2, rates, t)

class YourOptimizer(torch.optim.Optimizer):
    def __init__(self, groups):
        super().__init__(groups, {})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for w in group["params"]:
                v = self.state[w].setdefault("v", torch.zeros_like(w))
                v.mul_(group["momentum"]).add_(w.grad.tanh())
                w.sub_(group["lr"] * (v + group["weight_decay"] * w))
"""
DROPPING = {"model": {"name": "net.py:dropping", "frozen": ["3"]}}
LION = {"meta": {"optimizer": "surrogate", "loss": "validation"}}  # no gradient method has it

SGD = {"inner.optimizer": "sgd", "inner.momentum": 0.5, "inner.learning_rate": 0.1}
BY_LAYER = {
    "hyperparameters.learning_rate.by": "layer",
    "hyperparameters.momentum.by": "net",
    "hyperparameters.weight_decay": {"by": "layer"},
    "inner.weight_decay": 0.05,
}
IN_SEGMENTS = {
    "hyperparameters.learning_rate": {"by": "tensor", "segments": 3},
    "hyperparameters.momentum": {"by": "layer", "segments": 2},
}
DECAY_BY_WEIGHT = {
    "hyperparameters.weight_decay": {"by": "weight"},
    "inner.weight_decay": 0.05,
}
CASES = {
    "default": {},
    "by layer": BY_LAYER,
    "by layer, sgd": BY_LAYER | SGD,
    "momentum alone in segments": {
        "hyperparameters.learning_rate": None,
        "hyperparameters.momentum.segments": 23,
    },
    "more segments than steps": {
        "hyperparameters.learning_rate.segments": 5,
        "hyperparameters.momentum.segments": 7,
    },
    "scale": {"hyperparameters.init_scale": {"by": "layer"}},
    "scale alone": {
        "hyperparameters.learning_rate": None,
        "hyperparameters.momentum": None,
        "hyperparameters.init_scale": {"by": "net"},
        "inner.learning_rate": 0.8,
        "inner.momentum": 0.7,
        "inner.weight_decay": 0.03,
    },
    "weight decay by weight": DECAY_BY_WEIGHT,
    "weight decay by weight, adamw": DECAY_BY_WEIGHT
    | {"inner.optimizer": "adamw", "inner.schedule": {"shape": "linear"}},
    "examples": {"hyperparameters.example_weight": {}},
    "examples in parts": {"hyperparameters.example_weight": {}, "inner.accumulate": 3},
    "clipped": {"inner.clip_norm": 0.3},
    "smoothed": {"inner.label_smoothing": 0.2},
    "in parts": {"inner.accumulate": 5},
    "nesterov": SGD | {"inner.options": {"nesterov": True}},
    "dampening": SGD | {"inner.options": {"dampening": 0.4}},
    "dampening without momentum": SGD
    | {
        "inner.options": {"dampening": 0.4},
        "inner.momentum": 0,
        "hyperparameters.momentum": None,
    },
    "centered": {
        "inner.optimizer": "rmsprop",
        "inner.options": {"centered": True, "alpha": 0.9, "eps": 1e-3},
        "inner.momentum": 0.6,
    },
    "everything": IN_SEGMENTS
    | DECAY_BY_WEIGHT
    | {
        "hyperparameters.init_scale": {"by": "tensor"},
        "hyperparameters.example_weight": {},
        "inner.clip_norm": 0.5,
        "inner.schedule": {"shape": "cosine", "warmup_share": 0.2, "end_share": 0.1},
    },
}
RULES = {
    "maclaurin": {},
    "sgd": SGD,
    "adam": {"hyperparameters.beta1": {"by": "net"}, "hyperparameters.eps": {}},
    "adamw": {"hyperparameters.weight_decay": {}},
    "rmsprop": {"inner.momentum": 0.4, "hyperparameters.alpha": {}},
    "lion": LION | {"hyperparameters.weight_decay": {}, "inner.weight_decay": 0.1},
}
SCHEDULES = {
    "constant": {},
    "warm-up and cosine": {
        "inner.schedule": {"shape": "cosine", "warmup_share": 0.13, "end_share": 0.2},
        "hyperparameters.warmup_share": {},
        "hyperparameters.end_share": {},
    },
    "knots": {
        "inner.schedule": {"shape": "knots", "warmup_share": 0.1, "knots": [1.0, 0.6, 0.8, 0.1]},
        "hyperparameters.knots": {},
    },
    "segments and linear": {"inner.schedule": {"shape": "linear", "end_share": 0.3}},
}
CHANGING = {
    "maclaurin": "momentum",
    "sgd": "momentum",
    "adam": "beta2",
    "adamw": "beta1",
    "rmsprop": "eps",
    "lion": "beta2",
}
"""What each rule has in segments, besides the learning rate."""


def _often(rule: str, schedule: str) -> bool:
    """Whether a pair is in the suite that runs all the time."""
    return rule == "adamw" or schedule in ("warm-up and cosine", "segments and linear")


ABOUT = TuneResult.model_construct(
    best=BestStep(meta_loss=0.5, meta_step=3), train_steps=23, environment={"hyperrbp": "0"}
)


def recipe_of(changes: dict) -> Recipe:
    return parse(BASE, overrides=[("test", key, value) for key, value in changes.items()])


def written(folder: Path, recipe: Recipe):
    """The module of a run at a θ off its start, on disk and executed."""
    experiment = Experiment(recipe)
    source = torch.Generator().manual_seed(5)
    theta = experiment.theta
    theta = theta + 0.4 * torch.randn(len(theta), generator=source, dtype=theta.dtype)
    rows = experiment.data.train_rows
    export = export_groups(experiment.problem(), theta, ABOUT, recipe, rows)
    run = RunFolder(folder)
    run.write_hyperparameters({}, export.code, export.tensors)
    return experiment, theta, runpy.run_path(str(run.groups_file))


def instructions(script: dict) -> tuple[str, str]:
    """What the heading says to do: before the training, and in each of its steps."""
    lines = [line for line in script["__doc__"].splitlines() if line.startswith("    ")]
    before, _, step = textwrap.dedent("\n".join(lines)).partition("# And in each training step:\n")
    assert before
    assert step
    return before, step


class Script:
    """A training script that does what the heading says, on the minibatches of a run."""

    def __init__(self, experiment: Experiment, script: dict) -> None:
        self.problem = problem = experiment.problem()
        model = copy.deepcopy(problem.objective.model).train()
        start = problem.initial_state(experiment.theta)[: problem.weights]
        trained = [of for of in model.parameters() if of.requires_grad]
        nn.utils.vector_to_parameters(start.clone(), trained)
        before, self._step = instructions(script)
        self.names = script | {"torch": torch, "model": model, "loss_of": cross_entropy}
        exec(before, self.names)
        self._seed = generator(experiment.recipe.seed, "batch order").initial_seed()
        self._parts = experiment.recipe.inner.accumulate

    def train(self, start: int, stop: int) -> None:
        for step in range(start, stop):
            x = self.problem.input(step)
            batch = {"inputs": x.inputs, "targets": x.targets, "minibatch": x.rows}
            if "example_weights" not in self.names:
                del batch["minibatch"]
            cut = (tensor.chunk(self._parts) for tensor in batch.values())
            self.names |= batch | {"parts": list(zip(*cut, strict=True))}
            with seeded(generator(self._seed, "random layers", step).initial_seed()):
                exec(self._step, self.names)

    @property
    def weights(self) -> torch.Tensor:
        model = self.names["model"]
        trained = [of for of in model.parameters() if of.requires_grad]
        return nn.utils.parameters_to_vector(trained).detach()


def trained(experiment: Experiment, theta: torch.Tensor, stop: int | None = None) -> torch.Tensor:
    """The weights of the run itself after so many steps."""
    problem = experiment.problem()
    stop = problem.steps if stop is None else stop
    return problem.run(theta, 0, stop, problem.initial_state(theta))[: problem.weights]


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def check_training(experiment: Experiment, theta: torch.Tensor, script: dict) -> None:
    expected = trained(experiment, theta)
    run = Script(experiment, script)
    run.train(0, run.problem.steps)
    assert relative(run.weights, expected) < 1e-10


@pytest.fixture(autouse=True)
def net(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(NET)


@pytest.mark.parametrize("case", CASES)
def test_the_exported_code_trains_the_inner_run(tmp_path, case):
    """By its own heading, in float64, to a relative 1e-10."""
    experiment, theta, script = written(tmp_path, recipe_of(CASES[case]))
    check_training(experiment, theta, script)
    untuned = trained(experiment, experiment.theta)
    assert relative(untuned, trained(experiment, theta)) > 1e-3, "θ makes no difference"


@pytest.mark.parametrize(
    ("rule", "schedule"),
    [
        pytest.param(rule, schedule, marks=[] if _often(rule, schedule) else [pytest.mark.slow])
        for rule in RULES
        for schedule in SCHEDULES
    ],
)
def test_every_optimizer_on_every_schedule(tmp_path, rule, schedule):
    """100 steps, with dropout and a layer that is held fixed."""
    small = {"data.train_examples": 120, "data.validation_examples": 20, "inner.batch_size": 10}
    changes = DROPPING | small | {"inner.optimizer": rule, "inner.steps": 100} | RULES[rule]
    changes |= SCHEDULES[schedule]
    if schedule.startswith("segments"):
        changes |= {
            "hyperparameters.learning_rate.segments": 4,
            f"hyperparameters.{CHANGING[rule]}": {"by": "layer", "segments": 3},
        }
    check_training(*written(tmp_path, recipe_of(changes)))


def test_no_optimizer_or_schedule_is_left_out():
    assert set(RULES) == set(CHANGING) == set(UPDATE_RULES)
    shapes = {of.get("inner.schedule", {}).get("shape", "constant") for of in SCHEDULES.values()}
    assert shapes == set(SHAPES)


def test_another_network_is_refused(tmp_path):
    _, _, script = written(tmp_path, recipe_of({}))
    with pytest.raises(ValueError, match="not the network that was tuned"):
        script["parameter_groups"](nn.Linear(2, 2))


def test_a_layer_that_was_held_fixed_is_in_no_group(tmp_path):
    experiment, _, script = written(tmp_path, recipe_of(DROPPING))
    model = copy.deepcopy(experiment.problem().objective.model)
    groups = script["parameter_groups"](model)
    assert [group["name"] for group in groups] == ["0.weight", "0.bias", "4.weight", "4.bias"]
    model.requires_grad_(True)
    with pytest.raises(ValueError, match=r"differ: \['3.bias', '3.weight'\]"):
        script["parameter_groups"](model)


def test_plain_groups_need_neither_files_nor_imports(tmp_path):
    _, _, script = written(tmp_path, recipe_of({}))
    assert [file.name for file in tmp_path.glob("*.safetensors")] == []
    code = RunFolder(tmp_path).groups_file.read_text()
    assert "import" not in code
    assert not {"schedule", "scale_initial_weights", "add_weight_decay"} & set(script)


def test_every_file_that_is_read_is_beside_the_code(tmp_path):
    experiment, theta, _ = written(tmp_path, recipe_of(CASES["everything"]))
    problem = experiment.problem()
    of = problem.describe(theta)
    decays = read_tensors(tmp_path / WEIGHT_DECAY)
    assert set(decays) == set(problem.tensors)
    joined = torch.cat([decays[name] for name in problem.tensors])
    assert joined.tolist() == pytest.approx(list(of["weight_decay"].values()), rel=1e-12)
    kept = read_tensors(tmp_path / EXAMPLE_WEIGHTS)
    assert kept["weights"].tolist() == list(of["example_weight"].values())
    # Row i of them is an example of the data set's own training part.
    from hyperrbp.data.builtin import load_builtin_set

    data = load_builtin_set("digits", tmp_path).train.inputs.double()
    shown = data[kept["rows"]] - data[:240].mean(0)
    assert torch.equal(kept["rows"], experiment.data.train_rows)
    assert torch.allclose(shown, experiment.data.train.inputs, atol=1e-5)


def test_nothing_is_rounded(tmp_path):
    changes = {"inner.optimizer": "adam", "hyperparameters.beta2": {}, "inner.weight_decay": 0.1}
    experiment, theta, script = written(tmp_path, recipe_of(changes))
    of = experiment.problem().describe(theta)
    for name, settings in script["SETTINGS"].items():
        assert settings == {
            "lr": of["learning_rate"][name],
            "betas": (0.9, of["beta2"][name]),
            "eps": 1e-8,
            "weight_decay": 0.1,
        }


def test_maclaurins_rates_become_those_of_sgd(tmp_path):
    experiment, theta, script = written(tmp_path, recipe_of({}))
    of = experiment.problem().describe(theta)
    for name, settings in script["SETTINGS"].items():
        rate, momentum = (of[kind][name] for kind in ("learning_rate", "momentum"))
        assert settings["lr"] == pytest.approx(rate * (1 - momentum), rel=1e-14)
        assert settings["momentum"] == momentum


def test_a_schedule_stays_at_its_last_value(tmp_path):
    recipe = recipe_of(CASES["everything"])
    experiment, _, script = written(tmp_path, recipe)
    run = Script(experiment, script)
    run.train(0, 22)

    def settings() -> list:
        groups = run.names["optimizer"].param_groups
        return [{key: of for key, of in group.items() if key != "params"} for group in groups]

    before, last = settings(), None
    run.train(22, 23)
    last = settings()
    assert last == before  # the 23rd step was taken with what the 22nd had set
    run.train(23, 30)
    assert settings() == last


@pytest.mark.parametrize("rule", ["maclaurin", "adamw"])
def test_a_script_that_was_interrupted_goes_on(tmp_path, rule):
    """In a stretch that is not the first, from what torch.save holds."""
    changes = {
        "inner.optimizer": rule,
        "inner.schedule": {"shape": "cosine", "warmup_share": 0.2},
        "hyperparameters.learning_rate.segments": 5,
        f"hyperparameters.{CHANGING[rule]}": {"segments": 3},
    }
    experiment, theta, script = written(tmp_path, recipe_of(changes))
    parts = ("model", "optimizer", "scheduler")
    first = Script(experiment, script)
    first.train(0, 13)
    torch.save({part: first.names[part].state_dict() for part in parts}, tmp_path / "kept.pt")
    second = Script(experiment, script)
    for part, state in torch.load(tmp_path / "kept.pt").items():
        second.names[part].load_state_dict(state)
    second.train(13, 23)
    assert relative(second.weights, trained(experiment, theta)) < 1e-10


def test_a_rule_of_the_users_own_is_named_and_its_numbers_are_written(tmp_path):
    changes = {
        "inner.optimizer": "net.py:Damped",
        "hyperparameters.momentum": {"by": "layer", "segments": 2},
        "hyperparameters.weight_decay": {"by": "tensor"},
        "inner.weight_decay": 0.01,
        "inner.momentum": 0.5,
        "inner.schedule": {"shape": "linear"},
    }
    experiment, theta, script = written(tmp_path, recipe_of(changes))
    assert "'Damped' of" in script["__doc__"]
    own = runpy.run_path("net.py")["YourOptimizer"]
    check_training(experiment, theta, script | {"YourOptimizer": own})


def test_what_is_derived_from_a_rule_is_not_exported_as_that_rule(tmp_path):
    changes = {"inner.optimizer": "net.py:Halved", "inner.learning_rate": 0.01}
    _, _, script = written(tmp_path, recipe_of(changes))
    assert "torch.optim.Adam" not in script["__doc__"]
    assert "'Halved' of" in script["__doc__"]


def test_bf16_is_said_in_the_heading(tmp_path):
    changes = {"inner.precision": "bf16", "dtype": "float32"}
    experiment, theta, script = written(tmp_path, recipe_of(changes))
    run = Script(experiment, script)
    run.train(0, 23)
    assert relative(run.weights, trained(experiment, theta)) < 1e-4
    full, _, _ = written(tmp_path, recipe_of({"dtype": "float32"}))
    assert relative(run.weights, trained(full, theta)) > 3e-4


def test_a_run_writes_them_and_its_yaml(tmp_path):
    """Of every kind at once: by name up to 200 values, in summary beyond."""
    import yaml

    recipe = recipe_of(CASES["everything"] | {"data.validation_examples": 20})
    result = as_json(tune_recipe(recipe, tmp_path / "run"))
    run = RunFolder(tmp_path / "run")
    script = runpy.run_path(str(run.groups_file))
    experiment = Experiment(recipe)
    check_training(experiment, experiment.problem().theta_of(result["hyperparameters"]), script)
    answer = yaml.safe_load(run.yaml_file.read_text())
    assert run.yaml_file.name == "hyperparameters.yaml"
    assert list(answer) == list(result["hyperparameters"])
    for kind in ("learning_rate", "momentum", "init_scale"):
        assert answer[kind] == result["hyperparameters"][kind]
    for kind, count in (("weight_decay", experiment.problem().weights), ("example_weight", 220)):
        values = result["hyperparameters"][kind].values()
        assert len(values) == count
        assert list(answer[kind]) == ["min", "q25", "median", "q75", "max"]
        assert (answer[kind]["min"], answer[kind]["max"]) == (min(values), max(values))
    assert result["grains"]["momentum"] == {"by": "layer", "segments": 2}
    assert result == json.loads(run.result_file.read_text())
    assert Grain(**result["grains"]["weight_decay"]) == Grain("weight")
