"""Locks on folders, which free themselves when their owner dies, however that happens."""

from __future__ import annotations

import os
import platform
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from hyperrbp.exceptions import LockError, StorageError
from hyperrbp.runtime.single_process import refuse_several_processes

LOCK = ".lock"
"""The file in a folder in use; it names its owner, for people. The lock itself is the kernel's."""


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a folder, made if need be, for this process alone.

    What was made is removed again if nothing is written into it.

    Raises:
        UsageError: in one of several processes that a launcher has started to make one run.
        LockError: at once, naming the owner, if another process holds it.
        StorageError: if it cannot be made, or its file system knows no locks.
    """
    refuse_several_processes()
    file = folder / LOCK
    # One thread may open the folder and another close it. Where the kernel cannot lock, nothing
    # else would free itself.
    lock = FileLock(file, timeout=0, thread_local=False, fallback_to_soft=False)
    made = _acquire(lock, folder)
    try:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        with suppress(OSError):  # a full disk: the lock holds all the same
            file.write_text(f"process {os.getpid()} on {platform.node()} since {now}\n", "utf-8")
        yield
    finally:
        with suppress(OSError):
            file.unlink(missing_ok=True)  # while it is held: whoever waits for it begins anew
        lock.release(force=True)
        with suppress(OSError):
            for path in made:
                path.rmdir()


def _acquire(lock: FileLock, folder: Path) -> list[Path]:
    """Make the folder and take its lock; the folders that were made, innermost first."""
    made: list[Path] = []
    for tries_left in reversed(range(20)):
        made += [path for path in (folder, *folder.parents) if not path.exists()]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock.acquire()
            break
        except Timeout:
            owner = _owner(folder / LOCK)
            raise LockError(
                f"{folder} is in use by {owner}; wait for its end, or choose another folder"
            ) from None
        except (OSError, NotImplementedError) as error:
            # Who leaves removes the folder that they made, perhaps this very moment.
            if not (tries_left and isinstance(error, FileExistsError | FileNotFoundError)):
                reason = getattr(error, "strerror", None) or error
                raise StorageError(f"{folder}: {reason}") from error
    return sorted(set(made), key=lambda path: len(path.parts), reverse=True)


def _owner(file: Path) -> str:
    for _ in range(100):  # it may have been taken this very moment
        with suppress(OSError, UnicodeDecodeError):
            if (owner := file.read_text("utf-8").strip()) and not _is_dead(owner):
                return owner
        time.sleep(0.01)
    return "another process"


def _is_dead(owner: str) -> bool:
    """Return whether the owner was killed, and who has the lock now has not yet signed."""
    number = re.match(rf"process (\d+) on {re.escape(platform.node())} ", owner)
    if number is None or os.name != "posix":
        return False
    try:
        os.kill(int(number[1]), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):  # somebody else's
        return False
    return False
