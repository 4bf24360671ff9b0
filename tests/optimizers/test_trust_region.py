"""The trust-region search: screening, steps, what it gives up, and how it is resumed."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from factories import tuning_text
from runs import StopsAfter, as_json
from systems import random_linear, run_of, small_training_run

from hyperrbp.config.loading import parse
from hyperrbp.exceptions import DivergedError, RecipeError
from hyperrbp.experiments.meta_optimizer import evaluations, meta_optimizer
from hyperrbp.experiments.tune import tune_recipe
from hyperrbp.hypergradients import Averaging
from hyperrbp.hypergradients.settings import GradientSettings
from hyperrbp.optimizers.base import minimize
from hyperrbp.optimizers.surrogate import CAP, Surrogate, _capped, log_loss
from hyperrbp.optimizers.trust_region import TrustRegion
from hyperrbp.optimizers.trust_region_state import TrustRegionSettings, TrustRegionState
from hyperrbp.problems.training.hyperparameters import Grain
from hyperrbp.runtime.callbacks import Progress

EXACT = GradientSettings("bptt", options={"keep": "states"})
QUIET = {"threads": "1", "record": "{test_seeds: 0}"}


def boxed(theta: torch.Tensor, half: float = 2.0) -> tuple[torch.Tensor, torch.Tensor]:
    return theta - half, theta + half


def minimized(problem, theta, settings, *, half=2.0, gradient=EXACT, seed=0, state=None, **more):
    optimizer = TrustRegion(boxed(theta, half), gradient, settings, seed=seed, **more)
    state = state or optimizer.init(theta)
    return whole(minimize(optimizer, problem, state)), state


def whole(evaluations):
    """Those that came to their end."""
    return [found for found in evaluations if found.complete]


def bits(steps):
    return [(step.meta_loss, step.theta.tolist(), step.source) for step in steps]


def resumed_at_every_step(problem, theta, settings, gradient):
    """The bits of a search whose every evaluation starts from what the one before has written."""
    optimizer, found = TrustRegion(boxed(theta), gradient, settings), []
    state = optimizer.init(theta)
    while (evaluation := optimizer.step(problem, state)) is not None:
        if evaluation.complete:
            found.append(evaluation)
        content = json.loads(json.dumps(state.state_dict(), allow_nan=False))
        state = optimizer.restore(content, theta)
    return bits(found)


class Counting:
    """Another problem, whose updates, losses and starts are counted."""

    def __init__(self, problem):
        self._problem, self.updates, self.spans = problem, 0, []

    def __getattr__(self, name):
        return getattr(self._problem, name)

    def run(self, theta, start, stop, h):
        self.updates += stop - start
        self.spans.append((start, stop))
        return self._problem.run(theta, start, stop, h)


def counted(problem):
    found = Counting(problem)
    return found, lambda _: found


def test_the_screening_halves_and_goes_on_from_paused_runs():
    problem, theta = small_training_run(steps=27)
    counting, at = counted(problem)
    settings = TrustRegionSettings(steps=2, screened=27, gradient=False)
    steps, state = minimized(at, theta, settings)
    assert counting.spans[:27] == [(0, 3)] * 27
    assert counting.spans[27:36] == [(3, 9)] * 9
    assert counting.spans[36:] == [(9, 27)] * 3
    assert [step.source for step in steps] == ["screening"] * 3
    assert [step.meta_step for step in steps] == [0, 1, 2]
    assert sum(math.isinf(h) for h in state.scores) == 24
    for step in steps:  # a paused run is the whole run, bit for bit
        h = problem.run(step.theta, 0, 27, problem.initial_state(step.theta))
        assert step.meta_loss == float(problem.loss(h))
    at_rung = []
    for u in state.points[-3:]:
        theta_u = boxed(theta)[0] + 4 * torch.tensor(u, dtype=theta.dtype)
        at_rung.append(float(problem.loss(problem.run(theta_u, 0, 3, problem.initial_state()))))
    others = [
        float(
            problem.loss(
                problem.run(
                    boxed(theta)[0] + 4 * torch.tensor(u, dtype=theta.dtype),
                    0,
                    3,
                    problem.initial_state(),
                )
            )
        )
        for u in state.points[:18]
    ]
    assert max(at_rung) <= min(others)


def test_the_start_is_screened_too_and_alone_if_asked():
    problem, theta = small_training_run(steps=9)
    steps, _ = minimized(problem, theta, TrustRegionSettings(steps=0, screened=1))
    assert torch.allclose(steps[0].theta, theta, rtol=0, atol=1e-12)
    assert len(steps) == 1


def test_more_coordinates_than_a_sobol_sequence_has(monkeypatch):
    monkeypatch.setattr("scipy.stats.qmc.Sobol.MAXDIM", 3)
    problem, theta = small_training_run(steps=9)
    _, state = minimized(problem, theta, TrustRegionSettings(steps=2, screened=27, surrogate=False))
    points = torch.tensor(state.points)
    assert 0 <= float(points.min()) < 0.1
    assert 0.9 < float(points.max()) <= 1
    assert len({tuple(u) for u in state.points[:27]}) == 27


class Hopeless(Counting):
    """A problem without a finite loss."""

    def loss(self, h):
        return self._problem.loss(h) * math.nan


def test_a_screening_without_a_finite_loss_ends_at_its_first_rung():
    problem, theta = small_training_run(steps=27)
    hopeless = Hopeless(problem)
    with pytest.raises(DivergedError, match="no run of the screening"):
        minimized(lambda _: hopeless, theta, TrustRegionSettings(steps=9, screened=9))
    assert hopeless.spans == [(0, 3)] * 9


def test_rounding_leads_nowhere_outside_the_box():
    problem, theta = small_training_run(steps=3)
    single = problem.in_precision(torch.float32)
    low, high = (torch.full_like(theta, math.log(x)).float() for x in (1e-6, 0.1))
    optimizer = TrustRegion((low, high), EXACT, TrustRegionSettings(screened=1))
    step = optimizer.step(single, optimizer.init(high))
    assert torch.equal(step.theta, high)


def test_segments_share_their_samples_in_the_screening():
    problem, theta = run_of({"learning_rate": Grain("tensor", 3), "momentum": Grain("net")})
    tied = problem.layout.across_segments()
    assert tied == [0, 1, 2, 3] * 3 + [4]
    _, state = minimized(
        problem, theta, TrustRegionSettings(steps=0, screened=9, gradient=False), tied=tied
    )
    samples = np.array(state.points + state.survivors)
    start = ((theta - boxed(theta)[0]) / 4).tolist()
    samples = samples[[not np.allclose(u, start) for u in samples]]
    assert len(samples) == 8
    assert np.array_equal(samples[:, 0:4], samples[:, 4:8])
    assert np.array_equal(samples[:, 0:4], samples[:, 8:12])
    assert len(np.unique(samples[:, 0])) == 8


def test_gradient_steps_double_when_they_hold_and_halve_when_not():
    problem, theta = random_linear(steps=1)  # too short to be given up
    settings = TrustRegionSettings(steps=40, screened=1, surrogate=False)
    steps, state = minimized(problem, theta, settings, half=4.0)
    losses = [step.meta_loss for step in steps]
    assert min(losses) < 0.35 * losses[0]
    assert state.best_loss == min(losses)
    box = boxed(theta, 4.0)
    best, length = 0, settings.first_step
    for n, step in enumerate(steps[1:], start=1):
        went = (step.theta - steps[best].theta) / (box[1] - box[0])
        clipped = ((step.theta - box[0]).abs() < 1e-9) | ((step.theta - box[1]).abs() < 1e-9)
        if not clipped.any():
            assert float(went.norm()) == pytest.approx(length, rel=1e-6)
        better = losses[n] < losses[best]
        length = min(2 * length, 0.5 * len(theta) ** 0.5) if better else length / 2
        best = n if better else best
    assert {losses[n] < min(losses[:n]) for n in range(1, len(losses))} == {True, False}


class CountingGradients(Counting):
    """Another problem, whose loss gradients are counted: one for each hypergradient."""

    gradients = 0

    def loss_and_gradient(self, h):
        self.gradients += 1
        return self._problem.loss_and_gradient(h)


def test_a_gradient_is_taken_once_a_best_and_not_again_after_a_failure():
    problem, theta = small_training_run(steps=12)
    counting = CountingGradients(problem)
    settings = TrustRegionSettings(steps=25, screened=9, surrogate=False)
    steps, _ = minimized(lambda _: counting, theta, settings)
    losses = [step.meta_loss for step in steps]
    improved = sum(losses[n] < min(losses[:n]) for n in range(1, len(losses)))
    assert any(step.source == "gradient" for step in steps)
    assert 2 <= counting.gradients <= improved + 1
    assert counting.gradients < sum(step.source == "gradient" for step in steps)


def test_a_gradient_step_is_along_the_gradient_in_units_of_the_box():
    problem, theta = small_training_run(steps=12)
    half = torch.linspace(0.5, 4.0, len(theta), dtype=theta.dtype)
    low, high = theta - half, theta + half
    optimizer = TrustRegion((low, high), EXACT, TrustRegionSettings(steps=1, screened=1))
    state = optimizer.init(theta)
    optimizer.step(problem, state)
    g = EXACT.hypergradient(problem, theta, seed=0).gradient * (high - low)
    expected = g.sign() * g.abs().sqrt()
    second = optimizer.step(problem, state)
    went = second.theta - theta
    cosine = torch.cosine_similarity(went, -expected * (high - low), dim=0)
    assert float(cosine) == pytest.approx(1.0, abs=1e-6)


def test_a_coordinate_that_leans_on_a_wall_counts_out():
    problem, theta = random_linear(steps=40)
    gradient = EXACT.hypergradient(problem, theta, seed=0).gradient
    high = theta + 2.0
    high[gradient < 0] = theta[gradient < 0]  # downhill is outside
    low = theta - 2.0
    assert (gradient < 0).any()
    assert (gradient > 0).any()
    optimizer = TrustRegion((low, high), EXACT, TrustRegionSettings(steps=3, screened=1))
    steps = list(minimize(optimizer, problem, optimizer.init(theta)))
    for step in steps:
        assert ((low - 1e-12 <= step.theta) & (step.theta <= high + 1e-12)).all()
    assert torch.allclose(steps[1].theta[gradient < 0], theta[gradient < 0], rtol=0, atol=1e-12)
    went = (steps[1].theta - theta) / (high - low)
    assert float(went.norm()) == pytest.approx(0.1, rel=1e-6), "the wall took a part of the step"
    assert steps[1].meta_loss < steps[0].meta_loss


def test_what_is_worse_than_the_good_half_on_the_way_is_given_up(monkeypatch):
    problem, theta = small_training_run(steps=27)
    _, at = counted(problem)
    settings = TrustRegionSettings(steps=40, screened=27, gradient=False)
    counting = at(0)
    _, state = minimized(at, theta, settings)
    given_up = sum(math.isinf(h) for h in state.scores) - 24
    assert given_up > 0
    assert state.given_up == given_up + 24
    assert counting.spans.count((0, 9)) - counting.spans.count((9, 27)) + 3 == given_up
    ends = sorted(state.midway)
    assert len(ends) >= 8


def test_the_screening_reports_its_progress():
    problem, theta = small_training_run(steps=27)
    counting, at = counted(problem)
    received = []

    def report(now):
        received.append(now)
        assert now.done == counting.updates

    settings = TrustRegionSettings(steps=2, screened=10, gradient=False)
    minimized(at, theta, settings, report=report)
    assert received[0] == Progress("screening", 0, 10 * 3 + 4 * 6, "training steps")
    assert len(received) == 10 + 4
    assert received[-1].done == 10 * 3 + 3 * 6
    received.clear()
    settings = TrustRegionSettings(steps=2, screened=1, gradient=False)
    minimized(problem, theta, settings, report=report)
    assert not received, "there is nothing to screen"


def test_pruned_runs_are_evaluations_too():
    problem, theta = small_training_run(steps=27)
    settings = TrustRegionSettings(steps=20, screened=27, gradient=False)
    optimizer = TrustRegion(boxed(theta), EXACT, settings)
    state = optimizer.init(theta)
    found = list(minimize(optimizer, problem, state))
    assert sum(e.complete for e in found) == state.meta_step == 21
    assert sum(not e.complete for e in found) == state.given_up
    assert {e.training_steps for e in found if e.pruned} == {9}
    assert {e.training_steps for e in found if e.complete} == {27}
    assert all(e.source == "screening" for e in found[:24])


class Spent(Counting):
    """A problem whose losses are NaN after so many updates."""

    def loss(self, h):
        return self._problem.loss(h) * (1.0 if self.updates <= 9 * 9 else math.nan)


def test_a_search_of_which_no_run_comes_to_its_end_stops(monkeypatch):
    monkeypatch.setattr("hyperrbp.optimizers.trust_region.FRUITLESS", 12)
    problem, theta = small_training_run(steps=9)
    spent = Spent(problem)
    settings = TrustRegionSettings(steps=50, screened=1, gradient=False)
    optimizer = TrustRegion(boxed(theta), EXACT, settings)
    state = optimizer.init(theta)
    steps = whole(minimize(optimizer, lambda _: spent, state))
    assert state.stopped
    assert len(steps) == 9
    assert state.given_up == 12


@pytest.mark.parametrize("of", [{"surrogate": False}, {"gradient": False}, {}], ids=str)
def test_a_search_resumed_anywhere_has_the_same_bits(of):
    """Stopped after every run. Breaks if the search knows what its state does not."""
    problem, theta = small_training_run(steps=18)
    settings = TrustRegionSettings(steps=16, screened=9, **of)
    runs, _ = minimized(problem, theta, settings)
    expected = bits(runs)
    assert len(expected) == 17
    assert resumed_at_every_step(problem, theta, settings, EXACT) == expected


def test_every_run_over_replicates_is_one_of_its_own_replicate():
    """The losses, and all bits when resumed. Breaks if a run goes on in another replicate."""
    replicates = [small_training_run(steps=18, seed=n)[0] for n in range(17)]
    _, theta = small_training_run(steps=18)
    settings = TrustRegionSettings(steps=10, screened=9)
    inexact = GradientSettings("neumann", 5, Averaging("mean", 2))
    runs, _ = minimized(replicates.__getitem__, theta, settings, gradient=inexact)
    for step in runs:
        assert step.problem is replicates[step.meta_step]
        assert step.meta_loss == float(step.problem.loss(step.problem.last_state(step.theta)))
    expected = bits(runs)
    assert {source for *_, source in expected} >= {"screening", "gradient"}
    assert resumed_at_every_step(replicates.__getitem__, theta, settings, inexact) == expected


def test_a_content_of_another_version_is_refused():
    _, theta = small_training_run(steps=3)
    content = TrustRegionState(theta).state_dict()
    for name in content:
        with pytest.raises(KeyError, match=name):
            TrustRegionState.from_state_dict(
                {k: v for k, v in content.items() if k != name}, like=theta
            )


def test_runs_that_diverge_are_bad_points_and_no_end():
    """Breaks if one is recorded, or ends the search."""
    problem, theta = small_training_run(steps=18, optimizer="sgd")
    steps, state = minimized(
        problem, theta + 2, TrustRegionSettings(steps=12, screened=9), half=900.0, gradient=EXACT
    )
    assert len(steps) == 13 or state.stopped
    assert all(math.isfinite(step.meta_loss) for step in steps)


def test_nothing_finite_at_all_is_said():
    """Breaks if the search ends without an answer."""
    problem, theta = small_training_run(steps=9)
    far = torch.full_like(theta, 800.0)
    with pytest.raises(DivergedError, match="no run of the screening"):
        minimized(problem, far, TrustRegionSettings(steps=5, screened=5), half=1.0)


def test_patience_ends_a_search():
    problem, theta = small_training_run(steps=9)
    steps, state = minimized(
        problem, theta, TrustRegionSettings(steps=500, screened=9, gradient=False, patience=4)
    )
    assert len(steps) < 500
    assert len(steps) - 1 - state.best_step == 4


def test_patience_begins_after_the_screening():
    """Its runs come in the order of what they promise. Breaks if the search ends among them."""
    problem, theta = small_training_run(steps=27)
    settings = TrustRegionSettings(steps=60, screened=54, gradient=False, patience=2)
    steps, _ = minimized(problem, theta, settings)
    screened = sum(step.source == "screening" for step in steps)
    assert screened == 6
    first = min(range(screened), key=lambda n: steps[n].meta_loss)
    assert first < 4, "or else this shows nothing"
    assert len(steps) >= screened + 2


def test_the_surrogate_finds_a_valley_that_chance_does_not():
    draw = np.random.default_rng(3)
    bottom = draw.random(6)

    def value(u: np.ndarray) -> float:
        return float(math.log10(1e-4 + ((u - bottom) ** 2 * np.arange(1, 7)).sum()))

    points = draw.random((20, 6))
    heights = np.array([value(u) for u in points])
    surrogate, radius = Surrogate(6), 0.4
    for turn in range(60):
        u = surrogate.proposal(points, heights, radius, turn, np.random.default_rng(turn))
        assert ((u >= 0) & (u <= 1)).all()
        points, heights = np.vstack([points, u]), np.append(heights, value(u))
        radius = max(0.1, radius * 0.97)
    by_chance = min(value(u) for u in np.random.default_rng(9).random((2000, 6)))
    assert heights.min() < by_chance


def test_what_was_given_up_is_no_better_than_the_worst_good_point():
    points = np.random.default_rng(0).random((30, 3))
    heights = np.where(points[:, 0] > 0.5, math.inf, points[:, 0])
    proposals = [
        Surrogate(3).proposal(points, heights, 0.4, 0, np.random.default_rng(n)) for n in range(10)
    ]
    assert np.mean([u[0] for u in proposals]) < 0.3


def test_bad_points_are_alike_to_the_surrogate():
    heights = np.array([*np.linspace(-3.0, 0.0, 61), 5.0, 30.0, math.inf])
    capped, cap = _capped(heights)
    good = np.sort(heights)[int(CAP * 63)]
    assert cap == pytest.approx(good + 0.3 * (good + 3.0))
    assert (capped[heights > cap] == cap).all()
    assert np.array_equal(capped[heights <= cap], heights[heights <= cap])


@pytest.mark.parametrize(
    ("lower", "higher"), [(0.1, 0.2), (0.0, 1e-20), (-5.0, -1.0), (1.0, math.nan), (1.0, math.inf)]
)
def test_scores_are_in_the_order_of_losses(lower, higher):
    assert log_loss(lower) < log_loss(higher) < math.inf


# --- as a recipe ----------------------------------------------------------------------------------

TINY = tuning_text(
    data__train_examples=200,
    model={"options": {"hidden": [3]}, "init_std": 0.3},
    inner__steps=18,
    gradient={"trunc": 3, "averaging": {"minibatches": 2}},
    meta={"steps": 12, "screened": 9, "optimizer": "both"},
    record={"test_seeds": 0},
)


def test_a_tuning_run_by_search_can_be_resumed_bit_for_bit(tmp_path):
    """And go on to more meta steps. Catches a state that is not read back."""
    recipe = parse(TINY)
    whole = as_json(tune_recipe(recipe, tmp_path / "whole"))
    for after in (0, 2, 7, 12):
        folder = tmp_path / f"after{after}"
        with pytest.raises(KeyboardInterrupt):
            tune_recipe(recipe, folder, callbacks=[StopsAfter(after)])
        found = as_json(tune_recipe(recipe, folder, resume=True))
        assert found["meta_loss"] == whole["meta_loss"]
        assert found["hyperparameters"] == whole["hyperparameters"]
    assert len(whole["meta_loss"]) == 13
    assert whole["best"]["meta_loss"] == min(whole["meta_loss"])
    again = as_json(tune_recipe(recipe, tmp_path / "whole", resume=True))
    assert again["meta_loss"] == whole["meta_loss"]
    lines = (tmp_path / "whole" / "records.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert {record["source"] for record in records} == {"screening", "gradient", "surrogate"}
    assert whole["optimizer"] == "both"
    for record in records:
        assert ("gradient_information" in record) == (record["source"] == "gradient")
    known = [r["gradient_information"] for r in records if r["source"] == "gradient"]
    assert all(found["status"] == "growing" and found["products"] == 6 for found in known)
    assert all(found["norm"] > 0 and found["meta_step"] < 12 for found in known)
    more = as_json(
        tune_recipe(parse(TINY.replace("steps: 12", "steps: 15")), tmp_path / "whole", resume=True)
    )
    assert more["meta_loss"][:13] == whole["meta_loss"]
    assert len(more["meta_loss"]) == 16


def test_each_optimizer_of_a_recipe_is_the_one_it_names():
    from hyperrbp.experiments.experiment import Experiment

    for name, sources in {
        "adam": {None},
        "gradient": {"screening", "gradient"},
        "surrogate": {"screening", "surrogate"},
    }.items():
        experiment = Experiment(parse(TINY.replace("optimizer: both", f"optimizer: {name}")))
        optimizer = meta_optimizer(experiment)
        steps = list(evaluations(experiment, optimizer, optimizer.init(experiment.theta)))
        assert {step.source for step in steps} == sources
        low, high = experiment.box
        if name != "adam":
            assert all(((low <= s.theta) & (s.theta <= high)).all() for s in steps)


@pytest.mark.parametrize(
    ("text", "key", "words"),
    [
        (
            "gradient: {method: auto}\nmeta: {optimizer: both}",
            "gradient.method",
            "expected a method by",
        ),
        (
            "hyperparameters: {example_weight: {}}\nmeta: {loss: validation, optimizer: surrogate}"
            "\ndata: {validation_examples: 100}",
            "meta.optimizer",
            "expected adam or gradient, got surrogate",
        ),
        (
            "gradient: {check_every: 2}\nmeta: {optimizer: both}",
            "gradient.check_every",
            "goes with meta.optimizer adam",
        ),
        (
            "meta: {optimizer: both, on_divergence: rollback}",
            "meta.on_divergence",
            "meta.optimizer adam",
        ),
        ("meta: {optimizer: both, decay: {factor: 0.5}}", "meta.decay", "meta.optimizer adam"),
        (
            "inner: {momentum: 0.99}\nmeta: {optimizer: surrogate}",
            "hyperparameters.momentum.range",
            "holds inner.momentum = 0.99, got [0.018, 0.982]",
        ),
        (
            "hyperparameters: {init_scale: {range: [2, 3]}}\nmeta: {optimizer: surrogate}",
            "hyperparameters.init_scale.range",
            "holds the start = 1, got [2, 3]",
        ),
    ],
)
def test_an_optimizer_that_cannot_be_is_refused(text, key, words):
    with pytest.raises(RecipeError) as raised:
        parse(text)
    assert [fault.key for fault in raised.value.faults] == [key]
    assert words in str(raised.value)


def test_a_surrogate_needs_no_gradient_that_sees():
    parse("hyperparameters: {init_scale: {}}\nmeta: {optimizer: surrogate}")
    with pytest.raises(RecipeError, match="cannot see init_scale"):
        parse("hyperparameters: {init_scale: {}}\nmeta: {optimizer: both}")


def test_the_terminal_says_what_is_screened_and_who_proposed_what(tmp_path, capsys):
    from rich.console import Console

    from hyperrbp.reporting.results import tuning_page
    from hyperrbp.reporting.tuning_lines import TuningLines

    console = Console(width=300)
    result = tune_recipe(parse(TINY), tmp_path / "run", callbacks=[TuningLines(console)])
    said = capsys.readouterr().out
    assert "before them, 9 points are screened, for as long as about 2 take" in said
    assert "screening: 0 of " in said
    assert result.given_up >= 6
    assert "hyperparameters; neumann with K = 3 and optimizer both on cpu, 1 thread" in said
    console.print(tuning_page(result.model_copy(update={"optimizer": "surrogate"})))
    said_at_the_end = capsys.readouterr().out
    assert " a surrogate on cpu" in said_at_the_end
    assert " → " not in said_at_the_end[said_at_the_end.index("meta loss") :]
    assert "meta step 0/12 (screening) |" in said
    for source in ("gradient", "surrogate"):
        assert f"/12 ({source}) |" in said
