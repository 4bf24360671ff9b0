"""What a comparison measures, what it says of what it could not measure, and where it says it."""

from __future__ import annotations

import csv
import fcntl
import importlib
import io
import json
import math
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
from commands import run
from factories import tuning_text
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode

from hyperrbp.config.loading import parse, read
from hyperrbp.exceptions import (
    CheckpointError,
    DataError,
    DeviceError,
    DivergedError,
    Fault,
    HyperrbpError,
    MemoryExhaustedError,
    RecipeError,
    StorageError,
    UsageError,
)
from hyperrbp.experiments import measurement
from hyperrbp.experiments.compare import Audience, compare
from hyperrbp.experiments.experiment import Experiment, gradient_settings
from hyperrbp.experiments.method_specs import MethodSpec, method_specs, parsed
from hyperrbp.hypergradients import hypergradient
from hyperrbp.hypergradients.agreement import agreement, by_kind, overall
from hyperrbp.reporting.comparison import Lines, comma_separated, markdown, tables, write
from hyperrbp.reporting.figures import draw_costs, log_log_exponent
from hyperrbp.reporting.tensorboard import write_comparison
from hyperrbp.runtime.metering import SavedBytes
from hyperrbp.runtime.subprocesses import call

COMPARE = importlib.import_module("hyperrbp.experiments.compare")

TINY = tuning_text(
    name="tiny",
    data__train_examples=300,
    model__options__hidden=[8],
    inner__steps=30,
    gradient={"trunc": 2, "averaging": {"minibatches": 3, "series": 2}},
)
T, B, FEATURES, HIDDEN, CLASSES = 30, 50, 64, 8, 10

DOCUMENTED = {
    "method", "trunc", "train_steps", "seconds", "seconds_iqr", "peak_bytes", "saved_bytes",
    "flops", "products", "time_ratio", "memory_ratio", "cosine", "sign_agreement", "norm_ratio",
    "descent", "verdict", "status",
}  # fmt: skip
WHO = {"method", "label", "options", "trunc", "train_steps", "status", "message"}
NUMBERS = (DOCUMENTED - WHO) | {
    "seconds_by_phase", "process_peak_bytes", "trajectory_bytes", "peak_ratio", "process_ratio",
    "paper_time_ratio", "paper_memory_ratio", "by_kind", "residual", "steady_state_residual",
    "gradient", "structurally_zero",
}  # fmt: skip


# --- one real comparison -------------------------------------------------------------------------


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
    assert stderr.count("seconds of all, in turn") == 1
    assert "wrote compared (comparison.md" in stderr
    assert "Warning" not in stderr


def test_the_document_has_the_documented_keys(document):
    assert set(document) == {"baseline", "environment", "recipe", "rows"}
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


def test_the_rows_are_the_contenders_in_order(document):
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


# --- agreement -----------------------------------------------------------------------------------


def test_agreement_by_hand():
    found = agreement([3.0, 4.0], [8.0, 6.0])
    assert found.cosine == pytest.approx(48 / 50, abs=1e-15)
    assert found.sign_agreement == 1
    assert found.norm_ratio == 0.5
    opposite = agreement([-8.0, -6.0], [4.0, 3.0])
    assert opposite.cosine == pytest.approx(-1, abs=1e-15)
    assert opposite.sign_agreement == 0
    assert opposite.norm_ratio == 2


def test_a_zero_has_a_sign_of_its_own():
    found = agreement([1.0, -2.0, 0.0, 0.0], [2.0, 1.0, 0.0, 3.0])
    assert found.cosine == pytest.approx(0, abs=1e-15)
    assert found.sign_agreement == 0.5


def test_agreement_with_a_zero_vector():
    assert agreement([0.0, 0.0], [0.0, -1.0]) == agreement([0.0, -0.0], [0.0, -1.0])
    found = agreement([0.0, 0.0], [0.0, -1.0])
    assert (found.cosine, found.sign_agreement, found.norm_ratio) == (None, 0.5, 0)
    found = agreement([0.0, -1.0], [0.0, 0.0])
    assert (found.cosine, found.sign_agreement, found.norm_ratio) == (None, 0.5, None)


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_agreement_of_what_is_not_finite(bad):
    for found in (agreement([bad, 1.0], [-1.0, 1.0]), agreement([-1.0, 1.0], [bad, 1.0])):
        assert (found.cosine, found.norm_ratio) == (None, None)
        assert found.sign_agreement == (1.0 if bad == -math.inf else 0.5)


@pytest.mark.parametrize("scale", [1e200, 1e-200])
def test_agreement_neither_overflows_nor_vanishes(scale):
    found = agreement([scale, scale], [0.0, 3 * scale])
    assert found.cosine == pytest.approx(math.sqrt(0.5), rel=1e-14)
    assert found.norm_ratio == pytest.approx(math.sqrt(2) / 3, rel=1e-14)
    assert found.sign_agreement == 0.5


