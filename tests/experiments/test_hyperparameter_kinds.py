"""Runs that tune every kind at every grain: what is recorded, shown, drawn and used again."""

from __future__ import annotations

import io
import json
import math
import random
import statistics

import pytest
import torch
from rich.console import Console
from runs import records_of, result_of
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from typer.testing import CliRunner

from hyperrbp import tune_recipe
from hyperrbp.cli import app as cli
from hyperrbp.config.loading import parse, read
from hyperrbp.experiments.experiment import Experiment
from hyperrbp.experiments.results.records import StepRecord
from hyperrbp.experiments.results.tune import StoppedEarly, TuneResult
from hyperrbp.experiments.run_folder import RunFolder
from hyperrbp.experiments.summary_statistics import (
    NAMED_UP_TO,
    is_summary,
    summarize,
    summarize_nested,
    summary,
)
from hyperrbp.reporting import figures
from hyperrbp.reporting.formatting import ROWS
from hyperrbp.reporting.results import tuning_page
from hyperrbp.reporting.tensorboard import TensorBoard, overview, scalars
from hyperrbp.reporting.tuning_dashboard import TuningDashboard, state_table
from hyperrbp.reporting.tuning_lines import TuningLines

EVERYTHING = """
name: everything
threads: 1
data: {name: digits, train_examples: 270, validation_examples: 40}
model: {options: {hidden: [5]}, init_std: 0.3}
inner: {steps: 12, batch_size: 50, weight_decay: 0.01}
hyperparameters:
  learning_rate: {by: layer, segments: 3}
  momentum: {by: tensor, segments: 2}
  weight_decay: {by: weight}
  init_scale: {by: layer}
  example_weight: {}
gradient: {method: bptt}
meta: {steps: 3, learning_rate: 0.1, loss: validation}
record: {test_seeds: 2}
"""
COUNTS = {
    "learning_rate": 6,
    "momentum": 8,
    "weight_decay": 385,
    "init_scale": 2,
    "example_weight": 230,
}
HEAVY = ("weight_decay", "example_weight")


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    folder = tmp_path_factory.mktemp("everything") / "run"
    tune_recipe(parse(EVERYTHING), folder, callbacks=[TensorBoard()])
    return RunFolder(folder)


