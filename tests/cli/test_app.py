"""The command line as a whole: version, help, usage faults, old locales."""

from __future__ import annotations

import os
import re

import pytest
from commands import command, run

import hyperrbp
from hyperrbp.cli.exit_codes import EXIT_CODES

VERBS = [
    *("tune", "train", "compare", "check", "reproduce"),
    *("show", "ls", "cat", "cp", "validate"),
]


def test_version():
    done = run("--version")
    assert (done.exit_code, done.stdout) == (0, f"hyperrbp {hyperrbp.__version__}\n")


@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_names_every_command_and_exit_code(option):
    done = run(option)
    assert done.exit_code == 0
    for name in VERBS:
        assert re.search(rf"^│ {name} ", done.stdout, re.MULTILINE)
    text = " ".join(re.sub(r"[│╭╰─╯╮•]", " ", done.stdout).split())
    for code, meaning in EXIT_CODES.items():
        assert f"{code}: {meaning}" in text


@pytest.mark.parametrize("name", VERBS)
def test_every_command_has_help(name):
    done = run(name, "--help")
    assert done.exit_code == 0
    assert f"Usage: hyperrbp {name} " in done.stdout


def test_an_installed_command_and_the_module_are_the_same():
    done = command("--version")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode() == f"hyperrbp {hyperrbp.__version__}\n"


@pytest.mark.parametrize(
    "words", [["fly"], ["tune"], ["validate"], ["tune", "digits", "--trunc", "x"], ["ls", "--what"]]
)
def test_usage_faults_exit_with_2(words):
    done = run(*words)
    assert done.exit_code == 2
    assert done.stdout == ""
    assert done.stderr


@pytest.mark.parametrize(
    ("words", "shown"), [(["ls"], rb"8\xd78 digits"), (["cat", "mnist"], rb"\u03b2v \u2212")]
)
def test_an_old_locale_loses_no_answer(words, shown):
    done = command(*words, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stderr) == (0, b"")
    assert shown in done.stdout
