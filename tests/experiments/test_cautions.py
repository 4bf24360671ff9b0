"""What a tuning run says against itself, in its result and in the first line of its summary."""

from __future__ import annotations

import pytest
from factories import LEARNING, recipe, tuning_text
from rich.console import Console
from runs import as_json, records_of

from hyperrbp import tune_recipe
from hyperrbp.experiments.cautions import cautions, setback
from hyperrbp.experiments.experiment import Experiment
from hyperrbp.experiments.results.document import Measured
from hyperrbp.experiments.results.records import EvaluationRecord
from hyperrbp.experiments.results.tune import BestStep
from hyperrbp.reporting.results import tuning_page

TINY = tuning_text(**LEARNING, name="tiny", meta__steps=6, record__test_seeds=0)
UPHILL = {"inner.learning_rate": 10.0, "gradient.method": "bptt", "meta.learning_rate": 2.0}
"""Starts near an optimum, and overshoots with every meta step."""
PAST = {"meta.learning_rate": 1.5}
"""Finds an optimum, and goes on past it by a series that grows."""


def tuned(folder, **changes):
    return tune_recipe(recipe(TINY, **changes), folder / "run")


def page_of(result):
    """The summary as it is printed, line by line."""
    console = Console(width=400)
    with console.capture() as captured:
        console.print(tuning_page(result))
    return captured.get().splitlines()


def test_a_run_that_only_went_uphill_says_so_first(tmp_path):
    """Catches an answer that is the start, printed as if it had been tuned."""
    result = tuned(tmp_path, **UPHILL)
    losses = result.meta_loss
    assert min(losses) == losses[0] < losses[-1]
    assert result.improved is False
    first = page_of(result)[0]
    assert first.startswith("no improvement: no meta step has a meta loss below that of the start")
    assert f"ended above its start: {losses[0]:.6g} → {losses[-1]:.6g}" in first
    assert as_json(result)["setback"] == first.rstrip()


def test_a_run_that_ended_above_its_start_says_so_first_though_its_best_is_below(tmp_path):
    result = tuned(tmp_path, **PAST)
    losses = result.meta_loss
    assert min(losses) < losses[0] < losses[-1]
    assert result.improved is True
    ended = f"the run ended above its start: {losses[0]:.6g} → {losses[-1]:.6g}"
    assert page_of(result)[0].rstrip() == f"{ended}; the result is its best meta step"


def test_a_run_that_went_well_has_nothing_to_say(tmp_path):
    result = tuned(tmp_path, gradient__method="bptt", meta__steps=3)
    assert (result.improved, result.setback, result.warnings) == (True, None, [])
    assert "setback" not in as_json(result)
    assert result.untuned_loss == result.meta_loss[0]


def test_a_growing_series_is_counted_in_the_summary_with_the_remedy(tmp_path):
    """Old summaries had one line of the first gradient, and none if that one was only noisy.

    Catches a run that goes on stepping along series that grow.
    """
    result = tuned(tmp_path, **PAST)
    statuses = [record.get("status") for record in records_of(tmp_path / "run")]
    (warning,) = [text for text in result.warnings if "grew" in text]
    assert statuses.count("growing") == 6
    assert "grew at 6 of 6 gradients (first at meta step 0)" in warning
    for remedy in ("--method auto", "gradient.options.bptt.keep=checkpoints", "--cut-growing"):
        assert remedy in warning
    assert any(warning in line for line in page_of(result))
    searched = tuned(tmp_path / "search", **{"meta.optimizer": "both", "meta.screened": 9})
    (warning,) = [text for text in searched.warnings if "grew" in text]
    assert "--method auto" not in warning, "it goes with adam"


def test_a_loss_that_rises_is_in_the_summary_with_the_remedy(tmp_path):
    result = tuned(tmp_path, **PAST)
    losses = result.meta_loss
    assert losses[2:] == sorted(losses[2:])
    assert losses[1] > losses[2]
    (warning,) = [text for text in result.warnings if "rose" in text]
    assert warning.startswith(
        f"the meta loss rose 4 meta steps in a row ({losses[2]:.6g} → {losses[-1]:.6g}, meta steps"
        " 2 to 6)"
    )
    assert "--method auto" in warning
    assert "a lower meta.learning_rate" in warning
    exact = tuned(tmp_path / "exact", **PAST | {"gradient.method": "bptt"})
    rose = [text for text in exact.warnings if "rose" in text]
    assert all("--method" not in text for text in rose), "its gradient is exact already"


def of_losses(*losses):
    return [
        EvaluationRecord(
            meta_step=n,
            meta_loss=loss,
            hyperparameters={},
            measured=Measured(seconds={}, peak_bytes={}, time=""),
        )
        for n, loss in enumerate(losses)
    ]


@pytest.mark.parametrize(
    ("losses", "rises"),
    [
        ([1, 2, 3], None),
        ([1, 2, 3, 3, 4, 5], None),
        ([3, 1, 2, 3, 4], "3 meta steps in a row (1 → 4, meta steps 1 to 4)"),
        ([1, 2, 3, 4, 0, 1, 2, 3, 4], "4 meta steps in a row (0 → 4, meta steps 4 to 8)"),
        ([1, 2, 3, 4, 0], "3 meta steps in a row (1 → 4, meta steps 0 to 3)"),
    ],
)
def test_three_rises_in_a_row_are_worth_a_warning(losses, rises):
    found = list(cautions(recipe(TINY), of_losses(*map(float, losses)), None))
    assert [rises in text for text in found] == ([] if rises is None else [True])
    # Losses of other draws, and of points that a search tries, rise by themselves.
    for changes in ({"inner.fresh": True}, {"meta.optimizer": "surrogate"}):
        assert not list(cautions(recipe(TINY, **changes), of_losses(*losses), None))


def test_a_search_knows_the_loss_of_its_start(tmp_path):
    """The start may have been screened out on a shortened run: it is run to its end."""
    result = tuned(tmp_path, **{"meta.optimizer": "surrogate", "meta.screened": 9})
    experiment = Experiment(recipe(TINY))
    problem = experiment.problem()
    start = float(problem.loss(problem.last_state(experiment.theta)))
    assert result.untuned_loss == start
    assert result.improved is (result.best.meta_loss < start)
    best = BestStep(meta_step=3, meta_loss=2.5)
    search = recipe(TINY, **{"meta.optimizer": "surrogate"})
    assert setback(search, [2.5, 3.0], best, 2.0, improved=False) == (
        "no improvement: the best meta loss (2.5) is above the start's (2)"
    )
    assert setback(search, [2.5, 3.0], best, 2.75, improved=True) is None


def test_a_choice_within_the_noise_of_the_draws_says_so(tmp_path):
    fresh = {"inner.fresh": True, "gradient.method": "bptt"}
    sure = tuned(tmp_path / "sure", **fresh)
    assert not sure.warnings
    near = {"inner.learning_rate": 10.0, "meta.learning_rate": 0.05, "seed": 3}
    unsure = tuned(tmp_path / "unsure", **fresh | near)
    chosen = unsure.common_draws.candidates[unsure.common_draws.chosen]
    assert 0 < -chosen.difference < 2 * chosen.difference_error
    (said,) = unsure.warnings
    assert f"{chosen.difference:+.3g} ± {chosen.difference_error:.2g} (standard error)" in said
    nothing = tuned(tmp_path / "nothing", **fresh | UPHILL)
    assert nothing.improved is False
    assert page_of(nothing)[0].startswith("no improvement: on the common draws, nothing is below")
