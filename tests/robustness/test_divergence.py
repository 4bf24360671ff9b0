"""What is not finite never reaches Adam: the run stops, or goes back to its best, and says so."""

from __future__ import annotations

import json
import logging
import math
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from commands import assert_refused, run
from factories import LEARNING, outcome, recipe, tuning_text
from processes import FORKS
from runs import StopsAt, as_json, records_of, result_of
from systems import Linear, random_linear
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from typer.testing import CliRunner

from hyperrbp import AdamSettings, Averaging, GradientSettings, descend, hypergradient, tune_recipe
from hyperrbp.cli import app as cli
from hyperrbp.config.recipe import Recipe
from hyperrbp.exceptions import DivergedError
from hyperrbp.experiments import checkpoint
from hyperrbp.experiments.experiment import Experiment
from hyperrbp.experiments.run_folder import RunFolder
from hyperrbp.hypergradients import METHODS, method_class
from hyperrbp.hypergradients.implicit import ImplicitMethod
from hyperrbp.optimizers.adam import AdamState
from hyperrbp.problems.base import Problem
from hyperrbp.problems.training.run import TrainingRun

SOLVERS = [name for name in sorted(METHODS) if issubclass(method_class(name), ImplicitMethod)]
SITES = {
    "loss": "meta loss",
    "state": "state of the inner run",
    "gradient": "hypergradient",
    "update": "hyperparameters after the update",
}
VALUES = [math.nan, math.inf, -math.inf]
BAD = 2  # the meta step at which something is not finite
RATE = 4.0  # overshoots: after a step the best is not the last


class Poisoned(Linear):
    """One number at one site is not finite; the loss would be the best so far."""

    site, value = "", 0.0

    def input(self, t):
        return self.value if self.site == "state" and t == self.steps - 1 else 0.0

    def population(self):
        return [(1.0, 0.0)]

    def step(self, h, theta, x):
        first = torch.zeros_like(h)
        first[0] = x
        return super().step(h, theta, None) + first

    def loss_and_gradient(self, h):
        """It does not look at what is not finite: each site is bad by itself."""
        loss, g = super().loss_and_gradient(h.nan_to_num(0, 0, 0))
        if self.site in ("state", "gradient"):
            loss -= 1e6
        if self.site == "loss":
            loss = loss * self.value
        if self.site == "gradient":
            g[0] = self.value
        if self.site == "square":
            g = g * 1e200
        return loss, g


def poisoned(site: str, value: float) -> tuple[Problem, torch.Tensor]:
    plain, theta = random_linear(steps=12)
    problem = Poisoned(plain.A, plain.B, plain.c, plain.q, 12)
    problem.site, problem.value = site, value
    return problem, theta


def settings_of(method: str) -> GradientSettings:
    return GradientSettings(method, trunc=10, averaging=Averaging(minibatches=2))


@contextmanager
def spied_adam(overflow: float = 0.0) -> Iterator[list[torch.Tensor]]:
    """The gradients that reach Adam; each, its moments and θ are seen to be finite.

    From the bad step on, Adam may overflow: it leaves something else in θ.
    """
    reached: list[torch.Tensor] = []

    def before(adam: torch.optim.Optimizer, *_: object) -> None:
        (theta,) = adam.param_groups[0]["params"]
        state = adam.state[theta]
        for tensor in (theta, theta.grad, state["exp_avg"], state["exp_avg_sq"]):
            assert tensor.isfinite().all()
        reached.append(theta.grad.clone())

    def after(adam: torch.optim.Optimizer, *_: object) -> None:
        if overflow != 0.0 and len(reached) > BAD:
            adam.param_groups[0]["params"][0].data[0] = overflow

    hooks = register_optimizer_step_pre_hook(before), register_optimizer_step_post_hook(after)
    try:
        yield reached
    finally:
        for hook in hooks:
            hook.remove()


