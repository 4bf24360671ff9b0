"""Prints answers on stdout, progress and faults on stderr."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console

from hyperrbp.exceptions import UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType


class _Answers(Console):
    def on_broken_pipe(self) -> None:
        """Raise, so that the command ends: nobody reads its answer any more."""
        raise BrokenPipeError


class _Progress(Console):
    def on_broken_pipe(self) -> None:
        """Print to nowhere from now on: a run goes on if nobody reads its progress."""
        silence(sys.stderr)


# No markup: a path may have brackets in it.
stderr = _Progress(stderr=True, markup=False)


def print_answer(answer: RenderableType) -> None:
    """Print what a command found out on stdout."""
    _Answers(markup=False).print(answer)


def print_json(document: Any) -> None:
    """Print one JSON document on stdout: a model, a list of models, or plain JSON."""
    print(json.dumps(document, default=_plain, allow_nan=False))


def _plain(model: Any) -> Any:
    return model.model_dump(mode="json")


def notify(line: str, style: str | None = None) -> None:
    """Print a line on stderr."""
    try:
        stderr.print(line, style=style, highlight=False, soft_wrap=True)
    except OSError:  # a full disk, where stderr is a file: the exit code has to be enough
        silence(sys.stderr)


def silence(stream: TextIO) -> None:
    """Send what is printed or still buffered to nowhere: flushing it cannot fail any more."""
    if stream in (sys.__stdout__, sys.__stderr__):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Lock a new or empty folder for this process.

    Raises:
        UsageError: if it is neither.
        LockError: if another process uses it.
    """
    from hyperrbp.runtime.locks import LOCK, held

    if out.exists() and not (out.is_dir() and {p.name for p in out.iterdir()} <= {LOCK}):
        raise UsageError(f"--out {out}: not a new or empty folder; choose another")
    with held(out):
        yield out