def test_agreement_by_kind_and_overall():
    exact = {"rate": {"a": 3.0, "b": 4.0}, "momentum": {"a": 0.0, "b": -12.0}}
    found = {"momentum": {"a": 0.0, "b": 6.0}, "rate": {"a": 6.0, "b": 8.0}}
    parts = by_kind(found, exact)
    assert list(parts) == ["rate", "momentum"]
    assert parts["rate"].cosine == pytest.approx(1)
    assert parts["rate"].norm_ratio == 2
    assert parts["momentum"].cosine == pytest.approx(-1)
    assert parts["momentum"].norm_ratio == 0.5
    assert parts["momentum"].sign_agreement == 0.5
    whole = overall(found, exact)
    assert whole.cosine == pytest.approx((50 - 72) / math.sqrt(136) / 13)
    assert whole.norm_ratio == pytest.approx(math.sqrt(136) / 13)
    assert whole.sign_agreement == 0.75


# --- method_specs ----------------------------------------------------------------------------------


def test_contenders_are_ordered_by_steps_method_and_trunc():
    field = method_specs(["neumann", "bptt:keep=states"], [10, 5], [300, 100])
    assert [(c.label, c.trunc, c.train_steps) for c in field] == [
        (label, trunc, steps)
        for steps in (300, 100)
        for label, trunc in [
            ("bptt", None), ("neumann", 10), ("neumann", 5), ("bptt:keep=states", None),
        ]
    ]  # fmt: skip


@pytest.mark.parametrize("methods", [[], ["bptt"], ["bptt", "bptt"]])
def test_the_baseline_is_always_there_once(methods):
    assert method_specs(methods, [3], [7]) == [MethodSpec("bptt", (), None, 7)]


def test_the_baseline_is_first_wherever_it_is_named():
    labels = [c.label for c in method_specs(["neumann", "bptt", "cg", "neumann"], [3], [7])]
    assert labels == ["bptt", "neumann", "cg"]


def test_a_number_that_is_named_twice_counts_once():
    field = method_specs(["cg"], [3, 3, 4, 3], [7, 7])
    assert [(c.method, c.trunc) for c in field] == [("bptt", None), ("cg", 3), ("cg", 4)]


def test_options_have_types():
    assert parsed("cg:tolerance=1e-5:damping=0") == ("cg", (("tolerance", 1e-5), ("damping", 0)))
    assert isinstance(parsed("cg:tolerance=1e-5")[1][0][1], float)
    assert parsed("rbp:z0=zero") == ("rbp", (("z0", "zero"),))
    assert method_specs(["rbp:z0=zero"], [3], [7])[1].label == "rbp:z0=zero"


@pytest.mark.parametrize(
    ("methods", "truncs", "steps", "words"),
    [
        (["newmann"], [1], [1], ["'newmann'", "did you mean neumann?"]),
        (["neumann:tolerance"], [1], [1], ["--methods neumann:tolerance", "METHOD:option=value"]),
        (["neumann:=1"], [1], [1], ["--methods neumann:=1", "METHOD:option=value"]),
        (["neumann"], [5, 0], [1], ["--trunc", "at least 1"]),
        (["neumann"], [], [1], ["--trunc", "at least 1"]),
        (["neumann"], [1], [-1], ["--train-steps", "at least 1"]),
        (["neumann"], [1], [], ["--train-steps", "at least 1"]),
    ],
)
def test_contenders_that_cannot_be(methods, truncs, steps, words):
    with pytest.raises(UsageError) as caught:
        method_specs(methods, truncs, steps)
    assert all(word in str(caught.value) for word in words)


def test_a_contender_puts_itself_into_a_recipe():
    text = TINY.replace("series: 2}", "series: 2, estimator: resampled}, method: neumann")
    text = text.replace("method: neumann}", "method: neumann, options: {cg: {damping: 0.1}}}")
    recipe = parse(text)
    spec = MethodSpec("cg", (("tolerance", 1e-3),), 9, 70)
    changed = spec.recipe(recipe)
    assert (changed.gradient.method, changed.gradient.trunc, changed.inner.steps) == ("cg", 9, 70)
    assert changed.gradient.options == {"cg": {"damping": 0.1, "tolerance": 1e-3}}
    # cg cannot resample, and has a default of its own.
    assert changed.gradient.averaging.estimator == "auto"
    assert changed.gradient.averaging.minibatches == 3
    kept = MethodSpec("rbp", (), 9, 70).recipe(recipe)
    assert kept.gradient.averaging.estimator == "resampled"
    assert recipe == parse(text)


def test_the_baseline_is_unrolled_whatever_the_recipe_says():
    recipe = parse(TINY.replace("trunc: 2,", "trunc: 2, options: {bptt: {keep: checkpoints}},"))
    (baseline,) = method_specs([], [2], [T])
    options = gradient_settings(baseline.recipe(recipe)).options
    assert options.get("keep", "graph") == "graph"


# --- FLOPs ---------------------------------------------------------------------------------------


