"""The meta loop, and a tuning run on disk."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from conftest import Linear, random_linear, small_training_run, without_measured
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hyperrbp import GradientSettings, MetaSettings, checkpoint, descend, hypergradient, tune_recipe
from hyperrbp.descent import MetaState
from hyperrbp.errors import CheckpointError, DivergedError, StorageError, UsageError
from hyperrbp.experiment import Experiment
from hyperrbp.gradients import METHODS
from hyperrbp.problems.training import TrainingRun
from hyperrbp.recipe import parse, read
from hyperrbp.report.tensorboard import TensorBoard, scalars
from hyperrbp.run_folder import RunFolder

TINY = """
name: tiny
threads: 1
data: {name: digits, train_examples: 200}
model: {options: {hidden: [5]}, init_std: 0.3}
inner: {steps: 12, batch_size: 50}
gradient: {trunc: 4, averaging: {minibatches: 4, series: 2}}
meta: {steps: 5, learning_rate: 0.1, decay: {factor: 0.5, from_step: 3}}
"""


def tiny(**changes):
    return parse(TINY, overrides=[("test", key, value) for key, value in changes.items()])


@pytest.fixture(autouse=True)
def threads():
    """A recipe sets the threads of the process; give the other tests theirs back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def outcome(folder: Path) -> tuple:
    """All of a run but what was measured."""
    run = RunFolder(folder)
    result = run.result()
    for key in ("seconds", "peak_bytes", "wall_seconds", "run_folder"):
        del result[key]
    state, _ = checkpoint.load(run.checkpoint_file)
    return [without_measured(r) for r in run.records()], result, state


# --- the meta loop -------------------------------------------------------------------------------


def test_the_loop_is_adam_on_the_hypergradient():
    problem, theta = small_training_run(steps=15)
    reference = theta.clone().requires_grad_()
    adam = torch.optim.Adam([reference], lr=0.05)
    schedule = torch.optim.lr_scheduler.StepLR(adam, step_size=4, gamma=0.1)
    settings = GradientSettings("bptt")
    steps = list(descend(problem, theta, settings, MetaSettings(7, 0.05, 0.1, decay_from=4)))
    assert [step.meta_step for step in steps] == list(range(8))
    for step in steps:
        assert torch.equal(step.theta, reference.detach())
        if step.hypergradient is None:
            break
        reference.grad = hypergradient(problem, reference.detach(), "bptt").gradient
        assert torch.equal(step.hypergradient.gradient, reference.grad)
        adam.step()
        schedule.step()
    assert steps[-1].hypergradient is None
    assert steps[-1].meta_loss < steps[0].meta_loss
    assert torch.equal(theta, steps[0].theta), "the given start was changed"


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_descends_a_contraction(method):
    problem, theta = random_linear(steps=40)
    steps = list(
        descend(problem, theta, GradientSettings(method, trunc=30), MetaSettings(20, 0.05))
    )
    assert steps[-1].meta_loss < steps[0].meta_loss


def test_a_state_survives_json_to_the_bit():
    problem, theta = small_training_run(steps=8)
    for dtype in (torch.float32, torch.float64):
        state = MetaState(theta.to(torch.float64) / 3)
        settings = GradientSettings(trunc=3)
        whole = [s.theta for s in descend(problem, theta / 3, settings, MetaSettings(6))]
        for step in descend(problem, state, settings, MetaSettings(6)):
            if step.meta_step == 2:
                break
        again = MetaState.from_json(json.loads(json.dumps(state.to_json())), like=theta)
        rest = [s.theta for s in descend(problem, again, settings, MetaSettings(6))]
        assert len(rest) == 4
        assert all(torch.equal(a, b) for a, b in zip(whole[3:], rest, strict=True))
        odd = torch.tensor([1 / 3, math.pi, 1e-40], dtype=dtype)
        back = MetaState.from_json(json.loads(json.dumps(MetaState(odd).to_json())), like=odd)
        assert torch.equal(back.theta, odd)


class Breaks(Linear):
    """Turns non-finite at one site once θ has moved."""

    site = "loss"

    def loss_and_gradient(self, h):
        loss, g = super().loss_and_gradient(h)
        return (loss * self._bad("loss"), g * self._bad("gradient"))

    def run(self, theta, start, stop, h):
        self.moved = bool((theta != self.start).any())
        return super().run(theta, start, stop, h) * self._bad("state")

    def step(self, h, theta, x):
        if not h.requires_grad and not torch.is_grad_enabled():
            return super().step(h, theta, x)
        self.moved = bool((theta.detach() != self.start).any())
        return super().step(h, theta, x) * (self._bad("state") if self.site == "state" else 1.0)

    def _bad(self, site: str) -> float:
        return math.nan if site == self.site and self.moved else 1.0


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize(
    ("site", "words"),
    [("loss", "meta loss"), ("state", "state of the inner run"), ("gradient", "hypergradient")],
)
def test_nothing_non_finite_reaches_adam(method, site, words):
    plain, theta = random_linear(steps=20)
    problem = Breaks(plain.A, plain.B, plain.c, plain.q, 20)
    problem.site, problem.start, problem.moved = site, theta.clone(), False
    state = MetaState(theta.clone())
    with pytest.raises(DivergedError, match=rf"meta step 1: the {words} is not finite"):
        list(descend(problem, state, GradientSettings(method, trunc=10), MetaSettings(4, 0.1)))
    assert state.meta_step == 1
    for kept in (state.theta, state.best_theta, state.first_moment, state.second_moment):
        assert kept.isfinite().all()
    assert math.isfinite(state.best_loss)
    assert state.best_step <= (1 if site == "gradient" else 0)


