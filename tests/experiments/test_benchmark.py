"""A contest: what a search may do, whose seconds count, who wins, and where it is said."""

from __future__ import annotations

import csv
import importlib
import io
import itertools
import json
import math
import subprocess
import sys

import pytest
import torch
from commands import assert_refused, run
from factories import tuning_text
from rich.console import Console

from hyperrbp.config.loading import parse
from hyperrbp.exceptions import DataError, DivergedError, MemoryExhaustedError, UsageError
from hyperrbp.experiments import optimizer_runs as optimizer
from hyperrbp.experiments.benchmark import (
    benchmark,
    best_at,
    check_benchmark,
    envelope,
    rotated,
    seconds_to_reach,
    table,
    verdict,
)
from hyperrbp.experiments.experiment import Experiment
from hyperrbp.experiments.optimizer_runs import (
    OPTIMIZER_RUNS,
    OURS,
    REHEARSED,
    OptimizerRun,
    optimizer_runs,
    play,
)
from hyperrbp.optimizers.base import Evaluation
from hyperrbp.optimizers.optuna_samplers import SAMPLERS
from hyperrbp.reporting.benchmark import curves, draw, markdown, tables, write
from hyperrbp.runtime.callbacks import Audience

pytest.importorskip("optuna")
CONTEST = importlib.import_module("hyperrbp.experiments.benchmark")

INSTALLED = "hyperrbp.optimizers.optuna_samplers._is_installed"

TINY = tuning_text(
    name="tiny", seed=7, data__train_examples=200, inner__batch_size=20, gradient__trunc=2
)


# --- what a search needs -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gone", "sampler", "words"),
    [
        ({"optuna"}, "tpe", "tpe needs optuna, which is not installed"),
        ({"cmaes"}, "cmaes", "cmaes needs cmaes, which is not installed"),
        ({"optuna", "cmaes"}, "cmaes", "cmaes needs optuna and cmaes, which are not installed"),
        ({"optuna"}, "sobol", "needs optuna, which is not installed"),
    ],
)
def test_a_missing_package_is_one_line_with_the_command(
    gone, sampler, words, monkeypatch, tmp_path
):
    monkeypatch.setattr(
        "hyperrbp.optimizers.optuna_samplers._is_installed", lambda module: module not in gone
    )
    monkeypatch.chdir(tmp_path)
    done = run("compare", "digits", "--against", f"random,{sampler}"[7 * ("optuna" in gone) :],
               "--budget-seconds", 1)  # fmt: skip
    assert_refused(done, 2, words, "pip install 'hyperrbp[search]'")
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_contest_without_cmaes_needs_none(monkeypatch):
    monkeypatch.setattr(
        "hyperrbp.optimizers.optuna_samplers._is_installed", lambda module: module != "cmaes"
    )
    assert optimizer_runs(["random", "tpe"]) == [OURS, "random", "tpe"]


# --- a turn's seconds ----------------------------------------------------------------------------


class Clock:
    """Shows the times that it is given."""

    def __init__(self, *times):
        self.times = iter(times)

    def __call__(self):
        return next(self.times)


def evaluation(loss, theta=None, pruned=False):
    return Evaluation(0, loss, theta, None, 6, pruned)


def played(losses, times, budget=10.0):
    """Play evaluations that end at these times; the clock shows 100 at the start."""
    heard = []
    made = (
        evaluation(
            loss[0] if isinstance(loss, tuple) else loss,
            torch.tensor([float(i)]),
            isinstance(loss, tuple),
        )
        for i, loss in enumerate(losses)
    )
    score = play(made, budget, heard.append, Clock(100, *(100 + time for time in times)))
    return score, heard


def test_what_ends_after_the_deadline_does_not_count():
    score, heard = played([3.0, 2.0, 1.0], [4, 10, 10.5])
    assert score.curve == [(4, 3.0), (10, 2.0)]
    assert (score.best_loss, score.best_theta) == (2.0, torch.tensor([1.0]))
    assert (score.evaluations, score.seconds, score.overrun) == (2, 10, 0.5)
    assert heard == [(4, False, 3.0), (10, False, 2.0)]
    assert score.status == "done"


def test_only_a_better_finite_loss_of_a_whole_run_is_the_best():
    losses = [3.0, math.nan, (1.0,), 4.0, 3.0, 2.0, math.inf, -math.inf, 5.0]
    score, heard = played(losses, [*range(1, 9), 11])
    assert score.curve == [(1, 3.0), (6, 2.0)]
    assert score.best_theta == torch.tensor([5.0])
    assert (score.evaluations, score.pruned, score.diverged) == (8, 1, 3)
    assert len(heard) == 8
    losses = [loss for _, loss in score.curve]
    assert losses == sorted(losses, reverse=True)