def flops_of(work):
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def tiny_problem(hidden, steps=6):
    recipe = parse(TINY.replace("[8]", hidden).replace("steps: 30", f"steps: {steps}"))
    experiment = Experiment(recipe)
    return experiment.problem(), experiment.theta


@pytest.mark.parametrize("traced", [False, True])
def test_flops_of_an_inner_run_by_hand(traced):
    layer = 2 * B * FEATURES * CLASSES
    first, second = 2 * B * FEATURES * HIDDEN, 2 * B * HIDDEN * CLASSES
    # Outputs and the gradient of each layer, and for the second that of its inputs.
    for hidden, each in (("[]", 2 * layer), ("[8]", 2 * first + 3 * second)):
        problem, theta = tiny_problem(hidden)
        if traced:
            problem.prepare(theta)
        found = flops_of(lambda: problem.run(theta, 0, 6, problem.initial_state()))  # noqa: B023
        assert found == 6 * each


def test_flops_of_a_product_by_hand():
    problem, theta = tiny_problem("[]")
    layer = 2 * B * FEATURES * CLASSES

    def series(trunc):
        return flops_of(lambda: hypergradient(problem, theta, "neumann", trunc=trunc))

    # X Wᵀ and Gᵀ X; then X Dᵀ, and the change of G against X.
    assert series(5) - series(2) == 3 * 4 * layer


# --- measurement ---------------------------------------------------------------------------------


def test_the_clock_takes_everyone_in_turn_after_a_warm_up():
    heard = []
    field = method_specs(["neumann"], [2], [6])
    recipe = parse(TINY.replace("steps: 30", "steps: 6"))
    measurement.clock(recipe, None, field, 2, heard.append)
    assert [(kind, index) for kind, index, _ in heard] == [
        (kind, index) for _ in range(3) for index in range(2) for kind in ("begins", "took")
    ]
    taken = [seconds for kind, _, seconds in heard if kind == "took"]
    assert taken[:2] == [None, None]
    for seconds in taken[2:]:
        assert set(seconds) == {"inner run", "meta-gradient"}
        assert min(seconds.values()) > 0


def test_a_contender_draws_by_the_seed_of_the_recipe():
    recipe = parse("seed: 77\n" + TINY)
    spec = MethodSpec("rbp", (("z0", "uniform"),), 2, T)
    found = measurement.exact(recipe, None, spec, None)
    experiment = Experiment(recipe)

    def expected(seed):
        averaging = gradient_settings(recipe).averaging
        result = hypergradient(
            experiment.problem(), experiment.theta, "rbp", trunc=2, averaging=averaging,
            options={"z0": "uniform"}, seed=seed,
        )  # fmt: skip
        return experiment.problem().by_name(result.gradient)

    assert found == expected(77)
    assert found != expected(0)


def test_a_plan_foretells_the_bytes_of_every_contender():
    recipe = parse(TINY.replace("steps: 30", "steps: 20"))
    field = method_specs(["bptt:keep=states"], [2], [10, 80])
    plan = measurement.plan(recipe, None, field, None)
    graph, states, longer_graph, longer_states = plan["predicted"]
    assert all(predicted["seconds"] > 0 for predicted in plan["predicted"])
    experiment = Experiment(recipe)
    for spec, predicted in ((field[0], graph), (field[2], longer_graph)):
        problem = experiment.problem()
        problem.steps = spec.train_steps
        with SavedBytes() as saved:
            hypergradient(problem, experiment.theta, "bptt")
        assert predicted["saved_bytes"] == pytest.approx(saved.peak, rel=0.02)
    state = experiment.problem().initial_state().nbytes
    assert longer_states["saved_bytes"] - states["saved_bytes"] == 70 * state
    assert plan["environment"] == experiment.environment()
    assert plan["recipe"] == experiment.recipe.model_dump()
    assert 0 < plan["available"] <= total_memory()


def test_a_trunc_that_is_too_long_leaves_the_shorter_one_alone():
    recipe = parse(TINY.replace("steps: 30", "steps: 15"))
    plan = measurement.plan(recipe, None, method_specs(["tbptt"], [2, 28], [15]), None)
    assert plan["predicted"][1]["saved_bytes"] > 0


# --- fresh processes -----------------------------------------------------------------------------

LIVES_IN = {"this": "parent"}


def other_place(report):
    before, LIVES_IN["this"] = LIVES_IN["this"], "child"
    return before, os.getpid(), signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def counts(number, word, report):
    for n in range(number):
        report((word, n))
    return {"sum": sum(range(number)), "tensor": [1.5, None]}


def fails(error, report):
    report("before")
    raise error


def fails_with_faults(report):
    raise RecipeError(
        [Fault("mine.yaml", 3, "inner.steps", "not so"), Fault("--set", None, "", "no")]
    )


def dies(how, report):
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    os._exit(3)


def lingers(report):
    report(os.getpid())
    time.sleep(600)


@pytest.fixture
def nobody_stays():
    yield
    assert multiprocessing.active_children() == []


