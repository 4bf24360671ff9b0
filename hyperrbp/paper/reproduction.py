"""Reproduces tables and figures of the paper; no run is run twice."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from hyperrbp.exceptions import StorageError
from hyperrbp.experiments.device import choose_device, environment
from hyperrbp.experiments.results.document import to_json
from hyperrbp.paper.artifact import Artifact, Finding
from hyperrbp.paper.drawing import draw
from hyperrbp.paper.figure1 import Figure1
from hyperrbp.paper.figure2 import Figure2, FigureA1
from hyperrbp.paper.figure3 import Figure3
from hyperrbp.paper.figure4 import Figure4
from hyperrbp.paper.figure5 import Figure5
from hyperrbp.paper.figure6 import Figure6
from hyperrbp.paper.plan import Plan
from hyperrbp.paper.results import ReproductionReport
from hyperrbp.paper.run_specs import Outcome, RunSpec
from hyperrbp.paper.table1 import Table1
from hyperrbp.paper.table2 import Table2
from hyperrbp.paper.table3 import Table3
from hyperrbp.paper.table_a1 import TableA1
from hyperrbp.runtime import files
from hyperrbp.runtime.callbacks import Callback, Progress
from hyperrbp.runtime.documents import finite_or_null

ARTIFACTS: dict[str, Artifact] = {
    artifact.name: artifact
    for artifact in (
        Table1(),
        Table2(),
        Table3(),
        TableA1(),
        Figure1(),
        Figure2(),
        FigureA1(),
        Figure3(),
        Figure4(),
        Figure5(),
        Figure6(),
    )
}
"""Every table and figure, by name."""


@dataclass(frozen=True)
class ReproductionContext:
    """A reproduction that is about to begin."""

    run_specs: Sequence[RunSpec]
    """All runs that are needed."""
    done: int
    """How many of them are finished already."""


@dataclass(frozen=True)
class FinishedRun:
    """A run that was not finished before."""

    spec: RunSpec
    outcome: Outcome
    seconds: float


ReproductionCallback = Callback[ReproductionContext, FinishedRun]


def reproduce(
    names: Sequence[str], plan: Plan, out: Path, callback: ReproductionCallback | None = None
) -> list[ReproductionReport]:
    """Make tables and figures, and return what their JSON files hold.

    Every run has a folder below ``out/runs``: what is finished there is read, what was interrupted
    is resumed, and what two artifacts need is run once. Each artifact writes a picture, CSV and
    JSON.

    Args:
        names: keys of ``ARTIFACTS``.
        plan: at what size, and on what.
        out: where to.
        callback: receives the progress of every run, and the run when it is finished.

    Raises:
        UsageError: if a folder in ``out`` holds another run.
        StorageError: if something cannot be written.
    """
    callback = callback or ReproductionCallback()
    artifacts = [ARTIFACTS[name] for name in names]
    run_specs = {spec.name: spec for a in artifacts for spec in a.run_specs(plan)}
    runs = out / "runs"
    done = sum(spec.done(runs) for spec in run_specs.values())
    callback.on_start(ReproductionContext(list(run_specs.values()), done))
    try:
        runs.mkdir(parents=True, exist_ok=True)
        outcomes: dict[str, Outcome] = {}
        reports = []
        for artifact in artifacts:
            new = [spec for spec in artifact.run_specs(plan) if spec.name not in outcomes]
            for spec in new:
                outcomes[spec.name] = _outcome(spec, runs, plan, callback)
            reports.append(_report(artifact, plan, outcomes, out))
    except OSError as error:
        raise StorageError(f"{out}: {error.strerror or error}") from error
    finally:
        callback.on_end()
    return reports


def _outcome(spec: RunSpec, runs: Path, plan: Plan, callback: ReproductionCallback) -> Outcome:
    """Read what came of a run, or run it and report its progress."""
    if spec.done(runs):
        return spec.outcome(runs, plan, lambda _: None)
    callback.on_progress(Progress(spec.name, 0, 0, ""))
    started = time.perf_counter()
    outcome = spec.outcome(runs, plan, callback.on_progress)
    callback.on_record(FinishedRun(spec, outcome, time.perf_counter() - started))
    return outcome


def _report(
    artifact: Artifact, plan: Plan, outcomes: Mapping[str, Outcome], out: Path
) -> ReproductionReport:
    """Write the picture, JSON and CSV of an artifact."""
    finding = _not_run(artifact, plan, outcomes)
    if finding is None:
        finding = artifact.finding(plan, outcomes)
        draw(finding, artifact.title, artifact.scale(plan), out / f"{artifact.name}.png")
    report = ReproductionReport(
        artifact=artifact.name,
        title=artifact.title,
        scale=artifact.scale(plan),
        quick=plan.quick,
        claim=artifact.claim,
        held=finding.held,
        verdict=finding.verdict,
        columns=list(finding.columns),
        lines=finding.lines,
        rows=finite_or_null(finding.rows),
        environment=environment(torch.device(choose_device(plan.device))),
    )
    files.write_atomically(out / f"{artifact.name}.json", to_json(report, indent=2) + "\n")
    files.write_atomically(out / f"{artifact.name}.csv", _comma_separated(finding.rows))
    return report


def _not_run(artifact: Artifact, plan: Plan, outcomes: Mapping[str, Outcome]) -> Finding | None:
    """Return why there is nothing to show, where none of the runs came to a result."""
    needed = [outcomes[spec.name] for spec in artifact.run_specs(plan)]
    if not needed or any(outcome.result is not None for outcome in needed):
        return None
    why = needed[0].failure or "not run"
    return Finding([{"status": why}], None, why)


def _comma_separated(rows: Iterable[Mapping[str, object]]) -> str:
    keys = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, keys, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
