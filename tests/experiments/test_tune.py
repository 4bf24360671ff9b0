"""The meta loop, and a tuning run on disk."""

from __future__ import annotations

import math
import statistics
import time

import pytest
import torch
from factories import LEARNING, outcome, recipe, tuning_text
from runs import Keeps, StopsAt, as_json, records_of, result_of
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hyperrbp import tune_recipe
from hyperrbp.config.loading import read
from hyperrbp.exceptions import CheckpointError, UsageError
from hyperrbp.experiments import checkpoint
from hyperrbp.experiments.experiment import Experiment
from hyperrbp.experiments.replicates import compare_on_replicates
from hyperrbp.experiments.results.records import StepRecord
from hyperrbp.experiments.run_folder import RunFolder
from hyperrbp.reporting.tensorboard import TensorBoard, scalars
from hyperrbp.runtime.callbacks import Progress

TINY = tuning_text(
    **LEARNING, name="tiny", meta__steps=5, meta__decay={"factor": 0.5, "from_step": 3}
)


def tiny(**changes):
    return recipe(TINY, **changes)


# --- a run on disk -------------------------------------------------------------------------------


def test_a_run_folder_and_its_rerun(tmp_path):
    """The folder is complete; its recipe gives the same bits again, and another seed gives others.

    Catches numbers from a global generator, and a seed that does not count.
    """
    result = as_json(tune_recipe(tiny(), tmp_path / "one", callbacks=[TensorBoard()]))
    folder = RunFolder(tmp_path / "one")
    assert result["status"] == "done"
    assert result == result_of(folder)
    assert len(result["meta_loss"]) == 6
    best = min(range(6), key=result["meta_loss"].__getitem__)
    assert result["best"] == {"meta_step": best, "meta_loss": result["meta_loss"][best]}
    records = records_of(folder)
    assert result["hyperparameters"] == records[best]["hyperparameters"]
    assert result["untuned"] == records[0]["hyperparameters"]
    assert result["stopped_early"] is None
    assert set(records[0]["measured"]["seconds"]) == {"inner run", "meta-gradient", "meta step"}
    assert "gradient" not in records[-1]
    # Re-running the recipe in the folder gives the same bits.
    tune_recipe(read(folder.recipe_file), tmp_path / "two")
    assert outcome(tmp_path / "one") == outcome(tmp_path / "two")
    # Another seed gives others.
    tune_recipe(tiny(seed=7), tmp_path / "three")
    assert outcome(tmp_path / "three")[0] != outcome(tmp_path / "one")[0]


def test_the_best_hyperparameters_train_to_the_best_loss(tmp_path):
    result = as_json(tune_recipe(tiny(**{"meta.learning_rate": 1.5}), tmp_path / "run"))
    assert 0 < result["best"]["meta_step"] < 5, "the best is neither the first nor the last"
    assert result["last"]["meta_step"] == 5
    assert result["last"]["hyperparameters"] != result["hyperparameters"]
    experiment = Experiment(read(tmp_path / "run" / "recipe.yaml"))
    problem = experiment.problem()
    theta = torch.tensor(
        [math.log(a) for a in result["hyperparameters"]["learning_rate"].values()]
        + [math.log(b / (1 - b)) for b in result["hyperparameters"]["momentum"].values()]
    )
    h = problem.run(theta, 0, problem.steps, problem.initial_state())
    assert float(problem.loss_and_gradient(h)[0]) == pytest.approx(
        result["best"]["meta_loss"], rel=1e-4
    )


# --- the test at the end -------------------------------------------------------------------------


def by_hand(experiment, theta, number):
    """The held-out loss and accuracy after a run from other weights and batches."""
    problem = experiment.replicate(number)
    h = problem.run(theta, 0, problem.steps, problem.initial_state(theta))
    outputs = problem.objective.outputs(
        problem.objective.pieces(h[: problem.weights]), experiment.data.heldout.inputs
    )
    right = outputs.argmax(1) == experiment.data.heldout.targets
    loss = torch.nn.functional.cross_entropy(outputs, experiment.data.heldout.targets)
    return float(loss), float(right.double().mean())


