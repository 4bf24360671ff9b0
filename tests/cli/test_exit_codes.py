"""Faults and signals, in this process, with their exit codes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from commands import assert_refused, run


def test_a_signal_that_turns_into_another_exception_is_still_a_signal(monkeypatch):
    # As when it comes while a thread's lock is taken: RuntimeError: release unlocked lock.
    def tune_recipe(*args, **kwargs):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        except KeyboardInterrupt:
            raise RuntimeError("release unlocked lock") from None

    monkeypatch.setattr("hyperrbp.experiments.tune.tune_recipe", tune_recipe)
    before = signal.getsignal(signal.SIGTERM)
    assert_refused(run("tune", "tiny.yaml"), 143, "terminated; go on with --resume")
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(("grace", "signals"), [("0.5", 1), ("60", 2)])
def test_a_signal_that_gets_lost_ends_the_run_all_the_same(grace, signals):
    """A first signal that other code swallows, with and without a second one."""
    code = f"""
import contextlib, os, signal, time
from hyperrbp.cli import app as cli
from hyperrbp.config import presets
from hyperrbp.runtime import signals

def names():
    for _ in range({signals}):
        with contextlib.suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)

signals.GRACE, presets.names = {grace}, names
cli.app(["ls"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=20)
    assert (done.returncode, done.stdout) == (143, b"")
    assert done.stderr == b"hyperrbp: terminated\n"


def test_a_signal_that_is_to_be_ignored_is_ignored(monkeypatch):
    def tune_recipe(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr("hyperrbp.experiments.tune.tune_recipe", tune_recipe)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert run("tune", "tiny.yaml", "--quiet").exit_code == 0
    finally:
        signal.signal(signal.SIGINT, before)


def raising(error):
    def tune_recipe(*args, **kwargs):
        raise error

    return tune_recipe


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (MemoryError(), 8, "out of memory; use an implicit method"),
        (torch.cuda.OutOfMemoryError("CUDA out of memory"), 8, "out of memory; use an implicit"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), 8, "out of m"),
        (OSError(28, "No space left on device", "events/x"), 9, "events/x: No space left on dev"),
    ],
)
def test_what_can_be_foreseen_has_an_exit_code(monkeypatch, error, code, words):
    monkeypatch.setattr("hyperrbp.experiments.tune.tune_recipe", raising(error))
    assert_refused(run("tune", "tiny.yaml"), code, words)


def test_what_cannot_be_foreseen_is_not_hidden(monkeypatch):
    error = RuntimeError("a fault of our own")
    monkeypatch.setattr("hyperrbp.experiments.tune.tune_recipe", raising(error))
    done = run("tune", "tiny.yaml")
    assert (done.exit_code, done.exception) == (1, error)
