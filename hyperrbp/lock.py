"""One process to a folder: a lock that frees itself when its owner dies, however that comes."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from hyperrbp.errors import LockError, StorageError

LOCK = ".lock"
"""The file in a folder in use; it names its owner, for people. The lock itself is the kernel's."""


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """The folder, made if need be, for this process alone.

    What was made is removed again if nothing is written into it.

    Raises:
        LockError: at once, naming the owner, if another process holds it.
        StorageError: if it cannot be made, or its file system knows no locks.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    file = folder / LOCK
    # One thread may open the folder and another close it. Where the kernel cannot lock, nothing
    # else would free itself.
    lock = FileLock(file, timeout=0, thread_local=False, fallback_to_soft=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise LockError(
            f"{folder} is in use by {_owner(file)}; wait for its end, or choose another folder"
        ) from None
    except (OSError, NotImplementedError) as error:
        raise StorageError(f"{folder}: {getattr(error, 'strerror', None) or error}") from error
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


def _owner(file: Path) -> str:
    for _ in range(20):  # it may have been taken this very moment
        with suppress(OSError, UnicodeDecodeError):
            if owner := file.read_text("utf-8").strip():
                return owner
        time.sleep(0.01)
    return "another process"
