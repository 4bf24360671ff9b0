"""What the tool promises when things go wrong, and the tests that hold it to its word.

A test says ``@pytest.mark.promise(n)`` for the promises below, calls ``cases(count)`` if it tries
more than one case, and names with ``@pytest.mark.catches(file, old, new)`` a break of the package
that it was seen to fail on; ``python tests/breaks.py`` sees it again. ``pytest -m promise
--promises=README.md`` writes the table in the README from what it has just run, and a run of the
suite that tries less than the table says fails.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PROMISES = {
    1: "`kill -9` at any instant loses at most one meta step, and in the end not a bit",
    2: "a checkpoint is whole or absent",
    3: "a damaged checkpoint is named, and the one before it is used",
    4: "reading a recipe, a checkpoint or data never runs code",
    5: "code of the user's own runs only with `--run-code`",
    6: "a bad recipe gets a line a fault and exit code 2, before data or device are touched",
    7: "numbers mean what a scientist expects; duplicate keys are refused",
    8: "Ctrl-C and SIGTERM leave a checkpoint and end within 5 s; a second one ends at once",
    9: "nothing non-finite reaches Adam; the best is kept, the place is named",
    10: "a zero gradient, an unconverged solve and a growing series are told apart",
    11: "out of memory and full disks leave the last checkpoint intact, and name a remedy",
    12: "two runs never share a folder; a dead owner's lock frees itself",
    13: "a torn record is dropped; dashboards show each step once",
    14: "a changed recipe, version, thread count or device is not resumed unseen",
    15: "the seed decides every bit, and global generators stand as they stood",
    16: "every gradient agrees with an independent truth",
    17: "the paper's three propositions hold",
    18: "memory of the implicit methods is free of T and K; long runs leak nothing",
    19: "metering and observing change no bit",
    20: "exit codes are as documented; answers on stdout, the rest on stderr",
    21: "nothing is downloaded unless asked for, nor used unless it is what was published",
}

Key = tuple[int, str]
"""A promise, and the test of it as ``file::function``."""
Result = tuple[int, str]
"""How many cases, and what came of them."""

LONG = " (long)"
"""After the name of a test that is marked slow."""

_BEGIN, _END = "<!-- promises -->\n", "<!-- end of promises -->"
_cases = pytest.StashKey[int]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--promises", metavar="FILE", help="write the table of promises into FILE")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "promise(*numbers): of hyperrbp that this test holds it to")
    config.addinivalue_line("markers", "catches(file, old, new): a break that it was seen to fail")
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Ledger(config))


@pytest.fixture
def cases(request: pytest.FixtureRequest):
    """Counts what a test has tried."""

    def count(number: int = 1) -> None:
        request.node.stash[_cases] = request.node.stash.get(_cases, 0) + number

    return count


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo):
    report = yield
    numbers = [n for mark in item.iter_markers("promise") for n in mark.args]
    if numbers and call.when == "call":  # the only way from a worker to whoever listens
        report.user_properties.append(("promises", numbers))
        report.user_properties.append(("cases", item.stash.get(_cases, 1)))
        report.user_properties.append(("long", item.get_closest_marker("slow") is not None))
    return report


class Ledger:
    """What was tried of each promise in this run."""

    def __init__(self, config: pytest.Config) -> None:
        self._file = config.getoption("--promises")
        self._readme = config.rootpath / "README.md"
        self._kept: dict[Key, Result] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        told = dict(report.user_properties)
        file, _, name = report.nodeid.partition("::")
        test = f"{Path(file).name}::{name.partition('[')[0]}" + LONG * told.get("long", False)
        for number in told.get("promises", ()):
            cases, outcome = self._kept.get((number, test), (0, "passed"))
            outcome = outcome if report.outcome == "passed" else report.outcome
            self._kept[number, test] = cases + told["cases"], outcome

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        self._drifted = []
        if self._file:
            write(Path(self._file), self._kept)
        elif session.testscollected and not _selective(session.config):
            self._drifted = list(drifted(self._kept, dict(read(self._readme))))
            if self._drifted and session.exitstatus == 0:
                session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        counted = {test: result for (_, test), result in self._kept.items() if result[0] > 1}
        if counted:
            terminalreporter.section("promises: cases tried")
            for test, (cases, outcome) in counted.items():
                terminalreporter.write_line(f"{cases:>6} {outcome}  {test}")
        for number, test in self._drifted:
            terminalreporter.write_line(f"README.md: promise {number}, {test}: not what was run")
        if self._drifted:
            terminalreporter.write_line("write it anew: pytest -m promise --promises=README.md")


def drifted(kept: dict[Key, Result], written: dict[Key, Result]) -> Iterator[Key]:
    """What the table does not know, or boasts of: another Python may make a few calls fewer."""
    for key, (cases, outcome) in kept.items():
        known, _ = written.get(key, (0, ""))
        if outcome == "passed" and not 0 < 0.9 * known <= cases:
            yield key


def _selective(config: pytest.Config) -> bool:
    """Whether parts of a test may have been left out."""
    return bool(config.option.keyword or any("::" in argument for argument in config.args))


def table(kept: dict[Key, Result]) -> str:
    """Markdown, promise by promise."""
    rows = ["| | promise | held by | cases | result |", "|---|---|---|---:|---|"]
    last = None
    for (number, test), (cases, outcome) in sorted(kept.items()):
        first = f"{number} | {PROMISES[number]}" if number != last else " | "
        rows.append(f"| {first} | `{test}` | {cases:,} | {outcome} |")
        last = number
    return "\n".join(rows) + "\n"


def write(file: Path, kept: dict[Key, Result]) -> None:
    """Put the table between its two marks."""
    head, _, rest = file.read_text(encoding="utf-8").partition(_BEGIN)
    _, _, tail = rest.partition(_END)
    file.write_text(f"{head}{_BEGIN}{table(kept)}{_END}{tail}", encoding="utf-8")


def read(file: Path) -> Iterator[tuple[Key, Result]]:
    """The rows of the table in a file."""
    text = file.read_text(encoding="utf-8").partition(_BEGIN)[2].partition(_END)[0]
    number = 0
    for row in re.findall(r"^\| (\d*) ?\| .*? ?\| `(.+?)` \| ([\d,]+) \| (\w+) \|$", text, re.M):
        number = int(row[0]) if row[0] else number
        yield (number, row[1]), (int(row[2].replace(",", "")), row[3])