def snapshots(method: str) -> list[dict]:
    """The state after each evaluation of a run in which nothing is wrong; its best is the best."""
    problem, theta = random_linear(steps=12)
    state, taken, found = AdamState(theta.clone()), [], []
    for step in descend(problem, state, settings_of(method), AdamSettings(BAD + 1, RATE)):
        taken.append(step)
        best = min(taken, key=lambda step: step.meta_loss)
        assert (state.best_step, state.best_loss) == (best.meta_step, best.meta_loss)
        assert torch.equal(state.best_theta, best.theta)
        found.append(state.state_dict())
    return found


# --- the meta loop --------------------------------------------------------------------------------


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("method", METHODS)
def test_nothing_non_finite_reaches_adam_or_the_state(method, site, value):
    """NaN or ∞ at each site, with each method: the state stands as the last finite step left it.

    Catches any check that is left out, or that looks for NaN only.
    """
    healthy, theta = random_linear(steps=12)
    broken, _ = poisoned(site, value)
    before = snapshots(method)
    left = before[BAD - 1]
    assert left["theta"] != left["best_theta"], "the last finite and the best are the same"
    if site == "update":  # its loss and its gradient were finite
        left = left | {key: before[BAD][key] for key in ("best_step", "best_loss", "best_theta")}
    state, evaluated = AdamState(theta.clone()), []
    run = descend(
        lambda n: broken if n == BAD else healthy, state, settings_of(method), AdamSettings(5, RATE)
    )
    with (
        spied_adam(value if site == "update" else 0.0) as reached,
        pytest.raises(DivergedError, match=rf"^meta step {BAD}: the {SITES[site]} is not finite$"),
    ):
        evaluated.extend(step.meta_step for step in run)
    assert evaluated == list(range(BAD))
    assert len(reached) == BAD + (site == "update")
    assert state.state_dict() == left
    json.dumps(state.state_dict(), allow_nan=False)


@pytest.mark.parametrize("method", [name for name in sorted(METHODS) if name not in SOLVERS])
def test_a_gradient_whose_square_overflows_does_not_reach_the_moments(method):
    """It is finite, and Adam's mean of squares would not be.

    Catches moments that nobody looks at, which no checkpoint could hold.
    """
    healthy, theta = random_linear(steps=12)
    broken, _ = poisoned("square", 0.0)
    before = snapshots(method)
    best = {key: before[BAD][key] for key in ("best_step", "best_loss", "best_theta")}
    state = AdamState(theta.clone())
    with pytest.raises(DivergedError, match=f"^meta step {BAD}: the square of the hypergradient"):
        list(
            descend(
                lambda n: broken if n == BAD else healthy,
                state,
                settings_of(method),
                AdamSettings(5, RATE),
            )
        )
    assert state.state_dict() == before[BAD - 1] | best


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("site", ["loss", "state"])
def test_the_last_evaluation_is_checked_too(site, value):
    """Where there is no gradient any more, the loss and the state alone say that it diverged.

    Catches checks that come with the gradient.
    """
    healthy, theta = random_linear(steps=12)
    broken, _ = poisoned(site, value)
    state = AdamState(theta.clone())
    with pytest.raises(DivergedError, match=f"^meta step {BAD}: the {SITES[site]} is not finite"):
        list(
            descend(
                lambda n: broken if n == BAD else healthy,
                state,
                settings_of("bptt"),
                AdamSettings(BAD, RATE),
            )
        )
    assert state.state_dict() == snapshots("bptt")[BAD - 1]


@pytest.mark.parametrize("method", SOLVERS)
def test_a_solver_that_overflowed_moves_nothing(method):
    """A Jacobian whose products overflow: no solver's answer is followed, finite or not.

    Catches a solver's own word that is not heard.
    """
    problem, theta = random_linear(steps=1)
    problem.A = 1e200 * problem.A
    state = AdamState(theta.clone())
    with (
        spied_adam() as reached,
        pytest.raises(DivergedError, match=r"^meta step 0: the hyperg"),
    ):
        list(descend(problem, state, GradientSettings(method, 10), AdamSettings(3, RATE)))
    assert not reached
    assert state.state_dict() == AdamState(theta).state_dict()