def test_what_was_cut_short_has_not_diverged():
    score, _ = played([(math.nan,), math.nan, 2.0], [1, 2, 3])
    assert (score.evaluations, score.pruned, score.diverged) == (3, 1, 1)


def test_one_that_diverges_keeps_what_it_had():
    def events():
        yield evaluation(3.0, torch.tensor([1.0]))
        raise DivergedError("meta step 1: the meta loss is not finite")

    score = play(events(), 10, lambda _: None, Clock(0, 1))
    assert (score.status, score.best_loss) == ("diverged", 3.0)
    assert score.message == "meta step 1: the meta loss is not finite"


def test_one_that_ends_by_itself_says_when():
    score, _ = played([3.0], [4.5])
    assert (score.status, score.best_loss) == ("ended early", 3.0)
    assert "4.5 s" in score.message


# --- a turn --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny():
    return parse(TINY)


@pytest.fixture
def ticking(monkeypatch):
    """A clock of turns that moves by one at every look."""
    clock = itertools.count()
    real = optimizer.play
    monkeypatch.setattr(
        optimizer, "play", lambda e, b, r: real(e, b, r, lambda: float(next(clock)))
    )


@pytest.mark.parametrize("name", OPTIMIZER_RUNS)
def test_a_turn_of_every_contestant(name, tiny, ticking):
    heard = []
    alone = tiny.meta.model_copy(update={"screened": 1})
    tiny = tiny.model_copy(update={"meta": alone})
    done = optimizer.turn(tiny, None, name, 8.0, heard.append)
    assert (done["status"], done["message"]) == ("done", None)
    assert done["evaluations"] == len(heard) == 8
    assert done["overrun"] == 1.0
    experiment = Experiment(tiny)
    problem = experiment.problem()
    theta = problem.theta_of(done["hyperparameters"])
    h = problem.run(theta, 0, problem.steps, problem.initial_state(theta))
    assert done["final_loss"] == pytest.approx(float(problem.loss_and_gradient(h)[0]), rel=1e-4)
    assert done["final_loss"] == done["curve"][-1][1]
    assert done["heldout_accuracy"] == pytest.approx(
        problem.accuracy(h, experiment.data.heldout), 0.02
    )
    assert done["in_box"] is True
    # All begin at the recipe's start.
    h = problem.run(experiment.theta, 0, problem.steps, problem.initial_state(experiment.theta))
    untuned = float(problem.loss_and_gradient(h)[0])
    if not heard[0][1]:
        assert heard[0][2] == pytest.approx(untuned, rel=1e-5)
    json.dumps(done, allow_nan=False)


def test_what_a_screening_gave_up_counts_as_pruned(tiny):
    meta = tiny.meta.model_copy(update={"optimizer": "surrogate", "screened": 9})
    with_optimizer = Experiment(tiny.model_copy(update={"meta": meta}))
    events = list(itertools.islice(OPTIMIZER_RUNS[OURS].evaluations(with_optimizer), 9))
    assert [found.pruned for found in events] == [True] * 8 + [False]


def test_the_seed_decides_the_inner_run_and_what_is_sampled(tiny, ticking):
    def losses(name, seed):
        heard = []
        seeded = tiny.model_copy(update={"seed": seed})
        optimizer.turn(seeded, None, name, 4.0, heard.append)
        return [loss for _, _, loss in heard]

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
        optimizer.turn(tiny, None, name, 2.0, lambda _: None)
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

    monkeypatch.setitem(OPTIMIZER_RUNS, "slow", OptimizerRun("slow", events))
    monkeypatch.setattr("hyperrbp.problems.training.run.TrainingRun.prepare", prepared)
    real = optimizer.play

    def timed(events, budget, report):
        order.append("clock")
        return real(events, budget, report, Clock(0, 1, 9))

    monkeypatch.setattr(optimizer, "play", timed)
    optimizer.turn(tiny, None, "slow", 5.0, lambda _: None)
    rehearsal = ["events", *(f"evaluation {i}" for i in range(REHEARSED))]
    assert order == ["traced", *rehearsal, "clock", "events", "evaluation 0", "evaluation 1"]


def test_a_tuning_that_diverges_at_once_is_told_and_not_raised(tiny):
    wild = tiny.model_copy(
        update={"inner": tiny.inner.model_copy(update={"learning_rate": 1e30, "steps": 20})}
    )
    done = optimizer.turn(wild, None, OURS, 5.0, lambda _: None)
    assert done["status"] == "diverged"
    assert "meta step 0" in done["message"]
    assert (done["curve"], done["evaluations"], done["heldout_accuracy"]) == ([], 0, None)


