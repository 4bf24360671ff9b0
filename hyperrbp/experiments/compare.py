"""Compares gradient methods on the same inner run: what each costs, and how right it is.

Seconds are taken in one process, the methods in turn; bytes and FLOPs in a process for each method,
where nothing is timed. The exact gradient that all are compared with is BPTT from checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from hyperrbp.config.cross_checks import cross_check
from hyperrbp.config.key_paths import dotted
from hyperrbp.config.recipe import Recipe
from hyperrbp.exceptions import HyperrbpError, MemoryExhaustedError, UsageError
from hyperrbp.experiments import measurement
from hyperrbp.experiments.measurement import ByName, Measurement, Prediction, Timing, TimingBegun
from hyperrbp.experiments.method_specs import BASELINE, MethodSpec, parsed
from hyperrbp.experiments.results.compare import (
    Baseline,
    BaselineCosts,
    CompareReport,
    MethodRow,
    NotMeasured,
)
from hyperrbp.hypergradients.agreement import Agreement, by_kind, overall
from hyperrbp.hypergradients.diagnostics.verdict import Evidence, judge
from hyperrbp.runtime.callbacks import Callback, ProgressTracker
from hyperrbp.runtime.documents import finite_or_null
from hyperrbp.runtime.subprocesses import call

EXACT = "bptt:keep=checkpoints"

PAPER = {(1000, 10): (3.02, 4.35), (1000, 50): (2.87, 4.25), (1000, 100): (2.68, 4.11)}
"""Table 3 of the paper: {(T, K): (time, memory) of BPTT over those of Neumann-RBP}."""

_METERED = 3.0
"""About how much longer a meta-gradient takes under the meters."""


@dataclass(frozen=True)
class CompareContext:
    """A comparison that is about to begin."""

    recipe: Recipe
    specs: Sequence[MethodSpec]


CompareCallback = Callback[CompareContext, MethodRow]


def compare(
    recipe: Recipe,
    specs: Sequence[MethodSpec],
    *,
    repeats: int = 5,
    data_root: Path | None = None,
    force: bool = False,
    callback: CompareCallback | None = None,
) -> CompareReport:
    """Measure every spec on the recipe's inner run at the untuned start.

    Args:
        recipe: a validated recipe.
        specs: from ``hyperrbp.experiments.method_specs.method_specs``.
        repeats: how often each is timed, after a warm-up.
        data_root: where data sets live.
        force: also run what should need more memory than there is.
        callback: receives the progress, in seconds of the expected ones, and at the end the rows.

    Raises:
        UsageError: for an option or a combination of settings that cannot be.
        HyperrbpError: if the recipe cannot be run at all; what fails in one method is in its row.
    """
    if repeats < 1:
        raise UsageError(f"--repeats: expected at least 1, got {repeats}")
    callback = callback or CompareCallback()
    comparison = _Comparison(recipe, data_root, ProgressTracker(callback.on_progress))
    comparison.refuse_contradictions(specs)
    try:
        callback.on_start(CompareContext(recipe, specs))
        report = comparison.run(specs, repeats, force)
        for row in report.rows:
            callback.on_record(row)
        return report
    finally:
        callback.on_end()


@dataclass(frozen=True)
class _Failure:
    status: NotMeasured
    message: str

    @classmethod
    def of(cls, error: HyperrbpError) -> _Failure:
        out = isinstance(error, MemoryExhaustedError)
        return cls(NotMeasured.OUT_OF_MEMORY if out else NotMeasured.FAILED, str(error))


@dataclass
class _Comparison:
    """What is known so far of each spec."""

    recipe: Recipe
    data_root: Path | None
    tracker: ProgressTracker
    failures: dict[MethodSpec, _Failure] = field(default_factory=dict)
    expected: dict[MethodSpec, float] = field(default_factory=dict)
    """Seconds of one meta-gradient, as predicted."""
    exact: dict[int, ByName] = field(default_factory=dict)
    """The exact gradient, by T."""
    exact_unknown: dict[int, str] = field(default_factory=dict)
    measurements: dict[MethodSpec, Measurement] = field(default_factory=dict)
    timings: dict[MethodSpec, list[Timing]] = field(default_factory=dict)

    def refuse_contradictions(self, specs: Sequence[MethodSpec]) -> None:
        """Mark the specs that do not fit the run as failed.

        Raises:
            UsageError: for an option that cannot be, whatever the run.
        """
        for spec in specs:
            for at, message in cross_check(spec.recipe(self.recipe)):
                if at[:2] == ("gradient", "options"):
                    raise UsageError(f"--methods {spec.label}: {dotted(at[3:])}: {message}")
                self.failures.setdefault(spec, _Failure(NotMeasured.FAILED, message))

    def run(self, specs: Sequence[MethodSpec], repeats: int, force: bool) -> CompareReport:
        """Predict, then measure all that can be measured."""
        plan = self._plan(specs, force)
        left = self._left(specs)
        # The exact gradient takes about as long as the first of its T, which is the unrolled one.
        exact_seconds: dict[int, float] = {}
        for spec in left:
            exact_seconds.setdefault(spec.train_steps, self.expected[spec])
        self.tracker.expect(
            sum(exact_seconds.values())
            + sum((_METERED + 1 + repeats) * self.expected[spec] for spec in left)
        )
        for steps, seconds in exact_seconds.items():
            self._differentiate_exactly(steps)
            self.tracker.advance(seconds)
        for spec in left:
            self._meter(spec)
        self._clock(self._left(specs), repeats)
        baselines = self._baselines(specs)
        return CompareReport(
            baseline=Baseline(
                method=BASELINE,
                by_train_steps=baselines,
                exact=EXACT,
                exact_unknown=self.exact_unknown,
            ),
            environment=plan.environment | {"repeats": repeats},
            recipe=plan.recipe,
            rows=[self._row(spec, baselines.get(spec.train_steps)) for spec in specs],
        )

    def _left(self, specs: Sequence[MethodSpec]) -> list[MethodSpec]:
        return [spec for spec in specs if spec not in self.failures]

    def _plan(self, specs: Sequence[MethodSpec], force: bool) -> measurement.Plan:
        self.tracker.begin("short runs, to predict seconds and bytes")
        left = self._left(specs)
        plan: measurement.Plan = call(measurement.plan, self.recipe, self.data_root, left)
        for spec, predicted in zip(left, plan.predictions, strict=True):
            self.expected[spec] = predicted.seconds
            if not force and (refusal := _refusal(predicted, plan.available)) is not None:
                self.failures[spec] = refusal
        return plan

    def _differentiate_exactly(self, steps: int) -> None:
        self.tracker.begin(f"the exact gradient, T = {steps}")
        reference = MethodSpec(*parsed(EXACT), None, steps)
        try:
            self.exact[steps] = call(measurement.exact, self.recipe, self.data_root, reference)
        except HyperrbpError as error:
            self.exact_unknown[steps] = str(error)

    def _meter(self, spec: MethodSpec) -> None:
        self.tracker.begin(f"bytes and FLOPs of {_name(spec)}")
        try:
            self.measurements[spec] = call(measurement.meter, self.recipe, self.data_root, spec)
        except HyperrbpError as error:
            self.failures[spec] = _Failure.of(error)
        self.tracker.advance(_METERED * self.expected[spec])

    def _clock(self, specs: Sequence[MethodSpec], repeats: int) -> None:
        """Time all specs in turn in one process; one that ends it is left out of the next."""
        left = list(specs)
        while left:
            now = left[0]
            self.timings = {spec: [] for spec in left}

            def receive(message: TimingBegun | Timing) -> None:
                nonlocal now
                now = left[message.index]  # noqa: B023  # it is called before the loop goes on
                if isinstance(message, TimingBegun):
                    self.tracker.begin("seconds of all methods, in turn", _name(now))
                    return
                self.tracker.advance(self.expected[now])
                if not message.warm_up:
                    self.timings[now].append(message)

            arguments = (self.recipe, self.data_root, left, repeats)
            try:
                call(measurement.clock, *arguments, on_message=receive)
            except HyperrbpError as error:
                self.failures[now] = _Failure.of(error)
                left = [spec for spec in left if spec != now]
                continue
            return

    # --- rows -------------------------------------------------------------------------------------

    def _baselines(self, specs: Sequence[MethodSpec]) -> dict[int, BaselineCosts]:
        """Return the costs of the unrolled BPTT of every T at which it was measured."""
        found = {}
        for spec in self._left(specs):
            if spec.label == BASELINE:
                measured = self.measurements[spec]
                found[spec.train_steps] = BaselineCosts(
                    seconds=_seconds(self.timings[spec])[0],
                    saved_bytes=measured.saved_bytes,
                    peak_bytes=measured.peak_bytes,
                    process_peak_bytes=measured.process_peak_bytes,
                    flops=measured.flops,
                )
        return found

    def _row(self, spec: MethodSpec, baseline: BaselineCosts | None) -> MethodRow:
        identity = {
            "method": spec.method,
            "label": spec.label,
            "options": dict(spec.options),
            "trunc": spec.trunc,
            "train_steps": spec.train_steps,
        }
        empty = dict.fromkeys(MethodRow.model_fields) | identity
        if (failure := self.failures.get(spec)) is not None:
            return MethodRow(**empty | asdict(failure))
        measured, timings = self.measurements[spec], self.timings[spec]
        seconds, spread = _seconds(timings)
        costs = asdict(measured) | {
            "seconds": seconds,
            "seconds_iqr": spread,
            "seconds_by_phase": {
                name: median(timing.seconds[name] for timing in timings)
                for name in timings[0].seconds
            },
        }
        ratios = _published(spec) | ({} if baseline is None else _ratios(costs, baseline))
        agreement = _agreement(measured, self.exact.get(spec.train_steps))
        return MethodRow(**empty | finite_or_null(costs | ratios | agreement))


def _name(spec: MethodSpec) -> str:
    trunc = "" if spec.trunc is None else f"K = {spec.trunc}, "
    return f"{spec.label}, {trunc}T = {spec.train_steps}"


def _refusal(predicted: Prediction, available: int | None) -> _Failure | None:
    if available is None or predicted.saved_bytes <= available:
        return None
    return _Failure(
        NotMeasured.SKIPPED,
        f"would keep about {predicted.saved_bytes / 1e9:.3g} GB, and {available / 1e9:.3g} GB are"
        " available; --force runs it",
    )


def _seconds(timings: Sequence[Timing]) -> tuple[float, float | None]:
    """Return the median and the interquartile range of the totals."""
    totals = [sum(timing.seconds.values()) for timing in timings]
    quarters = quantiles(totals, n=4, method="inclusive") if len(totals) > 1 else None
    return median(totals), None if quarters is None else quarters[2] - quarters[0]


def _agreement(measured: Measurement, exact: ByName | None) -> dict[str, Any]:
    """Return the verdict, and how far the gradient agrees with the exact one, if that is known."""
    found = measured.gradient
    whole: Agreement | None = None if exact is None else overall(found, exact)
    values = [value for of in found.values() for value in of.values()]
    evidence = Evidence(values, measured.structurally_zero, measured.status, whole)
    row: dict[str, Any] = {"verdict": judge(evidence)}
    if exact is None or whole is None:
        return row
    kinds = {kind: asdict(part) for kind, part in by_kind(found, exact).items()}
    return row | asdict(whole) | {"by_kind": kinds}


def _ratios(costs: Mapping[str, Any], baseline: BaselineCosts) -> dict[str, float]:
    """Return the costs of BPTT over those of a method, as in Table 3."""
    pairs = {
        "time_ratio": "seconds",
        "memory_ratio": "saved_bytes",
        "peak_ratio": "peak_bytes",
        "process_ratio": "process_peak_bytes",
    }
    return {
        ratio: getattr(baseline, cost) / costs[cost] for ratio, cost in pairs.items() if costs[cost]
    }


def _published(spec: MethodSpec) -> dict[str, float]:
    """Return the ratios of Table 3, which are those of Neumann-RBP without options."""
    if spec.label != "neumann" or spec.trunc is None:
        return {}
    published = PAPER.get((spec.train_steps, spec.trunc))
    keys = ("paper_time_ratio", "paper_memory_ratio")
    return {} if published is None else dict(zip(keys, published, strict=True))
