"""What each gradient method costs, and how right it is: the same inner run, one method a row.

Seconds are taken in one process, the methods in turn; bytes and FLOPs in a process for each row,
where nothing is timed. The exact gradient that all are held against is BPTT from checkpoints.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from hyperrbp.config.recipe import Recipe, contradictions
from hyperrbp.config.strict_yaml import dotted
from hyperrbp.exceptions import HyperrbpError, MemoryExhaustedError, UsageError
from hyperrbp.experiments.method_specs import BASELINE, MethodSpec, parsed
from hyperrbp.hypergradients.agreement import by_kind, overall
from hyperrbp.hypergradients.diagnostics.verdict import Evidence, judge
from hyperrbp.hypergradients.method import Status
from hyperrbp.runtime.callbacks import Audience
from hyperrbp.runtime.documents import finite_or_null
from hyperrbp.runtime.subprocesses import call

EXACT = "bptt:keep=checkpoints"

PAPER = {(1000, 10): (3.02, 4.35), (1000, 50): (2.87, 4.25), (1000, 100): (2.68, 4.11)}
"""Table 3 of the paper: {(T, K): (time, memory) of BPTT over those of Neumann-RBP}."""

Row = dict[str, Any]


def compare(
    recipe: Recipe,
    field: Sequence[MethodSpec],
    *,
    repeats: int = 5,
    data_root: Path | None = None,
    force: bool = False,
    audience: Audience | None = None,
) -> dict[str, Any]:
    """Measure every spec on the recipe's inner run at the untuned start.

    Args:
        recipe: a validated recipe.
        field: from :func:`method_specs`.
        repeats: how often each is timed, after a warm-up.
        data_root: where data sets live.
        force: also run what should need more memory than there is.
        audience: told how it goes.

    Returns:
        What ``--json`` prints: ``{"baseline", "environment", "recipe", "rows"}``.

    Raises:
        UsageError: for an option or a combination of settings that cannot be.
        HyperrbpError: if the recipe cannot be run at all; what fails in one method is in its row.
    """
    if repeats < 1:
        raise UsageError(f"--repeats: expected at least 1, got {repeats}")
    audience = audience or Audience()
    rows = {spec: _empty(spec) | _fault(recipe, spec) for spec in field}
    # Here, since it imports PyTorch: what is wrong is said before.
    from hyperrbp.experiments import measurement

    audience.begins("short runs, to foretell seconds and bytes")
    plan = call(measurement.plan, recipe, data_root, _waiting(rows))
    seconds: dict[MethodSpec, float] = {}
    for spec, predicted in zip(_waiting(rows), plan["predicted"], strict=True):
        seconds[spec] = predicted["seconds"]
        rows[spec] |= _refusal(predicted, plan["available"], force)
    # The exact gradient takes about as long as the first of its T, which is the unrolled one.
    exact_seconds: dict[int, float] = {}
    for spec in _waiting(rows):
        exact_seconds.setdefault(spec.train_steps, seconds[spec])
    audience.expects(
        sum(exact_seconds.values())
        + sum((_METERED + 1 + repeats) * seconds[c] for c in _waiting(rows))
    )
    exact: dict[int, Mapping[str, Mapping[str, float]]] = {}
    unknown: dict[int, str] = {}
    for steps, expected in exact_seconds.items():
        audience.begins(f"the exact gradient, T = {steps}")
        reference = MethodSpec(*parsed(EXACT), None, steps)
        try:
            exact[steps] = call(measurement.exact, recipe, data_root, reference)
        except HyperrbpError as error:
            unknown[steps] = str(error)
        audience.spent(expected)
    for spec in _waiting(rows):
        audience.begins(f"bytes and FLOPs of {_name(spec)}")
        row = rows[spec]
        try:
            measured = call(measurement.meter, recipe, data_root, spec)
        except HyperrbpError as error:
            row |= _failure(error)
        else:
            row |= measured | _rightness(measured, exact.get(spec.train_steps))
        audience.spent(_METERED * seconds[spec])
    _time_all(recipe, data_root, rows, repeats, seconds, audience)
    baselines = _baselines(rows.values())
    for row in rows.values():
        row |= _ratios(row, baselines.get(row["train_steps"]))
    return {
        "baseline": {
            "method": BASELINE,
            "by_train_steps": baselines,
            "exact": EXACT,
            "exact_unknown": unknown,
        },
        "environment": plan["environment"] | {"repeats": repeats},
        "recipe": plan["recipe"],
        "rows": [finite_or_null(row) for row in rows.values()],
    }


def _waiting(rows: Mapping[MethodSpec, Row]) -> list[MethodSpec]:
    return [spec for spec, row in rows.items() if row["status"] == "waiting"]


_METERED = 3.0
"""About how much longer a meta-gradient takes under the meters."""


def _name(spec: MethodSpec) -> str:
    trunc = "" if spec.trunc is None else f"K = {spec.trunc}, "
    return f"{spec.label}, {trunc}T = {spec.train_steps}"


def _fault(recipe: Recipe, spec: MethodSpec) -> Row:
    """A run that is too short for a spec fails its row; a wrong option fails the command."""
    for at, message in contradictions(spec.recipe(recipe)):
        if at[:2] == ("gradient", "options"):
            raise UsageError(f"--methods {spec.label}: {dotted(at[3:])}: {message}")
        return {"status": "failed", "message": message}
    return {}


def _empty(spec: MethodSpec) -> Row:
    return {
        "method": spec.method,
        "label": spec.label,
        "options": dict(spec.options),
        "trunc": spec.trunc,
        "train_steps": spec.train_steps,
        **dict.fromkeys(_MEASURED),
        "status": "waiting",
        "message": None,
    }


_MEASURED = (
    "seconds",
    "seconds_iqr",
    "seconds_by_phase",
    "peak_bytes",
    "process_peak_bytes",
    "saved_bytes",
    "trajectory_bytes",
    "flops",
    "products",
    "time_ratio",
    "memory_ratio",
    "peak_ratio",
    "process_ratio",
    "paper_time_ratio",
    "paper_memory_ratio",
    "cosine",
    "sign_agreement",
    "descent",
    "verdict",
    "norm_ratio",
    "by_kind",
    "residual",
    "steady_state_residual",
    "gradient",
    "structurally_zero",
)


def _refusal(predicted: Mapping[str, Any], available: int | None, force: bool) -> Row:
    wanted = predicted["saved_bytes"]
    if available is not None and wanted > available and not force:
        return {
            "status": "skipped",
            "message": f"would keep about {wanted / 1e9:.3g} GB, and {available / 1e9:.3g} GB are"
            " available; --force runs it",
        }
    return {}


def _failure(error: HyperrbpError) -> Row:
    status = "out of memory" if isinstance(error, MemoryExhaustedError) else "failed"
    return dict.fromkeys(_MEASURED) | {"status": status, "message": str(error)}


def _rightness(measured: Mapping[str, Any], exact: Mapping[str, Mapping[str, float]] | None) -> Row:
    found = measured["gradient"]
    held = None if exact is None else overall(found, exact)
    values = [value for of in found.values() for value in of.values()]
    evidence = Evidence(values, measured["structurally_zero"], Status(measured["status"]), held)
    row: Row = {"verdict": str(judge(evidence))}
    if exact is None or held is None:
        return row
    kinds = {kind: asdict(part) for kind, part in by_kind(found, exact).items()}
    return row | asdict(held) | {"by_kind": kinds}


def _baselines(rows: Iterable[Row]) -> dict[int, Row]:
    """The measured unrolled BPTT of every T."""
    keys = ("seconds", "saved_bytes", "peak_bytes", "process_peak_bytes", "flops")
    return {
        row["train_steps"]: {key: row[key] for key in keys}
        for row in rows
        if row["label"] == BASELINE and row["seconds"] is not None
    }


def _ratios(row: Row, baseline: Mapping[str, Any] | None) -> Row:
    """BPTT over this row, as in Table 3."""
    ratios: Row = {}
    for ratio, key in (
        ("time_ratio", "seconds"),
        ("memory_ratio", "saved_bytes"),
        ("peak_ratio", "peak_bytes"),
        ("process_ratio", "process_peak_bytes"),
    ):
        if baseline is not None and row[key]:
            ratios[ratio] = baseline[key] / row[key]
    if row["label"] == "neumann" and (row["train_steps"], row["trunc"]) in PAPER:
        time, memory = PAPER[row["train_steps"], row["trunc"]]
        ratios |= {"paper_time_ratio": time, "paper_memory_ratio": memory}
    return ratios


def _time_all(
    recipe: Recipe,
    data_root: Path | None,
    rows: Mapping[MethodSpec, Row],
    repeats: int,
    expected: Mapping[MethodSpec, float],
    audience: Audience,
) -> None:
    """Time all method_specs in turn in one process; one that ends it is left out of the next."""
    from hyperrbp.experiments import measurement

    left = [c for c, row in rows.items() if row["status"] not in ("failed", "skipped")]
    left = [c for c in left if rows[c]["gradient"] is not None]
    while left:
        now: list[MethodSpec] = left[:1]
        runs: dict[MethodSpec, list[Mapping[str, float]]] = {c: [] for c in left}

        def heard(content: tuple[str, int, Mapping[str, float] | None]) -> None:
            kind, index, seconds = content
            spec = left[index]  # noqa: B023  # it is called before the loop goes on
            if kind == "begins":
                now[0] = spec  # noqa: B023
                audience.begins(f"seconds of {_name(spec)}")
                return
            audience.spent(expected[spec])
            if seconds is not None:
                runs[spec].append(seconds)  # noqa: B023

        try:
            call(measurement.clock, recipe, data_root, left, repeats, heard=heard)
        except HyperrbpError as error:
            rows[now[0]].update(_failure(error))
            left = [c for c in left if c != now[0]]
            continue
        for spec, taken in runs.items():
            totals = [sum(phases.values()) for phases in taken]
            quarters = quantiles(totals, n=4, method="inclusive") if len(totals) > 1 else None
            rows[spec].update(
                seconds=median(totals),
                seconds_iqr=None if quarters is None else quarters[2] - quarters[0],
                seconds_by_phase={name: median(p[name] for p in taken) for name in taken[0]},
            )
        return