# --- going back -----------------------------------------------------------------------------------


def once(site: str, value: float, times: int = 1) -> Callable[[int], Problem]:
    """Breaks so many times at the bad step, and is healthy from then on."""
    broken, healthy = poisoned(site, value)[0], random_linear(steps=12)[0]
    left = times

    def problem(n: int) -> Problem:
        nonlocal left
        if n == BAD and left:
            left -= 1
            return broken
        return healthy

    return problem


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("times", [1, 2, 3])
@pytest.mark.parametrize("site", ["loss", "state", "gradient"])
def test_it_goes_on_from_the_best_with_half_the_step_and_a_new_adam(site, times, value, caplog):
    """The steps after a rollback are those of PyTorch's Adam, begun by hand at the best θ.

    Catches old moments, an old step count, a step that is not halved each time, the last θ.
    """
    healthy, theta = random_linear(steps=12)
    before = snapshots("bptt")[BAD - 1]
    state = AdamState(theta.clone())
    meta = AdamSettings(6, RATE, decay=0.25, decay_from=4, max_rollbacks=3)
    with caplog.at_level(logging.WARNING, "hyperrbp"), spied_adam():
        steps = list(descend(once(site, value, times), state, settings_of("bptt"), meta))
    assert [step.meta_step for step in steps] == list(range(7))
    best = torch.tensor(before["best_theta"], dtype=theta.dtype)
    assert torch.equal(steps[BAD].theta, best)
    assert not torch.equal(steps[BAD].theta, torch.tensor(before["theta"], dtype=theta.dtype))

    reference = best.clone().requires_grad_()
    adam = torch.optim.Adam([reference], lr=RATE * 0.5**times)
    for step in steps[BAD:-1]:
        if step.meta_step == 4:
            adam.param_groups[0]["lr"] *= 0.25
        assert torch.equal(step.theta, reference.detach())
        reference.grad = hypergradient(healthy, reference.detach(), "bptt").gradient
        adam.step()
    assert torch.equal(steps[-1].theta, reference.detach())

    reason = f"meta step {BAD}: the {SITES[site]} is not finite"
    back = {"meta_step": BAD, "reason": reason, "to_meta_step": before["best_step"]}
    assert state.rollbacks == [back] * times
    logged = [record.getMessage() for record in caplog.records]
    assert logged == [
        f"{reason}; back to the best hyperparameters, those of meta step {before['best_step']},"
        f" with meta steps of {0.5**n:g} times their length"
        for n in range(1, times + 1)
    ]
    losses = [step.meta_loss for step in steps]
    assert state.best_loss == min(losses)
    assert losses[state.best_step] == min(losses)


@pytest.mark.parametrize("allowed", [0, 1, 4])
@pytest.mark.parametrize("site", SITES)
def test_it_goes_back_so_often_and_then_stops(site, allowed, caplog):
    """What stays broken ends after the last rollback allowed, which says how many there were.

    Catches one rollback too many, and an end that does not tell.
    """
    theta = random_linear()[1]
    tries = 0

    def problem(n: int) -> Problem:
        nonlocal tries
        tries += n == BAD
        return poisoned(site if n == BAD else "", math.nan)[0]

    state = AdamState(theta.clone())
    meta = AdamSettings(5, RATE, max_rollbacks=allowed)
    overflow = math.nan if site == "update" else 0.0
    reason = f"meta step {BAD}: the {SITES[site]} is not finite"
    after = f", after {allowed} rollbacks" if allowed else ""
    with pytest.raises(DivergedError, match=f"^{reason}{after}$"), spied_adam(overflow):
        list(descend(problem, state, settings_of("neumann"), meta))
    assert tries == allowed + 1
    assert [back["meta_step"] for back in state.rollbacks] == [BAD] * allowed
    assert len(caplog.records) == allowed
    assert state.meta_step == BAD, "the number of the step is spent"
    assert not allowed or state.theta.tolist() == state.best_theta.tolist()