def test_an_opening_tells_what_all_have_in_common(tiny):
    told = optimizer.opening(tiny, None, lambda _: None)
    experiment = Experiment(tiny)
    low, high = experiment.box
    assert told["box"] == {
        "low": experiment.problem().describe(low), "high": experiment.problem().describe(high)
    }  # fmt: skip
    assert told["recipe"]["device"] == "cpu"
    assert told["environment"]["threads"] == 1
    assert 0 < told["evaluation_seconds"] < 60
    assert 2 < told["start_loss"] < 3


# --- numbers -------------------------------------------------------------------------------------

A = [(1.0, 8.0), (4.0, 2.0)]
B = [(2.0, 6.0), (3.0, 4.0)]
C = [(5.0, 1.0)]


def test_the_best_so_far_by_hand():
    assert [best_at(A, t) for t in (0.5, 1, 3.9, 4, 99)] == [math.inf, 8, 8, 2, 2]
    assert best_at([], 1) == math.inf


def test_the_envelope_by_hand():
    inf = math.inf
    assert list(envelope([A, B, C], 10)) == [
        (1, inf, 8, inf),
        (2, 8, 6, inf),
        (3, 8, 4, inf),
        (4, 4, 2, inf),
        (5, 2, 1, 4),
        (10, 2, 1, 4),
    ]
    assert list(envelope([[], []], 10)) == [(10, inf, inf, inf)]
    for curve in ([A], [A, B], [A, B, C]):
        for column in zip(*(point[1:] for point in envelope(curve, 10)), strict=True):
            assert list(column) == sorted(column, reverse=True)


@pytest.mark.parametrize(
    ("curves", "target", "seconds"),
    [
        ([A], 8.0, 1.0),
        ([A], 7.9, 4.0),
        ([A], 1.9, None),
        ([A, B, C], 8.0, 2.0),
        ([A, B, C], 4.0, 4.0),
        ([A, B, C], 3.0, 5.0),
        ([A, B, C], 1.9, None),
        ([A, B], 3.0, 4.0),  # the mean of the two in the middle
        ([A, []], 9.0, None),
        ([A], math.inf, None),
        ([[]], 1.0, None),
    ],
)
def test_seconds_to_reach_by_hand(curves, target, seconds):
    assert seconds_to_reach(curves, target, 10.0) == seconds


def test_the_order_goes_round():
    names = ["a", "b", "c"]
    assert [rotated(names, n) for n in range(4)] == [
        ["a", "b", "c"],
        ["b", "c", "a"],
        ["c", "a", "b"],
        ["a", "b", "c"],
    ]


def a_run(name, seed, curve, **other):
    return {
        "optimizer": name, "seed": seed, "status": "done", "message": None, "seconds": 9.0,
        "overrun": 0.1, "evaluations": 5, "pruned": 0, "diverged": 0,
        "final_loss": curve[-1][1] if curve else None, "curve": [list(p) for p in curve],
        "hyperparameters": None, "in_box": True, "heldout_accuracy": 0.5, **other,
    }  # fmt: skip


def some_rows(ours, random, **others):
    """A table of curves by seed, in a budget of 10 s."""
    by_name = {OURS: ours, "random": random, **others}
    runs = [
        a_run(name, 7 + seed, curve)
        for name, of_name in by_name.items()
        for seed, curve in enumerate(of_name)
    ]
    return table(list(by_name), runs, 10.0)


def test_a_table_by_hand():
    ours, random, tpe = some_rows(
        [[(1, 5.0), (2, 1.0)]] * 3,
        [[(4, 3.0)], [(6, 2.0)], [(8, 0.5)]],
        tpe=[[(3, 2.0)], [(3, 1.0)], []],
    )
    assert (random["final_loss"], random["final_loss_least"]) == (2.0, 0.5)
    assert random["final_loss_largest"] == 3.0
    assert random["seconds_to_reference"] == 8.0  # before, there is no median under 3
    assert ours["seconds_to_reference"] == 2.0
    assert tpe["seconds_to_reference"] == 3.0
    assert [row["ratio_to_ours"] for row in (ours, random, tpe)] == [1, 4, 1.5]
    assert random["ours_reaches_its_final"] == 2.0
    assert random["it_reaches_our_final"] is None
    assert (tpe["ours_reaches_its_final"], tpe["it_reaches_our_final"]) == (2.0, None)
    assert [random[key] for key in ("ours_at_or_under", "ours_under", "ours_over")] == [2, 2, 1]
    # A tie, and one without an answer.
    assert [tpe[key] for key in ("ours_at_or_under", "ours_under", "ours_over")] == [3, 2, 0]
    assert (tpe["final_loss"], tpe["final_loss_largest"]) == (2.0, math.inf)
    assert ours["ours_at_or_under"] is None


