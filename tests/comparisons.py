"""Comparisons of gradient methods in which nothing is run."""

from __future__ import annotations

import json
import math

from factories import tuning_text

from hyperrbp.config.loading import parse
from hyperrbp.experiments import measurement
from hyperrbp.experiments.compare import compare
from hyperrbp.experiments.measurement import Measurement, Plan, Prediction, Timing, TimingBegun
from hyperrbp.experiments.method_specs import method_specs, parsed
from hyperrbp.experiments.results.compare import CompareReport
from hyperrbp.experiments.results.document import to_json
from hyperrbp.hypergradients.method import Status

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


EXACT = {"learning_rate": {"w": 3.0, "b": -4.0}, "momentum": {"w": 12.0, "b": 0.0}}
FOUND = {"learning_rate": {"w": 6.0, "b": -8.0}, "momentum": {"w": -24.0, "b": 0.0}}


class Machine:
    """Answers for the other processes."""

    def __init__(self, *, available=10**9, predicted=None, taken=None, fails=None):
        self.available, self.predicted = available, predicted or {}
        self.taken, self.fails = taken or {}, fails or {}
        self.calls = []

    def __call__(self, function, recipe, data_root, *arguments, on_message=None):
        assert data_root is None
        self.calls.append((function, arguments[0]))
        if function is measurement.clock:
            return self.clock(*arguments, on_message)
        (subject,) = arguments
        if function is measurement.plan:
            return self.plan(recipe, subject)
        self.fail(function, subject)
        if function is measurement.exact:
            assert (subject.label, subject.trunc) == ("bptt:keep=checkpoints", None)
            return EXACT
        assert function is measurement.meter
        size = 600 if subject.method == "bptt" else 200
        return Measurement(
            gradient=EXACT if subject.method == "bptt" else FOUND,
            structurally_zero=[False] * 4,
            status=Status.EXACT,
            products=subject.trunc or T,
            residual=math.inf,
            steady_state_residual=0.5,
            process_peak_bytes=10 * size,
            peak_bytes=2 * size,
            saved_bytes=size,
            trajectory_bytes=0,
            flops=3 * size,
        )

    def fail(self, function, spec):
        error = self.fails.get((function, spec.label, spec.trunc))
        if error is not None:
            raise error

    def plan(self, recipe, specs):
        usual = Prediction(1.0, 1000)
        return Plan(
            predictions=[self.predicted.get((c.label, c.trunc), usual) for c in specs],
            available=self.available,
            environment={"threads": 1, "machine": "m", "torch": "t"},
            recipe=recipe,
        )

    def clock(self, specs, repeats, send):
        for repeat in range(-1, repeats):
            for index, spec in enumerate(specs):
                send(TimingBegun(index))
                if repeat == repeats - 1:
                    self.fail(measurement.clock, spec)
                usual = [(1.0, 1.0)] * repeats
                inner, meta = self.taken.get((spec.label, spec.trunc), usual)[repeat]
                seconds = {"inner run": inner, "meta-gradient": meta}
                send(Timing(index, seconds, warm_up=repeat < 0))

    def asked(self, function):
        return [(a.label, a.trunc) for f, a in self.calls if f is function]


def pretend(monkeypatch, **options):
    """Let a :class:`Machine` answer for the other processes of a comparison."""
    fake = Machine(**options)
    monkeypatch.setattr("hyperrbp.experiments.compare.call", fake)
    return fake


def compared_without_processes(methods, truncs=(10,), steps=(T,), **options):
    options.setdefault("repeats", 3)
    report = compare(parse(TINY), method_specs(methods, truncs, steps), **options)
    return json.loads(to_json(report))


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
    """A report of these rows."""
    document = {
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
    return CompareReport.model_validate_json(json.dumps(document))


ROWS = [
    row("bptt", status="exact", time_ratio=1.0),
    row("neumann", 10, paper_time_ratio=3.02, paper_memory_ratio=4.35),
    row("neumann", 50, seconds=0.5, seconds_iqr=None, cosine=None, norm_ratio=None),
    lost("tbptt", 2000, "failed", "too long a truncation"),
    lost("bptt:keep=states", None, "skipped", "would keep too much"),
]