def test_hyperparameters_that_overflow_never_reach_the_state():
    problem, theta = random_linear(steps=20)
    state = MetaState(theta.clone())
    with pytest.raises(DivergedError, match="hyperparameters after the update"):
        list(descend(problem, state, GradientSettings("bptt"), MetaSettings(4, math.inf)))
    assert torch.equal(state.theta, theta)


# --- a run on disk -------------------------------------------------------------------------------


def test_a_run_folder_and_its_rerun(tmp_path):
    result = tune_recipe(tiny(), tmp_path / "one", observers=[TensorBoard()])
    folder = RunFolder(tmp_path / "one")
    assert result["status"] == "done"
    assert result == folder.result()
    assert len(result["meta_loss"]) == 6
    best = min(range(6), key=result["meta_loss"].__getitem__)
    assert result["best"] == {"meta_step": best, "meta_loss": result["meta_loss"][best]}
    records = folder.records()
    assert result["hyperparameters"] == records[best]["hyperparameters"]
    assert result["untuned"] == records[0]["hyperparameters"]
    assert set(result["heldout_accuracy"]) == {"before", "after"}
    assert set(records[0]["measured"]["seconds"]) == {"inner run", "meta-gradient", "meta step"}
    assert "gradient" not in records[-1]
    # Re-running the recipe in the folder gives the same bits.
    tune_recipe(read(folder.recipe_file), tmp_path / "two")
    assert outcome(tmp_path / "one") == outcome(tmp_path / "two")
    # Another seed gives others.
    tune_recipe(tiny(seed=7), tmp_path / "three")
    assert outcome(tmp_path / "three")[0] != outcome(tmp_path / "one")[0]


def test_the_best_hyperparameters_train_to_the_best_loss(tmp_path):
    result = tune_recipe(tiny(**{"meta.learning_rate": 1.5}), tmp_path / "run")
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
    accuracy = problem.accuracy(h, experiment.heldout)
    assert accuracy == pytest.approx(result["heldout_accuracy"]["after"], abs=0.004)


def test_fresh_draws_new_weights_and_batches_each_meta_step():
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
    import random as python_random

    import numpy as np

    before = torch.get_rng_state(), python_random.getstate(), np.random.get_state()[1].tolist()
    tune_recipe(tiny(**{"meta.steps": 1}), tmp_path / "run", observers=[TensorBoard()])
    assert torch.equal(torch.get_rng_state(), before[0])
    assert python_random.getstate() == before[1]
    assert np.random.get_state()[1].tolist() == before[2]


def test_a_validation_split_is_held_back():
    section = {"data.validation_examples": 40, "meta.loss": "validation"}
    experiment = Experiment(tiny(**section))
    assert len(experiment.train) == 160
    assert len(experiment.validation) == 40
    whole = Experiment(tiny()).train
    rows = {tuple(row.tolist()) for row in whole.inputs}
    split = [
        tuple(r.tolist()) for part in (experiment.train, experiment.validation) for r in part.inputs
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


def test_only_more_meta_steps_may_change_on_resume(tmp_path):
    tune_recipe(tiny(**{"meta.steps": 2}), tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"gradient\.trunc: 4 → 5.*only meta\.steps"):
        tune_recipe(tiny(**{"gradient.trunc": 5}), tmp_path / "run", resume=True)
    tune_recipe(tiny(), tmp_path / "run", resume=True)
    tune_recipe(tiny(), tmp_path / "straight")
    assert outcome(tmp_path / "run") == outcome(tmp_path / "straight")
    with pytest.raises(CheckpointError, match="already taken 5 meta steps"):
        tune_recipe(tiny(**{"meta.steps": 3}), tmp_path / "run", resume=True)


def child(folder: str, resume: bool) -> None:
    tune_recipe(tiny(**{"meta.steps": 40}), Path(folder), resume=resume, observers=[TensorBoard()])


def test_killed_runs_resume_to_the_same_bits(tmp_path):
    """SIGKILL at random moments, five times; every meta step is recorded and drawn once."""
    tune_recipe(tiny(**{"meta.steps": 40}), tmp_path / "whole")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["hyperrbp.tune", "hyperrbp.report.tensorboard"])
    folder, chance = tmp_path / "killed", random.Random(0)
    run = RunFolder(folder)
    kills = 0
    while True:
        before = len(run.records())
        process = context.Process(
            target=child, args=(str(folder), run.checkpoint_file.exists()), daemon=True
        )
        process.start()
        if kills < 5:
            deadline = time.monotonic() + 120
            while len(run.records()) < before + 2 and process.is_alive():
                assert time.monotonic() < deadline
                time.sleep(0.005)
            time.sleep(chance.random() * 0.1)
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
            process.join()
            assert not run.result_file.exists(), "it was done before it could be killed"
            continue
        process.join(240)
        assert process.exitcode == 0
        break
    assert outcome(folder) == outcome(tmp_path / "whole")
    events = EventAccumulator(str(run.events))
    events.Reload()
    assert [event.step for event in events.Scalars("meta/loss")] == list(range(41))


