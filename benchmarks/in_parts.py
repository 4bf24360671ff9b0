"""Measurements that take hours: each part is kept in a file, and not made again."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hyperrbp.runtime.documents import finite_or_null
from hyperrbp.runtime.files import write_atomically


def kept(file: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a file holds, made first if it is not there."""
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps(finite_or_null(make()), indent=1) + "\n")
    return json.loads(file.read_text(encoding="utf-8"))


def measure_or_report(
    about: str, measure: Callable[[Path, Path | None], None], report: Callable[[Path], None]
) -> None:
    """The command line of a benchmark: `measure` and `report`."""
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("what", choices=["measure", "report"])
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    if given.what == "measure":
        measure(given.out, given.data_root)
    else:
        report(given.out)