@pytest.mark.parametrize("seeds", [0, 1, 4])
def test_the_answer_is_tested_on_replicates_and_held_out_examples(tmp_path, seeds):
    kept = Keeps()
    result = as_json(
        tune_recipe(
            tiny(**{"meta.learning_rate": 0.3, "record.test_seeds": seeds}),
            tmp_path / "run",
            callbacks=[kept],
        )
    )
    if seeds == 0:
        assert "test" not in result
        assert kept.progress == []
        return
    experiment = Experiment(read(tmp_path / "run" / "recipe.yaml"))
    steps = experiment.recipe.inner.steps
    what = "test on the held-out examples"
    assert kept.progress == [
        Progress(what, steps * done, steps * 2 * seeds, "training steps")
        for done in range(2 * seeds + 1)
    ]
    assert set(result["test"]) == {"seeds", "tuned", "untuned"}
    assert result["test"]["seeds"] == seeds
    for name, kept in (("tuned", "hyperparameters"), ("untuned", "untuned")):
        theta = experiment.problem().theta_of(result[kept])
        found = [by_hand(experiment, theta, number) for number in range(seeds)]
        tested = result["test"][name]
        assert tested["diverged"] == 0
        for measure, values in zip(("loss", "accuracy"), zip(*found, strict=True), strict=True):
            # The kept rates are θ rounded: an example may fall to the other side.
            mine = tested[measure]["values"]
            within = 0.004 if measure == "accuracy" else 0
            assert mine == pytest.approx(list(values), rel=1e-4, abs=within)
            assert tested[measure]["mean"] == pytest.approx(sum(mine) / seeds)
            if seeds == 1:
                assert tested[measure]["deviation"] is None
            else:
                assert tested[measure]["deviation"] == pytest.approx(statistics.stdev(mine))
    tuned, untuned = (result["test"][name]["loss"]["mean"] for name in ("tuned", "untuned"))
    assert tuned < untuned


@pytest.mark.parametrize("fresh", [False, True])
def test_no_replicate_is_the_inner_run_of_a_meta_step(fresh):
    experiment = Experiment(tiny(**{"inner.fresh": fresh}))
    problems = [experiment.problem(step) for step in range(20)]
    problems += [experiment.replicate(number) for number in range(20)]
    starts = {tuple(problem.initial_state().tolist()) for problem in problems}
    orders = {tuple(problem.input(0).rows.tolist()) for problem in problems}
    assert len(starts) == len(orders) == (40 if fresh else 21)
    again = Experiment(tiny()).replicate(3)
    assert torch.equal(again.initial_state(), experiment.replicate(3).initial_state())


def test_a_test_run_that_turns_non_finite_is_null_and_counted(monkeypatch):
    experiment, real = Experiment(tiny()), Experiment.replicate

    def one_is_bad(self, number):
        problem = real(self, number)
        if number == 1:
            problem._initial_weights = problem._initial_weights * math.nan
        return problem

    wild = experiment.theta + 100  # rates that overflow
    found = as_json(compare_on_replicates(experiment, wild, experiment.theta).tuned)
    assert found == {
        "loss": {"mean": None, "deviation": None, "values": [None] * 3},
        "accuracy": {"mean": None, "deviation": None, "values": [None] * 3},
        "diverged": 3,
    }
    monkeypatch.setattr(Experiment, "replicate", one_is_bad)
    found = as_json(compare_on_replicates(experiment, experiment.theta, wild).tuned)
    assert found["diverged"] == 1
    for measure in ("loss", "accuracy"):
        values = found[measure]["values"]
        assert [value is None for value in values] == [False, True, False]
        known = [values[0], values[2]]
        assert found[measure]["mean"] == pytest.approx(sum(known) / 2)
        assert found[measure]["deviation"] == pytest.approx(statistics.stdev(known))