def test_a_call_returns_and_reports_in_order(nobody_stays):
    heard = []
    assert call(counts, 5, "w", heard=heard.append) == {"sum": 10, "tensor": [1.5, None]}
    assert heard == [("w", n) for n in range(5)]


def test_every_call_has_a_process_of_its_own(nobody_stays):
    first, second = call(other_place), call(other_place)
    assert first[0] == second[0] == LIVES_IN["this"] == "parent"
    assert len({first[1], second[1], os.getpid()}) == 3
    assert first[2], "Ctrl-C would print a traceback of every child"
    for pid in (first[1], second[1]):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.parametrize(
    "kind",
    [
        HyperrbpError, UsageError, DataError, DeviceError, DivergedError, CheckpointError,
        MemoryExhaustedError, StorageError,
    ],
)  # fmt: skip
def test_an_error_of_ours_comes_back_as_it_was(nobody_stays, kind):
    heard = []
    with pytest.raises(HyperrbpError) as caught:
        call(fails, kind("some words"), heard=heard.append)
    assert type(caught.value) is kind
    assert str(caught.value) == "some words"
    assert heard == ["before"]


def test_a_recipe_error_keeps_its_words_and_its_exit_code(nobody_stays):
    with pytest.raises(HyperrbpError) as caught:
        call(fails_with_faults)
    assert caught.value.exit_code == 2
    assert "mine.yaml:3: inner.steps: not so" in str(caught.value)
    assert "--set: no" in str(caught.value)


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (ZeroDivisionError("by zero\nmore"), HyperrbpError, "ZeroDivisionError: by zero"),
        (KeyError(), HyperrbpError, "KeyError: "),
        (MemoryError(), MemoryExhaustedError, "out of memory"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 9 bytes."),
            MemoryExhaustedError,
            "DefaultCPUAllocator: can't allocate memory: you tried 9 bytes.",
        ),
    ],
)
def test_an_error_of_others_becomes_one_line_of_ours(nobody_stays, error, kind, words):
    with pytest.raises(HyperrbpError) as caught:
        call(fails, error)
    assert type(caught.value) is kind
    assert str(caught.value) == words


def test_a_process_that_is_killed_ran_out_of_memory(nobody_stays):
    with pytest.raises(MemoryExhaustedError, match="killed by the system"):
        call(dies, "kill")


def test_a_process_that_ends_without_a_word(nobody_stays):
    with pytest.raises(HyperrbpError, match=r"ended with 3\b") as caught:
        call(dies, "exit")
    assert type(caught.value) is HyperrbpError


def test_a_caller_that_stops_listening_ends_the_call(nobody_stays):
    pids = []

    def heard(pid):
        pids.append(pid)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        call(lingers, heard=heard)
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)


# --- a comparison without processes --------------------------------------------------------------

EXACT = {"learning_rate": {"w": 3.0, "b": -4.0}, "momentum": {"w": 12.0, "b": 0.0}}
FOUND = {"learning_rate": {"w": 6.0, "b": -8.0}, "momentum": {"w": -24.0, "b": 0.0}}


class Machine:
    """Answers for the other processes."""

    def __init__(self, *, available=10**9, predicted=None, taken=None, fails=None):
        self.available, self.predicted = available, predicted or {}
        self.taken, self.fails = taken or {}, fails or {}
        self.calls = []

    def __call__(self, function, recipe, data_root, *arguments, heard=None):
        assert data_root is None
        self.calls.append((function, arguments[0]))
        if function is measurement.clock:
            return self.clock(*arguments, heard)
        (subject,) = arguments
        if function is measurement.plan:
            return self.plan(recipe, subject)
        self.fail(function, subject)
        if function is measurement.exact:
            assert (subject.label, subject.trunc) == ("bptt:keep=checkpoints", None)
            return EXACT
        assert function is measurement.meter
        size = 600 if subject.method == "bptt" else 200
        return {
            "gradient": EXACT if subject.method == "bptt" else FOUND,
            "structurally_zero": [False] * 4,
            "status": "exact",
            "products": subject.trunc, "residual": math.inf,
            "steady_state_residual": 0.5, "process_peak_bytes": 10 * size, "peak_bytes": 2 * size,
            "saved_bytes": size, "trajectory_bytes": 0, "flops": 3 * size,
        }  # fmt: skip

    def fail(self, function, spec):
        error = self.fails.get((function, spec.label, spec.trunc))
        if error is not None:
            raise error

    def plan(self, recipe, field):
        usual = {"seconds": 1.0, "saved_bytes": 1000}
        return {
            "predicted": [self.predicted.get((c.label, c.trunc), usual) for c in field],
            "available": self.available,
            "environment": {"threads": 1, "machine": "m", "torch": "t"},
            "recipe": recipe.model_dump(),
        }

    def clock(self, field, repeats, heard):
        for repeat in range(-1, repeats):
            for index, spec in enumerate(field):
                heard(("begins", index, None))
                if repeat == repeats - 1:
                    self.fail(measurement.clock, spec)
                usual = [(1.0, 1.0)] * repeats
                inner, meta = self.taken.get((spec.label, spec.trunc), usual)[repeat]
                seconds = {"inner run": inner, "meta-gradient": meta}
                heard(("took", index, seconds if repeat >= 0 else None))

    def asked(self, function):
        return [(a.label, a.trunc) for f, a in self.calls if f is function]


