"""One optimizer in its seconds: what counts, and what it is given."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from benchmarks import TINY, Clock, evaluation
from hyperrbp.config.loading import parse
from hyperrbp.exceptions import DivergedError
from hyperrbp.experiments import optimizer_runs
from hyperrbp.experiments.experiment import Experiment
from hyperrbp.experiments.optimizer_runs import (
    OPTIMIZER_SPECS,
    OURS,
    REHEARSED,
    EvaluationEnded,
    OptimizerSpec,
    resolve_names,
    spend,
)
from hyperrbp.experiments.results.benchmark import BenchmarkRun
from hyperrbp.experiments.results.document import to_json
from hyperrbp.optimizers.base import Evaluation
from hyperrbp.optimizers.optuna_samplers import SAMPLERS

pytest.importorskip("optuna")


def test_a_benchmark_without_cmaes_needs_none(monkeypatch):
    monkeypatch.setattr(
        "hyperrbp.optimizers.optuna_samplers._is_installed", lambda module: module != "cmaes"
    )
    assert resolve_names(["random", "tpe"]) == [OURS, "random", "tpe"]


def test_names_are_ours_and_those_given_once():
    assert resolve_names(["tpe", "random", "tpe", OURS]) == [OURS, "tpe", "random"]
    assert resolve_names(["surrogate"]) == [OURS, "surrogate"]


# --- seconds --------------------------------------------------------------------------------------


def spent_on(losses, times, budget=10.0):
    """Play evaluations that end at these times; the clock shows 100 at the start."""
    messages = []
    made = (
        evaluation(
            loss[0] if isinstance(loss, tuple) else loss,
            torch.tensor([float(i)]),
            isinstance(loss, tuple),
        )
        for i, loss in enumerate(losses)
    )
    score = spend(made, budget, messages.append, Clock(100, *(100 + time for time in times)))
    return score, messages


def test_what_ends_after_the_deadline_does_not_count():
    score, messages = spent_on([3.0, 2.0, 1.0], [4, 10, 10.5])
    assert score.curve == [(4, 3.0), (10, 2.0)]
    assert (score.best_loss, score.best_theta) == (2.0, torch.tensor([1.0]))
    assert (score.evaluations, score.seconds, score.overrun) == (2, 10, 0.5)
    assert messages == [EvaluationEnded(4, False, 3.0), EvaluationEnded(10, False, 2.0)]
    assert score.status == "done"


def test_only_a_better_finite_loss_of_a_whole_run_is_the_best():
    losses = [3.0, math.nan, (1.0,), 4.0, 3.0, 2.0, math.inf, -math.inf, 5.0]
    score, messages = spent_on(losses, [*range(1, 9), 11])
    assert score.curve == [(1, 3.0), (6, 2.0)]
    assert score.best_theta == torch.tensor([5.0])
    assert (score.evaluations, score.pruned, score.diverged) == (8, 1, 3)
    assert len(messages) == 8
    losses = [loss for _, loss in score.curve]
    assert losses == sorted(losses, reverse=True)


def test_what_was_cut_short_has_not_diverged():
    score, _ = spent_on([(math.nan,), math.nan, 2.0], [1, 2, 3])
    assert (score.evaluations, score.pruned, score.diverged) == (3, 1, 1)


def test_one_that_diverges_keeps_what_it_had():
    def events():
        yield evaluation(3.0, torch.tensor([1.0]))
        raise DivergedError("meta step 1: the meta loss is not finite")

    score = spend(events(), 10, lambda _: None, Clock(0, 1))
    assert (score.status, score.best_loss) == ("diverged", 3.0)
    assert score.message == "meta step 1: the meta loss is not finite"


def test_one_that_ends_by_itself_says_when():
    score, _ = spent_on([3.0], [4.5])
    assert (score.status, score.best_loss) == ("ended early", 3.0)
    assert "4.5 s" in score.message


# --- a run ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny():
    return parse(TINY)


@pytest.fixture
def ticking(monkeypatch):
    """A clock of turns that moves by one at every look."""
    clock = itertools.count()
    real = optimizer_runs.spend
    monkeypatch.setattr(
        optimizer_runs, "spend", lambda e, b, r: real(e, b, r, lambda: float(next(clock)))
    )


@pytest.mark.parametrize("name", OPTIMIZER_SPECS)
def test_a_run_of_every_optimizer(name, tiny, ticking):
    messages = []
    alone = tiny.meta.model_copy(update={"screened": 1})
    tiny = tiny.model_copy(update={"meta": alone})
    done = optimizer_runs.run_optimizer(tiny, None, name, 8.0, messages.append)
    assert (done.status, done.message) == ("done", None)
    assert done.evaluations == len(messages) == 8
    assert done.overrun == 1.0
    experiment = Experiment(tiny)
    problem = experiment.problem()
    theta = problem.theta_of(done.hyperparameters)
    h = problem.run(theta, 0, problem.steps, problem.initial_state(theta))
    assert done.final_loss == pytest.approx(float(problem.loss_and_gradient(h)[0]), rel=1e-4)
    assert done.final_loss == done.curve[-1][1]
    assert done.heldout_accuracy == pytest.approx(
        problem.evaluated(h).accuracy(experiment.data.heldout), 0.02
    )
    assert done.in_box is True
    # All begin at the recipe's start.
    h = problem.run(experiment.theta, 0, problem.steps, problem.initial_state(experiment.theta))
    untuned = float(problem.loss_and_gradient(h)[0])
    if not messages[0].pruned:
        assert messages[0].loss == pytest.approx(untuned, rel=1e-5)
    assert BenchmarkRun.model_validate_json(to_json(done)) == done


def test_what_a_screening_gave_up_counts_as_pruned(tiny):
    meta = tiny.meta.model_copy(update={"optimizer": "surrogate", "screened": 9})
    with_optimizer = Experiment(tiny.model_copy(update={"meta": meta}))
    events = list(itertools.islice(OPTIMIZER_SPECS[OURS].evaluations(with_optimizer), 9))
    assert [found.pruned for found in events] == [True] * 8 + [False]


def test_the_seed_decides_the_inner_run_and_what_is_sampled(tiny, ticking):
    def losses(name, seed):
        messages = []
        seeded = tiny.model_copy(update={"seed": seed})
        optimizer_runs.run_optimizer(seeded, None, name, 4.0, messages.append)
        return [message.loss for message in messages]

    for name in (OURS, "tpe"):
        once, again, other = (losses(name, seed) for seed in (7, 7, 8))
        assert once == again
        assert not set(once) & set(other)


def test_all_searches_are_given_the_same_box_run_and_start(tiny, ticking, monkeypatch):
    asked = {}

    def noted(search, objective, state):
        problem, start = objective(0), state.start
        h = problem.run(start, 0, problem.steps, problem.initial_state(start))
        low, high = search._low.tolist(), search._high.tolist()
        asked.setdefault(search._sampler.sentence, set()).add(
            (*low, *high, *start.tolist(), *h.tolist())
        )
        return Evaluation(0, 1.0, start, problem, 6)

    monkeypatch.setattr("hyperrbp.optimizers.optuna_search.OptunaSearch.step", noted)
    for name in SAMPLERS:
        optimizer_runs.run_optimizer(tiny, None, name, 2.0, lambda _: None)
    assert len(asked) == len(SAMPLERS)
    assert len(set.union(*asked.values())) == 1


def test_the_clock_starts_after_data_tracing_and_rehearsal(tiny, monkeypatch):
    order = []

    def events(experiment):
        order.append("events")
        for i in itertools.count():
            order.append(f"evaluation {i}")
            yield evaluation(1.0, experiment.theta)

    def prepared(problem, theta):
        order.append("traced")

    monkeypatch.setitem(OPTIMIZER_SPECS, "slow", OptimizerSpec("slow", events))
    monkeypatch.setattr("hyperrbp.problems.training.run.TrainingRun.prepare", prepared)
    real = optimizer_runs.spend

    def timed(events, budget, report):
        order.append("clock")
        return real(events, budget, report, Clock(0, 1, 9))

    monkeypatch.setattr(optimizer_runs, "spend", timed)
    optimizer_runs.run_optimizer(tiny, None, "slow", 5.0, lambda _: None)
    rehearsal = ["events", *(f"evaluation {i}" for i in range(REHEARSED))]
    assert order == ["traced", *rehearsal, "clock", "events", "evaluation 0", "evaluation 1"]


def test_a_tuning_that_diverges_at_once_is_reported_and_not_raised(tiny):
    wild = tiny.model_copy(
        update={"inner": tiny.inner.model_copy(update={"learning_rate": 1e30, "steps": 20})}
    )
    done = optimizer_runs.run_optimizer(wild, None, OURS, 5.0, lambda _: None)
    assert done.status == "diverged"
    assert "meta step 0" in done.message
    assert (list(done.curve), done.evaluations, done.heldout_accuracy) == ([], 0, None)


def test_the_start_is_what_all_have_in_common(tiny):
    start = optimizer_runs.measure_start(tiny, None, lambda _: None)
    experiment = Experiment(tiny)
    low, high = experiment.box
    assert (start.box.low, start.box.high) == tuple(map(experiment.problem().describe, (low, high)))
    assert start.recipe.device == "cpu"
    assert start.environment["threads"] == 1
    assert 0 < start.evaluation_seconds < 60
    assert 2 < start.start_loss < 3