def test_nobody_is_at_or_under_where_neither_has_an_answer():
    _, random = some_rows([[]], [[]])
    assert [random[key] for key in ("ours_at_or_under", "ours_under", "ours_over")] == [0, 0, 0]
    assert random["seconds_to_reference"] is None


def test_a_table_says_who_did_not_make_it():
    runs = [
        a_run(OURS, 7, A),
        a_run(OURS, 8, A, in_box=False, heldout_accuracy=0.75),
        a_run("random", 7, [], status="failed", message="no luck", heldout_accuracy=None),
        a_run("random", 8, B),
    ]
    ours, random = table([OURS, "random"], runs, 10.0)
    assert (ours["status"], ours["not_done"], ours["out_of_box"]) == ("done", 0, 1)
    assert (random["status"], random["not_done"]) == ("1 failed, 1 done", 1)
    assert random["messages"] == ["seed 7: failed: no luck"]
    assert (ours["heldout_accuracy"], random["heldout_accuracy"]) == (0.625, 0.5)


WIN, LOSS = [[(3, 1.0)]] * 3, [[(3, 4.0)]] * 3


def test_a_verdict_when_ours_wins():
    said = verdict(some_rows(WIN, LOSS, tpe=[[(2, 2.0)]] * 3), 10.0)
    assert said == (
        "hyperrbp is ahead of random and tpe: after 10 s each, its loss is at or under that of"
        " random in 3 of 3 and tpe in 3 of 3 seeds; its median is 1, the best rival's (tpe) 2,"
        " which it reaches in 3 s."
    )


def test_a_verdict_when_ours_loses():
    said = verdict(some_rows(LOSS, WIN), 2.5)
    assert said == (
        "hyperrbp is behind random: after 2.5 s each, its loss is at or under that of random in 0"
        " of 3 seeds; its median is 4, the best rival's (random) 1, which it does not reach."
    )


def test_a_verdict_that_is_mixed():
    mixed = [[(3, 0.5)], [(3, 4.0)], [(3, 4.0)]]
    said = verdict(
        some_rows([[(1, 2.0)]] * 3, LOSS, tpe=WIN, cmaes=mixed, sobol=[[(1, 2.0)]] * 3), 9
    )
    assert said.startswith(
        "hyperrbp is ahead of random and cmaes, level with sobol, behind tpe: after 9 s each"
    )
    assert "random in 3 of 3, tpe in 0 of 3, cmaes in 2 of 3 and sobol in 3 of 3 seeds" in said


def test_a_verdict_without_answers():
    assert "behind random" in verdict(some_rows([[]] * 3, WIN), 9)
    assert "it has no median, the best rival's (random) 1" in verdict(some_rows([[]], WIN[:1]), 9)
    said = verdict(some_rows(WIN[:1], [[]]), 9)
    assert "in 1 of 1 seed; its median is 1, and no rival has one." in said
    assert "level with random" in verdict(some_rows([[]], [[]]), 9)


# --- a contest without processes -----------------------------------------------------------------


class Machine:
    """Answers for the other processes."""

    def __init__(self, finals=None, fails=None):
        self.finals, self.fails, self.turns = finals or {}, fails or {}, []

    def __call__(self, function, recipe, data_root, *arguments, heard=None):
        assert data_root is None
        if function is optimizer.opening:
            if "opening" in self.fails:
                raise self.fails["opening"]
            low = {"learning_rate": {"w": 0.1}, "momentum": {"w": 0.1}}
            return {
                "environment": {"threads": 1, "machine": "m", "torch": "t"},
                "recipe": recipe.model_dump(), "box": {"low": low, "high": low},
                "start_loss": 2.0, "evaluation_seconds": 0.5,
            }  # fmt: skip
        assert function is optimizer.turn
        name, budget = arguments
        self.turns.append((name, recipe, budget))
        trials = [evaluation(2.0), evaluation(self.finals.get(name, 1.0))]
        score = play(iter(trials), budget, heard, Clock(0, budget / 4, budget / 2))
        if name in self.fails:
            raise self.fails[name]
        score.status, score.message = "done", None
        known = {"hyperparameters": {}, "in_box": True, "heldout_accuracy": 0.9}
        return score.to_json(**known)


