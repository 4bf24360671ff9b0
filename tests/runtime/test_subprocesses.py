"""Calls in processes of their own."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time

import pytest

from hyperrbp.exceptions import (
    CheckpointError,
    DataError,
    DeviceError,
    DivergedError,
    Fault,
    HyperrbpError,
    MemoryExhaustedError,
    RecipeError,
    StorageError,
    UsageError,
)
from hyperrbp.runtime.subprocesses import call

LIVES_IN = {"this": "parent"}


def other_place(send):
    before, LIVES_IN["this"] = LIVES_IN["this"], "child"
    return before, os.getpid(), signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def counts(number, word, send):
    for n in range(number):
        send((word, n))
    return {"sum": sum(range(number)), "tensor": [1.5, None]}


def fails(error, send):
    send("before")
    raise error


def fails_with_faults(send):
    raise RecipeError(
        [Fault("mine.yaml", 3, "inner.steps", "not so"), Fault("--set", None, "", "no")]
    )


def dies(how, send):
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    os._exit(3)


def lingers(send):
    send(os.getpid())
    time.sleep(600)


@pytest.fixture
def nobody_stays():
    yield
    assert multiprocessing.active_children() == []


def test_a_call_returns_and_reports_in_order(nobody_stays):
    messages = []
    assert call(counts, 5, "w", on_message=messages.append) == {"sum": 10, "tensor": [1.5, None]}
    assert messages == [("w", n) for n in range(5)]


def test_every_call_has_a_process_of_its_own(nobody_stays):
    first, second = call(other_place), call(other_place)
    assert first[0] == second[0] == LIVES_IN["this"] == "parent"
    assert len({first[1], second[1], os.getpid()}) == 3
    assert first[2], "Ctrl-C would print a traceback of every child"
    for pid in (first[1], second[1]):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.parametrize(
    "kind",
    [
        HyperrbpError, UsageError, DataError, DeviceError, DivergedError, CheckpointError,
        MemoryExhaustedError, StorageError,
    ],
)  # fmt: skip
def test_an_error_of_ours_comes_back_as_it_was(nobody_stays, kind):
    messages = []
    with pytest.raises(HyperrbpError) as caught:
        call(fails, kind("some words"), on_message=messages.append)
    assert type(caught.value) is kind
    assert str(caught.value) == "some words"
    assert messages == ["before"]


def test_a_recipe_error_keeps_its_words_and_its_exit_code(nobody_stays):
    with pytest.raises(HyperrbpError) as caught:
        call(fails_with_faults)
    assert caught.value.exit_code == 2
    assert "mine.yaml:3: inner.steps: not so" in str(caught.value)
    assert "--set: no" in str(caught.value)


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (ZeroDivisionError("by zero\nmore"), HyperrbpError, "ZeroDivisionError: by zero"),
        (KeyError(), HyperrbpError, "KeyError: "),
        (MemoryError(), MemoryExhaustedError, "out of memory"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 9 bytes."),
            MemoryExhaustedError,
            "DefaultCPUAllocator: can't allocate memory: you tried 9 bytes.",
        ),
    ],
)
def test_an_error_of_others_becomes_one_line_of_ours(nobody_stays, error, kind, words):
    with pytest.raises(HyperrbpError) as caught:
        call(fails, error)
    assert type(caught.value) is kind
    assert str(caught.value) == words


def test_a_process_that_is_killed_ran_out_of_memory(nobody_stays):
    with pytest.raises(MemoryExhaustedError, match="killed by the system"):
        call(dies, "kill")


def test_a_process_that_ends_without_a_word(nobody_stays):
    with pytest.raises(HyperrbpError, match=r"ended with 3\b") as caught:
        call(dies, "exit")
    assert type(caught.value) is HyperrbpError


def test_a_caller_that_raises_ends_the_call(nobody_stays):
    pids = []

    def receive(pid):
        pids.append(pid)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        call(lingers, on_message=receive)
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)
