"""Black-box search: what it proposes, prunes and learns, and how it is resumed."""

from __future__ import annotations

import itertools
import json
import logging
import math
from dataclasses import dataclass

import pytest
import torch
from systems import small_training_run

from hyperrbp.exceptions import UsageError
from hyperrbp.optimizers.base import minimize
from hyperrbp.optimizers.optuna_samplers import SAMPLERS
from hyperrbp.optimizers.optuna_search import WORST_LOSS, OptunaSearch, hyperband_rungs
from hyperrbp.problems.base import Problem

pytest.importorskip("optuna")


def first(count, problem, low, high, sampler, seed, start=None):
    """The first evaluations of a search, from the middle of the box if no start is given."""
    optimizer = OptunaSearch((low, high), sampler, seed=seed)
    state = optimizer.init((low + high) / 2 if start is None else start)
    return list(itertools.islice(minimize(optimizer, problem, state), count))


def cube(theta, half=2.0):
    return torch.full_like(theta, -half), torch.full_like(theta, half)


@dataclass
class Ramp(Problem):
    """h' = h + θ₀ + θ₁: its loss after t steps is that of t/T of the way, or whatever is told."""

    steps: int = 54
    fault: str = ""
    """What goes wrong where θ₀ > 0."""
    taken: int = 0

    def initial_state(self, theta=None):
        return torch.zeros(2, dtype=torch.float64)

    def step(self, h, theta, x):
        self.taken += 1
        h = h + torch.stack([theta.sum() / self.steps, theta[0] / self.steps])
        if self.fault == "state" and theta[0] > 0:
            h = torch.stack([h[0], h[1] + math.inf])
        return h

    def input(self, t):
        return None

    def population(self):
        return [(1.0, None)]

    def loss_and_gradient(self, h):
        bad = {"nan": math.nan, "inf": math.inf}.get(self.fault)
        if bad is not None and h[1] > 0:
            return torch.tensor(bad), torch.ones_like(h)
        return 10 + h[0], torch.ones_like(h)

    def loss(self, h):
        return self.loss_and_gradient(h)[0]


TWO = torch.zeros(2, dtype=torch.float64)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_search_stays_in_its_box_and_its_seed_decides_all(sampler, capfd):
    low, high = torch.tensor([-0.3, 1.0]), torch.tensor([-0.1, 4.0])
    runs = [first(25, Ramp(), low, high, sampler, seed) for seed in (1, 1, 2)]
    for trials in runs:
        assert [trial.meta_step for trial in trials if trial.complete] == list(
            range(sum(t.complete for t in trials))
        )
        assert all(((low <= t.theta) & (t.theta <= high)).all() for t in trials)
        assert trials[0].theta.dtype == torch.float32
        assert len({tuple(trial.theta.tolist()) for trial in trials}) > 20
        spread = torch.stack([trial.theta for trial in trials]).amax(0) - low
        assert (spread > 0.6 * (high - low)).all()
    same, again, other = [
        [(t.theta.tolist(), t.training_steps, t.meta_loss) for t in r] for r in runs
    ]
    assert same == again
    assert same != other
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("sampler", ["tpe", "cmaes", "hyperband"])
def test_a_search_that_learns_gets_down(sampler):
    problem, count = Ramp(), 60
    last = first(count, problem, *cube(TWO), sampler, 3)[-15:]
    mean = sum(float(trial.theta.sum()) for trial in last) / len(last)
    assert mean < -1  # of a uniform search: 0 ± 0.4


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_start_is_tried_first(sampler):
    low, high = cube(TWO, 1.0)
    start = torch.tensor([0.25, -0.75], dtype=torch.float64)
    trials = first(3, Ramp(), low, high, sampler, 1, start)
    assert trials[0].theta.tolist() == [0.25, -0.75]
    assert trials[1].theta.tolist() != [0.25, -0.75]
    outside = first(1, Ramp(), low, high, sampler, 1, start + 1)
    assert outside[0].theta.tolist() == [1.0, 0.25]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_losses_are_those_of_the_inner_run(sampler):
    problem, theta = small_training_run(30)
    for trial in first(6, problem, theta - 1, theta + 1, sampler, 2, theta):
        h = problem.run(trial.theta, 0, trial.training_steps, problem.initial_state(trial.theta))
        assert trial.meta_loss == float(problem.loss_and_gradient(h)[0])
        assert (trial.training_steps < problem.steps) == trial.pruned


def test_rungs_by_hand():
    assert hyperband_rungs(200) == [7, 21, 63]
    assert hyperband_rungs(1000) == [37, 111, 333]
    assert hyperband_rungs(54) == [2, 6, 18]
    assert hyperband_rungs(6) == [1, 3]
    assert hyperband_rungs(1) == []