@pytest.fixture
def machine(monkeypatch):
    def pretend(**options):
        fake = Machine(**options)
        monkeypatch.setattr(CONTEST, "call", fake)
        return fake

    return pretend


FIELD = [OURS, "random", "tpe"]


def test_everyone_gets_the_same_seconds_and_recipe_and_the_first_place_in_turn(machine, tiny):
    fake = machine()
    document = benchmark(tiny, FIELD, 8.0, seeds=4)
    assert [name for name, _, _ in fake.turns] == [
        OURS, "random", "tpe", "random", "tpe", OURS, "tpe", OURS, "random", OURS, "random", "tpe",
    ]  # fmt: skip
    assert {budget for _, _, budget in fake.turns} == {8.0}
    seeds = [recipe.seed for _, recipe, _ in fake.turns]
    assert seeds == [7] * 3 + [8] * 3 + [9] * 3 + [10] * 3
    for _, recipe, _ in fake.turns:
        assert recipe.model_copy(update={"seed": 7}) == tiny
    assert document["seeds"] == [7, 8, 9, 10]
    assert [(run["optimizer"], run["seed"]) for run in document["runs"]] == [
        (name, recipe.seed) for name, recipe, _ in fake.turns
    ]
    assert [row["optimizer"] for row in document["rows"]] == FIELD


def test_the_document_has_the_documented_keys_and_only_json(machine, tiny):
    machine(finals={"tpe": math.nan, OURS: 0.5})
    document = benchmark(tiny, FIELD, 8.0, seeds=2)
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert set(document) == {
        "budget_seconds", "seeds", "ours", "reference", "environment", "recipe", "box",
        "start_loss", "verdict", "rows", "curves", "runs",
    }  # fmt: skip
    assert (document["ours"], document["reference"]) == (OURS, "random")
    assert document["curves"][OURS] == [
        {"seconds": 2.0, "median": 2.0, "least": 2.0, "largest": 2.0},
        {"seconds": 4.0, "median": 0.5, "least": 0.5, "largest": 0.5},
        {"seconds": 8.0, "median": 0.5, "least": 0.5, "largest": 0.5},
    ]
    assert set(document["runs"][0]) == {
        "optimizer", "seed", "status", "message", "seconds", "overrun", "evaluations", "pruned",
        "diverged", "final_loss", "curve", "hyperparameters", "in_box", "heldout_accuracy",
    }  # fmt: skip
    assert document["rows"][2]["diverged"] == 1
    assert document["rows"][2]["final_loss"] == 2.0
    assert document["verdict"].startswith("hyperrbp is ahead of random and tpe")
    assert benchmark(tiny, [OURS, "tpe"], 8.0, seeds=1)["reference"] is None


def test_a_contestant_whose_process_fails_is_a_row_with_what_was_heard(machine, tiny):
    machine(fails={"tpe": MemoryExhaustedError("no memory"), "random": UsageError("no way")})
    document = benchmark(tiny, FIELD, 8.0, seeds=1)
    ours, random, tpe = document["rows"]
    assert (random["status"], tpe["status"]) == ("failed", "out of memory")
    assert tpe["messages"] == ["seed 7: out of memory: no memory"]
    assert tpe["final_loss"] == ours["final_loss"] == 1.0
    assert tpe["evaluations"] == 2
    assert tpe["heldout_accuracy"] is None


@pytest.mark.parametrize(
    ("loss", "status", "words"),
    [(math.nan, "diverged", "no evaluation that ended in time was finite"),
     (None, "too slow", "no evaluation ended within 8 s")],
)  # fmt: skip
def test_one_without_an_answer_is_a_row_that_says_why(loss, status, words, tiny, monkeypatch):
    real = Machine()

    def call(function, recipe, data_root, *arguments, heard=None):
        if function is optimizer.opening or arguments[0] != "tpe":
            return real(function, recipe, data_root, *arguments, heard=heard)
        times = Clock(0, 9) if loss is None else Clock(0, 1, 9)
        trials = (evaluation(loss or 1.0) for _ in range(2))
        return play(trials, 8.0, heard, times).to_json()

    monkeypatch.setattr(CONTEST, "call", call)
    document = benchmark(tiny, FIELD, 8.0, seeds=1)
    json.dumps(document, allow_nan=False)
    row = document["rows"][2]
    assert (row["status"], row["final_loss"]) == (status, None)
    assert row["messages"] == [f"seed 7: {status}: {words}"]


