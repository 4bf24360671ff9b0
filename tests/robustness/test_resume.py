"""What a resumed run may find changed, and what it says of it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import assert_refused
from factories import memory_text, outcome, recipe, tuning_text
from runs import StopsAfter, as_json, records_of, result_of
from typer.testing import CliRunner

from hyperrbp import tune_recipe
from hyperrbp.cli import app as cli
from hyperrbp.config.equilibrium import HopfieldRecipe
from hyperrbp.config.recipe import Recipe
from hyperrbp.config.schema import BaseRecipe
from hyperrbp.exceptions import CheckpointError
from hyperrbp.experiments import checkpoint
from hyperrbp.experiments.experiment import Experiment
from hyperrbp.experiments.run_folder import RunFolder
from hyperrbp.experiments.train import train_recipe

TINY = tuning_text(
    name="tiny",
    data={"name": "digits", "train_examples": 200, "validation_examples": 40},
    model={"options": {"hidden": [3]}, "init_std": 0.3},
    inner__weight_decay=0.01,
    inner__learning_rate=0.36787944117144233,
    inner__momentum=0.5,
    hyperparameters={"weight_decay": {}},
    gradient__averaging__series=2,
    gradient__options={"neumann": {"tolerance": 0.5}},
    meta={"steps": 2, "learning_rate": 0.1, "decay": {"factor": 0.5, "from_step": 1}},
)
TUNING: dict[str, Any] = {
    "name": "another",
    "seed": 7,
    "dtype": "float64",
    "data.name": "mnist",
    "data.inputs": "floats",
    "data.outputs": 12,
    "data.population": 100,
    "data.shape": "flat",
    "data.train_examples": 190,
    "data.validation_examples": 41,
    "data.label_noise": 0.25,
    "data.center": False,
    "data.download": True,
    "model.name": "somewhere.py:model",
    "model.options.hidden": [4],
    "model.init_std": 0.30000000000000004,
    "model.weights": "somewhere.safetensors",
    "model.frozen": ["hidden1"],
    "inner.steps": 7,
    "inner.batch_size": 48,
    "inner.optimizer": "sgd",
    "inner.learning_rate": 0.3,
    "inner.momentum": 0.4,
    "inner.loss": "cross-entropy",
    "inner.weight_decay": 0.02,
    "inner.clip_norm": 1.0,
    "inner.accumulate": 2,
    "inner.precision": "bf16",
    "inner.recalibration": 5,
    "inner.label_smoothing": 0.1,
    "inner.fresh": True,
    "hyperparameters.learning_rate.by": "layer",
    "hyperparameters.learning_rate.range": [0.01, 3.0],
    "hyperparameters.momentum.by": "net",
    "hyperparameters.momentum.range": [0.1, 0.9],
    "hyperparameters.weight_decay.by": "weight",
    "hyperparameters.weight_decay.range": [0.001, 0.1],
    "gradient.method": "rbp",
    "gradient.trunc": 4,
    "gradient.averaging.estimator": "frozen",
    "gradient.averaging.minibatches": 3,
    "gradient.averaging.series": 1,
    "gradient.options.neumann.tolerance": 0.25,
    "gradient.check_every": 1,
    "meta.screened": 5,
    "meta.learning_rate": 0.2,
    "meta.decay.factor": 0.25,
    "meta.decay.from_step": 2,
    "meta.on_divergence": "rollback",
    "meta.max_rollbacks": 9,
    "meta.patience": 4,
    "meta.loss": "validation",
    "record.inner_curves": [0],
    "record.test_seeds": 1,
}
"""Another valid value for each key; which others there are, see NOT_COMPARED."""
NOT_COMPARED = {
    *("device", "threads"),  # the checkpoint watches over them
    "meta.steps",  # more are welcome
    "meta.optimizer",  # not with the decay that is there: see the test of another optimizer
    "data.options",  # digits have none
    "inner.epochs",  # not with inner.steps; compared as the steps that they come to
    # Refused with an implicit method or a training loss, whatever was there before.
    *("hyperparameters.learning_rate.segments", "hyperparameters.momentum.segments"),
    *("hyperparameters.init_scale", "hyperparameters.example_weight"),
    *(f"inner.schedule.{key}" for key in ("shape", "warmup_share", "end_share", "knots")),
    # Of other optimizers and schedules than the one that is there.
    "inner.options",
    *(f"hyperparameters.{kind}" for kind in ("beta1", "beta2", "alpha", "eps")),
    *(f"hyperparameters.{kind}" for kind in ("warmup_share", "end_share", "knots")),
}

MEMORY = memory_text(
    name="memory",
    data__images=3,
    network__hidden=6,
    inference__updates=8,
    gradient={"trunc": 4, "options": {"neumann": {"tolerance": 0.5}}},
    penalty={"name": "columns", "weight": 1.0},
    training={"epochs": 3, "validate_every": 2, "learning_rate": 0.01},
)


def tiny(**changes: Any) -> Recipe:
    found = changed(TINY, changes)
    assert isinstance(found, Recipe)
    return found


def changed(text: str, changes: Mapping[str, Any]) -> BaseRecipe:
    return recipe(text, **changes)


def leaves(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def sections(keys: set[str]) -> set[str]:
    """Every prefix of a dotted key: a section may be absent, or empty, where it is not given."""
    return {key.rsplit(".", n)[0] for key in keys for n in range(1, key.count(".") + 1)}


@pytest.fixture(scope="module")
def begun(tmp_path_factory) -> Path:
    """A tuning run that was interrupted after its first step; copy it."""
    folder = tmp_path_factory.mktemp("begun") / "run"
    with pytest.raises(KeyboardInterrupt):
        tune_recipe(tiny(), folder, callbacks=[StopsAfter(1)])
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The same run, uninterrupted; copy it."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    tune_recipe(tiny(), folder)
    return folder


def copy(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to))


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def moved(folder: Path, **environment: Any) -> dict[str, list]:
    """Let the checkpoint have been taken elsewhere: {key: [value there, value here]}."""
    file = RunFolder(folder).checkpoint_file
    found, tensors = checkpoint.load(file)
    here = found["environment"]
    differ = {key: [value, here.get(key)] for key, value in environment.items()}
    checkpoint.save(file, found | {"environment": here | environment}, tensors or None)
    return differ


def elsewhere(value: str | int) -> str | int:
    return value + 1 if isinstance(value, int) else f"not {value}"


# --- another recipe -------------------------------------------------------------------------------


def test_no_key_is_left_out():
    known = set(TUNING) | NOT_COMPARED
    there = {key for recipe in (Recipe(), tiny()) for key, _ in leaves(recipe.model_dump())}
    assert there - sections(known) == known - {"meta.decay"}
    same = {key for key, value in leaves(tiny().model_dump()) if TUNING.get(key, key) == value}
    assert same == set()


@pytest.mark.parametrize("key", TUNING)
def test_a_resume_with_another_recipe_is_refused(tmp_path, begun, key):
    """Each key changed, one at a time: refused with key: old → new, before data or code of the
    user's own is touched; the folder stays as it is.

    Catches a key, or a section, that is not compared, and a comparison that comes too late.
    """
    folder = copy(begun, tmp_path / "run")
    before, old = content(folder), dict(leaves(tiny().model_dump()))[key]
    recipe = tiny(**{key: TUNING[key]})
    new = dict(leaves(recipe.model_dump()))[key]
    assert new != old
    with pytest.raises(CheckpointError) as raised:
        tune_recipe(recipe, folder, data_root=tmp_path / "nowhere", resume=True)
    said = str(raised.value)
    assert f"{key}: {old!r} → {new!r}" in said
    assert said.endswith("only meta.steps may change on --resume")
    assert said.count("→") == 1
    assert content(folder) == before


def test_a_resume_with_another_optimizer_is_refused(tmp_path):
    begun = tiny(**{"meta.decay": None})
    with pytest.raises(KeyboardInterrupt):
        tune_recipe(begun, tmp_path / "run", callbacks=[StopsAfter(1)])
    another = tiny(**{"meta.decay": None, "meta.optimizer": "gradient"})
    with pytest.raises(CheckpointError, match=r"meta\.optimizer: 'adam' → 'gradient'"):
        tune_recipe(another, tmp_path / "run", resume=True)


def test_every_key_that_differs_is_listed(tmp_path, begun):
    """All of them changed at once, and a section taken away: one message has them all.

    Catches a list that ends with its first line.
    """
    folder, old = copy(begun, tmp_path / "run"), dict(leaves(tiny().model_dump()))
    recipe = tiny(**TUNING)
    with pytest.raises(CheckpointError) as raised:
        tune_recipe(recipe, folder, resume=True)
    new = dict(leaves(recipe.model_dump()))
    for key in TUNING:
        assert f"{key}: {old[key]!r} → {new[key]!r}" in str(raised.value)
    assert str(raised.value).count("→") == len(TUNING)
    with pytest.raises(CheckpointError, match=r"meta\.decay: \{'factor': 0\.5, .*\} → None"):
        tune_recipe(tiny(**{"meta.decay": None}), folder, resume=True)


def test_more_meta_steps_are_the_one_change_allowed(tmp_path, whole):
    """As if asked for at once, to the bit; fewer than were taken are refused.

    Catches either of the two the other way round.
    """
    folder = copy(whole, tmp_path / "run")
    with pytest.raises(CheckpointError, match="already taken 2 meta steps, more than the 1 asked"):
        tune_recipe(tiny(**{"meta.steps": 1}), folder, resume=True)
    assert content(folder) == content(whole)
    tune_recipe(tiny(**{"meta.steps": 4}), folder, resume=True)
    tune_recipe(tiny(**{"meta.steps": 4}), tmp_path / "straight")
    assert outcome(folder) == outcome(tmp_path / "straight")
    assert "steps: 4" in RunFolder(folder).recipe_file.read_text()


def test_resuming_a_finished_run_changes_nothing(tmp_path, whole):
    """Twice more, to the bit, but for what was measured.

    Catches a last evaluation that is recorded again.
    """
    folder = copy(whole, tmp_path / "run")
    for _ in range(2):
        result = as_json(tune_recipe(tiny(), folder, resume=True))
        assert result["status"] == "done"
        assert outcome(folder) == outcome(whole)
    assert set(content(folder)) == set(content(whole))
    same = ("recipe.yaml", "hyperparameters.yaml", "parameter_groups.py")
    assert [content(folder)[name] for name in same] == [content(whole)[name] for name in same]


# --- elsewhere ------------------------------------------------------------------------------------

ENVIRONMENT = ("hyperrbp", "torch", "python", "machine", "cpu", "device", "threads")


def test_no_part_of_the_environment_is_left_out():
    """What is compared on a resume; the tests below change each part of it.

    Catches a part that is forgotten.
    """
    assert set(Experiment(tiny()).environment()) == set(ENVIRONMENT)


@pytest.mark.parametrize("key", [*ENVIRONMENT, "cuda_device"])
def test_a_resume_in_another_environment_is_refused_or_logged(tmp_path, begun, whole, key, caplog):
    """Each part of the environment was another: refused; with inexact_resume it goes on, and the
    log and the result say so, also after a further, exact, resume.

    Catches a part that is not compared, and a run that forgets that it has moved.
    """
    folder = copy(begun, tmp_path / "run")
    here: dict[str, Any] = Experiment(tiny()).environment()
    changes = moved(folder, **{key: elsewhere(here.get(key, "this GPU"))})
    ((old, new),) = changes.values()
    before = content(folder)
    with pytest.raises(CheckpointError, match="go on with --inexact-resume") as raised:
        tune_recipe(tiny(), folder, resume=True)
    assert f"begun in another environment ({key}: {old!r} → {new!r})" in str(raised.value)
    assert content(folder) == before
    assert not caplog.records
    with pytest.raises(KeyboardInterrupt):
        tune_recipe(tiny(), folder, resume=True, inexact_resume=True, callbacks=[StopsAfter(1)])
    (logged,) = (record.getMessage() for record in caplog.records)
    assert f"resuming in another environment ({key}: {old!r} → {new!r})" in logged
    assert "the recipe no longer repeats this run bit for bit" in logged
    caplog.clear()
    result = as_json(tune_recipe(tiny(), folder, resume=True))
    assert not caplog.records, "an exact resume is nothing to warn of"
    assert result["inexact_resumes"] == [changes]
    assert result_of(folder)["inexact_resumes"] == [changes]
    assert outcome(folder)[0] == outcome(whole)[0]


def test_a_run_that_moves_twice_says_both(tmp_path, begun):
    """Several changes at once, and later another one: the result has all, in their order.

    Catches a second move that hides the first.
    """
    folder = copy(begun, tmp_path / "run")
    first = moved(folder, torch="2.0.0", cpu="ABACUS")
    with pytest.raises(CheckpointError, match=r"torch: '2\.0\.0' → .*; cpu: 'ABACUS' → "):
        tune_recipe(tiny(), folder, resume=True)
    with pytest.raises(KeyboardInterrupt):
        tune_recipe(tiny(), folder, resume=True, inexact_resume=True, callbacks=[StopsAfter(1)])
    second = moved(folder, python="2.7.18")
    result = as_json(tune_recipe(tiny(), folder, resume=True, inexact_resume=True))
    assert result["inexact_resumes"] == [first, second]


def test_device_and_threads_are_compared_with_the_checkpoint(tmp_path, begun, whole):
    """Another number of threads is refused like any other move; a device that comes to the same
    (cpu for auto) is no change.

    Catches a recipe that is compared word by word where the machine is what counts.
    """
    folder = copy(begun, tmp_path / "threads")
    with pytest.raises(CheckpointError, match=r"threads: 1 → 2\).* go on with --inexact-resume"):
        tune_recipe(tiny(threads=2), folder, resume=True)
    result = as_json(tune_recipe(tiny(threads=2), folder, resume=True, inexact_resume=True))
    assert result["inexact_resumes"] == [{"threads": [1, 2]}]
    assert result["environment"]["threads"] == 2
    if not torch.cuda.is_available():
        folder = copy(begun, tmp_path / "device")
        result = as_json(tune_recipe(tiny(device="auto"), folder, resume=True))
        assert result["inexact_resumes"] == []
        assert outcome(folder) == outcome(whole)


# --- networks -------------------------------------------------------------------------------------

NETWORK: dict[str, Any] = {
    "name": "another",
    "seed": 7,
    "dtype": "float64",
    "data.name": "mnist",
    "data.images": 4,
    "data.downsample": 2,
    "data.binarize_above": 0.5,
    "data.corruption": 0.25,
    "data.download": True,
    "network.hidden": 5,
    "network.a": 0.9,
    "network.b": 0.6,
    "network.readout": "activation",
    "network.init_std": 0.01,
    "inference.updates": 9,
    "inference.settled": 0.125,
    "gradient.method": "rbp",
    "gradient.trunc": 5,
    "gradient.options.neumann.tolerance": 0.25,
    "penalty.name": "gershgorin",
    "penalty.weight": 2.0,
    "training.optimizer": "sgd",
    "training.learning_rate": 0.02,
    "training.momentum": 0.5,
    "training.weight_decay": 0.1,
    "training.validate_every": 1,
    "training.batch_size": 2,
}


@pytest.fixture(scope="module")
def begun_network(tmp_path_factory) -> Path:
    """A training of a network that was interrupted after a checkpoint; copy it."""
    folder = tmp_path_factory.mktemp("begun") / "run"
    with pytest.raises(KeyboardInterrupt):
        train_recipe(changed(MEMORY, {}), folder, callbacks=[StopsAfter(3)])
    return folder


def test_no_key_of_a_network_is_left_out():
    known = set(NETWORK) | {"system", "device", "threads", "training.epochs", "penalty.options"}
    recipes = HopfieldRecipe(), changed(MEMORY, {})
    there = {key for recipe in recipes for key, _ in leaves(recipe.model_dump())}
    assert there - sections(known) == known


@pytest.mark.parametrize("key", NETWORK)
def test_a_network_is_not_resumed_with_another_recipe(tmp_path, begun_network, key):
    """Each key of a network's recipe changed, one at a time: refused with key: old → new.

    Catches a key that is not compared, and data that are looked for first.
    """
    folder = copy(begun_network, tmp_path / "run")
    recipe = changed(MEMORY, {key: NETWORK[key]})
    before, old = content(folder), dict(leaves(changed(MEMORY, {}).model_dump()))[key]
    with pytest.raises(CheckpointError) as raised:
        train_recipe(recipe, folder, data_root=tmp_path / "nowhere", resume=True)
    assert f"({key}: {old!r} → {NETWORK[key]!r}); only training.epochs" in str(raised.value)
    assert content(folder) == before


@pytest.mark.parametrize("key", ENVIRONMENT)
def test_a_network_is_not_resumed_elsewhere_unseen(tmp_path, begun_network, key, caplog):
    """As a tuning run: refused, or said in the log and in the result for good.

    Catches a network that is not asked.
    """
    folder = copy(begun_network, tmp_path / "run")
    here: dict[str, Any] = Experiment(tiny()).environment()
    changes = moved(folder, **{key: elsewhere(here[key])})
    ((old, new),) = changes.values()
    with pytest.raises(CheckpointError, match="--inexact-resume") as raised:
        train_recipe(changed(MEMORY, {}), folder, resume=True)
    assert f"{key}: {old!r} → {new!r}" in str(raised.value)
    assert not caplog.records
    result = as_json(train_recipe(changed(MEMORY, {}), folder, resume=True, inexact_resume=True))
    assert f"{key}: {old!r} → {new!r}" in caplog.text
    assert result["inexact_resumes"] == [changes]
    again = as_json(train_recipe(changed(MEMORY, {}), folder, resume=True))
    assert again["inexact_resumes"] == [changes]


# --- the command line -----------------------------------------------------------------------------


def command(*words: object):
    return CliRunner().invoke(cli.app, [*map(str, words), "--quiet"])


@pytest.mark.parametrize("verb", ["tune", "train"])
def test_the_command_ends_with_7_and_one_line(tmp_path, begun, begun_network, verb):
    """Another recipe, or another place: one line, exit code 7; --inexact-resume goes on.

    Catches another code, a traceback, and a flag that is on by itself.
    """
    folder = copy(begun if verb == "tune" else begun_network, tmp_path / "run")
    done = command(verb, folder, "--resume", "--seed", 7)
    assert_refused(done, 7, "was begun with another recipe (seed: 1234 → 7); only ")
    assert done.stderr.count("\n") == 1
    changes = moved(folder, python="2.7.18")
    done = command(verb, folder, "--resume")
    assert_refused(done, 7, "(python: '2.7.18' → ", "go on with --inexact-resume")
    assert done.stderr.count("\n") == 1
    done = command(verb, folder, "--resume", "--inexact-resume")
    assert done.exit_code == 0, done.output
    note = "hyperrbp: note: resuming in another environment (python: '2.7.18' → "
    assert done.stderr.startswith(note)
    assert done.stderr.count("\n") == 1
    assert result_of(folder)["inexact_resumes"] == [changes]


def test_the_command_refuses_other_threads_and_fewer_steps(tmp_path, whole):
    """Exit code 7 and one line for each, more steps go on. Catches fewer steps that pass."""
    folder = copy(whole, tmp_path / "run")
    for words, said in (
        (["--set", "threads=2"], "threads: 1 → 2"),
        (["--meta-steps", 1], "already taken 2 meta steps"),
        (["--set", "meta.on_divergence=rollback"], "meta.on_divergence: 'stop' → 'rollback'"),
    ):
        done = command("tune", folder, "--resume", *words)
        assert_refused(done, 7, said)
        assert done.stderr.count("\n") == 1
    assert command("tune", folder, "--resume", "--meta-steps", 3).exit_code == 0
    assert len(records_of(folder)) == 4