def shown(renderable, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(renderable)
    return console.file.getvalue()


# --- the five numbers ----------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 100, 201])
def test_the_summary_is_that_of_statistics(count):
    source = random.Random(count)
    values = {str(i): source.gauss(0, 1) for i in range(count)}
    found = summary(values)
    assert list(found) == ["min", "q25", "median", "q75", "max"]
    listed = list(values.values())
    assert (found["min"], found["max"]) == (min(listed), max(listed))
    assert found["median"] == pytest.approx(statistics.median(listed))
    if count > 1:
        quartiles = statistics.quantiles(listed, n=4, method="inclusive")
        assert (found["q25"], found["q75"]) == pytest.approx((quartiles[0], quartiles[2]))
    assert is_summary(found)
    assert not is_summary(values)
    assert summary(found | {"more": None, "worse": math.nan})["max"] == found["max"]
    assert set(summary({"a": None}).values()) == {None}


def test_more_than_so_many_are_summarized():
    few = {str(i): float(i) for i in range(NAMED_UP_TO)}
    many = {**few, "one more": 1000.0}
    found = summarize({"few": few, "many": many})
    assert found["few"] == few
    assert found["many"] == summary(many)
    document = {"a": {"few": few, "many": many}, "list": [1.0] * 300, "x": None}
    inside = summarize_nested(document)
    assert inside == {"a": {"few": few, "many": summary(many)}, "list": [1.0] * 300, "x": None}


# --- records and results -------------------------------------------------------------------------


def test_records_hold_names_or_summaries_and_the_result_everything(everything):
    result, records = result_of(everything), records_of(everything)
    for key in ("hyperparameters", "untuned"):
        assert {kind: len(values) for kind, values in result[key].items()} == COUNTS
    assert {k: len(v) for k, v in result["last"]["hyperparameters"].items()} == COUNTS
    best = records[result["best"]["meta_step"]]["hyperparameters"]
    for kind, count in COUNTS.items():
        if kind in HEAVY:
            assert best[kind] == summary(result["hyperparameters"][kind])
        else:
            assert best[kind] == result["hyperparameters"][kind]
        gradient = records[0]["gradient"][kind]
        assert is_summary(gradient) == (kind in HEAVY)
        zero = records[0]["structurally_zero"][kind]
        assert isinstance(zero, int if kind in HEAVY else list)
        assert len(gradient) == (5 if kind in HEAVY else count)
        if kind not in HEAVY:
            norm = math.hypot(*gradient.values())
            assert records[0]["gradient_norms"][kind] == pytest.approx(norm, rel=1e-5)
    norms = records[0]["gradient_norms"].values()
    assert math.hypot(*norms) == pytest.approx(records[0]["gradient_norm"], rel=1e-5)
    # An entry by name for each of them would be some 100 kB a meta step.
    assert max(map(len, everything.records_file.read_text().splitlines())) < 12_000


def test_an_examination_of_very_many_is_recorded_in_summary(tmp_path):
    recipe = parse(EVERYTHING, overrides=[("test", "gradient.check_every", 3)])
    tune_recipe(recipe, tmp_path / "run")
    record = records_of(tmp_path / "run")[0]
    assert is_summary(record["check"]["exact"]["weight_decay"])
    assert len(record["check"]["exact"]["momentum"]) == 8
    assert len(json.dumps(record)) < 60_000


# --- what is shown -------------------------------------------------------------------------------


def test_the_answer_has_a_table_for_each_set_of_names(everything):
    result = result_of(everything)
    page = shown(tuning_page(everything.result(TuneResult)))
    lines = page.splitlines()
    for kind, by in (("learning rate", "layer"), ("momentum", "tensor"), ("init scale", "layer")):
        assert any(line.split()[:1] == [by] and f"{kind}: start → tuned" in line for line in lines)
    for name, value in result["hyperparameters"]["momentum"].items():
        row = next(line for line in lines if line.split()[:1] == [name])
        assert row.split()[1:] == ["0.5", "→", f"{value:.4g}"]
    for kind in HEAVY:
        title = f"of {COUNTS[kind]} values"
        at = next(i for i, line in enumerate(lines) if title in line)
        assert f"{kind.replace('_', ' ')}: start → tuned" in lines[at]
        names = [line.split()[0] for line in lines[at + 2 : at + 7]]
        assert names == ["min", "q25", "median", "q75", "max"]
    assert "held-out accuracy" in page
    assert "from 2 other seeds of initial weights and batches" in page
    assert len(lines) < 60


def test_kinds_with_the_same_names_share_a_table(tmp_path):
    plain = parse(
        "threads: 1\ndata: {name: digits, train_examples: 100}\ninner: {steps: 4, batch_size: 50}\n"
        "model: {options: {hidden: [5]}}\ngradient: {method: bptt}\nmeta: {steps: 1}\n"
    )
    page = shown(tuning_page(tune_recipe(plain, tmp_path / "run")))
    (heading,) = [line for line in page.splitlines() if "start → tuned" in line]
    assert heading.split()[0] == "tensor"
    assert "learning rate: start → tuned" in heading
    assert "momentum: start → tuned" in heading


def test_the_answer_says_what_diverged_and_what_stopped_early(everything):
    result = everything.result(TuneResult)
    lost = {"mean": None, "deviation": None, "values": [None] * 2}
    loss = result.test.tuned.loss.model_copy(update=lost)
    tuned = result.test.tuned.model_copy(update={"diverged": 1, "loss": loss})
    test = result.test.model_copy(update={"tuned": tuned})
    stopped = StoppedEarly(meta_step=2)
    changed = result.model_copy(update={"test": test, "stopped_early": stopped})
    page = shown(tuning_page(changed))
    assert "1 of 2 tuned runs turned non-finite" in page
    assert "→ unknown" in page
    assert "stopped early, after meta step 2" in page
    assert "held-out" not in shown(tuning_page(result.model_copy(update={"test": None})))


def test_the_state_table_has_every_kind(everything):
    record = records_of(everything)[1]
    panel = shown(state_table([1.0, 0.9], everything.records(StepRecord)[1]))
    for kind in COUNTS:
        low, high = (
            pick(value for value in record["hyperparameters"][kind].values()) for pick in (min, max)
        )
        assert f"{kind.replace('_', ' ')}" in panel
        assert f"{low:.3g} … {high:.3g}" in panel


@pytest.mark.parametrize("screen", [TuningLines, TuningDashboard])
def test_a_run_of_every_kind_on_a_screen(tmp_path, screen):
    console = Console(file=io.StringIO(), width=200, force_terminal=screen is TuningDashboard)
    tune_recipe(parse(EVERYTHING), tmp_path / "run", callbacks=[screen(console)])
    printed = console.file.getvalue()
    assert "test on the held-out examples: " in printed
    # The panel is redrawn by the clock: a short run may end before its last state was.
    assert screen is TuningDashboard or "learning rate" in printed


# --- TensorBoard and figures ---------------------------------------------------------------------


def test_tensorboard_has_every_kind_and_histograms_of_the_heavy_ones(everything):
    events = EventAccumulator(str(everything.events), size_guidance={"histograms": 0})
    events.Reload()
    records = records_of(everything)
    tags = set(events.Tags()["scalars"])
    assert tags == set(scalars(everything.records(StepRecord)[0]))
    assert {"learning_rate/hidden1.s2", "momentum/output.bias.s1", "init_scale/output"} <= tags
    for kind in COUNTS:
        curve = [event.value for event in events.Scalars(f"gradient/norm_{kind}")]
        truth = [record["gradient_norms"][kind] for record in records[:-1]]
        assert curve == pytest.approx(truth, rel=1e-5)
    assert set(events.Tags()["histograms"]) == set(HEAVY)
    for kind in HEAVY:
        assert f"{kind}/median" in tags
        found = events.Histograms(kind)
        assert [event.step for event in found] == [0, 1, 2, 3]
        for event, record in zip(found, records, strict=True):
            assert event.histogram_value.num == COUNTS[kind]
            for end in ("min", "max"):
                value = record["hyperparameters"][kind][end]
                assert getattr(event.histogram_value, end) == pytest.approx(value, rel=1e-5)


def test_the_overview_page_lists_the_kinds_that_are_tuned():
    charts = overview(["momentum", "weight_decay"])["tuning"]
    assert list(charts) == ["meta loss (log10)", "momentum", "weight decay"]
    assert charts["weight decay"] == ["Multiline", ["^weight_decay/"]]


def test_a_figure_has_an_axis_for_each_tuned_kind(everything, tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(figures, "save", lambda figure, file: kept.append(figure))
    figures.draw_tunings([everything], tmp_path / "a.png")
    axes = kept[0].axes
    assert [axis.get_ylabel() for axis in axes[1:]] == [kind.replace("_", " ") for kind in COUNTS]
    scales = [axis.get_yscale() for axis in axes[1:]]
    assert scales == ["log", "linear", "log", "log", "linear"]
    records = records_of(everything)
    for axis, (kind, count) in zip(axes[1:], COUNTS.items(), strict=True):
        lines = axis.get_lines()
        assert len(lines) == (1 if count > ROWS else count)
        name = "median" if count > ROWS else next(iter(records[0]["hyperparameters"][kind]))
        truth = [record["hyperparameters"][kind][name] for record in records]
        assert list(lines[0].get_ydata()) == truth
        assert len(axis.collections) == (2 if count > ROWS else 0)
    import matplotlib.pyplot as plt

    plt.close(kept[0])


def test_very_many_curves_are_a_band(tmp_path, monkeypatch):
    changes = {
        "hyperparameters.learning_rate": {"by": "tensor", "segments": 10},
        "hyperparameters.weight_decay": None,
        "hyperparameters.example_weight": None,
        "record.test_seeds": 0,
    }
    recipe = parse(EVERYTHING, overrides=[("test", *item) for item in changes.items()])
    tune_recipe(recipe, tmp_path / "run")
    kept = []
    monkeypatch.setattr(figures, "save", lambda figure, file: kept.append(figure))
    run = RunFolder(tmp_path / "run")
    figures.draw_tunings([run], tmp_path / "a.png")
    axis = kept[0].axes[1]
    assert len(axis.get_lines()) == 1
    truth = [
        statistics.median(record["hyperparameters"]["learning_rate"].values())
        for record in records_of(run)
    ]
    assert list(axis.get_lines()[0].get_ydata()) == pytest.approx(truth)
    import matplotlib.pyplot as plt

    plt.close(kept[0])


# --- used again ----------------------------------------------------------------------------------


def test_train_and_check_take_a_result_of_every_kind(everything, tmp_path):
    recipe = everything.recipe_file
    words = ["--hyperparameters", str(everything.path), "--out"]
    done = CliRunner().invoke(
        cli.app, ["train", str(recipe), *words, str(tmp_path / "train"), "--json"]
    )
    assert done.exit_code == 0, done.output
    assert "12 training steps, learning rates" in done.stderr
    trained = json.loads(done.stdout)
    result = result_of(everything)
    assert trained["meta_loss"] == pytest.approx(result["best"]["meta_loss"], rel=1e-4)
    for kind, values in result["hyperparameters"].items():
        assert trained["hyperparameters"][kind] == pytest.approx(values, rel=1e-4)
    done = CliRunner().invoke(
        cli.app, ["check", str(recipe), *words, str(tmp_path / "check"), "--no-exact"]
    )
    assert done.exit_code == 0, done.output
    assert "weight decay: 361 smaller ones" in done.stdout
    assert len(done.stdout.splitlines()) < 130
    checked = json.loads((tmp_path / "check" / "check.json").read_text())
    for kind, values in result["hyperparameters"].items():
        assert checked["hyperparameters"][kind] == pytest.approx(values, rel=1e-4)


def test_a_run_with_other_kinds_than_the_recipe_is_refused(everything, tmp_path):
    words = ["--hyperparameters", str(everything.path), "--out", str(tmp_path / "train")]
    done = CliRunner().invoke(cli.app, ["train", "digits", *words])
    assert done.exit_code == 2
    assert "kinds that differ: ['example_weight', 'init_scale', 'weight_decay']" in done.stderr


def test_theta_comes_back_from_a_result_in_every_kind(everything):
    experiment = Experiment(read(everything.recipe_file))
    problem = experiment.problem()
    theta = problem.theta_of(result_of(everything)["hyperparameters"])
    h = problem.run(theta, 0, problem.steps, problem.initial_state(theta))
    assert float(problem.loss(h)) == pytest.approx(
        result_of(everything)["best"]["meta_loss"], rel=1e-4
    )
    assert torch.isfinite(theta).all()