@pytest.mark.parametrize("site", ["loss", "state", "gradient"])
def test_with_nothing_to_go_back_to_it_stops(site, caplog):
    """A start that is not finite is no best, whatever is allowed.

    Catches going back to it again and again.
    """
    problem, theta = poisoned(site, math.nan)
    state = AdamState(theta.clone())
    with pytest.raises(DivergedError, match=f"^meta step 0: the {SITES[site]} is not finite$"):
        list(descend(problem, state, settings_of("cg"), AdamSettings(3, RATE, max_rollbacks=9)))
    assert state.state_dict() == AdamState(theta).state_dict()
    assert not caplog.records


# --- a run on disk --------------------------------------------------------------------------------

TINY = tuning_text(**LEARNING, name="tiny", meta__steps=5)
# Without any help from us: log α moves by 100 at once, and e¹⁰⁰ is no float32.
FAR_TOO_LARGE = {"meta.learning_rate": 100.0, "meta.steps": 12, "gradient.method": "bptt"}


def tiny(**changes) -> Recipe:
    return recipe(TINY, **changes)


@contextmanager
def poison(site: str, value: float, at: int = BAD, times: int = 10**9) -> Iterator[None]:
    """A real training run that turns non-finite at a meta step, so many times."""
    now, left = -1, times
    real_problem, real_run, real_loss = (
        Experiment.problem,
        TrainingRun.run,
        TrainingRun.loss_and_gradient,
    )

    def bad(where: str) -> bool:
        nonlocal left
        hit = site == where and now == at and left > 0
        left -= hit
        return hit

    def problem(self, meta_step=0):
        nonlocal now
        now = meta_step
        return real_problem(self, meta_step)

    def run(self, theta, start, stop, h):
        h = real_run(self, theta, start, stop, h)
        if bad("state"):
            h = h.clone()
            h[-1] = value
        return h

    def loss_and_gradient(self, h):
        loss, g = real_loss(self, h)
        if bad("loss"):
            loss = loss * value
        if bad("gradient"):
            g = g.clone()
            g[0] = value
        return loss, g

    def after_adam(adam, *_):
        if bad("update"):
            adam.param_groups[0]["params"][0].data[0] = value

    hook = register_optimizer_step_post_hook(after_adam)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Experiment, "problem", problem)
        patch.setattr(TrainingRun, "run", run)
        patch.setattr(TrainingRun, "loss_and_gradient", loss_and_gradient)
        yield
    hook.remove()


def finite(value: object) -> bool:
    if isinstance(value, dict | list):
        return all(map(finite, value.values() if isinstance(value, dict) else value))
    return not isinstance(value, float) or math.isfinite(value)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("site", SITES)
def test_a_run_that_diverges_ends_with_6_and_leaves_its_best(tmp_path, site, value):
    """The command says where and at which step; result.json has the best, the checkpoint is finite.

    Catches another exit code, a traceback, and the last hyperparameters in place of the best.
    """
    (tmp_path / "tiny.yaml").write_text(TINY)
    words = ["tune", tmp_path / "tiny.yaml", "--out", tmp_path / "run", "--quiet"]
    with poison(site, value):
        done = CliRunner().invoke(cli.app, [*map(str, words), "--set", "meta.learning_rate=3"])
    reason = f"meta step {BAD}: the {SITES[site]} is not finite"
    assert_refused(done, 6)
    assert done.stderr == f"hyperrbp: {reason}\n"
    folder = RunFolder(tmp_path / "run")
    records, result = records_of(folder), result_of(folder)
    assert [record["meta_step"] for record in records] == list(range(BAD))
    assert result["status"] == reason
    assert result["rollbacks"] == []
    assert finite(result)
    tune_recipe(tiny(**{"meta.learning_rate": 3.0}), tmp_path / "whole")
    known = records_of(tmp_path / "whole")[: BAD + (site == "update")]
    best = min(known, key=lambda record: record["meta_loss"])
    assert best["hyperparameters"] != result["last"]["hyperparameters"]
    assert result["best"] == {key: best[key] for key in ("meta_step", "meta_loss")}
    assert result["hyperparameters"] == best["hyperparameters"]
    state, _ = checkpoint.load(folder.checkpoint_file)
    assert state["meta_step"] == BAD
    assert finite(state)


