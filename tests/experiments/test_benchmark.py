"""Benchmarks: numbers, verdicts, and who gets which seconds."""

from __future__ import annotations

import json
import math

import pytest

from benchmarks import FIELD, TINY, Clock, Machine, as_json, evaluation, pretend
from hyperrbp.config.loading import parse
from hyperrbp.exceptions import DataError, MemoryExhaustedError, UsageError
from hyperrbp.experiments import optimizer_runs
from hyperrbp.experiments.benchmark import (
    BenchmarkCallback,
    benchmark,
    best_at,
    check_benchmark,
    envelope,
    rotated,
    seconds_to_reach,
    table,
    verdict,
)
from hyperrbp.experiments.optimizer_runs import (
    OURS,
    spend,
)
from hyperrbp.experiments.results.benchmark import BenchmarkReport, BenchmarkRun

pytest.importorskip("optuna")


# --- numbers --------------------------------------------------------------------------------------


A = [(1.0, 8.0), (4.0, 2.0)]
B = [(2.0, 6.0), (3.0, 4.0)]
C = [(5.0, 1.0)]


def test_the_best_so_far_by_hand():
    assert [best_at(A, t) for t in (0.5, 1, 3.9, 4, 99)] == [math.inf, 8, 8, 2, 2]
    assert best_at([], 1) == math.inf


def test_the_envelope_by_hand():
    def by_hand(*curves):
        points = envelope(curves, 10)
        return [(point.seconds, point.median, point.least, point.largest) for point in points]

    assert by_hand(A, B, C) == [
        (1, None, 8, None),
        (2, 8, 6, None),
        (3, 8, 4, None),
        (4, 4, 2, None),
        (5, 2, 1, 4),
        (10, 2, 1, 4),
    ]
    assert by_hand([], []) == [(10, None, None, None)]
    for curves in ([A], [A, B], [A, B, C]):
        for column in list(zip(*by_hand(*curves), strict=True))[1:]:
            losses = [math.inf if loss is None else loss for loss in column]
            assert losses == sorted(losses, reverse=True)


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
    usual = {
        "optimizer": name, "seed": seed, "status": "done", "message": None, "seconds": 9.0,
        "overrun": 0.1, "evaluations": 5, "pruned": 0, "diverged": 0,
        "final_loss": curve[-1][1] if curve else None,
        "curve": [(float(at), loss) for at, loss in curve],
        "hyperparameters": None, "in_box": True, "heldout_accuracy": 0.5,
    }  # fmt: skip
    return BenchmarkRun(**usual | other)


def some_rows(ours, random, **others):
    """A table of curves by seed, in a budget of 10 s."""
    by_name = {OURS: ours, "random": random, **others}
    runs = [
        a_run(name, 7 + seed, curve)
        for name, of_name in by_name.items()
        for seed, curve in enumerate(of_name)
    ]
    return table(list(by_name), runs, 10.0)


def seeds_of(row):
    """The seeds at which ours is at or under, under, and over."""
    return [row.ours_at_or_under, row.ours_under, row.ours_over]


def test_a_table_by_hand():
    ours, random, tpe = some_rows(
        [[(1, 5.0), (2, 1.0)]] * 3,
        [[(4, 3.0)], [(6, 2.0)], [(8, 0.5)]],
        tpe=[[(3, 2.0)], [(3, 1.0)], []],
    )
    assert (random.final_loss, random.final_loss_least) == (2.0, 0.5)
    assert random.final_loss_largest == 3.0
    assert random.seconds_to_reference == 8.0  # before, there is no median under 3
    assert ours.seconds_to_reference == 2.0
    assert tpe.seconds_to_reference == 3.0
    assert [row.ratio_to_ours for row in (ours, random, tpe)] == [1, 4, 1.5]
    assert random.ours_reaches_its_final == 2.0
    assert random.it_reaches_our_final is None
    assert (tpe.ours_reaches_its_final, tpe.it_reaches_our_final) == (2.0, None)
    assert seeds_of(random) == [
        2,
        2,
        1,
    ]
    # A tie, and one without an answer.
    assert seeds_of(tpe) == [
        3,
        2,
        0,
    ]
    assert (tpe.final_loss, tpe.final_loss_largest) == (2.0, None)
    assert ours.ours_at_or_under is None


def test_nobody_is_at_or_under_where_neither_has_an_answer():
    _, random = some_rows([[]], [[]])
    assert seeds_of(random) == [
        0,
        0,
        0,
    ]
    assert random.seconds_to_reference is None


def test_a_table_says_who_did_not_make_it():
    runs = [
        a_run(OURS, 7, A),
        a_run(OURS, 8, A, in_box=False, heldout_accuracy=0.75),
        a_run("random", 7, [], status="failed", message="no luck", heldout_accuracy=None),
        a_run("random", 8, B),
    ]
    ours, random = table([OURS, "random"], runs, 10.0)
    assert (ours.status, ours.not_done, ours.out_of_box) == ("done", 0, 1)
    assert (random.status, random.not_done) == ("1 failed, 1 done", 1)
    assert random.messages == ["seed 7: failed: no luck"]
    assert (ours.heldout_accuracy, random.heldout_accuracy) == (0.625, 0.5)


WIN, LOSS = [[(3, 1.0)]] * 3, [[(3, 4.0)]] * 3


def test_a_verdict_when_ours_wins():
    found = verdict(some_rows(WIN, LOSS, tpe=[[(2, 2.0)]] * 3), 10.0)
    assert found == (
        "hyperrbp is ahead of random and tpe. After 10 s each, its loss is at most that of random"
        " with 3 of 3 seeds and tpe with 3 of 3 seeds. Its median loss is 1; the best of the"
        " others, tpe, has 2, which hyperrbp reaches after 3 s."
    )