def test_a_recipe_that_cannot_be_run_at_all_is_no_row(machine, tiny):
    fake = machine(fails={"opening": DataError("no data")})
    with pytest.raises(DataError, match="no data"):
        benchmark(tiny, FIELD, 8.0)
    assert fake.turns == []


class Heard(Audience):
    def __init__(self):
        self.said, self.expected, self.done = [], 0.0, 0.0

    def expects(self, seconds):
        self.expected = seconds

    def begins(self, what):
        self.said.append(what)

    def spent(self, seconds):
        assert seconds >= 0
        self.done += seconds


def test_an_audience_hears_what_is_done_until_all_that_was_expected_is(machine, tiny):
    machine(fails={"tpe": MemoryExhaustedError("no memory")})
    heard = Heard()
    benchmark(tiny, FIELD, 8.0, seeds=2, audience=heard)
    assert heard.expected == pytest.approx(heard.done)
    assert heard.expected > 6 * 8
    assert heard.said[0] == "the start of all"
    assert heard.said[1:4] == [f"{name}, seed 1 of 2" for name in FIELD]
    assert heard.said[4:] == [f"{name}, seed 2 of 2" for name in rotated(FIELD, 1)]


def test_contestants_are_ours_and_those_named_once():
    assert optimizer_runs(["tpe", "random", "tpe", OURS]) == [OURS, "tpe", "random"]
    assert optimizer_runs(["surrogate"]) == [OURS, "surrogate"]


@pytest.mark.parametrize(
    ("recipe", "budget", "seeds", "words"),
    [
        (TINY, 0.0, 3, "--budget-seconds: expected a finite number above 0, got 0"),
        (TINY, -1.0, 3, "--budget-seconds"),
        (TINY, math.inf, 3, "--budget-seconds"),
        (TINY, math.nan, 3, "--budget-seconds"),
        (TINY, 1.0, 0, "--seeds: expected at least 1, got 0"),
        (TINY.replace("seed: 7", f"seed: {2**63 - 2}"), 1.0, 3, "--seeds: seed 92"),
        (TINY.replace("inner: {", "inner: {fresh: true, "), 1.0, 3, "inner.fresh=false"),
    ],
)
def test_what_cannot_be_contested(recipe, budget, seeds, words, machine):
    fake = machine()
    with pytest.raises(UsageError) as caught:
        benchmark(parse(recipe), FIELD, budget, seeds=seeds)
    assert words in str(caught.value)
    assert fake.turns == []


@pytest.mark.parametrize(
    ("recipe", "optimizer", "words"),
    [
        (
            "hyperparameters: {init_scale: {}}\nmeta: {optimizer: surrogate}",
            "adam",
            "--against adam: gradient.method: neumann cannot see init_scale",
        ),
        (
            "gradient: {method: auto}",
            "both",
            "--against both: gradient.method: meta.optimizer is both",
        ),
        (
            "hyperparameters: {example_weight: {}}\nmeta: {loss: validation}\n"
            "data: {validation_examples: 100}",
            "surrogate",
            "--against surrogate: meta.optimizer: a model of the loss is of no use",
        ),
        (
            "inner: {learning_rate: 0.01}",
            "gradient",
            "--against gradient: hyperparameters.learning_rate.range: ",
        ),
    ],
)
def test_an_optimizer_that_the_recipe_could_not_have_is_refused(recipe, optimizer, words):
    with pytest.raises(UsageError) as caught:
        check_benchmark(parse(recipe), [OURS, optimizer], 1.0, 1)
    assert words in str(caught.value)


def test_what_goes_with_adam_alone_keeps_no_walk_out():
    recipe = parse(
        "meta: {on_divergence: rollback, decay: {from_step: 3}}\ngradient: {check_every: 5}"
    )
    check_benchmark(recipe, [OURS, "gradient", "surrogate", "both"], 1.0, 1)


def test_the_last_seeds_there_are_can_be_used():
    check_benchmark(parse(TINY.replace("seed: 7", f"seed: {2**63 - 3}")), [OURS, "random"], 1.0, 3)


# --- reports -------------------------------------------------------------------------------------


@pytest.fixture
def document(machine, tiny):
    machine(finals={OURS: 0.5, "tpe": 0.75}, fails={"cmaes": MemoryExhaustedError("out of it")})
    return benchmark(tiny, [OURS, "random", "tpe", "cmaes"], 8.0, seeds=2)