@pytest.fixture
def machine(monkeypatch):
    def pretend(**options):
        fake = Machine(**options)
        monkeypatch.setattr(COMPARE, "call", fake)
        return fake

    return pretend


def compared_without_processes(methods, truncs=(10,), steps=(T,), **options):
    options.setdefault("repeats", 3)
    return compare(parse(TINY), method_specs(methods, truncs, steps), **options)


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
    assert set(document["baseline"]["by_train_steps"]) == {20, 40}
    assert all(row["time_ratio"] == 1 for row in document["rows"])


def test_what_should_need_more_memory_than_there_is_is_skipped(machine):
    predicted = {("bptt", None): {"seconds": 1.0, "saved_bytes": 2_500_000_000}}
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
    machine(available=available, predicted={("bptt", None): {"seconds": 1.0, "saved_bytes": 2000}})
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
    assert document["baseline"]["exact_unknown"] == {T: "nan"}
    assert f"T = {T}: the exact gradient is unknown: nan" in markdown(document)
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


class Heard(Audience):
    def __init__(self):
        self.expected, self.done, self.said = 0.0, 0.0, []

    def expects(self, seconds):
        self.expected = seconds

    def begins(self, what):
        self.said.append(what)

    def spent(self, seconds):
        self.done += seconds


def test_an_audience_hears_what_is_done_until_all_that_was_expected_is(machine):
    machine(predicted={("neumann", 10): {"seconds": 7.0, "saved_bytes": 1}})
    heard = Heard()
    compared_without_processes(["neumann"], repeats=2, audience=heard)
    assert heard.expected == pytest.approx(heard.done)
    assert heard.done > 7 * 6
    assert heard.said[:4] == [
        "short runs, to foretell seconds and bytes",
        f"the exact gradient, T = {T}",
        f"bytes and FLOPs of bptt, T = {T}",
        f"bytes and FLOPs of neumann, K = 10, T = {T}",
    ]
    assert heard.said[4:] == 3 * [
        f"seconds of bptt, T = {T}",
        f"seconds of neumann, K = 10, T = {T}",
    ]


def test_lines_say_the_timing_once():
    text = io.StringIO()
    lines = Lines(Console(file=text))
    lines.expects(3)
    for _ in range(3):
        lines.begins("bytes and FLOPs of bptt")
    for _ in range(3):
        lines.begins("seconds of bptt")
        lines.begins("seconds of cg")
    assert text.getvalue().splitlines() == [
        "this should take about 3.0 s",
        "bytes and FLOPs of bptt",
        "seconds of all, in turn",
    ]


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


# --- reports -------------------------------------------------------------------------------------


def row(label, trunc=None, steps=1000, **numbers):
    parts = {"cosine": 0.5, "sign_agreement": 0.75, "norm_ratio": 2.0, "descent": 0.25}
    usual = dict.fromkeys(NUMBERS) | parts | {
        "seconds": 0.25, "seconds_iqr": 0.1, "saved_bytes": 2500, "peak_bytes": 5_000_000,
        "seconds_by_phase": {"inner run": 0.125, "meta-gradient": 0.0625},
        "process_peak_bytes": 7_000_000_000, "trajectory_bytes": 0, "flops": 1_500_000_000,
        "verdict": "disagrees",
        "products": 20, "time_ratio": 4.0, "memory_ratio": 40.0, "peak_ratio": 3.0,
        "process_ratio": 1.5, "residual": 0.125, "steady_state_residual": 0.5,
        "by_kind": {"learning_rate": parts | {"cosine": -0.25}, "momentum": parts},
        "gradient": {"learning_rate": {"w": 1e-17}, "momentum": {"w": -0.1}},
    }  # fmt: skip
    method, options = parsed(label)
    who = {
        "method": method, "label": label, "options": dict(options), "trunc": trunc,
        "train_steps": steps, "status": "truncated", "message": None,
    }  # fmt: skip
    return who | usual | numbers


def lost(label, trunc, status, message, steps=1000):
    return (
        row(label, trunc, steps) | dict.fromkeys(NUMBERS) | {"status": status, "message": message}
    )


def made(rows):
    return {
        "baseline": {
            "method": "bptt",
            "exact": "bptt:keep=checkpoints",
            "exact_unknown": {},
            "by_train_steps": {},
        },
        "environment": {"threads": 2, "machine": "Linux x", "torch": "2.0", "repeats": 5},
        "recipe": parse(TINY).model_dump(),
        "rows": rows,
    }