def test_hyperband_cuts_runs_at_rungs_and_takes_no_step_twice():
    problem = Ramp()
    trials = first(40, problem, *cube(TWO), "hyperband", 4)
    assert {trial.training_steps for trial in trials} == {2, 6, 18, 54}
    assert 10 < sum(trial.pruned for trial in trials) < 40
    assert all(trial.pruned == (trial.training_steps < 54) for trial in trials)
    assert problem.taken == sum(trial.training_steps for trial in trials)
    for trial in trials:
        assert trial.meta_loss == pytest.approx(
            10 + float(trial.theta.sum()) * trial.training_steps / 54
        )
    cut = [float(trial.theta.sum()) for trial in trials if trial.pruned]
    whole = [float(trial.theta.sum()) for trial in trials if not trial.pruned]
    assert sum(whole) / len(whole) < sum(cut) / len(cut)


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name != "hyperband"])
def test_the_others_cut_nothing(sampler):
    assert all(
        t.training_steps == 54 and not t.pruned for t in first(20, Ramp(), *cube(TWO), sampler, 4)
    )


@pytest.mark.parametrize("fault", ["nan", "inf", "state"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_what_diverged_is_worse_than_all_and_the_search_goes_on(sampler, fault, monkeypatch):
    import optuna

    outcomes = []
    real = optuna.Study.tell

    def tell(study, trial, values=None, state=None):
        outcomes.append((values, state))
        return real(study, trial, values, state)

    reported, report = [], optuna.Trial.report

    def noted(trial, value, step):
        reported.append(value)
        report(trial, value, step)

    monkeypatch.setattr(optuna.Study, "tell", tell)
    monkeypatch.setattr(optuna.Trial, "report", noted)
    trials = first(40, Ramp(fault=fault), *cube(TWO), sampler, 5)
    assert len(outcomes) == 40
    assert all(math.isfinite(value) for value in reported)
    assert bool(reported) == (sampler == "hyperband")
    for trial, (value, state) in zip(trials, outcomes, strict=True):
        assert math.isfinite(trial.meta_loss) == (trial.theta[0] <= 0)
        if math.isfinite(trial.meta_loss):
            assert value == (None if trial.pruned else trial.meta_loss)
            continue
        assert not trial.pruned
        if sampler == "hyperband":
            assert state == optuna.trial.TrialState.PRUNED
            assert trial.training_steps in (2, 54)
        else:
            assert (value, state) == (WORST_LOSS, None)
    bad = [trial for trial in trials if not math.isfinite(trial.meta_loss)]
    assert 0 < len(bad) < 40
    if sampler in ("tpe", "cmaes", "hyperband"):
        assert sum(t.theta[0] > 0 for t in trials[-12:]) <= 6  # they have learned


def test_a_search_that_cannot_be_is_refused_at_once(monkeypatch):
    low, high = cube(TWO)
    with pytest.raises(UsageError, match="did you mean cmaes"):
        OptunaSearch((low, high), "cmaess")
    for corners in ((high, low), (low, high * math.inf), (low * math.nan, high)):
        with pytest.raises(UsageError, match="search box"):
            OptunaSearch(corners, "random")
    monkeypatch.setattr("hyperrbp.optimizers.optuna_samplers._is_installed", lambda module: False)
    with pytest.raises(UsageError, match="not installed"):
        OptunaSearch((low, high), "random")


def test_a_search_leaves_optunas_log_and_the_callers_warnings_as_they_were(monkeypatch):
    import warnings

    import optuna

    class Records(logging.Handler):
        def emit(self, record):
            said.append(record)

    said, records = [], Records()
    monkeypatch.setattr(logging.getLogger("optuna"), "handlers", [records])
    before, filters = optuna.logging.get_verbosity(), list(warnings.filters)
    assert before <= logging.INFO
    first(2, Ramp(), *cube(TWO), "sobol", 1)
    assert optuna.logging.get_verbosity() == before
    assert warnings.filters == filters
    assert said == []


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_search_is_resumed_bit_for_bit(sampler):
    """After every trial, in another process, as it were."""
    low, high = cube(TWO)
    whole = first(15, Ramp(fault="nan"), low, high, sampler, 6)
    optimizer, problem = OptunaSearch((low, high), sampler, seed=6), Ramp(fault="nan")
    state, found = optimizer.init(torch.zeros_like(TWO)), []
    for _ in range(15):
        found.append(optimizer.step(problem, state))
        content = json.loads(json.dumps(state.state_dict(), allow_nan=False))
        again = OptunaSearch((low, high), sampler, seed=6)
        optimizer, state = again, again.restore(content, TWO)
    assert [e.theta.tolist() for e in found] == [e.theta.tolist() for e in whole]
    assert [(e.training_steps, e.pruned) for e in found] == [
        (e.training_steps, e.pruned) for e in whole
    ]
    assert state.best_loss == min(e.meta_loss for e in whole if e.complete)