def test_markdown_has_every_row_and_the_verdict(document):
    text = markdown(document)
    assert "tiny: 8 s for each optimizer and seed (7, 8); loss on the training examples" in text
    assert "2 hyperparameters; 1 CPU thread, m, torch t" in text
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("|")
    ]
    assert len({len(row) for row in rows}) == 1
    named = [dict(zip(rows[0], row, strict=True)) for row in rows[2:]]
    assert [row["optimizer"] for row in named] == [OURS, "random", "tpe", "cmaes"]
    ours, random, tpe, cmaes = named
    assert (ours["final loss"], ours["range"], ours["tried"]) == ("0.5", "0.5 … 0.5", "2")
    assert (ours["ours ≤ it"], random["ours ≤ it"]) == ("", "2 of 2")
    assert (tpe["s to random's"], tpe["× ours"]) == ("4", "1")
    assert (tpe["ours to its, s"], tpe["it to ours, s"]) == ("4", "never")
    assert (tpe["held-out"], cmaes["held-out"]) == ("90.0%", "–")
    assert cmaes["status"] == "out of memory"
    assert "* cmaes, seed 8: out of memory: out of it" in text
    assert f"**{document['verdict']}**" in text


def test_columns_that_have_nothing_to_say_are_left_out(machine, tiny):
    machine()
    text = markdown(benchmark(tiny, [OURS, "tpe"], 8.0, seeds=1))
    assert "random" not in text
    assert "× ours" not in text
    assert "cut short" not in text


def test_a_validation_loss_is_named(machine):
    machine()
    validated = parse(TINY.replace("200}", "200, validation_examples: 50}")
                      + "meta: {loss: validation}\n")  # fmt: skip
    assert "loss on the validation split" in markdown(benchmark(validated, FIELD, 8.0, seeds=1))


def test_a_terminal_of_80_columns_shows_what_markdown_does(document):
    text = io.StringIO()
    Console(file=text, width=80, markup=False).print(tables(document))
    said = " ".join(text.getvalue().split())
    for name in ("hyperrbp", "random", "tpe", "cmaes"):
        assert f" {name} " in said
    assert "0.75 … 0.75" in said
    assert document["verdict"] in said
    assert "evaluati…" not in said


def test_curves_read_back(document):
    read = list(csv.DictReader(io.StringIO(curves(document))))
    assert {row["optimizer"] for row in read} == set(document["curves"])
    for name, points in document["curves"].items():
        found = [row for row in read if row["optimizer"] == name]
        assert [float(row["median"]) for row in found] == [p["median"] for p in points]
        assert list(found[0]) == ["optimizer", "seconds", "median", "least", "largest"]


def test_a_figure_has_a_line_and_a_band_for_everyone(document, tmp_path, monkeypatch):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    document["curves"]["tpe"][0] |= {"median": None, "largest": None}
    document["curves"]["cmaes"] = [{"seconds": 8.0, "median": None, "least": None, "largest": None}]
    drawn = []
    monkeypatch.setattr(plt, "close", drawn.append)
    draw(document, tmp_path / "benchmark.png")
    monkeypatch.undo()
    ((axis,),) = [figure.axes for figure in drawn]
    lines = {line.get_label(): line.get_xydata().tolist() for line in axis.get_lines()}
    assert lines["hyperrbp"] == [[2, math.log10(2)], [4, math.log10(0.5)], [8, math.log10(0.5)]]
    assert lines["tpe"] == [[4, math.log10(0.75)], [8, math.log10(0.75)]]
    assert lines["cmaes"] == []
    assert len(axis.collections) == 4
    assert axis.get_xlim() == (0, 8)
    plt.close(drawn[0])
    assert (tmp_path / "benchmark.png").stat().st_size > 1000