class StopsBeforeTheRecord:
    """Interrupts a run when TensorBoard has a meta step and the records have not."""

    def started(self, experiment, folder, earlier) -> None: ...

    def stopped(self) -> None: ...

    def stepped(self, record, theta) -> None:
        if record["meta_step"] == 3:
            raise KeyboardInterrupt


def test_tensorboard_shows_each_meta_step_once_after_a_resume(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        tune_recipe(tiny(), tmp_path / "run", observers=[TensorBoard(), StopsBeforeTheRecord()])
    run = RunFolder(tmp_path / "run")
    assert len(run.records()) == 3
    time.sleep(1.1)  # event files are named by the second
    tune_recipe(tiny(), run.path, resume=True, observers=[TensorBoard()])
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
        assert len(run.records()) == 5
    run.records_file.write_bytes(b"{broken}\n" + whole)
    with pytest.raises(CheckpointError, match=r"records\.jsonl:1"):
        run.records()


def test_a_damaged_checkpoint_is_named(tmp_path):
    file = tmp_path / "checkpoint.json"
    checkpoint.save(file, {"theta": [0.1, 1e-300, 3.5], "meta_step": 4})
    whole = file.read_bytes()
    assert checkpoint.load(file)[0] == {"theta": [0.1, 1e-300, 3.5], "meta_step": 4}
    chance = random.Random(1)
    for _ in range(200):
        position, bit = chance.randrange(len(whole)), 1 << chance.randrange(8)
        flipped = bytearray(whole)
        flipped[position] ^= bit
        file.write_bytes(flipped)
        with pytest.raises(CheckpointError, match=r"checkpoint\.json"):
            checkpoint.load(file)
    for length in range(0, len(whole) - 1, 7):
        file.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            checkpoint.load(file)


@pytest.mark.parametrize(("owner", "call"), [(os, "fsync"), (Path, "replace"), (Path, "open")])
def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch, owner, call):
    file = tmp_path / "checkpoint.json"
    checkpoint.save(file, {"n": 1})

    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(owner, call, full)
    with pytest.raises(StorageError, match="No space left"):
        checkpoint.save(file, {"n": 2})
    monkeypatch.undo()
    assert checkpoint.load(file)[0] == {"n": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.json"]


def test_a_run_that_diverges_keeps_its_best(tmp_path, monkeypatch):
    real = TrainingRun.loss_and_gradient
    calls = 0

    def third_is_nan(self, h):
        nonlocal calls
        calls += 1
        loss, g = real(self, h)
        return (loss * math.nan, g) if calls == 3 else (loss, g)

    monkeypatch.setattr(TrainingRun, "loss_and_gradient", third_is_nan)
    with pytest.raises(DivergedError, match="meta step 2: the meta loss is not finite"):
        tune_recipe(tiny(), tmp_path / "run")
    result = RunFolder(tmp_path / "run").result()
    assert result["status"] == "meta step 2: the meta loss is not finite"
    assert len(result["meta_loss"]) == 2
    assert result["best"]["meta_loss"] == min(result["meta_loss"])
    state, _ = checkpoint.load(tmp_path / "run" / "checkpoint.json")
    assert state["meta_step"] == 2
    assert all(map(math.isfinite, state["theta"]))


def test_tensorboard_has_every_curve(tmp_path):
    tune_recipe(tiny(), tmp_path / "run", observers=[TensorBoard()])
    events = EventAccumulator(str(tmp_path / "run" / "events"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    records = RunFolder(tmp_path / "run").records()
    assert tags == set(scalars(records[0]))
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


def test_observers_change_no_bit(tmp_path):
    tune_recipe(tiny(), tmp_path / "watched", observers=[TensorBoard()])
    tune_recipe(tiny(), tmp_path / "bare")
    assert outcome(tmp_path / "watched") == outcome(tmp_path / "bare")
