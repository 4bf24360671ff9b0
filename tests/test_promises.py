"""The promises, their tests, the breaks those tests name, and the table that says so."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from promises import LONG, PROMISES, read, table, write

import hyperrbp

PACKAGE = Path(hyperrbp.__file__).parent
README = PACKAGE.parent / "README.md"
FILES = sorted(Path(__file__).parent.glob("test_*.py"))


def marked(name: str) -> list[tuple[str, Callable, tuple]]:
    """Every (file, test, arguments) with this mark."""
    return [
        (file.name, test, mark.args)
        for file in FILES
        for test in vars(import_module(file.stem)).values()
        if getattr(test, "__module__", None) == file.stem
        for mark in getattr(test, "pytestmark", ())
        if mark.name == name
    ]


def test_every_promise_is_held_by_a_test():
    assert {number for _, _, numbers in marked("promise") for number in numbers} == set(PROMISES)


def test_every_test_of_a_promise_names_a_break_it_was_seen_to_fail_on():
    breaks = {test for _, test, _ in marked("catches")}
    for file, test, _ in marked("promise"):
        assert test in breaks, f"{file}: {test.__name__}"
        assert test.__doc__, f"{file}: {test.__name__}"


def test_every_break_can_still_be_made():
    for file, test, (place, old, new) in marked("catches"):
        text = (PACKAGE / place).read_text(encoding="utf-8")
        assert text.count(old) == 1, f"{file}: {test.__name__}: {place}: {old}"
        assert old != new


def test_the_readme_names_every_test_of_a_promise():
    named = {(number, test.removesuffix(LONG)) for (number, test), _ in read(README)}
    assert named == {
        (number, f"{file}::{test.__name__}")
        for file, test, numbers in marked("promise")
        for number in numbers
    }
    assert all(result == "passed" for _, (_, result) in read(README))


def test_a_table_reads_back_as_written(tmp_path):
    kept = {
        (2, "test_a.py::test_one"): (1, "passed"),
        (2, "test_b.py::test_two"): (20_000, "failed"),
        (11, "test_a.py::test_one"): (25, "skipped"),
    }
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- promises -->\nold\n<!-- end of promises -->\nafter\n")
    write(page, kept)
    assert dict(read(page)) == kept
    assert page.read_text().startswith("before\n<!-- promises -->\n| | promise ")
    assert page.read_text().endswith("|\n<!-- end of promises -->\nafter\n")
    assert table(kept).count(PROMISES[2]) == 1


PROBE = """
import pytest

@pytest.mark.promise(3)
@pytest.mark.parametrize("n", [1, 2, 3, pytest.param(9, marks=pytest.mark.slow)])
def test_some(n, cases):
    cases(10 * n)

@pytest.mark.promise(3, 4)
def test_other():
    assert {outcome}
"""


def test_a_run_counts_cases_and_notices_a_table_that_differs(pytester, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    pytester.makeconftest("pytest_plugins = ['promises']")
    pytester.makeini("[pytest]\nmarkers = slow: long")
    page = pytester.makefile(".md", README="<!-- promises -->\n<!-- end of promises -->\n")
    pytester.makepyfile(PROBE.format(outcome=True))
    first = pytester.runpytest_subprocess("-n", "2")
    assert first.ret == 1
    first.stdout.fnmatch_lines(["*60 passed*test_some", "README.md: promise 3, *not what was run"])
    pytester.runpytest_subprocess("-n", "2", "--promises", str(page))
    probe = "test_a_run_counts_cases_and_notices_a_table_that_differs.py::"
    written = dict(read(page))
    assert written == {
        (3, f"{probe}test_some"): (60, "passed"),
        (3, f"{probe}test_some (long)"): (90, "passed"),
        (3, f"{probe}test_other"): (1, "passed"),
        (4, f"{probe}test_other"): (1, "passed"),
    }
    assert pytester.runpytest_subprocess("-n", "2", "-m", "not slow").ret == 0
    page.write_text(page.read_text().replace("| 60 |", "| 70 |"))
    assert pytester.runpytest_subprocess("-n", "2").ret == 1
    assert pytester.runpytest_subprocess("-n", "2", "-k", "some").ret == 0  # a part of them
    pytester.makepyfile(PROBE.format(outcome=False))
    pytester.runpytest_subprocess("-n", "2", "--promises", str(page))
    assert dict(read(page))[4, f"{probe}test_other"] == (1, "failed")