ROWS = [
    row("bptt", status="exact", time_ratio=1.0),
    row("neumann", 10, paper_time_ratio=3.02, paper_memory_ratio=4.35),
    row("neumann", 50, seconds=0.5, seconds_iqr=None, cosine=None, norm_ratio=None),
    lost("tbptt", 2000, "failed", "too long a truncation"),
    lost("bptt:keep=states", None, "skipped", "would keep too much"),
]


def cells(text, title):
    """The rows of a Markdown table, the head first."""
    lines = text.split(f"**{title}")[1].split("\n\n")[1].splitlines()
    assert re.fullmatch(r"\|( -+:? \|)+", lines[1])
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in lines if line[2] != "-"
    ]


def test_markdown_has_every_row():
    text = markdown(made(ROWS))
    assert text.startswith("tiny: one meta-gradient at the untuned start, M = 3, 2 series;")
    assert "median of 5 on 2 CPU threads" in text
    assert cells(text, "Time (T = 1000)") == [
        ["method", "K", "seconds", "inner run", "meta-gradient", "time ×", "GFLOP", "products"],
        ["bptt", "–", "0.25 ± 0.05", "0.125", "0.0625", "1", "1.5", "20"],
        ["neumann", "10", "0.25 ± 0.05", "0.125", "0.0625", "4 (3.02)", "1.5", "20"],
        ["neumann", "50", "0.5", "0.125", "0.0625", "4", "1.5", "20"],
        ["tbptt", "2000", "failed", "", "", "", "", ""],
        ["bptt:keep=states", "–", "skipped", "", "", "", "", ""],
    ]
    memory = cells(text, "Memory (T = 1000)")
    assert memory[0][2:] == ["kept", "kept ×", "peak", "peak ×", "process", "process ×"]
    assert memory[1][2:] == ["2.5 kB", "40", "5 MB", "3", "7 GB", "1.5"]
    assert memory[2][2:] == ["2.5 kB", "40 (4.35)", "5 MB", "3", "7 GB", "1.5"]
    assert memory[4][2:] == [""] * 6
    right = cells(text, "How right it is (T = 1000)")
    assert right[0][2:] == [
        "all", "decrease kept", "learning rate", "momentum", "residual", "status", "verdict",
    ]  # fmt: skip
    assert right[1][2:] == [
        "+0.50, 75%, ×2", "25%", "-0.25, 75%, ×2", "+0.50, 75%, ×2", "0.12", "exact", "disagrees",
    ]  # fmt: skip
    assert right[3][2] == "–, 75%, –"
    assert right[4][2:] == ["", "", "", "", "", "failed", ""]
    notes = [line for line in text.splitlines() if line.startswith("* ")]
    assert len(notes) == 4
    assert "Table 3 of Liao et al. 2018" in notes[1]
    assert notes[2] == "* tbptt, K = 2000, T = 1000: failed: too long a truncation"
    assert notes[3] == "* bptt:keep=states, K = –, T = 1000: skipped: would keep too much"


def test_the_paper_is_not_mentioned_where_it_has_no_number():
    text = markdown(made([ROWS[0]]))
    assert "(paper" not in text


def test_several_lengths_of_run_add_a_column():
    text = markdown(made([row("bptt", steps=steps) for steps in (100, 300)]))
    for title in ("Time", "Memory", "How right it is"):
        table = cells(text, title)
        assert table[0][:3] == ["method", "K", "T"]
        assert [line[2] for line in table[1:]] == ["100", "300"]
    assert "(T =" not in text


def test_a_terminal_shows_what_markdown_does():
    text = io.StringIO()
    Console(file=text, width=250).print(tables(made(ROWS)))
    lines = [re.split(r"\s{2,}", line.strip()) for line in text.getvalue().splitlines()]
    markdown_text = markdown(made(ROWS))
    for title in ("Time (T = 1000)", "Memory (T = 1000)", "How right it is (T = 1000)"):
        for expected in cells(markdown_text, title):
            assert [cell for cell in expected if cell] in lines
    assert "failed: too long a truncation" in text.getvalue()


def test_comma_separated_values_read_back():
    document = made(ROWS)
    read_rows = list(csv.DictReader(io.StringIO(comma_separated(document), newline="")))
    assert len(read_rows) == len(ROWS)
    for values, original in zip(read_rows, ROWS, strict=True):
        for key, value in original.items():
            if value is None:
                assert values.get(key, "") == ""
            elif isinstance(value, str):
                assert values[key] == value
            elif not isinstance(value, dict):
                assert float(values[key]) == value
    assert not {"gradient", "by_kind", "seconds_by_phase"} & set(read_rows[0])
    assert float(read_rows[1]["gradient.learning_rate.w"]) == 1e-17
    assert float(read_rows[1]["by_kind.learning_rate.cosine"]) == -0.25
    assert float(read_rows[1]["seconds_by_phase.meta-gradient"]) == 0.0625
    assert read_rows[4]["options.keep"] == "states"
    assert read_rows[3]["gradient.learning_rate.w"] == ""


