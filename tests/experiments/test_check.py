"""`hyperrbp check`, and what tune says of its gradient on the way."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from commands import assert_refused, run
from factories import tuning_text
from runs import as_json
from systems import small_training_run

from hyperrbp.cli.exit_codes import EXIT_CODES, NOT_TRUSTED
from hyperrbp.config.loading import parse
from hyperrbp.experiments.results.check import CheckReport
from hyperrbp.experiments.tune import tune_recipe
from hyperrbp.hypergradients import Averaging, hypergradient
from hyperrbp.hypergradients.diagnostics.examination import examine
from hyperrbp.hypergradients.diagnostics.last_state import EXACT, LastState
from hyperrbp.hypergradients.diagnostics.verdict import Verdict
from hyperrbp.hypergradients.settings import GradientSettings
from hyperrbp.optimizers.adam import AdamSettings, AdamState, descend
from hyperrbp.optimizers.auto_method import EVERY, AutoMethod
from hyperrbp.reporting.check import page
from hyperrbp.runtime.documents import finite_or_null
from hyperrbp.runtime.metering import LiveBytes, SavedBytes


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(tuning_text(data={"name": "digits"}))


def records(folder):
    return [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]


# --- forward mode ---------------------------------------------------------------------------------


def test_forward_mode_keeps_as_much_after_many_updates_as_after_ten():
    peaks = {}
    for steps in (10, 200):
        problem, theta = small_training_run(steps)
        hypergradient(problem, theta, "forward")  # warm
        with SavedBytes() as saved, LiveBytes() as live:
            found = hypergradient(problem, theta, "forward")
        peaks[steps] = (saved.peak, live.peak, found.trajectory_bytes)
        assert found.products == steps * len(theta)
    assert peaks[10] == peaks[200]
    problem, theta = small_training_run(10)
    assert peaks[10][2] == len(theta) * problem.initial_state().nbytes


@pytest.mark.parametrize("optimizer", ["maclaurin", "sgd"])
def test_forward_mode_equals_bptt(optimizer):
    problem, theta = small_training_run(60, optimizer=optimizer)
    theta = theta + 0.3 * torch.randn(len(theta), generator=torch.Generator().manual_seed(0))
    truth = hypergradient(problem, theta, "bptt").gradient
    found = hypergradient(problem, theta, "forward")
    assert found.status == "exact"
    assert (found.gradient - truth).norm() < 1e-10 * truth.norm()


# --- the command ----------------------------------------------------------------------------------


def test_a_trusted_gradient_ends_with_zero_and_leaves_its_folder(tmp_path):
    done = run("check", "tiny.yaml", "--out", "found", "--json")
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document == json.loads((tmp_path / "found" / "check.json").read_text())
    assert document["trusted"]
    assert document["verdict"] == "agrees"
    assert (tmp_path / "found" / "check.png").stat().st_size > 20_000
    assert "the exact gradient" in done.stderr
    assert document["agreement"]["descent"] >= 0.5
    assert document["differences"][1]["dtype"] == "float64"
    assert document["differences"][1]["error"] < 1e-6
    assert document["precision"]["cosine"] > 1 - 1e-6
    assert document["candidates"][-1]["label"] == "bptt keep=checkpoints"
    assert document["recommendation"]["method"] in ("neumann", "cg", "bptt")


def test_a_gradient_that_points_elsewhere_ends_with_its_own_code():
    # A single iteration from the paper's random z0 is mostly that z0.
    done = run("check", "tiny.yaml", "--method", "rbp", "--trunc", "1", "--seed", "3", "--quiet")
    assert done.exit_code == NOT_TRUSTED == 5, done.output
    assert done.stderr == ""
    assert "do not trust it (disagrees)" in done.stdout
    assert "Recommended: " in done.stdout
    assert EXIT_CODES[5] == "check: do not trust this gradient"


def test_it_can_be_asked_where_a_run_has_ended():
    assert run("tune", "tiny.yaml", "--out", "tuned", "-q").exit_code == 0
    start, end = (
        json.loads(run("check", "tiny.yaml", "--json", "-q", "--out", *words).stdout)
        for words in (["at-start"], ["at-end", "--hyperparameters", "tuned"])
    )
    assert end["loss"] < start["loss"]
    found = json.loads(Path("tuned/result.json").read_text())
    assert end["loss"] == found["best"]["meta_loss"]
    tuned = found["hyperparameters"]["momentum"]
    assert end["hyperparameters"]["momentum"] == pytest.approx(tuned, rel=1e-5)
    done = run("check", "tiny.yaml", "--hyperparameters", "at-end")
    assert done.exit_code in (2, 7)


def test_without_the_exact_gradient_nothing_is_held_against_it():
    done = run("check", "tiny.yaml", "--no-exact", "--json", "-q")
    document = json.loads(done.stdout)
    assert document["exact"] is document["agreement"] is document["precision"] is None
    assert document["candidates"] == document["differences"] == []
    assert document["verdict"] not in ("agrees", "disagrees", "exact")
    assert done.exit_code == (0 if document["trusted"] else 5)


@pytest.mark.parametrize("method", ["bptt", "forward"])
def test_an_exact_method_is_trusted(method):
    done = run("check", "tiny.yaml", "--method", method, "--json", "-q")
    document = json.loads(done.stdout)
    assert done.exit_code == 0
    assert document["verdict"] == "exact"
    assert document["horizon"] is document["solve"] is document["noise"] is None
    assert document["agreement"]["cosine"] == pytest.approx(1, abs=1e-6)


def test_where_auto_has_no_choice_the_exact_gradient_is_in_question():
    """No implicit method sees a schedule: those are no candidates either."""
    words = ["--set", "gradient.method=auto", "--set", "inner.schedule.shape=cosine"]
    done = run("check", "tiny.yaml", *words, "--json", "-q")
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document["verdict"] == "exact"
    assert document["recommendation"]["method"] == "bptt"
    assert {candidate["method"] for candidate in document["candidates"]} == {"bptt"}
    # One that is asked for by name is refused, as in any recipe.
    done = run("check", "tiny.yaml", *words[2:], "--method", "neumann", "-q")
    assert "neumann cannot see learning_rate" in done.stderr


@pytest.mark.parametrize("method", ["tbptt", "rbp", "cg", "neumann", "lsqr", "gmres", "anderson"])
def test_every_method_has_its_page(method):
    done = run("check", "tiny.yaml", "--method", method, "-q", "--out", "found")
    assert done.exit_code in (0, 5), done.output
    for part in ("steady state", "series", "spectrum", "exact gradient", "along Adam's step"):
        assert part in done.stdout
    assert ("linear solve" in done.stdout) == (method != "tbptt")


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["nothing.yaml"], "nothing.yaml"),
        (["tiny.yaml", "--trunc", "0"], "--trunc: gradient.trunc: expected at least 1, got 0"),
        (["tiny.yaml", "--method", "newton"], "expected one of auto, bptt"),
        (["hopfield"], "hopfield is a network to train"),
        (["tiny.yaml", "--out", "."], "--out .: not a new or empty folder"),
    ],
)
def test_a_fault_is_one_line(words, fault):
    assert_refused(run("check", *words), 2, fault)


def test_a_gradient_that_overflows_is_not_trusted():
    done = run("check", "tiny.yaml", "--set", "inner.learning_rate=1e30", "--json", "-q")
    assert done.exit_code == 5, done.output
    assert json.loads(done.stdout)["verdict"] == "non-finite"


def test_a_run_that_diverges_has_no_gradient_to_ask_about():
    done = run("check", "tiny.yaml", "--set", "inner.learning_rate=1e38", "-q", "--out", "found")
    assert_refused(done, 6, "the run that was to be differentiated is not finite at its end")
    assert not Path("found").exists()


def test_a_page_says_what_it_knows_and_no_more(capsys):
    done = run("check", "tiny.yaml", "--no-exact", "--json", "-q")
    report = CheckReport.model_validate_json(done.stdout)
    from rich.console import Console

    Console(width=100).print(page(report))
    said = capsys.readouterr().out
    assert "exact gradient against" not in said
    assert "None" not in said
    assert "nan" not in said


def test_the_same_seed_gives_the_same_answer():
    problem, theta = small_training_run(40)
    settings = GradientSettings("neumann", 10, Averaging(minibatches=4))
    before = torch.get_rng_state()
    one, two = (examine(problem, theta, settings, seed=5).to_json() for _ in range(2))
    assert one == two
    assert torch.equal(before, torch.get_rng_state())
    json.dumps(finite_or_null(one), allow_nan=False)


def test_an_implicit_gradient_needs_no_run_of_its_own():
    problem, theta = small_training_run(40)
    settings = GradientSettings("neumann", 10, Averaging(minibatches=4, series=2))
    at = LastState.of_run(problem, theta)
    whole = settings.hypergradient(problem, theta, seed=1)
    assert torch.equal(at.gradient(settings, seed=1).gradient, whole.gradient)
    assert torch.equal(at.h, whole.state)
    exact = EXACT.hypergradient(problem, theta, seed=0).gradient
    assert torch.equal(at.exact_gradient(), exact)


def test_a_training_run_in_another_precision_is_the_same_run():
    double, theta = small_training_run(40)
    single = double.in_precision(torch.float32)
    again = single.in_precision(torch.float64)
    assert single.initial_state().dtype is torch.float32
    a, b, c = (
        p.run(theta.to(p.initial_state().dtype), 0, 40, p.initial_state())
        for p in (double, single, again)
    )
    torch.testing.assert_close(b.double(), a, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(c, a, rtol=1e-5, atol=1e-6)
    assert double.initial_state().dtype is torch.float64


# --- in tune --------------------------------------------------------------------------------------


def tiny(**changes):
    overrides = [("--set", key.replace("__", "."), value) for key, value in changes.items()]
    return parse(tuning_text(data={"name": "digits"}), overrides=overrides)


def test_every_meta_step_says_what_its_gradient_is_worth(tmp_path):
    tune_recipe(tiny(), tmp_path / "run")
    *before, last = records(tmp_path / "run")
    assert "verdict" not in last  # there is no gradient after the last update
    for record in before:
        assert Verdict(record["verdict"])
        assert record["diagnostics"]["norms"].keys() == {"weights", "velocity", "loss gradient"}
        assert record["diagnostics"]["growth_rate"] > 0
        assert "check" not in record


def test_every_so_often_the_gradient_is_examined_in_full(tmp_path):
    plain = as_json(tune_recipe(tiny(meta__steps=4), tmp_path / "plain"))
    checked = as_json(
        tune_recipe(tiny(meta__steps=4, gradient__check_every=2), tmp_path / "checked")
    )
    found = records(tmp_path / "checked")
    assert [n for n, record in enumerate(found) if "check" in record] == [0, 2]
    assert found[0]["check"]["agreement"]["cosine"] is not None
    assert found[0]["check"]["spectrum"]["norm"] > 0
    assert found[0]["verdict"] == found[0]["check"]["verdict"]
    assert checked["hyperparameters"] == plain["hyperparameters"]  # looking changes nothing


GROWING = {
    "inner__learning_rate": 8.0,
    "inner__steps": 12,
    "gradient__trunc": 10,
    "meta__steps": 3,
}


def test_a_warning_is_given_once_also_after_a_resume(tmp_path):
    found = as_json(tune_recipe(tiny(**GROWING), tmp_path / "run"))
    statuses = [record.get("status") for record in records(tmp_path / "run")[:-1]]
    assert statuses == ["growing"] * 3
    (warning,) = [record["warning"] for record in records(tmp_path / "run") if "warning" in record]
    assert warning.startswith("meta step 0: the gradient is growing: the terms of the series grow")
    assert "--cut-growing" in warning
    (summary,) = found["warnings"]
    assert "grew at 3 of 3 gradients" in summary
    more = as_json(tune_recipe(tiny(**GROWING | {"meta__steps": 5}), tmp_path / "run", resume=True))
    after = [record["warning"] for record in records(tmp_path / "run") if "warning" in record]
    assert after == [warning]
    assert more["warnings"] == [summary.replace("3 of 3", "5 of 5")]


def test_a_growing_series_is_cut_when_asked(tmp_path):
    words = ["--set", "inner.learning_rate=8.0", "--train-steps", "12", "--trunc", "10", "--json"]
    plain, cut = (
        json.loads(run("tune", "tiny.yaml", *words, *more, "-q").stdout)
        for more in (["--out", "plain"], ["--out", "cut", "--cut-growing"])
    )
    assert plain["hyperparameters"] != cut["hyperparameters"]


def test_auto_takes_the_exact_gradient_where_nothing_is_much_cheaper(tmp_path):
    found = as_json(tune_recipe(tiny(gradient__method="auto", gradient__trunc=5), tmp_path / "run"))
    (choice,) = found["choices"]
    # Five products, at three gradients each, and six updates are more than half of five times six.
    assert choice["label"] == "bptt keep=checkpoints"
    assert choice["why"].startswith("it costs only 1.") or "no other" in choice["why"]
    exact = as_json(
        tune_recipe(
            tiny(gradient__method="bptt", gradient__options={"bptt": {"keep": "checkpoints"}}),
            tmp_path / "exact",
        )
    )
    assert found["hyperparameters"] == exact["hyperparameters"]


@pytest.mark.parametrize(
    ("steps", "method", "why"),
    [(60, "neumann", "it keeps 76% of the steepest"), (200, "bptt", "no other can be trusted")],
)
def test_auto_takes_a_cheap_gradient_if_it_agrees(steps, method, why):
    problem, theta = small_training_run(steps)
    state = AdamState(theta)
    settings = AutoMethod(GradientSettings("neumann", 5, Averaging(minibatches=5, series=2)))(
        state, problem
    )
    assert settings.method == method
    assert settings.trunc == 5
    assert state.choice["meta_step"] == 0
    assert state.choice["why"].startswith(why)


def test_auto_chooses_again_every_so_often_and_remembers_in_between():
    problem, theta = small_training_run(20)
    asked = []

    class Counted(AutoMethod):
        def _choose(self, state, problem):
            asked.append(state.meta_step)
            super()._choose(state, problem)

    chooser = Counted(GradientSettings("neumann", 2, Averaging(minibatches=2)), every=2)
    state = AdamState(theta)
    list(descend(problem, state, chooser, AdamSettings(steps=5)))
    assert asked == [0, 2, 4]
    restored = AdamState.from_state_dict(json.loads(json.dumps(state.state_dict())), like=theta)
    assert restored.choice == state.choice
    assert EVERY == 20


def test_auto_goes_on_as_it_would_have(tmp_path):
    wanted = {"gradient__method": "auto", "gradient__check_every": 3}
    whole = as_json(tune_recipe(tiny(meta__steps=5, **wanted), tmp_path / "whole"))
    tune_recipe(tiny(meta__steps=2, **wanted), tmp_path / "parts")
    parts = as_json(tune_recipe(tiny(meta__steps=5, **wanted), tmp_path / "parts", resume=True))
    for key in ("hyperparameters", "meta_loss", "choices"):
        assert parts[key] == whole[key]
    for one, other in zip(records(tmp_path / "whole"), records(tmp_path / "parts"), strict=True):
        assert {**one, "measured": 0} == {**other, "measured": 0}


def test_the_screen_and_tensorboard_say_so_too(tmp_path):
    done = run(
        "tune", "tiny.yaml", "--method", "auto", "--check-every", "1", "--meta-steps", "1",
        "--trunc", "5", "--out", "run",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "meta step 0: auto takes bptt keep=checkpoints; " in done.stderr
    assert "meta step 0: check: exact; cosine 1 " in done.stderr
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "run" / "events")).Reload()
    tags = set(events.Tags()["scalars"])
    assert {"check/cosine_with_exact", "check/spectral_radius", "last_state/velocity"} <= tags
