"""The exit codes of the command line, and how every foreseeable fault is given one."""

from __future__ import annotations

import logging
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EDQUOT, EFBIG, ENOSPC
from signal import SIGINT, Signals
from typing import NoReturn

import typer

from hyperrbp.cli.output import notify, silence
from hyperrbp.exceptions import (
    HyperrbpError,
    MemoryExhaustedError,
    StorageError,
    is_out_of_memory,
)
from hyperrbp.runtime import signals

NOT_TRUSTED = 5
"""The exit code of a check that ended well with a gradient that should not be trusted."""

EXIT_CODES: dict[int, str] = {
    0: "done",
    1: "a fault of hyperrbp itself (please report it)",
    2: "the recipe or the command line is wrong; nothing was touched",
    3: "data missing, damaged or too small",
    4: "the device that was asked for is not available",
    NOT_TRUSTED: "check: do not trust this gradient",
    6: "the run turned non-finite; the best and the last finite hyperparameters, or weights, are"
    " kept",
    7: "a run folder or checkpoint cannot be used",
    8: "out of memory",
    9: "a file could not be written (disk full, no permission)",
    10: "the run folder is in use by another process",
    130: "interrupted (Ctrl-C); resume with --resume",
    143: "terminated; resume with --resume",
}
"""What each exit code means."""

TUNING_MEMORY = (
    "an implicit method (--method neumann), for bptt --set gradient.options.bptt.keep=checkpoints"
    " or fewer --train-steps, for a search fewer meta.screened, or a smaller inner.batch_size"
)
TRAINING_MEMORY = "an implicit method (--method neumann), or a smaller training.batch_size"


@contextmanager
def faults_to_exit_codes(advice: str = "", memory: str = TUNING_MEMORY) -> Iterator[None]:
    """Turn every foreseeable fault into one line on stderr and a documented exit code.

    Args:
        advice: what to do after an interruption, ``; go on with --resume``; empty where nothing
            can be resumed.
        memory: what to use instead where memory runs out.
    """
    with signals.interruptible(advice) as interruption, _notes_printed(), _storage_faults_quiet():
        try:
            yield
            sys.stdout.flush()
        except BaseException as error:
            if interruption.number is not None or isinstance(error, KeyboardInterrupt):
                # Whatever the interruption has become on its way here.
                number = Signals(interruption.number or SIGINT)
                _fail(signals.ENDINGS[number] + advice, signals.exit_code(number))
            _exit(error, advice, memory)
            raise


def _exit(error: BaseException, advice: str, memory: str) -> None:
    """Exit with the code of an error that can be foreseen; return from any other."""
    if isinstance(error, HyperrbpError):
        cause = error.__cause__ if isinstance(error, StorageError) else None
        _fail(f"{error}{_remedy(cause, advice)}", error.exit_code)
    if is_out_of_memory(error):
        traceback.clear_frames(error.__traceback__)  # printing needs what they hold
        intact = "; the last checkpoint is intact" if advice else ""
        _fail(f"out of memory; use {memory}{intact}", MemoryExhaustedError.exit_code)
    if isinstance(error, OSError):
        silence(sys.stdout)
        if isinstance(error, BrokenPipeError):  # whoever read the answer has left: no fault
            raise typer.Exit(0) from None
        name, reason = error.filename or "output", error.strerror or error
        _fail(f"{name}: {reason}{_remedy(error, advice)}", StorageError.exit_code)


def _remedy(error: BaseException | None, advice: str) -> str:
    """Return what to do about a full disk; nothing for other errors."""
    full = isinstance(error, OSError) and error.errno in (ENOSPC, EDQUOT, EFBIG)
    return f"; free some space{advice}" if full else ""


def _fail(message: str, code: int) -> NoReturn:
    for line in message.splitlines():
        notify(f"hyperrbp: {line}", style="red")
    raise typer.Exit(code) from None


@contextmanager
def _notes_printed() -> Iterator[None]:
    """Print the warnings that the library logs, a line each."""
    handler, log = _Notes(logging.WARNING), logging.getLogger("hyperrbp")
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)


class _Notes(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        notify(f"hyperrbp: note: {record.getMessage()}", style="yellow")


@contextmanager
def _storage_faults_quiet() -> Iterator[None]:
    """Print no traceback of a full disk in TensorBoard's thread: ours raises it, too."""

    def hook(fault: threading.ExceptHookArgs) -> None:
        if not isinstance(fault.exc_value, OSError):
            threading.__excepthook__(fault)

    before, threading.excepthook = threading.excepthook, hook
    try:
        yield
    finally:
        threading.excepthook = before