# --- patience ------------------------------------------------------------------------------------

IMPATIENT = {"meta.learning_rate": 4.0, "meta.steps": 12, "meta.patience": 3}
"""Overshoots, and does not come back."""


def test_a_run_out_of_patience_is_done_and_says_when(tmp_path):
    result = as_json(tune_recipe(tiny(**IMPATIENT), tmp_path / "whole"))
    end, best = result["stopped_early"]["meta_step"], result["best"]["meta_step"]
    assert result["status"] == "done"
    assert end == best + 3 < 12
    records = records_of(tmp_path / "whole")
    assert [record["meta_step"] for record in records] == list(range(end + 1))
    # Resumed after its end it stays as it is, and interrupted it ends at the same place.
    truth = outcome(tmp_path / "whole")
    tune_recipe(tiny(**IMPATIENT), tmp_path / "whole", resume=True)
    assert outcome(tmp_path / "whole") == truth
    for at in (1, end):
        with pytest.raises(KeyboardInterrupt):
            tune_recipe(tiny(**IMPATIENT), tmp_path / f"cut{at}", callbacks=[StopsAt(at)])
        tune_recipe(tiny(**IMPATIENT), tmp_path / f"cut{at}", resume=True)
        assert outcome(tmp_path / f"cut{at}") == truth


# --- samples, folders and curves -----------------------------------------------------------------


def test_a_fresh_inner_run_has_new_weights_and_batches_each_meta_step():
    experiment = Experiment(tiny(**{"inner.fresh": True}))
    first = experiment.problem(0)
    start, batch = first.initial_state(), first.input(0).targets
    second = experiment.problem(1)
    assert not torch.equal(second.initial_state(), start)
    assert not torch.equal(second.input(0).targets, batch)
    assert torch.equal(experiment.problem(0).initial_state(), start)
    same = Experiment(tiny())
    assert same.problem(0) is same.problem(3)


def test_global_generators_stand_as_they_stood(tmp_path):
    """PyTorch's, Python's and NumPy's, around a whole run with its model and its dashboard.

    Catches a model that is built outside the fork.
    """
    import random as python_random

    import numpy as np
    import rich.style  # noqa: F401  # it draws a number when it is imported

    before = torch.get_rng_state(), python_random.getstate(), np.random.get_state()[1].tolist()
    tune_recipe(tiny(**{"meta.steps": 1}), tmp_path / "run", callbacks=[TensorBoard()])
    assert torch.equal(torch.get_rng_state(), before[0])
    assert python_random.getstate() == before[1]
    assert np.random.get_state()[1].tolist() == before[2]


def test_a_validation_split_is_held_back():
    section = {"data.validation_examples": 40, "meta.loss": "validation"}
    experiment = Experiment(tiny(**section))
    assert len(experiment.data.train) == 160
    assert len(experiment.data.validation) == 40
    whole = Experiment(tiny()).data.train
    rows = {tuple(row.tolist()) for row in whole.inputs}
    split = [
        tuple(r.tolist())
        for part in (experiment.data.train, experiment.data.validation)
        for r in part.inputs
    ]
    assert {*split} == rows
    assert len(split) == 200
    h = experiment.problem().initial_state()
    on_validation = experiment.problem().loss_and_gradient(h)[0]
    on_train = Experiment(tiny(**{"data.validation_examples": 40})).problem()
    assert not torch.equal(on_validation, on_train.loss_and_gradient(h)[0])


def test_folders_with_something_in_them_are_refused(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="not empty"):
        tune_recipe(tiny(), tmp_path / "run")
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["notes.txt"]
    with pytest.raises(UsageError, match="there is no run"):
        tune_recipe(tiny(), tmp_path / "run", resume=True)


