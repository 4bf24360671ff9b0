"""Each table and figure of Liao et al. 2018 again: run, drawn, and held against what was published.

A registry line for each; :func:`reproduce` runs what they need, and nothing twice.
"""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyperrbp.exceptions import StorageError
from hyperrbp.runtime import files
from hyperrbp.runtime.documents import finite_or_null

if TYPE_CHECKING:
    from hyperrbp.paper.artifact import Artifact, Finding, Plan
    from hyperrbp.paper.run_specs import Outcome, RunSpec, Watch

ARTIFACTS: dict[str, str] = {
    "table1": "hyperrbp.paper.memory:Table1",
    "table2": "hyperrbp.paper.citation:Table2",
    "table3": "hyperrbp.paper.tuning:Table3",
    "tableA1": "hyperrbp.paper.citation:TableA1",
    "figure1": "hyperrbp.paper.memory:Figure1",
    "figure2": "hyperrbp.paper.memory:Figure2",
    "figureA1": "hyperrbp.paper.memory:FigureA1",
    "figure3": "hyperrbp.paper.citation:Figure3",
    "figure4": "hyperrbp.paper.tuning:Figure4",
    "figure5": "hyperrbp.paper.tuning:Figure5",
    "figure6": "hyperrbp.paper.tuning:Figure6",
}


class Audience:
    """Told how a reproduction goes; does nothing by itself."""

    def begun(self, run_specs: Sequence[RunSpec], done: int) -> None:
        """What has to be run, and how much of it is there already."""

    def watch(self, spec: RunSpec) -> Watch:
        """The next spec begins; who is told how far it has come."""
        from hyperrbp.paper.run_specs import Watch

        return Watch()

    def ended(self, spec: RunSpec, outcome: Outcome, seconds: float) -> None:
        """It is done, or could not be run."""

    def left(self) -> None:
        """There will be no more of them, for whatever reason."""


def find(name: str) -> Artifact:
    """The table or figure of this name."""
    module, attribute = ARTIFACTS[name].split(":")
    found: Artifact = getattr(import_module(module), attribute)()
    return found


def reproduce(
    names: Sequence[str], plan: Plan, out: Path, audience: Audience | None = None
) -> list[dict[str, Any]]:
    """Make tables and figures, and return what their JSON files hold.

    Every run has a folder below ``out/runs``: what is finished there is read, what was interrupted
    goes on, and what two artifacts need is run once. Each artifact writes a picture, CSV and JSON.

    Args:
        names: keys of ARTIFACTS.
        plan: at what size.
        out: where to.
        audience: told of every run.

    Raises:
        UsageError: if a folder in ``out`` holds another run.
        StorageError: if something cannot be written.
    """
    audience = audience or Audience()
    artifacts = [find(name) for name in names]
    runs = out / "runs"
    run_specs = {spec.name: spec for a in artifacts for spec in a.run_specs(plan)}
    ready = [spec for spec in run_specs.values() if spec.done(runs)]
    audience.begun(list(run_specs.values()), len(ready))
    try:
        runs.mkdir(parents=True, exist_ok=True)
        outcomes: dict[str, Outcome] = {}
        documents: dict[str, dict[str, Any]] = {}
        for a in artifacts:
            for spec in a.run_specs(plan):
                if spec.name in outcomes:
                    continue
                fresh = not spec.done(runs)
                watch = audience.watch(spec) if fresh else Audience().watch(spec)
                started = time.perf_counter()
                outcomes[spec.name] = spec.outcome(runs, plan, watch)
                if fresh:
                    audience.ended(spec, outcomes[spec.name], time.perf_counter() - started)
            finding = _not_run(a, plan, outcomes)
            if finding is None:
                finding = a.finding(plan, outcomes, out / f"{a.name}.png")
            documents[a.name] = _written(a, plan, finding, out)
    except OSError as error:
        raise StorageError(f"{out}: {error.strerror or error}") from error
    finally:
        audience.left()
    return list(documents.values())


def _not_run(a: Artifact, plan: Plan, outcomes: Mapping[str, Outcome]) -> Finding | None:
    """What there is to say where none of its runs came to anything."""
    from hyperrbp.paper.artifact import Finding

    came = [outcomes[spec.name] for spec in a.run_specs(plan)]
    if not came or any(outcome.result for outcome in came):
        return None
    why = came[0].failure or "not run"
    return Finding([{"status": why}], None, why)


def _written(a: Artifact, plan: Plan, finding: Finding, out: Path) -> dict[str, Any]:
    import torch

    from hyperrbp.experiments.device import choose_device, environment

    document = finite_or_null(
        {
            "artifact": a.name,
            "title": a.title,
            "scale": a.scale(plan),
            "quick": plan.quick,
            "claim": a.claim,
            "held": finding.held,
            "verdict": finding.verdict,
            "columns": list(finding.columns),
            "lines": finding.lines,
            "rows": finding.rows,
            "environment": environment(torch.device(choose_device(plan.device))),
        }
    )
    files.write_atomically(out / f"{a.name}.json", json.dumps(document, indent=2) + "\n")
    keys = list(dict.fromkeys(key for row in finding.rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, keys, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(finding.rows)
    files.write_atomically(out / f"{a.name}.csv", text.getvalue())
    return dict(document)
