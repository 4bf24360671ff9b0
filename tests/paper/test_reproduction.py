"""Tables and figures again, at a size that nobody would publish."""

from __future__ import annotations

import csv
import json
import math
import struct
import warnings
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field
from pathlib import Path

import pytest
import torch
from comparisons import made
from comparisons import row as method_row
from runs import StopsAt, records_of, result_of
from systems import small_graph
from typer.testing import CliRunner

from hyperrbp.cli import app as cli
from hyperrbp.config.cross_checks import cross_check
from hyperrbp.config.loading import parse_any
from hyperrbp.config.recipe import Recipe
from hyperrbp.data.citation_networks import NETWORKS, CitationGraph
from hyperrbp.exceptions import DataError, DivergedError, MissingDataError, UsageError
from hyperrbp.experiments.results.compare import CompareReport
from hyperrbp.experiments.results.document import to_json
from hyperrbp.experiments.results.run import RunResult
from hyperrbp.experiments.results.train import BestEpoch, EquilibriumResult
from hyperrbp.experiments.run_folder import RunFolder
from hyperrbp.paper import (
    associative_memory,
    citation_networks,
    figure1,
    figure2,
    figure3,
    figure4,
    figure5,
    figure6,
    run_specs,
    table3,
    table_a1,
    tuning_runs,
)
from hyperrbp.paper import (
    table1 as table1_module,
)
from hyperrbp.paper import (
    table2 as table2_module,
)
from hyperrbp.paper.artifact import Finding, mean_and_deviation, plus_minus
from hyperrbp.paper.drawing import draw
from hyperrbp.paper.figures import Images
from hyperrbp.paper.plan import Plan
from hyperrbp.paper.published import METHODS, TABLE2, TABLE3
from hyperrbp.paper.reproduction import ARTIFACTS, ReproductionCallback, reproduce
from hyperrbp.paper.run_specs import CompareSpec, Outcome, TrainSpec, TuneSpec
from hyperrbp.runtime import files
from hyperrbp.runtime.callbacks import ignore

MEMORY = (associative_memory, table1_module, figure1, figure2)
CITATION = (citation_networks, table2_module, figure3, table_a1)
TUNING = (tuning_runs, table3, figure4, figure5, figure6)


def replace(monkeypatch, modules, name, value):
    """Replace a name in all modules that have it."""
    having = [module for module in modules if hasattr(module, name)]
    assert having
    for module in having:
        monkeypatch.setattr(module, name, value)


QUICK = Plan(quick=True, seeds=1, device="cpu")
SMALL = {
    "hopfield": {
        "threads": 1,
        "data.name": "digits",
        "data.images": 3,
        "network.hidden": 4,
        "inference.updates": 30,
        "inference.settled": 0.0,
        "training.epochs": 2,
        "training.validate_every": 1,
        "training.learning_rate": 0.03,
        "training.batch_size": 3,
        "data.downsample": 1,
    },
    "cora": {
        "threads": 1,
        "data.dimensions": 3,
        "inference.updates": 6,
        "training.epochs": 2,
        "training.validate_every": 1,
    },
    "digits": {
        "threads": 1,
        "data.train_examples": 100,
        "model.options": {"hidden": [3]},
        "inner.batch_size": 50,
        "gradient.averaging.minibatches": 1,
        "gradient.averaging.series": 1,
        "meta.steps": 1,
        "record.inner_curves": [],
    },
}
SMALL["pubmed"] = SMALL["cora"]
GRID = tuple((steps, trunc) for trunc in (2, 3) for steps in (12, 13, 14, 15))


def graph(name: str, *_: object, **__: object) -> CitationGraph:
    """Cora of 400 documents; Pubmed is not there."""
    if name == "pubmed":
        raise MissingDataError("PubMed not found: nowhere lacks everything")
    source = torch.Generator().manual_seed(2)
    labels = torch.randint(0, 3, (400,), generator=source)
    features = torch.randn(400, 8, generator=source)
    return CitationGraph(features, labels, small_graph(400, 500), citation_count=510)


def shrink(monkeypatch: pytest.MonkeyPatch) -> None:
    """All recipes small, two methods where five are, and no process for a comparison."""
    for module, name in (
        (associative_memory, "recipe_of"),
        (citation_networks, "recipe_of"),
        (table2_module, "recipe_of"),
        (tuning_runs, "tuning_recipe_of"),
        (table3, "tuning_recipe_of"),
    ):
        real = getattr(module, name)

        def small(base, settings, real=real):
            return real(base, {**settings, **SMALL.get(base, {})})

        monkeypatch.setattr(module, name, small)
    replace(monkeypatch, TUNING, "QUICK_SPECS", GRID)
    replace(monkeypatch, TUNING, "QUICK_META_STEPS", 1)
    replace(monkeypatch, TUNING, "METHODS", ("bptt", "neumann"))
    replace(monkeypatch, MEMORY, "METHODS", ("rbp", "neumann"))
    replace(monkeypatch, MEMORY, "TABLE1", {m: {10: 0.0, 20: 1.0} for m in ("rbp", "neumann")})
    monkeypatch.setattr(figure6.Figure6, "_at", staticmethod(lambda plan: (15, 2)))
    monkeypatch.setattr(
        "hyperrbp.experiments.systems.document_classification.load_citations", graph
    )
    replace(monkeypatch, CITATION, "load_citations", graph)
    monkeypatch.setattr(CompareSpec, "run", compared)


