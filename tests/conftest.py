"""What holds for every test: one thread, signals as in a shell, the data that there are."""

from __future__ import annotations

import gc
import os
import signal
from multiprocessing import forkserver

# Tensors are small and two workers share the cores; before torch is imported, for subprocesses too.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path

import pytest
import torch

# A suite in the background is told to ignore Ctrl-C; the commands that it starts would, too.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish(session):
    """Leave the modules out of garbage collection: there are a million objects to look at.

    And begin to import what forks will need: in the background, and before the package itself asks
    for such a process, into which it imports less.
    """
    gc.collect()
    gc.freeze()
    # Not where tests are listed only, nor for a mutant: mutmut forks one from what listed them.
    if session.config.option.collectonly or "MUTANT_UNDER_TEST" in os.environ:
        return
    if any(item.path.parent.name == "robustness" for item in session.items):
        forkserver.ensure_running()


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_the_disk():
    """What is flushed to the disk itself matters when the power fails, which no test can see."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(autouse=True)
def threads():
    """A recipe sets the threads of the process; give the other tests theirs back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real data sets, where there is one."""
    named = os.environ.get("HYPERRBP_DATA")
    if not named:
        pytest.skip("HYPERRBP_DATA names no data root")
    return Path(named)


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A working folder of the test's own, without the user's data."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYPERRBP_DATA", raising=False)
    before = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(before)
