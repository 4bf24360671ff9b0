"""The command ``hyperrbp``, and ``python -m hyperrbp``."""

from __future__ import annotations

import os
import signal
from types import FrameType


def main() -> None:
    """Run the command line."""
    # Its imports take a moment, in which a signal is no less of one.
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _leave)
    from hyperrbp.cli.app import main as run

    run()


def _leave(number: int, frame: FrameType | None) -> None:
    os.write(
        2, b"hyperrbp: interrupted\n" if number == signal.SIGINT else b"hyperrbp: terminated\n"
    )
    os._exit(128 + number)


if __name__ == "__main__":
    main()
