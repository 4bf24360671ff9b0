"""Processes that are forked and killed, what they do to files, and what this one holds."""

from __future__ import annotations

import gc
import io
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

PRELOADED = [
    "pytest",
    "matplotlib.pyplot",
    "sklearn.datasets",
    "torch._dynamo",
    "hyperrbp.cli.app",
    "hyperrbp.experiments.tune",
    "hyperrbp.experiments.train",
    "hyperrbp.experiments.measurement",
    "hyperrbp.reporting.check",
    "hyperrbp.reporting.comparison",
    "hyperrbp.reporting.tuning_lines",
    "hyperrbp.reporting.tensorboard",
    "hyperrbp.reporting.training_tensorboard",
]
FORKS = multiprocessing.get_context("forkserver")
"""Processes forked from one that has imported what takes long, one to all tests of a worker."""
FORKS.set_forkserver_preload(PRELOADED)

CALLS = (
    (os, "open"),
    (os, "fsync"),
    (Path, "open"),
    (Path, "exists"),
    (Path, "replace"),
    (Path, "unlink"),
    (Path, "mkdir"),
    (Path, "rmdir"),
)


def heed_signals() -> None:
    """Let signals reach a fork as they reach a command from a shell, whoever started the suite."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
    signal.signal(signal.SIGINT, signal.default_int_handler)


def watch_the_disk(patch: pytest.MonkeyPatch, moment: Callable[[str], None]) -> None:
    """Call ``moment`` before and after whatever touches files, and amid each write."""
    inside = []

    def now(name: str) -> None:
        if not inside:  # what it does itself is no moment
            inside.append(True)
            try:
                moment(name)
            finally:
                inside.clear()

    def watched(name: str, call: Callable) -> Callable:
        def wrapper(*arguments, **options):
            now(name)
            done = call(*arguments, **options)
            if isinstance(done, io.IOBase):
                if done.writable():
                    done.write = in_two_pieces(done)
            elif name != "open":  # what is open, someone has to close
                now(name)
            return done

        return wrapper

    def in_two_pieces(file) -> Callable:
        write = type(file).write

        def wrapper(data):
            now("write")
            written = write(file, data[: len(data) // 2])
            file.flush()
            now("write")
            written += write(file, data[len(data) // 2 :])
            file.flush()
            now("write")
            return written

        return wrapper

    for owner, name in CALLS:
        patch.setattr(owner, name, watched(name, getattr(owner, name)))


def live() -> int:
    """The bytes of every tensor that there is."""
    gc.collect()
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in gc.get_objects()
        if issubclass(type(tensor), torch.Tensor) and tensor.layout is torch.strided
    }
    return sum(storages.values())