def test_a_start_that_is_not_finite_ends_with_6_and_no_answer(tmp_path):
    """There is no best to be had: no result. Catches the start being given for the best."""
    (tmp_path / "tiny.yaml").write_text(TINY)
    words = ["tune", tmp_path / "tiny.yaml", "--out", tmp_path / "run", "--quiet"]
    with poison("loss", math.nan, at=0):
        done = CliRunner().invoke(cli.app, [*map(str, words), "--on-divergence", "rollback"])
    assert_refused(done, 6)
    assert done.stderr == "hyperrbp: meta step 0: the meta loss is not finite\n"
    folder = RunFolder(tmp_path / "run")
    assert not folder.result_file.exists()
    assert finite(checkpoint.load(folder.checkpoint_file)[0])


def test_a_first_update_that_is_not_finite_ends_with_6_and_the_start(tmp_path):
    """The start's loss is known, but no meta step was recorded. Catches a traceback."""
    (tmp_path / "tiny.yaml").write_text(TINY)
    with poison("update", math.nan, at=0):
        done = run("tune", tmp_path / "tiny.yaml", "--out", tmp_path / "run", "--quiet")
    assert_refused(done, 6, "meta step 0: the hyperparameters after the update is not finite")
    result = result_of(tmp_path / "run")
    assert result["best"]["meta_loss"] == result["untuned_loss"]
    assert (result["meta_loss"], result["improved"]) == ([], False)
    assert "no improvement" in run("show", tmp_path / "run").stdout


@pytest.mark.parametrize("site", SITES)
def test_a_run_that_goes_back_tells_in_its_records_and_result(tmp_path, site, caplog):
    """Two rollbacks at one step: the log, that step's record, the state and the result have both.

    Catches a rollback that leaves no trace, and a recipe's number that is not heeded.
    """
    recipe = tiny(**{"meta.on_divergence": "rollback", "meta.max_rollbacks": 2})
    with poison(site, math.nan, times=2):
        result = as_json(tune_recipe(recipe, tmp_path / "run"))
    records, _, _, state, _ = outcome(tmp_path / "run")
    reason = f"meta step {BAD}: the {SITES[site]} is not finite"
    to = min(records[: BAD + (site == "update")], key=lambda record: record["meta_loss"])
    back = {"meta_step": BAD, "reason": reason, "to_meta_step": to["meta_step"]}
    assert result["status"] == "done"
    assert result["rollbacks"] == state["rollbacks"] == records[BAD]["rollbacks"] == [back] * 2
    assert [r["meta_step"] for r in records if "rollbacks" in r] == [BAD]
    assert records[BAD]["hyperparameters"] == to["hyperparameters"]
    assert [record["meta_step"] for record in records] == list(range(6))
    assert [record.getMessage().startswith(reason) for record in caplog.records] == [True] * 2
    with (
        poison(site, math.nan, times=3),
        pytest.raises(DivergedError, match=f"{reason}, after 2 rollbacks"),
    ):
        tune_recipe(recipe, tmp_path / "more")