def test_a_folder_holds_it_all(document, tmp_path):
    write(document, tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {
        "recipe.yaml", "curves.csv",
        "benchmark.json", "benchmark.md", "benchmark.csv", "benchmark.png",
    }  # fmt: skip
    assert json.loads((tmp_path / "benchmark.json").read_text()) == document
    rows = list(csv.DictReader(io.StringIO((tmp_path / "benchmark.csv").read_text())))
    assert [row["optimizer"] for row in rows] == [OURS, "random", "tpe", "cmaes"]
    assert parse((tmp_path / "recipe.yaml").read_text()).model_dump() == document["recipe"]


# --- the command line ----------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(TINY)
    return tmp_path


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--against", "random"], ["--budget-seconds"]),
        (["--against", "", "--budget-seconds", 1], ["--against", "expected some of", "tpe"]),
        (["--against", "randon", "--budget-seconds", 1], ["'randon'", "did you mean random?"]),
        (["--against", "random", "--budget-seconds", 0], ["--budget-seconds", "above 0"]),
        (["--against", "random", "--budget-seconds", "nan"], ["--budget-seconds", "above 0"]),
        (["--against", "random", "--budget-seconds", 1, "--seeds", 0], ["--seeds", "at least 1"]),
        (["--against", "random", "--budget-seconds", 1, "--methods", "bptt"], ["--methods"]),
        (["--against", "random", "--budget-seconds", 1, "--trunc", 5], ["--trunc and --against"]),
        (["--against", "random", "--budget-seconds", 1, "--repeats", 5], ["--repeats"]),
        (["--against", "random", "--budget-seconds", 1, "--force"], ["--force and --against"]),
        (["--against", "tpe", "--budget-seconds", 1, "--sweep-steps", "5"], ["--sweep-steps"]),
        (["--budget-seconds", 1], ["--budget-seconds: only with --against"]),
        (["--seeds", 3], ["--seeds: only with --against"]),
        (["--against", "random", "--budget-seconds", 1, "--set", "inner.fresh=true"],
         ["inner.fresh=false"]),
        (["--against", "random", "--budget-seconds", 1, "--out", "tiny.yaml"], ["--out"]),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_one_line(words, named, here, machine):
    fake = machine()
    done = run("compare", "tiny.yaml", *words)
    assert_refused(done, 2, *named)
    assert len(done.stderr.splitlines()) == 1
    assert fake.turns == []
    assert [file.name for file in here.iterdir()] == ["tiny.yaml"]


def test_help_shows_a_benchmark():
    done = run("compare", "--help")
    assert done.exit_code == 0
    for words in ("--against", "--budget-seconds", "--seeds", "hyperrbp[search]"):
        assert words in done.stdout


def test_the_command_prints_tables_and_writes_a_folder(here, machine):
    fake = machine(finals={OURS: 3.0})
    done = run("compare", "tiny.yaml", "--against", "random, tpe", "--budget-seconds", 8,
               "--train-steps", 9, "--quiet")  # fmt: skip
    assert done.exit_code == 0, done.output
    assert done.stderr == ""
    assert {(r.inner.steps, b) for _, r, b in fake.turns} == {(9, 8.0)}
    assert len(fake.turns) == 9
    said = " ".join(done.stdout.split())
    assert "hyperrbp is behind random and tpe: after 8 s each" in said
    (folder,) = (here / "runs").iterdir()
    assert folder.name.startswith("tiny-benchmark-")
    assert json.loads((folder / "benchmark.json").read_text())["verdict"] in said


def test_a_recipe_without_data_ends_with_its_exit_code(here, machine):
    machine(fails={"opening": DataError("no data")})
    done = run("compare", "tiny.yaml", "--against", "random", "--budget-seconds", 8, "-q")
    assert_refused(done, 3, "no data")
    assert not (here / "runs").exists() or not list((here / "runs").iterdir())


def test_a_real_benchmark(here):
    words = ["tiny.yaml", "--against", "random,hyperband,surrogate", "--budget-seconds", "0.8"]
    words += ["--seeds", "2", "--json", "--out", "out"]
    done = subprocess.run(
        [sys.executable, "-m", "hyperrbp", "compare", *words],
        cwd=here, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    document = json.loads(line)
    assert json.dumps(document, allow_nan=False) == line
    assert [row["status"] for row in document["rows"]] == ["done"] * 4
    for run_ in document["runs"]:
        assert 0 < run_["seconds"] <= 0.8
        assert run_["overrun"] > 0
        losses = [loss for _, loss in run_["curve"]]
        assert losses == sorted(losses, reverse=True)
        assert run_["final_loss"] == losses[-1] <= losses[0]
        assert 0 < run_["heldout_accuracy"] <= 1
    # The same start for all, another one for another seed.
    for seed, other in ((7, 8), (8, 7)):
        starts = {
            round(r["curve"][0][1], 4)
            for r in document["runs"]
            if r["seed"] == seed and r["optimizer"] not in ("hyperband", "surrogate")
        }
        assert len(starts) == 1
        assert starts != {
            round(r["curve"][0][1], 4) for r in document["runs"] if r["seed"] == other
        }
    said = done.stderr.splitlines()
    assert said[1].startswith("this should take about ")
    assert "surrogate, seed 2 of 2" in said
    assert said[-1] == "wrote out (benchmark.md, .csv, .json, .png, curves.csv)"
    assert "Warning" not in done.stderr
    assert "Trial" not in done.stderr
    assert not [file for file in (here / "out").iterdir() if file.name == ".lock"]
    assert (here / "out" / "benchmark.png").exists()