@pytest.mark.parametrize("exponent", [0, 1, 2, -0.5])
def test_the_slope_of_a_power_law(exponent):
    points = [(x, 7 * x**exponent) for x in (10, 50, 100, 1000)]
    assert log_log_exponent(points) == pytest.approx(exponent, abs=1e-12)


def test_one_point_has_no_slope():
    assert log_log_exponent([(10, 3)]) is None
    assert log_log_exponent([(10, 3), (10, 4)]) is None


LINEAR = [
    row("tbptt", trunc, steps, seconds=trunc ** (2 if steps == 100 else 1), saved_bytes=trunc**2)
    for trunc in (10, 100)
    for steps in (100, 1000)
]
LEVEL = [row("bptt", None, steps, seconds=steps / 50, saved_bytes=steps) for steps in (100, 1000)]


def drawn(rows, file, monkeypatch):
    """The axes of a figure that is saved all the same."""
    from matplotlib.figure import Figure

    figures, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda f, *a, **k: (figures.append(f), save(f, *a, **k)))
    draw_costs(rows, file)
    assert file.read_bytes().startswith(b"\x89PNG\r\n")
    (figure,) = figures
    return [
        (axis.get_xlabel(), axis.get_ylabel(), [text.get_text() for text in legend.get_texts()])
        for axis in figure.axes
        if (legend := axis.get_legend())
    ]


def test_costs_are_drawn_against_k(tmp_path, monkeypatch):
    rows = [r for r in LEVEL + LINEAR if r["train_steps"] == 1000]
    rows.append(lost("cg", 10, "failed", "no"))
    assert drawn(rows, tmp_path / "a.png", monkeypatch) == [
        ("K (T = 1000)", "seconds a meta-gradient", ["bptt", "tbptt: 1.00"]),
        ("K (T = 1000)", "bytes kept", ["bptt", "tbptt: 2.00"]),
    ]


def test_costs_are_drawn_against_k_and_t(tmp_path, monkeypatch):
    assert drawn(LEVEL + LINEAR, tmp_path / "b.png", monkeypatch) == [
        ("K (T = 1000)", "seconds a meta-gradient", ["bptt", "tbptt: 1.00"]),
        ("T (K = 100)", "seconds a meta-gradient", ["bptt: 1.00", "tbptt: -2.00"]),
        ("K (T = 1000)", "bytes kept", ["bptt", "tbptt: 2.00"]),
        ("T (K = 100)", "bytes kept", ["bptt: 1.00", "tbptt: 0.00"]),
    ]


@pytest.mark.parametrize("rows", [LEVEL[:1], LEVEL])
def test_costs_of_bptt_alone_are_drawn(tmp_path, monkeypatch, rows):
    legends = drawn(rows, tmp_path / "c.png", monkeypatch)
    assert any(label.startswith("bptt") for _, _, labels in legends for label in labels)


def test_nothing_measured_is_nothing_to_draw(tmp_path):
    with pytest.raises(UsageError, match="no method was measured"):
        draw_costs([lost("cg", 10, "failed", "no")], tmp_path / "a.png")
    write(made([lost("bptt", None, "failed", "no")]), tmp_path / "out")
    assert not (tmp_path / "out" / "cost.png").exists()
    assert "failed: no" in (tmp_path / "out" / "comparison.md").read_text()