def test_a_verdict_when_ours_loses():
    found = verdict(some_rows(LOSS, WIN), 2.5)
    assert found == (
        "hyperrbp is behind random. After 2.5 s each, its loss is at most that of random with 0 of"
        " 3 seeds. Its median loss is 4; the best of the others, random, has 1, which hyperrbp"
        " does not reach."
    )


def test_a_verdict_that_is_mixed():
    mixed = [[(3, 0.5)], [(3, 4.0)], [(3, 4.0)]]
    found = verdict(
        some_rows([[(1, 2.0)]] * 3, LOSS, tpe=WIN, cmaes=mixed, sobol=[[(1, 2.0)]] * 3), 9
    )
    assert found.startswith(
        "hyperrbp is ahead of random and cmaes, level with sobol, behind tpe. After 9 s each"
    )
    assert (
        "random with 3 of 3 seeds, tpe with 0 of 3 seeds, cmaes with 2 of 3 seeds and sobol with 3"
        " of 3 seeds." in found
    )


def test_a_verdict_without_losses():
    assert "behind random" in verdict(some_rows([[]] * 3, WIN), 9)
    assert "It has no median loss; the best of the others, random, has 1" in verdict(
        some_rows([[]], WIN[:1]), 9
    )
    found = verdict(some_rows(WIN[:1], [[]]), 9)
    assert "with 1 of 1 seed. Its median loss is 1; no other optimizer has one." in found
    assert "level with random" in verdict(some_rows([[]], [[]]), 9)


# --- without processes ----------------------------------------------------------------------------


@pytest.fixture
def machine(monkeypatch):
    return lambda **options: pretend(monkeypatch, **options)


@pytest.fixture(scope="module")
def tiny():
    return parse(TINY)


def test_everyone_gets_the_same_seconds_and_recipe_and_the_first_place_in_turn(machine, tiny):
    fake = machine()
    document = as_json(benchmark(tiny, FIELD, 8.0, seeds=4))
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
    report = benchmark(tiny, FIELD, 8.0, seeds=2)
    document = as_json(report)
    assert BenchmarkReport.model_validate_json(json.dumps(document)) == report
    assert set(document) == {
        "kind", "schema_version", "budget_seconds", "seeds", "ours", "reference", "environment",
        "recipe", "box", "start_loss", "verdict", "rows", "curves", "runs",
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
    assert benchmark(tiny, [OURS, "tpe"], 8.0, seeds=1).reference is None


def test_an_optimizer_whose_process_fails_is_a_row_with_what_it_had_sent(machine, tiny):
    machine(fails={"tpe": MemoryExhaustedError("no memory"), "random": UsageError("no way")})
    document = as_json(benchmark(tiny, FIELD, 8.0, seeds=1))
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

    def call(function, recipe, data_root, *arguments, on_message=None):
        if function is optimizer_runs.measure_start or arguments[0] != "tpe":
            return real(function, recipe, data_root, *arguments, on_message=on_message)
        times = Clock(0, 9) if loss is None else Clock(0, 1, 9)
        trials = (evaluation(loss or 1.0) for _ in range(2))
        return spend(trials, 8.0, on_message, times).to_run(arguments[0], recipe.seed)

    monkeypatch.setattr("hyperrbp.experiments.benchmark.call", call)
    document = as_json(benchmark(tiny, FIELD, 8.0, seeds=1))
    row = document["rows"][2]
    assert (row["status"], row["final_loss"]) == (status, None)
    assert row["messages"] == [f"seed 7: {status}: {words}"]


def test_a_recipe_that_cannot_be_run_at_all_is_no_row(machine, tiny):
    fake = machine(fails={"opening": DataError("no data")})
    with pytest.raises(DataError, match="no data"):
        benchmark(tiny, FIELD, 8.0)
    assert fake.turns == []


class Followed(BenchmarkCallback):
    def __init__(self):
        self.tasks, self.runs, self.done = [], [], 0.0

    def on_progress(self, progress):
        assert progress.done >= self.done
        self.done, self.total = progress.done, progress.total
        if self.tasks[-1:] != [progress.task]:
            self.tasks.append(progress.task)

    def on_record(self, record):
        self.runs.append(record)


def test_progress_ends_where_all_that_was_expected_is_done(machine, tiny):
    machine(fails={"tpe": MemoryExhaustedError("no memory")})
    followed = Followed()
    report = benchmark(tiny, FIELD, 8.0, seeds=2, callback=followed)
    assert followed.total == pytest.approx(followed.done)
    assert followed.total > 6 * 8
    assert followed.tasks[0] == "the start, which all have in common"
    assert followed.tasks[1:4] == [f"{name}, seed 1 of 2" for name in FIELD]
    assert followed.tasks[4:] == [f"{name}, seed 2 of 2" for name in rotated(FIELD, 1)]
    assert followed.runs == report.runs


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
def test_benchmarks_that_cannot_be(recipe, budget, seeds, words, machine):
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
            "--against both: gradient.method: auto goes with meta.optimizer adam",
        ),
        (
            "hyperparameters: {example_weight: {}}\nmeta: {loss: validation}\n"
            "data: {validation_examples: 100}",
            "surrogate",
            "--against surrogate: meta.optimizer: a surrogate of the loss cannot be fitted",
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


def test_what_goes_with_adam_alone_excludes_no_optimizer():
    recipe = parse(
        "meta: {on_divergence: rollback, decay: {from_step: 3}}\ngradient: {check_every: 5}"
    )
    check_benchmark(recipe, [OURS, "gradient", "surrogate", "both"], 1.0, 1)


def test_the_last_seeds_there_are_can_be_used():
    check_benchmark(parse(TINY.replace("seed: 7", f"seed: {2**63 - 3}")), [OURS, "random"], 1.0, 3)
