"""Answers and progress that nobody reads, or that cannot be written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

BUFFERED = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}


@pytest.mark.parametrize("words", [["ls"], ["cat", "digits"]])
def test_a_reader_that_leaves_is_no_fault(words):
    with subprocess.Popen(
        [sys.executable, "-m", "hyperrbp", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=BUFFERED,
    ) as process:
        process.stdout.close()
        log = process.stderr.read()
    assert (process.returncode, log) == (0, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("words", [["ls"], ["cat", "digits"]])
def test_an_answer_that_cannot_be_written(words):
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "hyperrbp", *words],
            stdout=full,
            stderr=subprocess.PIPE,
            env=BUFFERED,
        )
    assert done.returncode == 9
    assert done.stderr == b"hyperrbp: output: No space left on device; free some space\n"


def test_a_run_goes_on_when_nobody_reads_its_progress():
    code = (
        "from hyperrbp.cli.output import stderr\n"
        "for n in range(9): stderr.print(n)\n"
        "print('went on')"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stderr.close()
        printed = process.stdout.read()
    assert (process.returncode, printed) == (0, b"went on\n")
