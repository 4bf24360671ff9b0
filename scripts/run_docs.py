"""Run the code blocks of README.md and docs/, and compare or rewrite what they print.

    python scripts/run_docs.py                       # all pages
    python scripts/run_docs.py docs/guides/*.md      # these
    python scripts/run_docs.py --write README.md     # put what is printed into the page

A page is a session in an empty folder: docs/development/documentation.md says how blocks are read.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
ANY = "…"
"""A line that stands for any lines."""
TOLERANCE = 0.05
"""By how much a printed number may differ: other machines round differently."""

_BLOCK = re.compile(
    r"(?:^<!-- (?P<note>[^\n]*) -->\n\n?)?"
    r"^```(?P<language>\w+)(?P<info>[^\n]*)\n(?P<body>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_FILE = re.compile(r"[\w-]+\.\w+")
_NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?%?(?P<unit> ?(?:ms|s|[kMG]?B)\b)?")
_SPARKLINE = re.compile("[▁▂▃▄▅▆▇█]")


class DocsError(Exception):
    """A block that fails, prints something else, or is neither run nor excused."""


@dataclass(frozen=True)
class Block:
    """A fenced code block of a page."""

    page: Path
    line: int
    language: str
    title: str
    note: str
    """The comment before it: ``slow``, ``not run: reason``, ``command: name``."""
    body: str
    span: tuple[int, int]
    """Where the body stands in the page."""

    @property
    def file(self) -> str | None:
        """The file that it is to be written to, if any."""
        return self.title if _FILE.fullmatch(self.title) else None

    @property
    def excused(self) -> bool:
        """Whether the page says why it is not run, or shows it as a part of something else."""
        return self.note.startswith(("not run: ", "command: ")) or bool(
            self.title and not self.file and not self.is_output
        )

    @property
    def slow(self) -> bool:
        """Whether it is run with the slow tests only."""
        return self.note == "slow"

    @property
    def is_output(self) -> bool:
        """Whether it is what the block above printed."""
        return self.language == "text" and self.title == "Output"

    def fail(self, message: str) -> DocsError:
        """Make an error that names the place."""
        return DocsError(f"{self.page.relative_to(ROOT)}:{self.line}: {message}")


def pages() -> list[Path]:
    """List README.md and every page of docs/."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path) -> list[Block]:
    """Read the code blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in _BLOCK.finditer(text):
        title = re.search(r'title="([^"]*)"', match["info"])
        found.append(
            Block(
                page,
                text.count("\n", 0, match.start("language")) + 1,
                match["language"],
                title[1] if title else "",
                match["note"] or "",
                match["body"],
                match.span("body"),
            )
        )
    return found


def commands(block: Block) -> list[tuple[str, str]]:
    """Split a console block into commands and what stands below each."""
    parts = re.split(r"^\$ ", block.body, flags=re.MULTILINE)
    if parts[0].strip():
        raise block.fail("a console block begins with a command: '$ …'")
    split = [part.partition("\n") for part in parts[1:]]
    return [(command, output) for command, _, output in split]


def matches(expected: str, printed: str) -> bool:
    """Compare line by line: ``…`` is any lines, numbers may differ a little, seconds at will."""
    return _lines_match(_cleaned(expected), _cleaned(printed))


def _cleaned(text: str) -> list[str]:
    lines = [" ".join(_SPARKLINE.sub("▁", line).split()) for line in text.splitlines()]
    return [line for line in lines if line]


def _lines_match(expected: list[str], printed: list[str]) -> bool:
    if not expected:
        return not printed
    if expected[0] == ANY:
        return any(_lines_match(expected[1:], printed[n:]) for n in range(len(printed) + 1))
    return (
        bool(printed)
        and _line_matches(expected[0], printed[0])
        and _lines_match(expected[1:], printed[1:])
    )


def _line_matches(expected: str, printed: str) -> bool:
    if _NUMBER.sub("0", expected) != _NUMBER.sub("0", printed):
        return False
    pairs = zip(_NUMBER.finditer(expected), _NUMBER.finditer(printed), strict=True)
    return all(a["unit"] or _close(a[0], b[0]) for a, b in pairs)


def _close(a: str, b: str) -> bool:
    x, y = (float(text.strip("%").replace(",", "")) for text in (a, b))
    return abs(x - y) <= TOLERANCE * max(abs(x), abs(y))


@dataclass
class Session:
    """Run the blocks of one page in one folder.

    Args:
        folder: an empty folder.
        slow: whether to run blocks that are marked slow.
        write: whether to collect what is printed instead of comparing it.
    """

    folder: Path
    slow: bool = False
    write: bool = False
    edits: dict[tuple[int, int], str] = field(default_factory=dict)
    """New bodies by span, in ``write``."""
    _names: dict[str, Any] = field(default_factory=lambda: {"__name__": "docs"})
    _printed: str = ""

    def run(self, page: Path) -> None:
        """Run a page from top to bottom.

        Raises:
            DocsError: at the first block that does not do what the page says.
        """
        with contextlib.chdir(self.folder), _importable(self.folder):
            for block in blocks(page):
                if block.slow and not self.slow:
                    check_commands(block)
                else:
                    self._run(block)

    def _run(self, block: Block) -> None:
        if block.excused:
            check_commands(block)
        elif block.is_output:
            self._compare(block, block.body, self._printed)
        elif block.file:
            (self.folder / block.file).write_text(block.body, encoding="utf-8")
        elif block.language == "python":
            self._python(block)
        elif block.language == "console":
            self._console(block)
        elif block.language != "text":
            raise block.fail(f"a block of {block.language} is neither run nor excused")

    def _python(self, block: Block) -> None:
        printed = io.StringIO()
        padding = "\n" * block.line  # so that a traceback names the line of the page
        code = compile(padding + block.body, str(block.page), "exec", dont_inherit=True)
        with contextlib.redirect_stdout(printed):
            exec(code, self._names)
        self._printed = printed.getvalue()

    def _console(self, block: Block) -> None:
        body = ""
        for command, output in commands(block):
            done = subprocess.run(
                ["bash", "-c", command],
                env=_environment(),
                capture_output=True,
                text=True,
                encoding="utf-8",
            )
            if done.returncode != 0:
                raise block.fail(f"'{command}' ended with {done.returncode}: {done.stderr}")
            if output.strip():
                self._compare(block, output, done.stdout)
            keep = not output.strip() or ANY in output.splitlines()
            body += f"$ {command}\n{output if keep else _trimmed(done.stdout)}"
        if self.write:
            self.edits[block.span] = body

    def _compare(self, block: Block, expected: str, printed: str) -> None:
        if self.write and ANY not in expected.splitlines():
            self.edits[block.span] = _trimmed(printed)
        elif not matches(expected, printed):
            raise block.fail(f"expected\n{expected}\nbut printed was\n{printed}")


def check_commands(block: Block) -> None:
    """See that the command line takes the ``hyperrbp`` commands of a block that is not run.

    Raises:
        DocsError: for a command, an option or a value that does not exist.
    """
    if block.language != "console":
        return
    for command, _ in commands(block):
        words = shlex.split(command.partition("|")[0], comments=True)
        if words[:1] == ["hyperrbp"] and (fault := refused(words[1:])):
            raise block.fail(f"'{command}': {fault}")


def refused(arguments: list[str]) -> str:
    """Parse arguments as ``hyperrbp`` does and run nothing; say what is wrong, if anything is."""
    import typer
    from typer.main import get_command

    from hyperrbp.cli.app import app

    group: Any = get_command(app)
    verb = group.get_command(typer.Context(group), arguments[0])
    if verb is None:
        return f"there is no command '{arguments[0]}'"
    try:
        verb.make_context(arguments[0], arguments[1:])
    except Exception as error:  # click's or typer's own copy of click's
        if not hasattr(error, "format_message"):
            raise
        return str(error.format_message())
    return ""


def _trimmed(printed: str) -> str:
    lines = [line.rstrip() for line in printed.strip("\n").splitlines()]
    return "".join(f"{line}\n" for line in lines)


def _environment() -> dict[str, str]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "COLUMNS": "88", "LC_ALL": "C"}


@contextlib.contextmanager
def _importable(folder: Path) -> Iterator[None]:
    before = set(sys.modules)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in set(sys.modules) - before:
            file = getattr(sys.modules[name], "__file__", None)
            if file and Path(file).parent == folder:
                del sys.modules[name]


def rewrite(page: Path, edits: dict[tuple[int, int], str]) -> None:
    """Put new bodies into a page."""
    text = page.read_text(encoding="utf-8")
    for (start, stop), body in sorted(edits.items(), reverse=True):
        text = text[:start] + body + text[stop:]
    page.write_text(text, encoding="utf-8")


def main() -> None:
    """Run the pages that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pages", nargs="*", type=Path, help="all if none is named")
    parser.add_argument("--fast", action="store_true", help="leave out what is marked slow")
    parser.add_argument("--write", action="store_true", help="rewrite what is printed")
    given = parser.parse_args()
    for page in [path.resolve() for path in given.pages] or pages():
        with tempfile.TemporaryDirectory() as folder:
            session = Session(Path(folder), slow=not given.fast, write=given.write)
            session.run(page)
        if session.edits:
            rewrite(page, session.edits)
        print(f"{page.relative_to(ROOT)}: {len(blocks(page))} blocks")


if __name__ == "__main__":
    main()
