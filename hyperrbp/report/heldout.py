"""What a network is worth on held-out examples, as a reader of a result sees it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def rows(result: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """A name and a value for each measure: before and after a tuning, or after a training."""
    found = result.get("heldout")
    if found is None:  # of a version that knew no other
        accuracy = result["heldout_accuracy"]
        found = {"accuracy": accuracy}
        if isinstance(accuracy, Mapping):
            found = {when: {"accuracy": accuracy[when]} for when in ("before", "after")}
    before, after = (found["before"], found["after"]) if "after" in found else (None, found)
    for name in after:
        if name == "loss" and len(after) > 1:
            continue  # the others say it in units that mean something
        values = [after[name]] if before is None else [before.get(name), after[name]]
        yield f"held-out {_NAMES.get(name, name)}", " → ".join(_shown(name, v) for v in values)


_NAMES = {"rmse": "error", "r2": "R²"}


def _shown(name: str, value: float | None) -> str:
    if value is None:
        return "not finite"
    if name == "accuracy":
        return f"{value:.2%}"
    return f"{value:.4g} (RMS)" if name == "rmse" else f"{value:.4g}"
