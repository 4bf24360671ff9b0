"""Calls in a process of their own: a peak starts from nothing, and a fault stays in there."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, SpawnContext
from typing import Any

from hyperrbp.exceptions import (
    HyperrbpError,
    MemoryExhaustedError,
    RecipeError,
    UsageError,
    is_out_of_memory,
)

Send = Callable[[Any], None]
"""Sends a message from the called function to its caller."""


def call(
    function: Callable[..., Any],
    *arguments: Any,
    on_message: Callable[[Any], None] = lambda _: None,
) -> Any:
    """Return ``function(*arguments, send)``, called in a process of its own.

    Args:
        function: of a module, since the other process has to import it.
        arguments: its arguments, before ``send``; picklable, as is what it returns.
        on_message: receives every message that the function sends on the way.

    Raises:
        MemoryExhaustedError: if it ran out of memory, or was killed from outside.
        HyperrbpError: what it raised.
    """
    context = _context()
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, function, arguments), daemon=True)
    process.start()
    theirs.close()
    try:
        while True:
            try:
                kind, content = ours.recv()
            except (EOFError, OSError):  # it ended, perhaps in the middle of a message
                process.join()
                raise _silent_end(process.exitcode) from None
            if kind == "sent":
                on_message(content)
            elif kind == "returned":
                return content
            else:
                raise content
    finally:
        process.terminate()
        process.join()
        ours.close()


def _context() -> SpawnContext | ForkServerContext:
    """Return how to start a process: a fork of one that has imported everything and run nothing."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["hyperrbp.experiments.measurement", "torch._inductor.config", "sklearn.datasets"]
    )
    resource_tracker.ensure_running()  # it unblocks what is blocked below
    # Ctrl-C goes to the whole group of processes: the server inherits that it does not hear it.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


def _silent_end(exit_code: int | None) -> HyperrbpError:
    if exit_code == -signal.SIGKILL:
        return MemoryExhaustedError(
            "killed by the system, which was out of memory in all likelihood"
        )
    return HyperrbpError(f"the process ended with {exit_code}, without a word")


def _serve(
    connection: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who waits for this one ends it
    threading.Thread(target=_end_with, args=(connection,), daemon=True).start()
    try:
        result = function(*arguments, lambda content: connection.send(("sent", content)))
    except Exception as error:
        connection.send(("raised", _portable(error)))
    else:
        connection.send(("returned", result))
    connection.close()


def _end_with(connection: Connection) -> None:
    """End this process when its caller has left, however that came."""
    try:
        connection.recv()
    except (EOFError, OSError):
        os._exit(1)


def _portable(error: Exception) -> HyperrbpError:
    """Return an error that can be sent to another process, with a message of one line."""
    line = (str(error).splitlines() or [""])[0]
    if is_out_of_memory(error):
        return MemoryExhaustedError(line or "out of memory")
    if isinstance(error, HyperrbpError):
        kind = UsageError if isinstance(error, RecipeError) else type(error)
        return kind(str(error))
    return HyperrbpError(f"{type(error).__name__}: {line}")
