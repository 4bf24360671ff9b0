"""Every failure that hyperrbp foresees: one class each, with the exit code of the command line."""

from __future__ import annotations

import os
import sysconfig
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar


class HyperrbpError(Exception):
    """Base of all errors raised on purpose; ``str(error)`` is what a user should read."""

    exit_code: ClassVar[int] = 1


class UsageError(HyperrbpError):
    """The command line, or a call from Python, asks for something that cannot be."""

    exit_code = 2


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong with a recipe, and where."""

    source: str  # a file, or "--set", "--trunc", …
    line: int | None
    key: str
    message: str

    def __str__(self) -> str:
        where = self.source if self.line is None else f"{self.source}:{self.line}"
        return f"{where}: {self.key}: {self.message}" if self.key else f"{where}: {self.message}"


class RecipeError(HyperrbpError):
    """A recipe that cannot be run; one line a fault."""

    exit_code = 2

    def __init__(self, faults: Sequence[Fault]) -> None:
        self.faults = tuple(faults)
        super().__init__("\n".join(map(str, self.faults)))


class DataError(HyperrbpError):
    """Data that is missing, damaged, or smaller than the recipe needs."""

    exit_code = 3


class MissingDataError(DataError):
    """Data that is not there, and would be if it were downloaded or its folder were named."""


class DeviceError(HyperrbpError):
    """A device that was asked for and is not there."""

    exit_code = 4


class DivergedError(HyperrbpError):
    """A loss, state, gradient or hyperparameter stopped being finite."""

    exit_code = 6


class CheckpointError(HyperrbpError):
    """A run folder that cannot be continued or read."""

    exit_code = 7


class MemoryExhaustedError(HyperrbpError):
    """The device or the machine has no memory left for this run."""

    exit_code = 8


class StorageError(HyperrbpError):
    """A file could not be written."""

    exit_code = 9


class LockError(HyperrbpError):
    """A folder that another process is using."""

    exit_code = 10


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether Python, PyTorch on a CPU, or CUDA ran out of memory."""
    return (
        isinstance(error, MemoryError | MemoryExhaustedError)
        or type(error).__name__ == "OutOfMemoryError"  # torch's, which is not imported for this
        or _is_of_cpu_allocator(error)
    )


def _is_of_cpu_allocator(error: BaseException) -> bool:
    # PyTorch's CPU allocator has no exception type of its own: it raises a plain RuntimeError.
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def is_foreseen(error: BaseException) -> bool:
    """Return whether an error needs no explanation: it is one of ours, or memory ran out."""
    return isinstance(error, HyperrbpError) or is_out_of_memory(error)


def message_of(error: BaseException) -> str:
    """Return the message of an error in one line, or the name of its type if it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def type_and_message_of(error: BaseException) -> str:
    """Return the type, the message and the user's line: ``ValueError: no such file (net.py:7)``.

    In one line; without the last where the error comes from no file of the user's.
    """
    said = f"{type(error).__name__}: {' '.join(str(error).split())}"
    line = user_line_of(error)
    return said if line is None else f"{said} ({line})"


def user_line_of(error: BaseException) -> str | None:
    """Return ``file:line`` of the innermost call in the user's own code on the way to an error.

    A library may have raised it in there, or from another that was. None if there is no such call:
    it was all in this package, in Python's own or in installed ones.
    """
    frames = [
        (frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)
    ]
    for file, line in reversed(frames):
        if _is_the_users(file):
            return f"{_shown(file)}:{line}"
    # Not the error that was being handled: the whole run may be called while one is.
    return None if error.__cause__ is None else user_line_of(error.__cause__)


def _is_the_users(file: str) -> bool:
    if file.startswith("<"):  # code that was made, or typed
        return file == "<stdin>" or file.startswith("<ipython-input")
    path = Path(os.path.abspath(file))  # noqa: PTH100  # a link is left as it is
    if {"site-packages", "dist-packages"} & set(path.parts):
        return False
    pythons = map(Path, (sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")))
    return not any(path.is_relative_to(folder) for folder in (Path(__file__).parent, *pythons))


def _shown(file: str) -> str:
    """Return a path as it is read best: from the working folder, if it is in there."""
    try:
        return str(Path(file).relative_to(Path.cwd()))
    except (OSError, ValueError):  # the working folder is gone, or it is in another
        return file
