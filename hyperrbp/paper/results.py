"""The report of ``hyperrbp reproduce``: one table or figure."""

from __future__ import annotations

from typing import Literal

from pydantic import JsonValue

from hyperrbp.experiments.results.document import Document, Environment


class ReproductionReport(Document):
    """``<artifact>.json``: a table or figure of the paper, with what was measured here."""

    kind: Literal["reproduction"] = "reproduction"
    artifact: str
    title: str
    scale: str
    """At what size it was run."""
    quick: bool
    claim: str
    """What the paper says, in our words."""
    held: bool | None
    """Whether the claim held here; None if too little was run to say."""
    verdict: str
    """The same in one line."""
    columns: list[str]
    """Of the printed table."""
    lines: list[list[str]]
    """Its rows."""
    rows: list[dict[str, JsonValue]]
    """Flat, with the paper's values in keys that begin with ``paper``."""
    environment: Environment
