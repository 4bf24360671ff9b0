"""Ends a process that Ctrl-C (SIGINT) or SIGTERM asks to stop: in order, and within seconds."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

ENDINGS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
"""The signals that ask a process to end, and what it then reports."""

GRACE = 2.0
"""Seconds from a first signal to the end of the process, whatever it does meanwhile."""


def exit_code(number: int) -> int:
    """Return the exit code of a process that this signal ended, as a shell counts it."""
    return 128 + number


def exit_at_once() -> None:
    """Let either signal end the process with one line on stderr, from now on."""

    def end(number: int, frame: FrameType | None) -> NoReturn:
        _exit(number, "")

    for number in _heeded():
        signal.signal(number, end)


class Interruption:
    """Raises KeyboardInterrupt at the first signal, and ends the process at a second one.

    It also ends the process GRACE seconds after the first: an exception that is raised between any
    two instructions can get lost in other code, or leave a lock behind that somebody waits for.

    Args:
        advice: follows the name of the ending in what is printed then, ``; go on with --resume``.
    """

    number: int | None = None
    """The signal that came, if one did."""

    def __init__(self, advice: str = "") -> None:
        self._advice = advice
        self._watchdog: threading.Timer | None = None

    def receive(self, number: int, frame: FrameType | None) -> NoReturn:
        """Handle a signal: the first is raised, the second ends the process."""
        if self.number is not None:
            _exit(self.number, self._advice)
        self.number = number
        self._watchdog = threading.Timer(GRACE, _exit, [number, self._advice])
        self._watchdog.daemon = True
        self._watchdog.start()
        raise KeyboardInterrupt

    def close(self) -> None:
        """Call off the end of the process."""
        if self._watchdog is not None:
            self._watchdog.cancel()


@contextmanager
def interruptible(advice: str = "") -> Iterator[Interruption]:
    """Handle the signals as ``Interruption`` does, and as before afterwards."""
    interruption = Interruption(advice)
    before = {number: signal.signal(number, interruption.receive) for number in _heeded()}
    try:
        yield interruption
    finally:
        interruption.close()
        for number, handler in before.items():
            signal.signal(number, handler)


def _heeded() -> list[signal.Signals]:
    """Return the signals that are not ignored; one that our parent ignores, as nohup does, is."""
    return [number for number in ENDINGS if signal.getsignal(number) is not signal.SIG_IGN]


def _exit(number: int, advice: str) -> NoReturn:
    os.write(2, f"hyperrbp: {ENDINGS[signal.Signals(number)]}{advice}\n".encode())
    os._exit(exit_code(number))
