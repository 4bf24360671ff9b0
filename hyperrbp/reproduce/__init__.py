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

from hyperrbp.errors import StorageError

if TYPE_CHECKING:
    from hyperrbp.reproduce.artefact import Artefact, Finding, Plan
    from hyperrbp.reproduce.cell import Cell, Outcome, Watch

ARTEFACTS: dict[str, str] = {
    "table1": "hyperrbp.reproduce.memory:Table1",
    "table2": "hyperrbp.reproduce.citation:Table2",
    "table3": "hyperrbp.reproduce.tuning:Table3",
    "tableA1": "hyperrbp.reproduce.citation:TableA1",
    "figure1": "hyperrbp.reproduce.memory:Figure1",
    "figure2": "hyperrbp.reproduce.memory:Figure2",
    "figureA1": "hyperrbp.reproduce.memory:FigureA1",
    "figure3": "hyperrbp.reproduce.citation:Figure3",
    "figure4": "hyperrbp.reproduce.tuning:Figure4",
    "figure5": "hyperrbp.reproduce.tuning:Figure5",
    "figure6": "hyperrbp.reproduce.tuning:Figure6",
}


class Audience:
    """Told how a reproduction goes; does nothing by itself."""

    def begun(self, cells: Sequence[Cell], done: int) -> None:
        """What has to be run, and how much of it is there already."""

    def watch(self, cell: Cell) -> Watch:
        """The next cell begins; who is told how far it has come."""
        from hyperrbp.reproduce.cell import Watch

        return Watch()

    def ended(self, cell: Cell, outcome: Outcome, seconds: float) -> None:
        """It is done, or could not be run."""

    def left(self) -> None:
        """There will be no more of them, for whatever reason."""


def find(name: str) -> Artefact:
    """The table or figure of this name."""
    module, attribute = ARTEFACTS[name].split(":")
    found: Artefact = getattr(import_module(module), attribute)()
    return found


def reproduce(
    names: Sequence[str], plan: Plan, out: Path, audience: Audience | None = None
) -> list[dict[str, Any]]:
    """Make tables and figures, and return what their JSON files hold.

    Every run has a folder below ``out/runs``: what is finished there is read, what was interrupted
    goes on, and what two artefacts need is run once. Each artefact writes a picture, CSV and JSON.

    Args:
        names: keys of ARTEFACTS.
        plan: at what size.
        out: where to.
        audience: told of every run.

    Raises:
        UsageError: if a folder in ``out`` holds another run.
        StorageError: if something cannot be written.
    """
    audience = audience or Audience()
    artefacts = [find(name) for name in names]
    runs = out / "runs"
    cells = {cell.name: cell for a in artefacts for cell in a.cells(plan)}
    ready = [cell for cell in cells.values() if cell.done(runs)]
    audience.begun(list(cells.values()), len(ready))
    try:
        runs.mkdir(parents=True, exist_ok=True)
        outcomes: dict[str, Outcome] = {}
        documents: dict[str, dict[str, Any]] = {}
        for a in artefacts:
            for cell in a.cells(plan):
                if cell.name in outcomes:
                    continue
                fresh = not cell.done(runs)
                watch = audience.watch(cell) if fresh else Audience().watch(cell)
                started = time.perf_counter()
                outcomes[cell.name] = cell.outcome(runs, plan, watch)
                if fresh:
                    audience.ended(cell, outcomes[cell.name], time.perf_counter() - started)
            finding = _not_run(a, plan, outcomes)
            if finding is None:
                finding = a.finding(plan, outcomes, out / f"{a.name}.png")
            documents[a.name] = _written(a, plan, finding, out)
    except OSError as error:
        raise StorageError(f"{out}: {error.strerror or error}") from error
    finally:
        audience.left()
    return list(documents.values())


def _not_run(a: Artefact, plan: Plan, outcomes: Mapping[str, Outcome]) -> Finding | None:
    """What there is to say where none of its runs came to anything."""
    from hyperrbp.reproduce.artefact import Finding

    came = [outcomes[cell.name] for cell in a.cells(plan)]
    if not came or any(outcome.result for outcome in came):
        return None
    why = came[0].failure or "not run"
    return Finding([{"status": why}], None, why)


def _written(a: Artefact, plan: Plan, finding: Finding, out: Path) -> dict[str, Any]:
    import torch

    from hyperrbp import checkpoint
    from hyperrbp.experiment import choose_device, environment

    document = checkpoint.finite(
        {
            "artefact": a.name,
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
    checkpoint.write_atomically(out / f"{a.name}.json", json.dumps(document, indent=2) + "\n")
    keys = list(dict.fromkeys(key for row in finding.rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, keys, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(finding.rows)
    checkpoint.write_atomically(out / f"{a.name}.csv", text.getvalue())
    return dict(document)
