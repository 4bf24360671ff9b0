"""The code that a run leaves for the next training script trains what was tuned."""

from __future__ import annotations

import json
import runpy
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
from hyperrbp.experiments.export import EXAMPLE_WEIGHTS, WEIGHT_DECAY, export_sgd, sgd_settings
from hyperrbp.experiments.results.tune import BestStep, TuneResult
from hyperrbp.experiments.run_folder import RunFolder
from hyperrbp.problems.training.hyperparameters import Grain

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
CASES = {
    "default": {},
    "sgd": {"inner.optimizer": "sgd"},
    "by layer": BY_LAYER,
    "by layer, pytorch": BY_LAYER | {"inner.optimizer": "sgd"},
    "segments": IN_SEGMENTS,
    "segments, pytorch": IN_SEGMENTS | {"inner.optimizer": "sgd"},
    "momentum alone in segments": {
        "hyperparameters.learning_rate": None,
        "hyperparameters.momentum.segments": 23,
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
    "weight decay by weight": {
        "hyperparameters.weight_decay": {"by": "weight"},
        "inner.weight_decay": 0.05,
    },
    "examples": {"hyperparameters.example_weight": {}},
    "everything": IN_SEGMENTS
    | {
        "hyperparameters.weight_decay": {"by": "weight"},
        "hyperparameters.init_scale": {"by": "tensor"},
        "hyperparameters.example_weight": {},
        "inner.weight_decay": 0.05,
    },
}
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
    layout = experiment.problem().layout
    export = export_sgd(layout, theta, ABOUT, recipe, experiment.data.train_rows)
    run = RunFolder(folder)
    run.write_hyperparameters({}, export.code, export.tensors)
    return experiment, theta, runpy.run_path(str(run.groups_file))


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 5), nn.Tanh(), nn.Linear(5, 10)).double()


def named(model: nn.Module, names) -> nn.Module:
    """The model with the parameter names of the one that was tuned."""
    tuned = nn.Module()
    for name, parameter in zip(names, model.parameters(), strict=True):
        module, _, leaf = name.partition(".")
        if not hasattr(tuned, module):
            tuned.add_module(module, nn.Module())
        getattr(tuned, module).register_parameter(leaf, parameter)
    assert [name for name, _ in tuned.named_parameters()] == list(names)
    return tuned


def trained_by_script(experiment: Experiment, script: dict) -> torch.Tensor:
    """As the heading of the module says, with everything of it that there is."""
    problem = experiment.problem()
    model = network()
    nn.utils.vector_to_parameters(problem._initial_weights.clone(), model.parameters())
    tuned = named(model, problem.tensors)
    if "scale_initial_weights" in script:
        script["scale_initial_weights"](tuned)
    rows, weights = script["example_weights"]() if "example_weights" in script else (None, None)
    optimizer = torch.optim.SGD(script["parameter_groups"](tuned))
    for step in range(problem.steps):
        x = problem.input(step)
        optimizer.zero_grad()
        losses = cross_entropy(model(x.inputs), x.targets, reduction="none")
        (losses if weights is None else weights[x.rows] * losses).mean().backward()
        if "add_weight_decay" in script:
            script["add_weight_decay"](tuned)
        if "set_stretch" in script:
            script["set_stretch"](optimizer, step)
        optimizer.step()
    if rows is not None:
        assert torch.equal(rows, experiment.data.train_rows)
    return nn.utils.parameters_to_vector(model.parameters()).detach()


@pytest.mark.parametrize("case", CASES)
def test_the_exported_code_trains_the_inner_run(tmp_path, case):
    """With torch.optim.SGD, in float64, to a relative 1e-9."""
    recipe = recipe_of(CASES[case])
    experiment, theta, script = written(tmp_path, recipe)
    problem = experiment.problem()
    h = problem.run(theta, 0, problem.steps, problem.initial_state(theta))
    expected = h[: problem.weights]
    found = trained_by_script(experiment, script)
    assert float((found - expected).norm() / expected.norm()) < 1e-9
    start = problem.run(experiment.theta, 0, 23, problem.initial_state(experiment.theta))
    moved = float((start[: problem.weights] - expected).norm() / expected.norm())
    assert moved > 1e-3, "the hyperparameters make no difference"


def test_another_network_is_refused(tmp_path):
    _, _, script = written(tmp_path, recipe_of({}))
    with pytest.raises(ValueError, match="not the network that was tuned"):
        script["parameter_groups"](nn.Linear(2, 2))


def test_plain_groups_need_neither_files_nor_imports(tmp_path):
    _, _, script = written(tmp_path, recipe_of({}))
    assert [file.name for file in tmp_path.glob("*.safetensors")] == []
    code = RunFolder(tmp_path).groups_file.read_text()
    assert "import" not in code
    assert not {"set_stretch", "scale_initial_weights", "add_weight_decay"} & set(script)


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
    assert torch.allclose(shown, experiment.data.train.inputs, atol=1e-5)


def test_maclaurin_settings_in_torch_sgd():
    settings = sgd_settings({"w": 0.4}, {"w": 0.75}, {"w": 0.1}, "maclaurin")
    assert settings == {"w": {"lr": 0.1, "momentum": 0.75, "weight_decay": 0.1}}
    settings = sgd_settings({"w": 0.4}, {"w": 0.75}, {"w": 0.1}, "sgd")
    assert settings == {"w": {"lr": 0.4, "momentum": 0.75, "weight_decay": 0.1}}


def test_a_run_writes_them_and_its_yaml(tmp_path):
    """Of every kind at once: by name up to 200 values, in summary beyond."""
    import yaml

    recipe = recipe_of(CASES["everything"] | {"data.validation_examples": 20})
    result = as_json(tune_recipe(recipe, tmp_path / "run"))
    run = RunFolder(tmp_path / "run")
    script = runpy.run_path(str(run.groups_file))
    experiment = Experiment(recipe)
    found = trained_by_script(experiment, script)
    problem = experiment.problem()
    theta = problem.theta_of(result["hyperparameters"])
    h = problem.run(theta, 0, problem.steps, problem.initial_state(theta))
    expected = h[: problem.weights]
    assert float((found - expected).norm() / expected.norm()) < 1e-9
    answer = yaml.safe_load(run.yaml_file.read_text())
    assert run.yaml_file.name == "hyperparameters.yaml"
    assert list(answer) == list(result["hyperparameters"])
    for kind in ("learning_rate", "momentum", "init_scale"):
        assert answer[kind] == result["hyperparameters"][kind]
    for kind, count in (("weight_decay", problem.weights), ("example_weight", 220)):
        values = result["hyperparameters"][kind].values()
        assert len(values) == count
        assert list(answer[kind]) == ["min", "q25", "median", "q75", "max"]
        assert (answer[kind]["min"], answer[kind]["max"]) == (min(values), max(values))
    assert result["grains"]["momentum"] == {"by": "layer", "segments": 2}
    assert result == json.loads(run.result_file.read_text())
    assert Grain(**result["grains"]["weight_decay"]) == Grain("weight")