def test_a_folder_that_cannot_be_made_is_a_storage_fault(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file/below"):
        write(made(ROWS), tmp_path / "file" / "below")


def scalars_in(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {
        tag: {event.step: event.value for event in events.Scalars(tag)}
        for tag in events.Tags()["scalars"]
    }


def test_tensorboard_has_costs_against_k(tmp_path):
    write_comparison(made(ROWS), tmp_path)
    assert {run.name for run in tmp_path.iterdir()} == {"neumann_T_1000", "bptt_T_1000"}
    scalars = scalars_in(tmp_path / "neumann_T_1000")
    keys = {
        "seconds", "saved_bytes", "peak_bytes", "flops", "time_ratio", "memory_ratio", "cosine",
        "sign_agreement", "norm_ratio", "descent",
    }  # fmt: skip
    assert set(scalars) == {f"{key}/against_K" for key in keys}
    assert scalars["seconds/against_K"] == {10: 0.25, 50: 0.5}
    assert scalars["cosine/against_K"] == {10: 0.5}
    level = scalars_in(tmp_path / "bptt_T_1000")["time_ratio/against_K"]
    assert level == {10: 1, 50: 1}, "what has no use for K is a level line"


def test_tensorboard_has_costs_against_t_if_there_are_several(tmp_path):
    write_comparison(made(LEVEL + LINEAR), tmp_path)
    assert {run.name for run in tmp_path.iterdir()} == {
        "bptt", "bptt_T_100", "bptt_T_1000", "tbptt_T_100", "tbptt_T_1000", "tbptt_K_10",
        "tbptt_K_100",
    }  # fmt: skip
    assert scalars_in(tmp_path / "bptt")["seconds/against_T"] == {100: 2, 1000: 20}
    along_t = scalars_in(tmp_path / "tbptt_K_10")
    assert along_t["saved_bytes/against_T"] == {100: 100, 1000: 100}
    along_k = scalars_in(tmp_path / "tbptt_T_100")
    assert along_k["saved_bytes/against_K"] == {10: 100, 100: 10_000}


# --- the command line ----------------------------------------------------------------------------


@pytest.fixture
def tiny(tmp_path, monkeypatch, machine):
    """The name of a recipe in a working folder of its own, where nothing is really run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(TINY)
    machine()
    return "tiny.yaml"


def test_compare_has_help():
    done = run("compare", "--help")
    assert done.exit_code == 0
    assert "Usage: hyperrbp compare " in done.stdout
    for option in ("--methods", "--trunc", "--sweep-steps", "--repeats", "--force", "--json"):
        assert option in done.stdout
    assert re.search(r"^│ compare ", run("--help").stdout, re.MULTILINE)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--trunc", "x"], ["--trunc", "'x'"]),
        (["--trunc", "10,,50"], ["--trunc", "'10,,50'"]),
        (["--trunc", "0"], ["--trunc", "at least 1"]),
        (["--sweep-steps", "a,b"], ["--sweep-steps", "'a,b'"]),
        (["--repeats", "0"], ["--repeats", "at least 1"]),
        (["--train-steps", "9", "--sweep-steps", "9,10"], ["--train-steps", "--sweep-steps"]),
        (["--methods", "newmann"], ["'newmann'", "did you mean neumann?"]),
        (["--methods", "neumann:tol=1"], ["neumann:tol=1", "did you mean tolerance?"]),
        (["--methods", "bptt:keep=all"], ["bptt:keep=all", "'all'"]),
        (["--methods", "bptt:keep"], ["bptt:keep", "METHOD:option=value"]),
        (["--out", "full"], ["--out full", "not a new or empty folder"]),
        (["--out", "tiny.yaml"], ["--out tiny.yaml", "not a new or empty folder"]),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(tiny, machine, tmp_path, words, named):
    fake = machine()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("precious")
    done = run("compare", tiny, *words)
    assert done.exit_code == 2, done.output
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("hyperrbp: ")
    assert all(word in line for word in named)
    assert fake.calls == []
    assert [file.name for file in (tmp_path / "full").iterdir()] == ["mine"]
    assert (tmp_path / "full" / "mine").read_text() == "precious"
    assert {file.name for file in tmp_path.iterdir()} == {"full", "tiny.yaml"}


def test_the_command_prints_tables_and_writes_a_folder(tiny, machine, tmp_path):
    fake = machine()
    done = run(
        "compare", tiny, "--methods", "neumann, cg", "--trunc", "5,10", "--sweep-steps", "40,20",
        "--repeats", 2, "--quiet",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert done.stderr == ""
    ((_, field),) = [asked for asked in fake.calls if asked[0] is measurement.plan]
    assert field == method_specs(["neumann", "cg"], [5, 10], [40, 20])
    for word in ("Time", "Memory", "How right it is"):
        assert word in done.stdout
    (folder,) = (tmp_path / "runs").iterdir()
    assert re.fullmatch(r"tiny-comparison-\d{8}T\d{6}Z", folder.name)
    document = json.loads((folder / "comparison.json").read_text())
    assert len(document["rows"]) == len(field)
    assert document["environment"]["repeats"] == 2


def test_the_length_of_run_is_the_recipes_or_the_flags(tiny, machine, tmp_path):
    for words, steps in (([], 30), (["--train-steps", "50"], 50)):
        fake = machine()
        (tmp_path / f"out{steps}").mkdir()  # an empty one is as good as a new one
        words += ["--methods", "cg", "--out", f"out{steps}"]
        done = run("compare", tiny, *words)
        assert done.exit_code == 0, done.output
        assert {c.train_steps for c in fake.calls[0][1]} == {steps}
        assert [c.trunc for c in fake.calls[0][1]] == [None, 10, 50, 100]
        assert f"wrote out{steps}" in done.stderr


def test_force_reaches_the_comparison(tiny, machine):
    for words, status in (([], "skipped"), (["--force"], "exact")):
        machine(available=1)
        done = run("compare", tiny, "--methods", "cg", "--json", "--out", f"out-{status}", *words)
        assert done.exit_code == 0, done.output
        assert {row["status"] for row in json.loads(done.stdout)["rows"]} == {status}


# --- available memory ----------------------------------------------------------------------------


def total_memory():
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@pytest.mark.parametrize("seconds", [2.0, 8.0])
def test_ctrl_c_ends_a_comparison_with_one_line_and_no_process_left(tmp_path, seconds):
    """Before the server of fresh processes has started, or while one of them works."""
    command = [sys.executable, "-m", "hyperrbp", "compare", "digits", "--out", str(tmp_path / "o")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    time.sleep(seconds)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert said.splitlines()[-1] == "hyperrbp: interrupted"
    assert "Traceback" not in said
    for _ in range(50):
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail("a process was left behind")
