"""Write the golden values anew from the code as it is.

``python tests/contract/regenerate_golden.py [NAME…]``, only when a result is meant to change; the
commit says why. Names of runs restrict it to these, and need the machine that the others are of.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import golden_runs


def text(values: dict) -> str:
    """Return values as JSON with a line for each entry of the first two levels."""
    entries = []
    for key, value in values.items():
        body = json.dumps(value, sort_keys=True)
        if isinstance(value, dict) and len(body) > 100:
            lines = [
                f"  {json.dumps(name)}: {json.dumps(value[name], sort_keys=True)}"
                for name in sorted(value)
            ]
            body = "{\n" + ",\n".join(lines) + "\n }"
        entries.append(f" {json.dumps(key)}: {body}")
    return "{\n" + ",\n".join(entries) + "\n}\n"


def main(names: list[str]) -> None:
    """Run all commands, or those of the names, and write what is kept of each."""
    if names and not golden_runs.same_environment():
        sys.exit("the other golden values come from another machine: write them all anew")
    for size in golden_runs.SIZES:
        folder = golden_runs.FOLDER / size
        folder.mkdir(parents=True, exist_ok=True)
        for name, command in golden_runs.commands(size).items():
            if names and name not in names:
                continue
            with tempfile.TemporaryDirectory() as scratch:
                values = golden_runs.run(command, Path(scratch) / "run")
            (folder / f"{name}.json").write_text(text(values))
            print(size, name, flush=True)
    (golden_runs.FOLDER / "environment.json").write_text(text(golden_runs.environment()))


if __name__ == "__main__":
    main(sys.argv[1:])