def compared(self, folder: RunFolder, plan, report) -> CompareReport:
    found = made(ratios(2.0, 3.0))
    folder.create(self.recipe)
    folder.write_result(found)
    return found


def ratios(time: float, kept: float) -> list[dict]:
    return [
        method_row(
            label, trunc, time_ratio=time, memory_ratio=kept, peak_ratio=1.5, process_ratio=1.1,
            seconds=0.5,
        )
        for label in ("bptt", "neumann") for trunc in TABLE3
    ]  # fmt: skip


@pytest.fixture
def small(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("HYPERRBP_DATA", raising=False)
    before = torch.get_num_threads()
    shrink(monkeypatch)
    yield tmp_path
    torch.set_num_threads(before)


@dataclass
class Calls:
    """What was really run."""

    run_specs: list[str] = field(default_factory=list)
    stop_at: int | None = None

    def count(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("train_recipe", "tune_recipe"):
            real = getattr(run_specs, name)

            def counted(recipe, out, real=real, **options):
                self.run_specs.append(out.name)
                if len(self.run_specs) - 1 == self.stop_at:
                    options["callbacks"] = [*options["callbacks"], StopsAt(1)]
                return real(recipe, out, **options)

            monkeypatch.setattr(run_specs, name, counted)


# --- what there is -------------------------------------------------------------------------------


def test_the_registry_has_every_table_and_figure():
    assert set(ARTIFACTS) == {
        "table1", "table2", "table3", "tableA1", "figure1", "figure2", "figure3", "figure4",
        "figure5", "figure6", "figureA1",
    }  # fmt: skip
    for name in ARTIFACTS:
        artifact = ARTIFACTS[name]
        assert artifact.name == name
        kind, label = name[:-1].rstrip("A"), name.removeprefix("table").removeprefix("figure")
        assert artifact.title.startswith(f"{kind.capitalize()} {label}: ")
        assert artifact.claim


@pytest.mark.parametrize("plan", [Plan(quick=True), Plan(seeds=2, device="cpu")])
def test_every_run_spec_is_a_recipe_that_can_be_run(plan):
    by_name = {}
    for name in ARTIFACTS:
        artifact = ARTIFACTS[name]
        run_specs = artifact.run_specs(plan)
        assert len({spec.name for spec in run_specs}) == len(run_specs)
        for spec in run_specs:
            assert list(cross_check(spec.recipe)) == []
            assert spec.recipe.device == plan.device
            assert isinstance(spec.recipe, Recipe) == isinstance(spec, TuneSpec | CompareSpec)
            # Two artifacts that name a run alike mean the same one.
            assert by_name.setdefault(spec.name, spec.recipe).model_dump() == (
                spec.recipe.model_dump()
            )
        assert ("quick" in artifact.scale(plan)) == (plan.quick and name != "tableA1")


def names(artifact: str, plan: Plan) -> set[str]:
    return {spec.name for spec in ARTIFACTS[artifact].run_specs(plan)}


@pytest.mark.parametrize("plan", [Plan(seeds=4), Plan(quick=True)])
def test_what_is_shared_and_how_much_there_is(plan):
    assert names("figure1", plan) == names("figure2", plan) == names("figureA1", plan)
    assert names("figure3", plan) < names("table2", plan)
    assert names("figure5", plan) == names("figure4", plan) > names("figure6", plan)
    assert len(names("figure1", plan)) == 5
    assert len(names("figure4", plan)) == 40
    assert len(names("table1", plan)) == 12 * plan.number_of_seeds(2, 4)
    assert len(names("table2", plan)) == 10 * (3 if plan.quick else 4)
    assert len(names("tableA1", plan)) == 0
    assert (Plan().number_of_seeds(3, 100), Plan(quick=True).number_of_seeds(3, 100)) == (100, 3)
    (comparison,) = ARTIFACTS["table3"].run_specs(plan)
    assert comparison.recipe.inner.steps == 1000
    assert comparison.repeats == (2 if plan.quick else 10)
    assert (comparison.methods, comparison.truncs) == (("bptt", "neumann"), (10, 50, 100))


def test_the_run_specs_are_what_the_paper_ran():
    for spec in ARTIFACTS["figure4"].run_specs(Plan()):
        assert f"-T{spec.recipe.inner.steps}-K{spec.recipe.gradient.trunc}" in spec.name
        assert f"mnist-{spec.recipe.gradient.method}-" in spec.name
        assert spec.recipe.meta.steps == 60
        alone = spec.recipe.gradient.method == "tbptt"
        assert spec.recipe.gradient.averaging.minibatches == (1 if alone else 50)
    for spec in ARTIFACTS["table1"].run_specs(Plan(seeds=2)):
        recipe = spec.recipe
        assert spec.name == (
            f"hopfield-{recipe.gradient.method}-K{recipe.gradient.trunc}-epochs1000"
            f"-seed{recipe.seed}"
        )
        assert recipe.training.epochs == 1000
        assert recipe.seed in (0, 1)
    for spec in ARTIFACTS["table2"].run_specs(Plan(quick=True, seeds=2)):
        recipe = spec.recipe
        assert spec.name == (
            f"{recipe.data.name}-{recipe.gradient.method}-K5-epochs{recipe.training.epochs}"
            f"-seed{recipe.seed}"
        )
        assert recipe.gradient.trunc == 5
        assert recipe.training.epochs < 2000
    assert {spec.recipe.training.epochs for spec in ARTIFACTS["figure3"].run_specs(Plan())} == {
        2000
    }


def test_means_and_deviations():
    assert mean_and_deviation([1.0, 3.0]) == (2.0, pytest.approx(math.sqrt(2)))
    assert mean_and_deviation([4.0]) == (4.0, None)
    assert plus_minus([1.0, 3.0]) == "2.0 ± 1.4"
    assert plus_minus([4.0], 3) == "4.000"


# --- all of them, small --------------------------------------------------------------------------


@dataclass
class Everything:
    out: Path
    documents: dict[str, dict]
    calls: Calls


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    out, calls = tmp_path_factory.mktemp("reproduction"), Calls()
    before = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch)
        calls.count(patch)
        with warnings.catch_warnings():  # a test of its own, below
            warnings.filterwarnings("ignore", "__array__ implementation doesn't accept")
            reports = reproduce(list(ARTIFACTS), QUICK, out)
    torch.set_num_threads(before)
    documents = [json.loads(to_json(report)) for report in reports]
    return Everything(out, {d["artifact"]: d for d in documents}, calls)


@pytest.mark.parametrize("name", sorted(ARTIFACTS))
def test_what_is_written(everything, name):
    document = everything.documents[name]
    assert set(document) == {
        "kind", "schema_version", "artifact", "title", "scale", "quick", "claim", "held", "verdict",
        "columns", "lines", "rows", "environment",
    }  # fmt: skip
    assert json.loads((everything.out / f"{name}.json").read_text()) == document
    assert document["quick"] is True
    assert document["held"] in (True, False, None)
    assert document["verdict"]
    assert "\n" not in document["verdict"]
    picture = (everything.out / f"{name}.png").read_bytes()
    assert picture[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", picture[16:24])
    assert min(width, height) > 50
    with (everything.out / f"{name}.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(document["rows"]) > 0
    assert set(rows[0]) == {key for row in document["rows"] for key in row}
    for text, row in zip(rows, document["rows"], strict=True):
        for key, value in row.items():
            assert text[key] == ("" if value is None else str(value))
    for line in document["lines"]:
        assert len(line) == len(document["columns"])
        assert all(isinstance(spec, str) for spec in line)
    if name.startswith("table"):
        assert any(key.startswith("paper") for key in document["rows"][0])


def test_what_was_measured(everything):
    documents = everything.documents
    by_method = {row["method"]: row for row in documents["table2"]["rows"][:6]}
    assert set(by_method) == set(TABLE2["cora"])
    for method, row in by_method.items():
        assert (row["paper_mean"], row["paper_deviation"]) == TABLE2["cora"][method]
        assert row["seeds"] == 1
        assert row["mean"] == row["seed_0"]
    (folder,) = (everything.out / "runs").glob("cora-neumann-K5-*-seed0")
    run = result_of(folder)
    assert by_method["neumann"]["mean"] == pytest.approx(100 * run["test"]["accuracy"])
    assert {row["status"] for row in documents["table2"]["rows"][6:]} == {"not run: files absent"}
    assert "pubmed: not run" in documents["table2"]["verdict"]
    counted = documents["tableA1"]["rows"]
    assert counted[0]["nodes"] == 400
    assert counted[0]["edges"] == 510
    assert counted[0]["distinct_edges"] == 500
    assert counted[0]["paper_edges"] == 5429
    assert counted[1]["status"] == "not run: files absent"
    assert documents["tableA1"]["held"] is False
    for row in documents["table1"]["rows"]:
        assert row["paper_share"] == {10: 0.0, 20: 1.0}[row["trunc"]]
        assert row["runs"] == 1
    assert len(documents["table1"]["rows"]) == 4
    table3 = documents["table3"]
    assert [row["paper_time_ratio"] for row in table3["rows"]] == [3.02, 2.87, 2.68]
    assert table3["held"] is True
    panels = {row["panel"] for row in documents["figure1"]["rows"]}
    assert len(panels) == 4
    retrieved = {row["method"] for row in documents["figure2"]["rows"]}
    assert retrieved == {"rbp", "neumann"}
    assert len(documents["figure4"]["rows"]) == 8 * 2
    assert len(documents["figure6"]["rows"]) == 2 * 2


def test_pictures_are_plotted_without_a_warning(tmp_path):
    images = Images({"original": torch.zeros(2, 8, 8)})
    draw(Finding([], None, "", figure=images), "title", "", tmp_path / "x.png")


def test_each_run_was_run_once(everything):
    finished = everything.calls.run_specs
    absent = [name for name in finished if name.startswith("pubmed")]
    assert len(set(finished)) == len(finished)
    assert len(finished) == 4 + 2 + 5 + len(absent) + 8 * 2 + 1
    folders = {p.name for p in (everything.out / "runs").iterdir()}
    assert folders == set(finished) - set(absent) | {"mnist-comparison-T1000-repeats2"}


def test_what_is_there_is_not_run_again(everything, monkeypatch, tmp_path):
    shrink(monkeypatch)
    calls, events = Calls(), []
    calls.count(monkeypatch)

    class Follower(ReproductionCallback):
        def on_start(self, context):
            events.append((len(context.run_specs), context.done))

        def on_progress(self, progress):
            events.append(progress)

        def on_end(self):
            events.append("end")

    before = (everything.out / "table1.json").read_bytes()
    files = ["table1", "figure1"]
    reports = reproduce(files, QUICK, everything.out, Follower())
    assert calls.run_specs == []
    assert events == [(6, 6), "end"]
    assert [report.artifact for report in reports] == files
    assert (everything.out / "table1.json").read_bytes() == before


def test_a_run_of_another_recipe_is_refused(everything, monkeypatch):
    shrink(monkeypatch)
    monkeypatch.setitem(SMALL["hopfield"], "network.hidden", 5)
    with pytest.raises(UsageError, match=r"runs/hopfield-.* holds a run of another recipe"):
        reproduce(["table1"], QUICK, everything.out)


def test_another_device_or_number_of_threads_is_no_other_recipe(everything, monkeypatch):
    shrink(monkeypatch)
    monkeypatch.setitem(SMALL["hopfield"], "threads", 2)
    spec = ARTIFACTS["figure1"].run_specs(QUICK)[0]
    done = spec.outcome(everything.out / "runs", None, ignore)
    assert done.failure is None
    assert done.result_of(RunResult).finished


# --- interrupted, absent, damaged ----------------------------------------------------------------


def test_an_interrupted_reproduction_goes_on(small, monkeypatch):
    calls = Calls(stop_at=1)
    calls.count(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        reproduce(["figure1"], QUICK, small / "cut")
    assert not (small / "cut" / "figure1.json").exists()
    assert len(calls.run_specs) == 2
    stopped = RunFolder(small / "cut" / "runs" / calls.run_specs[-1])
    assert len(records_of(stopped)) == 1
    assert not stopped.result_file.exists()
    reproduce(["figure1"], QUICK, small / "cut")
    assert calls.run_specs[2:] == [spec.name for spec in ARTIFACTS["figure1"].run_specs(QUICK)][1:]
    reproduce(["figure1"], QUICK, small / "whole")
    one, two = (json.loads((small / at / "figure1.json").read_text()) for at in ("cut", "whole"))
    assert one == two


def test_an_unfinished_run_of_another_recipe_is_refused(small, monkeypatch):
    calls = Calls(stop_at=0)
    calls.count(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        reproduce(["figure1"], QUICK, small / "cut")
    monkeypatch.setitem(SMALL["hopfield"], "network.hidden", 5)
    with pytest.raises(UsageError, match="another recipe"):
        reproduce(["figure1"], QUICK, small / "cut")


@pytest.mark.parametrize("name", ["table1", "table2", "tableA1", "figure1", "figure2", "figure3"])
def test_absent_data_are_said_and_no_fault(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYPERRBP_DATA", raising=False)
    words = ["reproduce", name, "--quick", "--seeds", "1", "--data-root", "nowhere", "--json", "-q"]
    done = CliRunner().invoke(cli.app, words)
    assert done.exit_code == 0, done.output
    assert done.stderr == ""
    document = json.loads(done.stdout)
    assert document["held"] is None
    said = json.dumps([document["verdict"], document["rows"]])
    assert "not run: files absent" in said
    assert "nan" not in said
    assert "0%" not in document["verdict"]


def test_figures_of_tuning_say_what_was_not_run(tmp_path, monkeypatch):
    replace(monkeypatch, TUNING, "METHODS", ("neumann",))
    replace(monkeypatch, TUNING, "QUICK_SPECS", tuple((12 + n, 2) for n in range(8)))
    absent = Outcome(RunFolder(tmp_path / "none"), None, "not run: files absent")
    for name in ("figure4", "figure5", "figure6"):
        run_specs = ARTIFACTS[name].run_specs(Plan())
        outcomes = {spec.name: absent for spec in run_specs}
        finding = ARTIFACTS[name].finding(Plan(), outcomes)
        assert finding.held is None
        assert finding.verdict == "not run"


def ended(status: str) -> EquilibriumResult:
    return EquilibriumResult(
        status=status, seed=0, device="cpu", seconds=0.0, peak_bytes=0, wall_seconds=0.0,
        run_folder="", inexact_resumes=[], environment={}, weights="", system="hopfield",
        method="neumann", trunc=1, updates=1, epochs=3, test={},
        best=BestEpoch(epoch=0, validation={}),
    )  # fmt: skip


def test_an_outcome_says_why_there_is_no_result(tmp_path, monkeypatch):
    recipe = parse_any("system: hopfield\nthreads: 1")
    spec = TrainSpec("cell", recipe)
    errors = {
        MissingDataError("MNIST not found: x lacks y"): "not run: files absent",
        DataError("the file is cut"): "not run: the file is cut",
        DivergedError("epoch 3: the loss is not finite"): "epoch 3: the loss is not finite",
    }
    for error, words in errors.items():

        def fails(self, folder, data_root, watch, error=error):
            raise error

        monkeypatch.setattr(TrainSpec, "run", fails)
        outcome = spec.outcome(tmp_path, None, ignore)
        assert (outcome.result, outcome.failure) == (None, words)
    folder = RunFolder(tmp_path / "cell")
    folder.create(recipe)
    folder.write_result(ended("epoch 3: the loss is not finite"))
    assert spec.outcome(tmp_path, None, ignore).failure == "epoch 3: the loss is not finite"
    assert spec.done(tmp_path)


# --- verdicts ------------------------------------------------------------------------------------


@dataclass
class Fake(Outcome):
    """An outcome that was never run; a field that a record or result does not give is unset."""

    given: list[dict] = field(default_factory=list)

    def records(self, expected):
        return [expected.model_construct(**one) for one in self.given]

    def result_of(self, expected):
        given = self.result
        return expected.model_construct(**given) if isinstance(given, dict) else given


def fake(result=MISSING, records: list[dict] | None = None, failure=None) -> Fake:
    done = {"status": "done"} if result is MISSING else result
    return Fake(RunFolder(Path("nowhere")), done, failure, records or [])


def table1(losses: Callable[[str, int, int], Fake], plan: Plan):
    outcomes = {}
    for spec in ARTIFACTS["table1"].run_specs(plan):
        gradient = spec.recipe.gradient
        outcomes[spec.name] = losses(gradient.method, gradient.trunc, spec.recipe.seed)
    return ARTIFACTS["table1"].finding(plan, outcomes)


def falling(*losses: float) -> Fake:
    return fake(records=[{"epoch": n, "loss": loss} for n, loss in enumerate(losses)])


GOOD, POOR = (1.0, 0.8, 0.2), (1.0, 0.8, 0.6)


def as_in_the_paper(method, trunc, seed):
    return falling(*(POOR if method == "rbp" and trunc < 30 else GOOD))


def test_table_1_holds():
    finding = table1(as_in_the_paper, Plan(seeds=4))
    assert finding.held is True
    assert finding.verdict == (
        "original RBP succeeds in 0%, 0% and 100% of its runs at K = 10, 20 and 30; the others in"
        " 100%"
    )
    rows = {(row["method"], row["trunc"]): row for row in finding.rows}
    assert len(rows) == 12
    assert rows["rbp", 10]["succeeded"] == 0
    assert rows["rbp", 30]["share"] == 1
    assert rows["neumann", 20]["succeeded"] == rows["neumann", 20]["runs"] == 4
    assert rows["neumann", 20]["last_loss_mean"] == pytest.approx(0.2)
    assert rows["neumann", 20]["untrained_loss"] == 1.0
    assert rows["neumann", 20]["first_epoch_loss"] == 0.8
    assert rows["neumann", 20]["last_loss_deviation"] == 0.0


@pytest.mark.parametrize(
    "spoilt",
    [
        lambda m, k, s: falling(*POOR) if (m, k, s) == ("cg", 30, 1) else as_in_the_paper(m, k, s),
        lambda m, k, s: falling(*GOOD),
        lambda m, k, s: falling(*GOOD) if (m, k) == ("rbp", 20) else as_in_the_paper(m, k, s),
        lambda m, k, s: falling(*GOOD) if (m, k) == ("rbp", 10) else as_in_the_paper(m, k, s),
    ],
)
def test_table_1_does_not_hold(spoilt):
    assert table1(spoilt, Plan(seeds=4)).held is False


def test_table_1_counts_a_diverged_run_as_failed():
    def diverged(method, trunc, seed):
        found = as_in_the_paper(method, trunc, seed)
        if (method, trunc, seed) == ("neumann", 10, 0):
            found.failure = "epoch 3: the loss is not finite"
        return found

    finding = table1(diverged, Plan(seeds=4))
    assert finding.held is False
    row = next(r for r in finding.rows if (r["method"], r["trunc"]) == ("neumann", 10))
    assert (row["runs"], row["succeeded"], row["share"]) == (4, 3, 0.75)
    assert "the others in 75% or more" in finding.verdict


@pytest.mark.parametrize(("quick", "succeeded"), [(True, 0), (False, 4)])
def test_table_1_begins_where_it_says(quick, succeeded):
    """0.45 is below half of the untrained network's loss, and not of the first epoch's."""
    finding = table1(lambda m, k, s: falling(1.0, 0.8, 0.45), Plan(quick, seeds=4))
    assert {row["succeeded"] for row in finding.rows} == {succeeded}
    assert {row["below_half_of_untrained"] for row in finding.rows} == {4}
    assert {row["below_half_of_first_epoch"] for row in finding.rows} == {0}
    half = table1(lambda m, k, s: falling(1.0, 1.0, 0.5), Plan(quick, seeds=1))
    assert {row["succeeded"] for row in half.rows} == {0}


def absent() -> Fake:
    return fake(None, failure="not run: files absent")


def test_table_1_of_nothing():
    finding = table1(lambda m, k, s: absent(), Plan(seeds=1))
    assert finding.held is None
    assert finding.rows == []


def test_table_1_without_one_of_rbps_rows():
    finding = table1(
        lambda m, k, s: absent() if (m, k) == ("rbp", 10) else as_in_the_paper(m, k, s),
        Plan(seeds=1),
    )
    assert finding.held is None


def test_table_1_without_one_of_the_methods():
    finding = table1(
        lambda m, k, s: absent() if m == "cg" else as_in_the_paper(m, k, s), Plan(seeds=1)
    )
    assert finding.held is None


def test_table_1_with_a_loss_that_was_never_finite():
    def never(method, trunc, seed):
        found = as_in_the_paper(method, trunc, seed)
        if (method, trunc, seed) == ("neumann", 10, 0):
            found.given = [{"epoch": 0, "loss": None}]
            found.failure = "epoch 1: the loss is not finite"
        return found

    assert table1(never, Plan(seeds=2)).held is False


def table2(accuracies: dict[str, dict[str, float]], spread: float = 0.0, seeds: int = 2):
    plan, outcomes = Plan(seeds=seeds), {}
    artifact = ARTIFACTS["table2"]
    for spec in artifact.run_specs(plan):
        mean = accuracies.get(spec.recipe.data.name, {}).get(spec.recipe.gradient.method)
        sign = 1 if spec.recipe.seed else -1
        outcomes[spec.name] = (
            absent()
            if mean is None
            else fake({"status": "done", "test": {"accuracy": (mean + sign * spread) / 100}})
        )
    return artifact.finding(plan, outcomes)


PAPER2 = {name: {m: mean for m, (mean, _) in row.items()} for name, row in TABLE2.items()}


@pytest.fixture
def baseline(monkeypatch):
    monkeypatch.setattr(
        table2_module.Table2,
        "_baseline",
        staticmethod(lambda plan, data: [TABLE2[data]["baseline"][0]] * 2),
    )


def test_table_2_holds(baseline):
    finding = table2(PAPER2)
    assert finding.held is True
    assert finding.verdict == (
        "cora: neumann 46.6 > tbptt 46.5 > baseline 40.0 > cg 39.3 > rbp 29.2 > bptt 24.5;"
        " pubmed: neumann 53.6 > tbptt 53.4 > cg 49.1 > rbp 48.5 > bptt 47.0 > baseline 40.4"
    ).replace("rbp 48.5", f"rbp {48.55:.1f}").replace("bptt 47.0", f"bptt {47.05:.1f}").replace(
        "tbptt 46.5", f"tbptt {46.55:.1f}"
    )
    assert all(row["mean"] == pytest.approx(row["paper_mean"]) for row in finding.rows)
    assert len(finding.rows) == 12


@pytest.mark.parametrize(
    ("method", "value", "held"),
    [
        ("cg", 60.0, False),  # above both
        ("neumann", 45.6, True),  # a point below
        ("neumann", 45.0, False),  # more, and the spread is zero
        ("neumann", 48.0, False),
    ],
)
def test_table_2_does_not_hold(baseline, method, value, held):
    changed = {**PAPER2, "cora": {**PAPER2["cora"], method: value}}
    assert table2(changed).held is held


def test_table_2_allows_what_the_seeds_differ_by(baseline):
    changed = {**PAPER2, "cora": {**PAPER2["cora"], "neumann": 43.0}}
    assert table2(changed).held is False
    finding = table2(changed, spread=5.0)
    assert finding.held is True
    row = next(r for r in finding.rows if r["method"] == "neumann")
    assert row["deviation"] == pytest.approx(5 * math.sqrt(2))
    assert (row["seed_0"], row["seed_1"]) == (pytest.approx(38), pytest.approx(48))


def test_table_2_in_part_and_not_at_all(baseline):
    cora = table2({"cora": PAPER2["cora"]})
    assert cora.held is True
    assert cora.verdict.endswith("; pubmed: not run")
    assert {row["status"] for row in cora.rows[6:]} == {"not run: files absent"}
    one = table2({"cora": {"neumann": 46.0}})
    assert one.held is None
    none = table2({})
    assert (none.held, none.verdict) == (None, "cora: not run; pubmed: not run")


def figure4(last: Callable[[str, int], float], given: tuple[str, ...] = METHODS):
    plan, outcomes = Plan(), {}
    for spec in ARTIFACTS["figure4"].run_specs(plan):
        method, steps = spec.recipe.gradient.method, spec.recipe.inner.steps
        records = [
            {"meta_step": 0, "meta_loss": 1.0},
            {"meta_step": 1, "meta_loss": 10 ** last(method, steps)},
        ]
        outcomes[spec.name] = fake(records=records) if method in given else absent()
    return ARTIFACTS["figure4"].finding(plan, outcomes)


def as_published(method: str, steps: int) -> float:
    return {"tbptt": -3 + steps / 1000, "neumann": -2.95}.get(method, -3.0)


def test_figure_4_holds():
    finding = figure4(as_published)
    assert finding.held is True
    assert finding.verdict == (
        "last log₁₀ meta loss against BPTT's (0 is level, + is worse): T = 100: Neumann +0.05,"
        " TBPTT +0.10; T = 500: Neumann +0.05, TBPTT +0.50; T = 1000: Neumann +0.05, TBPTT +1.00;"
        " T = 1500: Neumann +0.05, TBPTT +1.50"
    )
    assert len(finding.rows) == 40
    assert finding.rows[0]["untuned"] == 0.0
    assert finding.rows[0]["gain"] == pytest.approx(3.0)


@pytest.mark.parametrize(
    "last",
    [
        lambda m, t: as_published(m, t) + (0.5 if m == "neumann" else 0.0),  # a third of TBPTT's
        lambda m, t: as_published(m, 1600 - t),  # TBPTT gets better with T
        lambda m, t: -3.0,  # all alike
        lambda m, t: -4 + t / 1600 if m == "tbptt" else as_published(m, t),  # TBPTT is best
    ],
)
def test_figure_4_does_not_hold(last):
    assert figure4(last).held is False


def test_figure_4_of_too_little():
    finding = figure4(as_published, given=("bptt", "tbptt"))
    assert (finding.held, finding.verdict) == (None, "not run")


@pytest.mark.parametrize(
    ("time", "kept", "held"), [(2.0, 3.0, True), (0.9, 3.0, False), (2.0, 0.9, False)]
)
def test_table_3(time, kept, held):
    plan = Plan()
    (spec,) = ARTIFACTS["table3"].run_specs(plan)
    outcomes = {spec.name: fake(made(ratios(time, kept)))}
    finding = ARTIFACTS["table3"].finding(plan, outcomes)
    assert finding.held is held
    assert [row["trunc"] for row in finding.rows] == [10, 50, 100]
    assert f"time ×{time:.2f}, ×{time:.2f}, ×{time:.2f}" in finding.verdict
    nothing = ARTIFACTS["table3"].finding(plan, {spec.name: absent()})
    assert (nothing.held, nothing.verdict) == (None, "not run: files absent")


def test_table_a1_counts(monkeypatch):
    counts = {"cora": (2708, 5429, 7, 1433), "pubmed": (19717, 44338, 3, 500)}

    class Counted:
        def __init__(self, name, *_, **__):
            self.node_count, self.citation_count, self.class_count, self.feature_count = counts[
                name
            ]
            self.edge_count = 11

    replace(monkeypatch, CITATION, "load_citations", Counted)
    finding = ARTIFACTS["tableA1"].finding(Plan(), {})
    assert finding.held is True
    assert [row["network"] for row in finding.rows] == list(NETWORKS)
    counts["cora"] = (2708, 5278, 7, 1433)
    assert ARTIFACTS["tableA1"].finding(Plan(), {}).held is False


def memory_outcomes(rbp: float, steady: float) -> dict[str, Fake]:
    norms = [1.0] * 9 + [steady] * 3
    outcomes = {}
    for spec in ARTIFACTS["figure1"].run_specs(Plan()):
        last = rbp if spec.recipe.gradient.method == "rbp" else 0.1
        records = [
            {
                "epoch": n, "loss": loss, "validation": {"pixel_error": 0.1},
                "change_norms": norms, "energy": norms,
            }
            for n, loss in enumerate((1.0, last))
        ]  # fmt: skip
        outcomes[spec.name] = fake(records=records)
    return outcomes


@pytest.mark.parametrize(
    ("rbp", "steady", "held"), [(0.5, 0.01, True), (0.12, 0.01, False), (0.5, 0.2, False)]
)
def test_figure_1(rbp, steady, held):
    outcomes = memory_outcomes(rbp, steady)
    finding = ARTIFACTS["figure1"].finding(Plan(), outcomes)
    assert finding.held is held
    assert f"changes by {steady:.1%} of its first change" in finding.verdict
    name = next(name for name in outcomes if "-cg-" in name)
    outcomes[name] = absent()
    assert ARTIFACTS["figure1"].finding(Plan(), outcomes).held is None


@pytest.mark.parametrize(
    ("neumann", "steady", "held"), [(0.62, 0.01, True), (0.7, 0.01, False), (0.62, 0.2, False)]
)
def test_figure_3(neumann, steady, held):
    outcomes = {}
    for spec in ARTIFACTS["figure3"].run_specs(Plan()):
        accuracy = neumann if spec.recipe.gradient.method == "neumann" else 0.6
        record = {
            "epoch": 0, "loss": 1.0, "validation": {"accuracy": accuracy},
            "change_norms": [2.0, 1.0, 2.0 * steady],
        }  # fmt: skip
        result = {"status": "done", "best": BestEpoch(epoch=0, validation={"accuracy": accuracy})}
        outcomes[spec.name] = fake(result, [record])
    finding = ARTIFACTS["figure3"].finding(Plan(), outcomes)
    assert finding.held is held
    steadies = [row for row in finding.rows if row["panel"].startswith("‖")]
    assert [row["value"] for row in steadies[:3]] == [1.0, 0.5, steady]


# --- on the command line -------------------------------------------------------------------------


def test_the_command(small, monkeypatch):
    monkeypatch.chdir(small)
    words = ["reproduce", "figure1", "--quick", "--device", "cpu"]
    done = CliRunner().invoke(cli.app, words)
    assert done.exit_code == 0, done.output
    assert "Figure 1: the Hopfield memory by five methods" in done.stdout
    assert "quick: 14×14 pixels" in done.stdout
    assert "The paper's claim" in done.stdout
    assert "2 runs, 0 of them done already" in done.stderr
    assert "wrote runs/reproduction-quick (PNG, CSV and JSON of each)" in done.stderr
    again = CliRunner().invoke(cli.app, [*words, "--json"])
    assert json.loads(again.stdout) == json.loads(
        (small / "runs/reproduction-quick/figure1.json").read_text()
    )
    assert "2 runs, 2 of them done already" in again.stderr
    assert again.stderr.count("\n") == 1
    silent = CliRunner().invoke(cli.app, [*words, "-q"])
    assert (silent.exit_code, silent.output) == (0, "")


def test_a_name_that_is_not_there():
    done = CliRunner().invoke(cli.app, ["reproduce", "tabel1"])
    assert done.exit_code == 2
    assert done.stdout == ""
    assert "unknown table or figure 'tabel1'" in done.stderr
    assert "did you mean table1?" in done.stderr
    done = CliRunner().invoke(cli.app, ["reproduce", "table1", "--device", "tpu"])
    assert done.exit_code == 2
    assert "--device: expected one of auto, cpu, cuda, got 'tpu'" in done.stderr


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    words = ["reproduce", "tableA1", "--out", str(tmp_path / "file"), "-q"]
    done = CliRunner().invoke(cli.app, words)
    assert done.exit_code == 9
    assert "Not a directory" in done.stderr or "File exists" in done.stderr


def test_documents_are_written_whole(small, monkeypatch):
    written = []
    real = files.write_atomically

    def watched(path, content):
        written.append(path.name)
        real(path, content)

    monkeypatch.setattr(files, "write_atomically", watched)
    reproduce(["tableA1"], QUICK, small / "out")
    assert {"tableA1.json", "tableA1.csv"} <= set(written)