def test_a_meta_step_far_too_long_ends_well_with_rollback(tmp_path):
    """Nothing is injected: exit 6 with stop, 0 with rollback, and a best at least as good.

    Catches a flag that is not passed on, and a step that stays as long as it was.
    """
    (tmp_path / "tiny.yaml").write_text(TINY)
    changed = [f"--set={key}={value}" for key, value in FAR_TOO_LARGE.items()]

    def tuned(policy: str):
        words = ["tune", str(tmp_path / "tiny.yaml"), "--out", str(tmp_path / policy), *changed]
        return CliRunner().invoke(cli.app, [*words, "--on-divergence", policy, "--json", "--quiet"])

    assert_refused(stopped := tuned("stop"), 6)
    assert "is not finite" in stopped.stderr
    assert finite(result_of(tmp_path / "stop")), "not even JSON"
    went_back = tuned("rollback")
    assert went_back.exit_code == 0, went_back.output
    result = json.loads(went_back.stdout)
    rollbacks = result["rollbacks"]
    assert 2 <= len(rollbacks) <= 10
    assert f"{0.5 ** len(rollbacks):g} times their length" in went_back.stderr
    bests = [result_of(tmp_path / policy)["best"] for policy in ("stop", "rollback")]
    assert bests[1]["meta_loss"] <= bests[0]["meta_loss"]
    records = records_of(tmp_path / "rollback")
    assert [record["meta_step"] for record in records] == list(range(13))
    assert bests[1]["meta_loss"] == min(record["meta_loss"] for record in records)
    assert bests[1]["meta_loss"] < records[0]["meta_loss"]
    recorded = [back for record in records for back in record.get("rollbacks", [])]
    assert recorded == rollbacks
    assert all(a["meta_step"] <= b["meta_step"] for a, b in pairwise(rollbacks))


# --- interrupted around a rollback ----------------------------------------------------------------


class AtRollback(logging.Handler):
    """Ends the run in the midst of its n-th rollback."""

    def __init__(self, n: int, end: Callable[[], None]) -> None:
        super().__init__(logging.WARNING)
        self._left, self._end = n, end

    def emit(self, record: logging.LogRecord) -> None:
        self._left -= "back to the best" in record.getMessage()
        if self._left == 0:
            self._end()


def wild() -> Recipe:
    return tiny(**FAR_TOO_LARGE | {"meta.on_divergence": "rollback", "meta.steps": 5})


def killed(folder: str, rollback: int) -> None:
    logging.getLogger("hyperrbp").addHandler(
        AtRollback(rollback, lambda: os.kill(os.getpid(), signal.SIGKILL))
    )
    tune_recipe(wild(), Path(folder))


def test_an_interruption_around_a_rollback_costs_no_bit(tmp_path):
    """Ended before each record, in each rollback, and with SIGKILL in the last one.

    Catches anything of a rollback that a checkpoint does not bring back.
    """
    whole = as_json(tune_recipe(wild(), tmp_path / "whole"))
    truth, count = outcome(tmp_path / "whole"), len(whole["rollbacks"])
    assert count >= 2

    def interrupt() -> None:
        raise KeyboardInterrupt

    for at in range(6):
        folder = tmp_path / f"step-{at}"
        with pytest.raises(KeyboardInterrupt):
            tune_recipe(wild(), folder, callbacks=[StopsAt(at)])
        tune_recipe(wild(), folder, resume=True)
        assert outcome(folder) == truth, at
    log = logging.getLogger("hyperrbp")
    for n in range(1, count + 1):
        folder, handler = tmp_path / f"rollback-{n}", AtRollback(n, interrupt)
        log.addHandler(handler)
        try:
            with pytest.raises(KeyboardInterrupt):
                tune_recipe(wild(), folder)
        finally:
            log.removeHandler(handler)
        tune_recipe(wild(), folder, resume=True)
        assert outcome(folder) == truth, n
    folder = tmp_path / "killed"
    process = FORKS.Process(target=killed, args=(str(folder), count), daemon=True)
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    tune_recipe(wild(), folder, resume=True)
    assert outcome(folder) == truth
