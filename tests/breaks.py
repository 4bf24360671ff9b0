"""Break the package on purpose, one way at a time, and see that a test fails on each.

``python tests/breaks.py [-k EXPRESSION]``: every test that names a break is run against a copy of
the package with that break in it. Ends with 1 if one of them passes.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

Break = tuple[str, str, str]
"""A file of the package, a text that is in it once, and what to put there."""


class Collector:
    """The breaks that tests name."""

    def __init__(self) -> None:
        self.found: dict[tuple[str, Break], bool] = {}
        """And whether there is a variant of the test that is not marked slow."""

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            quick = item.get_closest_marker("slow") is None
            for mark in item.iter_markers("catches"):
                key = item.nodeid.partition("[")[0], mark.args
                self.found[key] = self.found.get(key, False) or quick


def collected(expression: str = "") -> dict[tuple[str, Break], bool]:
    """Every break, by the test function that names it."""
    collector = Collector()
    arguments = ["--collect-only", "-q", "-q", "-m", "", "-n", "0", "-k", expression]
    code = pytest.main([*arguments, str(ROOT / "tests")], plugins=[collector])
    assert code == 0, code
    return collector.found


def seen(function: str, only: str, broken: Break, folder: Path) -> bool:
    """Whether the test fails on a package that is broken so."""
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(".*", "__pycache__", "runs"))
    file, old, new = broken
    place = folder / "hyperrbp" / file
    text = place.read_text(encoding="utf-8")
    assert text.count(old) == 1, f"{file} has {text.count(old)} times {old!r}"
    place.write_text(text.replace(old, new), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-q", "-m", only, "-n", "0", function],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=1800,
    )
    if done.returncode not in (0, 1):
        print(done.stdout[-3000:], done.stderr[-3000:])
    return done.returncode == 1


def outcomes(expression: str) -> Iterator[tuple[str, Break, bool]]:
    """Each test and break, and whether it was seen to fail."""
    for (function, broken), quick in collected(expression).items():
        with tempfile.TemporaryDirectory() as scratch:
            only = "not slow" if quick else ""
            yield function, broken, seen(function, only, broken, Path(scratch, "package"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-k", default="", metavar="EXPRESSION", help="of pytest: which tests")
    missed = 0
    for function, (file, _, new), caught in outcomes(parser.parse_args().k):
        missed += not caught
        word = "caught" if caught else "MISSED"
        print(f"{word}  {function}\n        {file}: {new.strip()[:100]!r}", flush=True)
    print(f"{missed} missed")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
