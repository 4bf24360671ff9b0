"""The best of a run with ``inner.fresh`` is chosen on draws that all candidates have in common."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from factories import LEARNING, outcome, recipe, tuning_text
from rich.console import Console
from runs import Keeps, StopsAt, as_json

from hyperrbp import tune_recipe
from hyperrbp.config.loading import read
from hyperrbp.experiments import checkpoint
from hyperrbp.experiments.common_draws import Evaluated, ThetaHistory, candidates, choose
from hyperrbp.experiments.experiment import Experiment
from hyperrbp.experiments.run_folder import RunFolder
from hyperrbp.reporting.results import tuning_page
from hyperrbp.runtime.callbacks import Progress

LUCKY = tuning_text(
    **LEARNING | {"inner.steps": 30, "meta.learning_rate": 0.01},
    name="lucky",
    inner__fresh=True,
    gradient__method="bptt",
    meta__steps=6,
    seed=1,
)
"""Short meta steps: the losses differ by their draws, and the start has the luckiest one."""


def lucky(**changes):
    return recipe(LUCKY, **changes)


def shown(result):
    console = Console(width=200)
    with console.capture() as captured:
        console.print(tuning_page(result))
    return captured.get()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder, its result, and the progress that was reported."""
    folder, kept = tmp_path_factory.mktemp("lucky") / "run", Keeps()
    return folder, tune_recipe(lucky(), folder, callbacks=[kept]), kept.progress


def test_a_lucky_start_is_not_returned_as_the_best(run):
    """Bits of the old answer: the untuned start, since no later draw was as kind.

    Catches losses of different draws that are held against each other.
    """
    folder, result, _ = run
    assert min(result.meta_loss) == result.meta_loss[0], "the start is lucky"
    assert result.best.meta_step > 0
    assert result.hyperparameters != result.untuned
    assert result.improved
    # It is better from other draws, which neither the run nor the choice has seen.
    experiment = Experiment(read(folder / "recipe.yaml"))
    tuned, untuned = (
        experiment.problem().theta_of(values) for values in (result.hyperparameters, result.untuned)
    )
    for number in range(6):
        problem = experiment.replicate(number)
        losses = [float(problem.loss(problem.last_state(theta))) for theta in (tuned, untuned)]
        assert losses[0] < losses[1]


def test_the_result_states_the_choice_and_its_errors(run):
    folder, result, progress = run
    found = as_json(result)["common_draws"]
    experiment = Experiment(read(folder / "recipe.yaml"))
    kinds = [(one["meta_step"], one.get("averaged")) for one in found["candidates"]]
    assert kinds[:3] == [(0, None), (6, 2), (6, None)]
    assert found["draws"] == 4
    untuned = found["candidates"][0]["meta_loss"]["values"]
    for number in range(4):
        problem = experiment.draw(number)
        loss = float(problem.loss(problem.last_state(experiment.theta)))
        assert untuned[number] == loss
    for one in found["candidates"]:
        values = one["meta_loss"]["values"]
        differences = [a - b for a, b in zip(values, untuned, strict=True)]
        assert one["meta_loss"]["mean"] == pytest.approx(statistics.fmean(values))
        assert one["standard_error"] == pytest.approx(statistics.stdev(values) / 2)
        assert one["difference"] == pytest.approx(statistics.fmean(differences))
        assert one["difference_error"] == pytest.approx(statistics.stdev(differences) / 2)
    means = [one["meta_loss"]["mean"] for one in found["candidates"]]
    chosen = found["candidates"][found["chosen"]]
    assert means[found["chosen"]] == min(means)
    assert result.best.meta_loss == min(means)
    assert result.best.standard_error == chosen["standard_error"]
    assert (result.best.meta_step, result.best.averaged) == kinds[found["chosen"]]
    assert result.untuned_loss == means[0]
    task, runs = "choice of the best on common draws", 4 * len(means)
    assert [step for step in progress if step.task == task] == [
        Progress(task, 30 * done, 30 * runs, "training steps") for done in range(runs + 1)
    ]
    lines = [line.strip() for line in shown(result).splitlines()]
    (line,) = [line for line in lines if line.endswith(", chosen")]
    assert f"{min(means):.4g} ± {chosen['standard_error']:.2g}" in line
    assert f"({chosen['difference']:.3g} ± {chosen['difference_error']:.2g})" in line


def test_draws_are_of_no_meta_step_and_of_no_test():
    experiment = Experiment(lucky())
    problems = [experiment.problem(step) for step in range(9)]
    problems += [experiment.replicate(number) for number in range(9)]
    problems += [experiment.draw(number) for number in range(9)]
    assert len({tuple(problem.initial_state().tolist()) for problem in problems}) == 27
    assert len({tuple(problem.input(0).rows.tolist()) for problem in problems}) == 27


