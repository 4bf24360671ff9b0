"""Built-in losses, and losses of the user's own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import assert_refused, run
from own_parts import OWN_LOSS, SHORT, SHOW, npz, short
from runs import as_json
from torch import nn

from hyperrbp import tune_recipe
from hyperrbp.exceptions import DataError, UsageError
from hyperrbp.experiments.experiment import Experiment
from hyperrbp.problems.losses import LOSSES

pytestmark = pytest.mark.usefixtures("elsewhere")


def two_batches():
    source = torch.Generator().manual_seed(0)
    outputs = torch.randn(7, 3, generator=source, dtype=torch.float64)
    values = torch.rand(7, 3, generator=source, dtype=torch.float64)
    return outputs, values, torch.randint(0, 3, (7,), generator=source)


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("cross-entropy", nn.functional.cross_entropy),
        ("mse", nn.functional.mse_loss),
        ("mae", nn.functional.l1_loss),
        ("huber", nn.functional.huber_loss),
        ("binary-cross-entropy", nn.functional.binary_cross_entropy_with_logits),
    ],
)
def test_a_loss_is_one_number_an_example_whose_mean_is_pytorchs(name, reference):
    outputs, values, classes = two_batches()
    targets = classes if LOSSES[name].targets == "classes" else values
    losses = LOSSES[name].function(outputs, targets)
    assert losses.shape == (7,)
    torch.testing.assert_close(losses.mean(), reference(outputs, targets))
    torch.testing.assert_close(losses[2:3], LOSSES[name].function(outputs[2:3], targets[2:3]))
    assert set(LOSSES) == {"cross-entropy", "mse", "mae", "huber", "binary-cross-entropy"}


def test_outputs_are_not_broadcast():
    outputs, targets = torch.zeros(5), torch.arange(5.0)[:, None]
    assert LOSSES["mse"].function(outputs, targets).tolist() == [0, 1, 4, 9, 16]
    with pytest.raises(
        UsageError, match=r"outputs of shape \(5, 2\) for targets of shape \(5, 1\)"
    ):
        LOSSES["mse"].function(torch.zeros(5, 2), targets)


def regression(**arrays):
    source = np.random.default_rng(0)
    x = source.normal(size=(80, 3))
    y = x @ np.array([1.0, -2.0, 0.5]) + 0.01 * source.normal(size=80)
    return npz(inputs=x, targets=arrays.get("targets", y))


def test_regression_end_to_end():
    """No classes: the squared error falls, and what is reported is its root and R²."""
    regression()
    Path("own.yaml").write_text(
        SHORT.replace("steps: 6", "steps: 40") + "data: {name: mine.npz}\n"
        "model: {options: {hidden: []}, init_std: 0.01}\n"
    )
    done = run("tune", "own.yaml", "--out", "run", *SHOW)
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    test = result["test"]["tuned"]
    assert test.pop("diverged") == 0
    after = {measure: of["values"][0] for measure, of in test.items()}
    assert set(after) == {"loss", "rmse", "r2"}
    assert after["rmse"] ** 2 == pytest.approx(after["loss"], rel=1e-5)
    assert after["rmse"] < 0.2
    assert after["r2"] > 0.98
    experiment = Experiment(short(data__name="mine.npz"))
    assert experiment.data.heldout.targets.shape == (16, 1)
    spread = float(experiment.data.heldout.targets.var(unbiased=False))
    assert after["r2"] == pytest.approx(1 - after["loss"] / spread, rel=1e-5)
    shown = run("show", "run").stdout
    assert "held-out error" in shown
    assert "held-out R²" in shown
    assert "accuracy" not in shown
    done = run("train", "own.yaml", "--hyperparameters", "run", "--out", "trained", "-q")
    assert done.exit_code == 0, done.output
    assert "held-out R²" in run("show", "trained").stdout
    trained = json.loads(Path("trained", "result.json").read_text())
    assert trained["heldout"]["rmse"] == pytest.approx(after["rmse"], rel=0.5)  # another draw


def test_a_loss_of_ones_own_gets_single_values_as_a_column():
    regression()
    Path("loss.py").write_text(
        "def loss(outputs, targets):\n"
        "    assert outputs.shape == targets.shape == (len(targets), 1)\n"
        "    return (outputs - targets).abs()[:, 0]\n"
    )
    experiment = Experiment(short(data__name="mine.npz", inner__loss="loss.py:loss"))
    problem = experiment.problem()
    assert set(experiment.heldout_measures(problem, problem.initial_state())) == {
        "loss", "rmse", "r2",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("loss", "targets", "outputs"),
    [
        ("auto", np.linspace(0, 1, 80), 1),
        ("auto", np.ones((80, 4)), 4),
        ("huber", np.arange(80), 1),
        ("mae", np.arange(160).reshape(80, 2), 2),
        ("binary-cross-entropy", np.arange(80) % 2, 1),
        ("binary-cross-entropy", np.arange(160).reshape(80, 2) % 2, 2),
        ("cross-entropy", np.arange(80) % 5, 5),
        ("cross-entropy", np.arange(80)[:, None] % 5, 5),
    ],
)
def test_a_loss_says_how_many_outputs_there_are(loss, targets, outputs):
    regression(targets=targets)
    experiment = Experiment(short(data__name="mine.npz", inner__loss=loss))
    assert experiment.problem().objective.shapes[-1] == (outputs,)
    measures = experiment.heldout_measures(
        experiment.problem(), experiment.problem().initial_state()
    )
    kind = "accuracy" if loss in ("cross-entropy", "binary-cross-entropy") else "rmse"
    assert kind in measures


def test_binary_accuracy_is_the_share_on_the_right_side():
    regression(targets=np.arange(80) % 2)
    experiment = Experiment(short(data__name="mine.npz", inner__loss="binary-cross-entropy"))
    problem = experiment.problem()
    h = problem.run(experiment.theta, 0, 6, problem.initial_state())
    made = problem.objective.outputs(
        problem.objective.pieces(h[: problem.weights]), experiment.data.heldout[0]
    )
    right = ((made > 0) == (experiment.data.heldout.targets > 0.5)).double().mean()
    assert experiment.heldout_measures(problem, h)["accuracy"] == float(right)


@pytest.mark.parametrize(
    ("loss", "targets", "words"),
    [
        ("cross-entropy", np.linspace(0, 1, 80), "targets are floats of shape (1,); cross-entropy"),
        ("binary-cross-entropy", np.linspace(0, 2, 80), "targets outside 0 … 1"),
        ("binary-cross-entropy", np.arange(80) - 1, "targets outside 0 … 1"),
    ],
)
def test_targets_that_a_loss_cannot_take_are_refused(loss, targets, words):
    regression(targets=targets)
    with pytest.raises(DataError) as refused:
        Experiment(short(data__name="mine.npz", inner__loss=loss))
    assert words in str(refused.value)


def test_a_loss_of_ones_own_is_trained_on_behind_run_code():
    """Refused without it. Catches a loss that is not asked for, or not used."""
    npz()
    Path("loss.py").write_text(OWN_LOSS)
    Path("own.yaml").write_text(SHORT.replace("batch_size: 10", 'loss: "loss.py:focal"')
                                .replace("inner: {", "inner: {batch_size: 10, ")
                                + "data: {name: mine.npz}\n")  # fmt: skip
    assert_refused(run("tune", "own.yaml"), 2, "inner.loss: would run 'focal' of ")
    results = {}
    for name in ("focal", "mean", "plain"):
        done = run("tune", "own.yaml", "--set", f"inner.loss=loss.py:{name}", "--run-code",
                   "--out", name, *SHOW)  # fmt: skip
        assert done.exit_code == 0, done.output
        results[name] = json.loads(done.stdout)
    assert results["focal"]["meta_loss"] == pytest.approx(results["mean"]["meta_loss"], rel=1e-4)
    assert results["focal"]["meta_loss"] != pytest.approx(results["plain"]["meta_loss"], rel=0.1)
    assert set(results["focal"]["test"]["tuned"]) == {"loss", "accuracy", "diverged"}
    named = as_json(tune_recipe(short(data__name="mine.npz"), Path("named")))
    assert results["plain"]["meta_loss"] == pytest.approx(named["meta_loss"], rel=1e-5)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("fails", "on outputs of shape (2, 3) and targets of (2,): KeyError: 'no'"),
        ("number", "made float; expected a tensor of floats"),
        ("matrix", "made losses of shape (2, 3) for 2 examples; expected one an example, (2,)"),
        ("wrong", "cannot be differentiated twice: RuntimeError: element 0 of tensors does not"),
        ("gone", "AttributeError: "),
    ],
)
def test_a_loss_that_cannot_be_used_is_refused_before_training(function, words):
    npz()
    Path("loss.py").write_text(OWN_LOSS)
    with pytest.raises(UsageError) as refused:
        Experiment(short(data__name="mine.npz", inner__loss=f"loss.py:{function}")).problem()
    assert words in str(refused.value)
    assert f"'{function}' of " in str(refused.value)
