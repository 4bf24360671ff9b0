"""Files that are whole or absent, whenever a process is killed."""

from __future__ import annotations

import os
from pathlib import Path

from hyperrbp.exceptions import StorageError


def write_atomically(path: Path, content: str | bytes, keep: Path | None = None) -> None:
    """Replace a file at once: a reader, or a crash, sees the old content or the new.

    Args:
        path: the file.
        content: its new content; text is encoded as UTF-8.
        keep: where the old file goes; between the two moves it is only there.

    Raises:
        StorageError: if it cannot be written; the old content then stands.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            with temporary.open("wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            if keep is not None and path.exists():
                path.replace(keep)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise StorageError(f"{path} could not be written: {error.strerror or error}") from error


def leftovers(folder: Path) -> list[Path]:
    """List the temporary files of writers that were killed."""
    return list(folder.glob(".*.tmp"))
