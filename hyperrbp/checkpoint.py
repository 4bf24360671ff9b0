"""Files that are whole or absent, and that know whether they are damaged."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from hyperrbp.errors import CheckpointError, StorageError


def write_atomically(path: Path, text: str) -> None:
    """Replace the file at once: a reader, or a crash, sees the old content or the new.

    Raises:
        StorageError: if it cannot be written; the old content then stands.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            with temporary.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
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
    """Temporary files of writers that were killed."""
    return list(folder.glob(".*.tmp"))


def save(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint: JSON with a digest. Floats survive to the bit."""
    body = json.dumps(content, allow_nan=False)
    write_atomically(path, json.dumps({"sha256": _digest(body), "content": body}) + "\n")


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint.

    Raises:
        CheckpointError: if it is missing, or not exactly what was written.
    """
    try:
        wrapper = json.loads(path.read_bytes())
        body = wrapper["content"]
        if _digest(body) != wrapper["sha256"]:
            raise ValueError("its digest does not match")
        content = json.loads(body)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: there is no checkpoint") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: the checkpoint is damaged ({error})") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: the checkpoint is damaged (not a mapping)")
    return content


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
