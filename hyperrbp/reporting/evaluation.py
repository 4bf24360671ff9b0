"""What a network is worth on held-out examples, as a reader of a result sees it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def rows(result: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """A name and a value for each measure, after a training."""
    found = result["heldout"]
    for name, value in found.items():
        if name == "loss" and len(found) > 1:
            continue  # the others say it in units that mean something
        yield f"held-out {MEASURES.get(name, name)}", _shown(name, value)


MEASURES = {"rmse": "error (RMS)", "r2": "R²"}


def _shown(name: str, value: float | None) -> str:
    if value is None:
        return "not finite"
    if name == "accuracy":
        return f"{value:.2%}"
    return f"{value:.4g}"
