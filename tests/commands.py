"""The command line: in this process, or in one of its own."""

from __future__ import annotations

import subprocess
import sys

from typer.testing import CliRunner

from hyperrbp.cli import app as cli


def run(*words, **options):
    """Run a command in this process; an exception that no exit code foresees is passed on."""
    return CliRunner().invoke(cli.app, [str(word) for word in words], **options)


def command(*words, **options):
    """Run a command in a process of its own, which takes seconds to start."""
    return subprocess.run(
        [sys.executable, "-m", "hyperrbp", *map(str, words)], capture_output=True, **options
    )


def assert_refused(done, code, *words):
    """A command ended with this code, these words on stderr, a line each, and nothing on stdout."""
    assert done.exit_code == code, done.output
    assert isinstance(done.exception, SystemExit), done.exception
    assert done.stdout == ""
    for word in words:
        assert word in done.stderr
    assert all(line.startswith("hyperrbp: ") for line in done.stderr.splitlines())