@pytest.mark.parametrize("optimizer", ["adam", "surrogate"])
def test_a_resumed_run_makes_the_same_choice(tmp_path, optimizer):
    """Interrupted early and late, finished and resumed, and with more meta steps: to the bit.

    Catches θ that are remembered by the process alone.
    """
    changes = {"meta.optimizer": optimizer, "meta.screened": 9, "record.test_seeds": 0}
    long = lucky(**changes)
    tune_recipe(long, tmp_path / "whole")
    truth = outcome(tmp_path / "whole")
    assert truth[1]["common_draws"]["candidates"]
    for at in (1, 6):
        folder = tmp_path / f"cut{at}"
        with pytest.raises(KeyboardInterrupt):
            tune_recipe(long, folder, callbacks=[StopsAt(at)])
        tune_recipe(long, folder, resume=True)
        assert outcome(folder) == truth
    tune_recipe(long, tmp_path / "whole", resume=True)
    assert outcome(tmp_path / "whole") == truth
    tune_recipe(lucky(**changes | {"meta.steps": 4}), tmp_path / "more")
    tune_recipe(long, tmp_path / "more", resume=True)
    assert outcome(tmp_path / "more") == truth


def test_a_run_of_one_draw_is_as_it_was(tmp_path):
    """The lowest loss is the best, and the checkpoint holds nothing that it did not."""
    result = as_json(tune_recipe(lucky(inner__fresh=False), tmp_path / "run"))
    assert "common_draws" not in result
    assert set(result["best"]) == {"meta_step", "meta_loss"}
    assert result["best"]["meta_loss"] == min(result["meta_loss"])
    assert not checkpoint.load(RunFolder(tmp_path / "run").checkpoint_file)[1]


# --- candidates ----------------------------------------------------------------------------------

START = torch.tensor([0.0, 0.0])


def remembered(losses):
    """The history of a run whose nth θ is (n, −n)."""
    history = ThetaHistory()
    for n, loss in enumerate(losses):
        history.add(Evaluated(n, loss, torch.tensor([float(n), -float(n)])))
    return history


def named(losses, *, descended=True):
    found = candidates(START, remembered(losses), len(losses), descended=descended)
    return [(one.meta_step, one.averaged, one.theta.tolist()) for one in found]


def test_candidates_are_start_average_last_and_lowest_each_once():
    falling = [9.0 - n for n in range(9)]
    assert named(falling) == [
        (0, None, [0, 0]),
        (8, 3, [7, -7]),
        (8, None, [8, -8]),
        (7, None, [7, -7]),
    ]
    rising = falling[::-1]
    assert [one[:2] for one in named(rising)] == [(0, None), (8, 3), (8, None), (1, None)]
    assert [one[:2] for one in named(falling[:1])] == [(0, None)]
    long = [5.0] * 50 + [1.0, 2.0] + [6.0] * 48
    assert [one[:2] for one in named(long)] == [(0, None), (99, 10), (99, None), (50, None),
                                                (51, None)]  # fmt: skip
    # A search does not end where it is best.
    assert [one[:2] for one in named(rising, descended=False)] == [(0, None), (1, None)]


@pytest.mark.parametrize("before", [0, 3, 8, 30, 40])
def test_a_history_is_restored_as_it_stood(before):
    losses = [abs(n - 5.5) for n in range(40)]
    history = remembered(losses[:before])
    again = ThetaHistory.restored(history.tensors(), START, before)
    for n in range(before, 40):
        for one in (history, again):
            one.add(Evaluated(n, losses[n], torch.tensor([float(n), 0.0])))
    both = [
        [(one.meta_step, one.meta_loss, one.theta.tolist()) for one in [*of.last, *of.lowest]]
        for of in (history, again)
    ]
    assert both[0] == both[1]
    assert len(both[0]) == 12


class Noisy:
    """A run whose loss is θ₀² and the noise of its draw; from some draws, large θ₁ diverge."""

    steps = 5

    def __init__(self, number):
        self.noise, self.limit = 10.0 * (number % 3), 1.5 if number == 2 else math.inf

    def last_state(self, theta):
        return theta if theta[1] < self.limit else theta * math.nan

    def loss(self, h):
        return h[0].square() + self.noise


def chosen_of(*thetas, losses=4):
    history = ThetaHistory()
    for n, theta in enumerate(thetas, start=1):
        history.add(Evaluated(n, float(n), torch.tensor(theta)))
    start = torch.tensor([1.0, 0.0])
    several = list(candidates(start, history, losses, descended=False))
    return choose(Noisy, several, losses)


def test_the_lowest_mean_is_chosen_by_paired_differences():
    theta, draws = chosen_of([0.5, 0.0], [0.9, 0.0])
    assert theta.tolist() == [0.5, 0.0]
    best = draws.candidates[draws.chosen]
    assert best.difference == pytest.approx(-0.75)
    assert best.difference_error == pytest.approx(0)
    assert best.standard_error > 1, "the draws themselves differ"
    theta, draws = chosen_of([2.0, 0.0], [3.0, 0.0])
    assert (theta.tolist(), draws.chosen) == ([1.0, 0.0], 0)


def test_a_candidate_that_diverges_from_one_draw_is_not_chosen():
    theta, draws = chosen_of([0.0, 2.0], [0.5, 0.0])
    assert theta.tolist() == [0.5, 0.0]
    assert [one.diverged for one in draws.candidates] == [0, 1, 0]
    assert draws.candidates[1].meta_loss.values[2] is None
    assert draws.candidates[1].difference == pytest.approx(-1)


@pytest.mark.parametrize(("losses", "draws"), [(4, 4), (15, 5), (21, 7), (1000, 16)])
def test_there_are_about_as_many_runs_as_there_were_meta_steps(losses, draws):
    assert chosen_of([0.5, 0.0], [0.9, 0.0], losses=losses)[1].draws == draws