def test_a_run_killed_before_its_first_checkpoint_starts_anew(tmp_path):
    tune_recipe(tiny(), tmp_path / "whole")
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    (folder.path / ".recipe.yaml.123.tmp").write_text("half a")
    folder.check_new()  # nothing of worth is in there
    folder.create(Experiment(tiny()).recipe)
    assert [p.name for p in folder.path.iterdir()] == ["recipe.yaml"]
    tune_recipe(tiny(), folder.path, resume=True)
    assert outcome(folder.path) == outcome(tmp_path / "whole")
    checkpoint.previous(folder.checkpoint_file).unlink()
    folder.checkpoint_file.unlink()  # but one that has records had a checkpoint
    with pytest.raises(CheckpointError, match="no checkpoint"):
        tune_recipe(tiny(), folder.path, resume=True)


def test_tensorboard_shows_each_meta_step_once_after_a_resume(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        tune_recipe(tiny(), tmp_path / "run", callbacks=[TensorBoard(), StopsAt(3)])
    run = RunFolder(tmp_path / "run")
    assert len(records_of(run)) == 3
    time.sleep(1.1)  # event files are named by the second
    tune_recipe(tiny(), run.path, resume=True, callbacks=[TensorBoard()])
    events = EventAccumulator(str(run.events))
    events.Reload()
    for tag in ("meta/loss", "momentum/output.bias"):
        assert [event.step for event in events.Scalars(tag)] == list(range(6))


def test_a_torn_last_record_is_dropped(tmp_path):
    tune_recipe(tiny(), tmp_path / "run")
    run = RunFolder(tmp_path / "run")
    whole = run.records_file.read_bytes()
    last = whole[:-1].rfind(b"\n") + 1
    for cut in range(last, len(whole) - 1, 97):
        run.records_file.write_bytes(whole[:cut])
        assert len(records_of(run)) == 5
    run.records_file.write_bytes(b"{broken}\n" + whole)
    with pytest.raises(CheckpointError, match=r"records\.jsonl:1"):
        records_of(run)


def test_tensorboard_has_every_curve(tmp_path):
    tune_recipe(tiny(), tmp_path / "run", callbacks=[TensorBoard()])
    events = EventAccumulator(str(tmp_path / "run" / "events"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    records = records_of(tmp_path / "run")
    assert tags == set(scalars(RunFolder(tmp_path / "run").records(StepRecord)[0]))
    for tensor in ("hidden1.weight", "hidden1.bias", "output.weight", "output.bias"):
        for group in ("learning_rate", "momentum", "gradient_momentum", "standard_error_momentum"):
            assert f"{group}/{tensor}" in tags
    assert {"meta/loss", "gradient/norm", "gradient/residual", "seconds/inner_run"} <= tags
    assert "peak_bytes_inner_run/process" in tags
    assert "recipe/text_summary" in events.Tags()["tensors"]
    curve = [event.value for event in events.Scalars("learning_rate/output.bias")]
    truth = [record["hyperparameters"]["learning_rate"]["output.bias"] for record in records]
    assert curve == pytest.approx(truth, rel=1e-6)
    for meta_step in (0, 5):
        inner = EventAccumulator(
            str(tmp_path / "run" / "events" / f"inner_run_at_meta_step_{meta_step}")
        )
        inner.Reload()
        points = inner.Scalars("inner_run/minibatch_loss")
        assert [point.step for point in points] == list(range(12))
        assert points[-1].value < points[0].value


def test_callbacks_change_no_bit(tmp_path):
    """Records, result and checkpoint with TensorBoard and without, to the bit.

    Catches an observer that writes into what it is shown.
    """
    tune_recipe(tiny(), tmp_path / "followed", callbacks=[TensorBoard()])
    tune_recipe(tiny(), tmp_path / "bare")
    assert outcome(tmp_path / "followed") == outcome(tmp_path / "bare")
