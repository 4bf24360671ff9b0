"""Comparisons: what is measured, and what is said of what could not be."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys

import pytest
import torch
from comparisons import (
    CLASSES,
    DOCUMENTED,
    FEATURES,
    HIDDEN,
    NUMBERS,
    TINY,
    WHO,
    B,
    T,
    compared_without_processes,
    pretend,
)
from torch.utils.flop_counter import FlopCounterMode

from hyperrbp.config.loading import parse, read
from hyperrbp.exceptions import (
    DivergedError,
    MemoryExhaustedError,
    UsageError,
)
from hyperrbp.experiments import measurement
from hyperrbp.experiments.compare import CompareCallback
from hyperrbp.experiments.experiment import Experiment, gradient_settings
from hyperrbp.experiments.measurement import Prediction
from hyperrbp.experiments.method_specs import parsed
from hyperrbp.experiments.results.compare import CompareReport
from hyperrbp.hypergradients import hypergradient
from hyperrbp.hypergradients.agreement import by_kind, overall
from hyperrbp.reporting.comparison import markdown
from hyperrbp.runtime.metering import SavedBytes


@pytest.fixture(scope="session")
def compared(tmp_path_factory):
    """(stdout, stderr, folder) of one run of the command, which workers share."""
    base = tmp_path_factory.getbasetemp()
    root = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with (root / "compared.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (root / "compared.stderr").exists():
            (root / "tiny.yaml").write_text(TINY)
            words = ["tiny.yaml", "--methods", "bptt,bptt:keep=checkpoints,neumann,tbptt"]
            words += ["--trunc", "2,29", "--repeats", "2", "--json", "--out", "compared"]
            done = subprocess.run(
                [sys.executable, "-m", "hyperrbp", "compare", *words],
                cwd=root, capture_output=True, text=True,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            (root / "compared.stdout").write_text(done.stdout)
            (root / "compared.stderr").write_text(done.stderr)
    return (
        (root / "compared.stdout").read_text(),
        (root / "compared.stderr").read_text(),
        root / "compared",
    )


@pytest.fixture(scope="session")
def document(compared):
    return json.loads(compared[0])


@pytest.fixture(scope="session")
def experiment(compared):
    return Experiment(read(compared[2] / "recipe.yaml"))


def row_of(document, label, trunc=None, steps=None):
    (found,) = [
        row
        for row in document["rows"]
        if (row["label"], row["trunc"]) == (label, trunc) and steps in (None, row["train_steps"])
    ]
    return found


def measured(document):
    return [row for row in document["rows"] if row["seconds"] is not None]


def test_stdout_is_one_json_document_and_nothing_else(compared):
    stdout, stderr, _ = compared
    assert len(stdout.splitlines()) == 1
    again = json.dumps(json.loads(stdout), allow_nan=False)
    assert again + "\n" == stdout
    assert "NaN" not in stdout
    assert "bytes and FLOPs of neumann, K = 29, T = 30" in stderr
    assert stderr.count("seconds of all methods, in turn") == 1
    assert "wrote compared (comparison.md" in stderr
    assert "Warning" not in stderr


def test_the_document_has_the_documented_keys(document):
    assert set(document) == {
        "kind", "schema_version", "baseline", "environment", "recipe", "rows",
    }  # fmt: skip
    assert set(document["baseline"]) == {"method", "exact", "exact_unknown", "by_train_steps"}
    assert document["baseline"]["exact_unknown"] == {}
    assert document["baseline"]["method"] == "bptt"
    assert document["baseline"]["exact"] == "bptt:keep=checkpoints"
    assert document["environment"]["repeats"] == 2
    assert document["environment"]["threads"] == 1
    assert document["environment"]["torch"] == torch.__version__
    assert document["recipe"] == read_back(document)
    for row in document["rows"]:
        assert set(row) >= DOCUMENTED
        assert set(row) == WHO | NUMBERS


def read_back(document):
    return parse(json.dumps(document["recipe"])).model_dump()


def test_the_rows_are_the_specs_in_order(document):
    assert [(row["label"], row["trunc"], row["train_steps"]) for row in document["rows"]] == [
        ("bptt", None, T),
        ("bptt:keep=checkpoints", None, T),
        ("neumann", 2, T),
        ("neumann", 29, T),
        ("tbptt", 2, T),
        ("tbptt", 29, T),
    ]
    row = row_of(document, "bptt:keep=checkpoints")
    assert (row["method"], row["options"]) == ("bptt", {"keep": "checkpoints"})


def test_a_method_that_fails_is_a_row_that_says_so(document):
    row = row_of(document, "tbptt", 29)
    assert row["status"] == "failed"
    assert "needs 31 training steps, more than the 30 of inner.steps" in row["message"]
    assert {key: row[key] for key in NUMBERS} == dict.fromkeys(NUMBERS)
    assert len(measured(document)) == len(document["rows"]) - 1
    assert all(other["message"] is None for other in measured(document))


@pytest.mark.parametrize("label", ["bptt", "bptt:keep=checkpoints"])
def test_an_exact_method_agrees_with_the_exact_gradient(document, label):
    row = row_of(document, label)
    assert row["status"] == "exact"
    for part in (row, *row["by_kind"].values()):
        assert part["cosine"] == pytest.approx(1, abs=1e-6)
        assert part["norm_ratio"] == pytest.approx(1, abs=1e-5)
        assert part["sign_agreement"] == 1


def test_rightness_is_the_agreement_with_the_exact_gradient(document):
    exact = row_of(document, "bptt:keep=checkpoints")["gradient"]
    for row in measured(document):
        whole, parts = overall(row["gradient"], exact), by_kind(row["gradient"], exact)
        assert set(row["by_kind"]) == {"learning_rate", "momentum"} == set(parts)
        for found, expected in [
            (row, whole),
            *((row["by_kind"][kind], parts[kind]) for kind in parts),
        ]:
            assert found["cosine"] == pytest.approx(expected.cosine, abs=1e-6)
            assert found["sign_agreement"] == expected.sign_agreement
            assert found["norm_ratio"] == pytest.approx(expected.norm_ratio, rel=1e-5)
    assert row_of(document, "tbptt", 2)["norm_ratio"] < 0.5


def test_ratios_are_the_baseline_over_the_row(document):
    keys = {
        "time_ratio": "seconds",
        "memory_ratio": "saved_bytes",
        "peak_ratio": "peak_bytes",
        "process_ratio": "process_peak_bytes",
    }
    baseline = row_of(document, "bptt")
    held = document["baseline"]["by_train_steps"]
    assert held == {str(T): {key: baseline[key] for key in [*keys.values(), "flops"]}}
    for row in measured(document):
        for ratio, key in keys.items():
            assert row[ratio] == baseline[key] / row[key]
        assert row["paper_time_ratio"] is None
        assert row["paper_memory_ratio"] is None


def test_seconds_are_those_of_the_phases(document):
    for row in measured(document):
        assert set(row["seconds_by_phase"]) == {"inner run", "meta-gradient"}
        # Medians of two are means, which add up.
        assert sum(row["seconds_by_phase"].values()) == pytest.approx(row["seconds"])
        assert row["seconds"] > 0
        assert row["seconds_iqr"] >= 0


@pytest.mark.parametrize(
    ("label", "trunc"),
    [("bptt", None), ("bptt:keep=checkpoints", None), ("neumann", 29), ("tbptt", 2)],
)
def test_a_row_holds_what_a_call_in_this_process_finds(document, experiment, label, trunc):
    row = row_of(document, label, trunc)
    method, options = parsed(label)
    settings = gradient_settings(experiment.recipe)
    problem = experiment.problem()
    problem.prepare(experiment.theta)

    def found():
        return hypergradient(
            problem, experiment.theta, method, trunc=trunc or 1, averaging=settings.averaging,
            options=dict(options), seed=experiment.recipe.seed,
        )  # fmt: skip

    result = found()
    gradient = torch.tensor([v for part in row["gradient"].values() for v in part.values()])
    assert torch.dist(gradient, result.gradient) <= 1e-6 * result.gradient.norm()
    named = problem.by_name(result.gradient)
    assert [(kind, *part) for kind, part in named.items()] == [
        (kind, *part) for kind, part in row["gradient"].items()
    ]
    assert row["status"] == result.status
    assert row["products"] == result.products
    assert row["residual"] == pytest.approx(result.residual)
    assert row["steady_state_residual"] == pytest.approx(result.steady_state_residual)
    assert row["trajectory_bytes"] == result.trajectory_bytes
    # Data of the run itself are not kept by a method: a minibatch is a copy, and is.
    data = (*experiment.data.train[:2], *experiment.data.heldout[:2])
    with SavedBytes(*data) as saved:
        found()
    assert row["saved_bytes"] == saved.peak + result.trajectory_bytes
    with FlopCounterMode(display=False) as flops:
        found()
    assert row["flops"] == flops.get_total_flops()


def test_the_deterministic_numbers(document):
    rows = {(row["label"], row["trunc"]): row for row in document["rows"]}
    products = {who: row["products"] for who, row in rows.items()}
    assert products == {
        ("bptt", None): T,
        ("bptt:keep=checkpoints", None): T,
        ("neumann", 2): 2 * 2,  # in two series
        ("neumann", 29): 2 * 29,
        ("tbptt", 2): 2 * 3,  # before three end points
        ("tbptt", 29): None,
    }
    short, long = rows["neumann", 2], rows["neumann", 29]
    assert short["saved_bytes"] == long["saved_bytes"] > 0
    assert short["peak_bytes"] == long["peak_bytes"] > 0
    # A product with the Hessian of two layers, wherever it is taken.
    each, rest = divmod(long["flops"] - short["flops"], 2 * 27)
    assert rest == 0
    assert each == hessian_flops_of_two_layers()
    state = 2 * 4 * (FEATURES * HIDDEN + HIDDEN + HIDDEN * CLASSES + CLASSES)
    assert rows["bptt", None]["trajectory_bytes"] == 0
    # Stretches of 6: five checkpoints and the last stretch, or four and another.
    assert rows["bptt:keep=checkpoints", None]["trajectory_bytes"] == 10 * state
    for row in measured(document):
        assert row["peak_bytes"] >= row["trajectory_bytes"]
        assert row["process_peak_bytes"] > row["peak_bytes"]
    assert rows["bptt", None]["saved_bytes"] > 10 * rows["neumann", 2]["saved_bytes"]


def hessian_flops_of_two_layers():
    first, second = 2 * B * FEATURES * HIDDEN, 2 * B * HIDDEN * CLASSES
    # First layer: X W1ᵀ, X D1ᵀ, and what becomes of X W1ᵀ. The gradient itself is dead code.
    # Second layer: A W2ᵀ and G W2; for D2 and for W2, each of the two factors of the products that
    # they are in: Gᵀ A, G W2 and A W2ᵀ.
    return 3 * first + 8 * second


# --- without processes ----------------------------------------------------------------------------


@pytest.fixture
def machine(monkeypatch):
    return lambda **options: pretend(monkeypatch, **options)


def test_medians_and_quartiles_by_hand(machine):
    machine(taken={
        ("bptt", None): [(8.0, 8.0)] * 3,
        ("neumann", 10): [(1.0, 3.0), (2.0, 1.0), (5.0, 5.0)],
    })  # fmt: skip
    document = compared_without_processes(["neumann"])
    row = row_of(document, "neumann", 10)
    assert row["seconds"] == 4  # of 3, 4 and 10
    assert row["seconds_iqr"] == 3.5  # from 3.5 to 7
    assert row["seconds_by_phase"] == {"inner run": 2, "meta-gradient": 3}
    assert (row["time_ratio"], row["memory_ratio"]) == (4, 3)
    assert (row["peak_ratio"], row["process_ratio"]) == (3, 3)
    assert row["cosine"] == pytest.approx((50 - 288) / (26 * 13))
    assert row["sign_agreement"] == 0.75
    assert row["norm_ratio"] == 2
    assert row["by_kind"]["momentum"] == {
        "cosine": pytest.approx(-1), "sign_agreement": 0.5, "norm_ratio": 2, "descent": -1,
    }  # fmt: skip
    assert row["residual"] is None, "JSON has no infinity"
    json.dumps(document, allow_nan=False)


def test_a_single_repeat_has_no_quartiles(machine):
    machine()
    row = row_of(compared_without_processes(["neumann"], repeats=1), "neumann", 10)
    assert (row["seconds"], row["seconds_iqr"]) == (2, None)


def test_every_length_of_run_has_its_own_exact_gradient_and_baseline(machine):
    fake = machine()
    document = compared_without_processes(["neumann"], steps=(20, 40))
    asked = [spec.train_steps for f, spec in fake.calls if f is measurement.exact]
    assert asked == [20, 40]
    assert set(document["baseline"]["by_train_steps"]) == {"20", "40"}
    assert all(row["time_ratio"] == 1 for row in document["rows"])


def test_what_should_need_more_memory_than_there_is_is_skipped(machine):
    predicted = {("bptt", None): Prediction(1.0, 2_500_000_000)}
    fake = machine(available=1_000_000_000, predicted=predicted)
    document = compared_without_processes(["neumann"])
    row = row_of(document, "bptt")
    assert row["status"] == "skipped"
    assert all(word in row["message"] for word in ("2.5 GB", "1 GB", "--force"))
    assert {row[key] for key in NUMBERS} == {None}
    assert fake.asked(measurement.meter) == [("neumann", 10)]
    (timed,) = [field for f, field in fake.calls if f is measurement.clock]
    assert [c.label for c in timed] == ["neumann"]
    other = row_of(document, "neumann", 10)
    assert (other["seconds"], other["norm_ratio"]) == (2, 2)
    assert other["time_ratio"] is other["memory_ratio"] is None
    assert document["baseline"]["by_train_steps"] == {}


@pytest.mark.parametrize(("available", "force"), [(1000, True), (2000, False), (None, False)])
def test_what_fits_or_is_forced_is_run(machine, available, force):
    machine(available=available, predicted={("bptt", None): Prediction(1.0, 2000)})
    document = compared_without_processes([], force=force)
    assert row_of(document, "bptt")["status"] == "exact"


def test_what_does_not_fit_the_run_failed_before_anything_is_measured(machine):
    fake = machine()
    document = compared_without_processes(["tbptt"], truncs=(10, T))
    row = row_of(document, "tbptt", T)
    assert (row["status"], row["seconds"]) == ("failed", None)
    assert f"trunc {T} over 3 minibatches needs {T + 2} training steps" in row["message"]
    assert fake.asked(measurement.meter) == [("bptt", None), ("tbptt", 10)]


def test_running_out_of_memory_is_a_row_and_the_others_are_measured(machine):
    """Out of memory under the meters and on the clock; catches a row that fails the whole."""
    fake = machine(fails={
        (measurement.meter, "neumann", 10): MemoryExhaustedError("no room"),
        (measurement.clock, "cg", 10): MemoryExhaustedError("no room left"),
        (measurement.clock, "rbp", 20): DivergedError("not a number"),
    })  # fmt: skip
    document = compared_without_processes(["neumann", "cg", "rbp"], truncs=(10, 20))
    ends = {(r["label"], r["trunc"]): (r["status"], r["message"]) for r in document["rows"]}
    fine = ("exact", None)
    assert ends == {
        ("bptt", None): fine,
        ("neumann", 10): ("out of memory", "no room"),
        ("neumann", 20): fine,
        ("cg", 10): ("out of memory", "no room left"),
        ("cg", 20): fine,
        ("rbp", 10): fine,
        ("rbp", 20): ("failed", "not a number"),
    }
    for row in document["rows"]:
        if row["message"] is None:
            assert (row["seconds"], row["cosine"] is None) == (2, False)
        else:
            assert {row[key] for key in NUMBERS} == {None}
    timed = [[(c.label, c.trunc) for c in f] for g, f in fake.calls if g is measurement.clock]
    assert [len(field) for field in timed] == [6, 5, 4]
    assert timed[-1] == [who for who, end in ends.items() if end == fine]


def test_without_the_exact_gradient_costs_are_still_measured(machine):
    machine(fails={(measurement.exact, "bptt:keep=checkpoints", None): DivergedError("nan")})
    document = compared_without_processes(["neumann"])
    row = row_of(document, "neumann", 10)
    assert (row["seconds"], row["time_ratio"]) == (2, 1)
    assert document["baseline"]["exact_unknown"] == {str(T): "nan"}
    assert f"T = {T}: the exact gradient is unknown: nan" in markdown(
        CompareReport.model_validate_json(json.dumps(document))
    )
    assert row["cosine"] is row["sign_agreement"] is row["norm_ratio"] is row["by_kind"] is None


def test_paper_ratios_stand_at_plain_neumann_as_in_table_3(machine):
    machine()
    methods = ["neumann", "cg", "neumann:tolerance=0.1"]
    document = compared_without_processes(methods, truncs=(10, 20, 50, 100), steps=(1000, 500))
    published = {
        (row["label"], row["trunc"], row["train_steps"]): (
            row["paper_time_ratio"],
            row["paper_memory_ratio"],
        )
        for row in document["rows"]
        if (row["paper_time_ratio"], row["paper_memory_ratio"]) != (None, None)
    }
    assert published == {
        ("neumann", 10, 1000): (3.02, 4.35),
        ("neumann", 50, 1000): (2.87, 4.25),
        ("neumann", 100, 1000): (2.68, 4.11),
    }


class Followed(CompareCallback):
    def __init__(self):
        self.tasks, self.rows, self.ends = [], [], 0

    def on_progress(self, progress):
        self.last = progress
        task = (progress.task, progress.detail)
        if self.tasks[-1:] != [task]:
            self.tasks.append(task)

    def on_record(self, record):
        self.rows.append(record)

    def on_end(self):
        self.ends += 1


def test_progress_ends_where_all_that_was_expected_is_done(machine):
    machine(predicted={("neumann", 10): Prediction(7.0, 1)})
    followed = Followed()
    document = compared_without_processes(["neumann"], repeats=2, callback=followed)
    assert followed.last.total == pytest.approx(followed.last.done)
    assert followed.last.total > 7 * 6
    assert followed.last.unit == "seconds"
    timing = "seconds of all methods, in turn"
    assert followed.tasks == [
        ("short runs, to predict seconds and bytes", ""),
        (f"the exact gradient, T = {T}", ""),
        (f"bytes and FLOPs of bptt, T = {T}", ""),
        (f"bytes and FLOPs of neumann, K = 10, T = {T}", ""),
        *3 * [(timing, f"bptt, T = {T}"), (timing, f"neumann, K = 10, T = {T}")],
    ]
    assert [row.label for row in followed.rows] == [row["label"] for row in document["rows"]]
    assert followed.ends == 1


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("neumann:tol=1", ["--methods neumann:tol=1", "tol", "did you mean tolerance?"]),
        ("bptt:keep=all", ["--methods bptt:keep=all", "keep", "checkpoints", "'all'"]),
        ("rbp:tolerance=few", ["--methods rbp:tolerance=few", "tolerance", "number", "'few'"]),
    ],
)
def test_an_option_that_cannot_be_is_refused_before_anything_runs(machine, method, words):
    fake = machine()
    with pytest.raises(UsageError) as caught:
        compared_without_processes([method])
    assert fake.calls == []
    assert all(word in str(caught.value) for word in words)
