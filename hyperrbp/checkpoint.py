"""Files that are whole or absent, and that know whether they are damaged."""

from __future__ import annotations

import hashlib
import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyperrbp.errors import CheckpointError, StorageError

if TYPE_CHECKING:
    from torch import Tensor


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace the file at once: a reader, or a crash, sees the old content or the new.

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


def save_with_tensors(path: Path, content: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write a checkpoint whose tensors lie in a file beside it, which it names with its digest.

    The tensors are written first, under a new name: at any time the checkpoint that is there finds
    those that it was written with.
    """
    packed = packed_tensors(tensors)
    digest = _digest(packed)
    beside = path.with_name(f"{path.stem}-{digest[:16]}.safetensors")
    write_atomically(beside, packed)
    save(path, content | {"tensors": {"file": beside.name, "sha256": digest}})
    for old in path.parent.glob(f"{path.stem}-*.safetensors"):
        if old != beside:
            old.unlink()


def load_with_tensors(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read what :func:`save_with_tensors` wrote; the tensors are on the CPU.

    Raises:
        CheckpointError: if any of it is missing, or not exactly what was written.
    """
    from safetensors.torch import load as unpacked

    content = load(path)
    try:
        named = content.pop("tensors")
        beside = path.with_name(Path(named["file"]).name)
        packed = beside.read_bytes()
        if _digest(packed) != named["sha256"]:
            raise CheckpointError(f"{beside}: the checkpoint is damaged (its digest differs)")
    except (OSError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: its tensors cannot be read ({error})") from None
    return content, unpacked(packed)


def packed_tensors(tensors: dict[str, Tensor]) -> bytes:
    """Named tensors in the safetensors format."""
    from safetensors.torch import save as packed

    return packed({name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()})


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU.

    Raises:
        CheckpointError: if it cannot be read.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load as unpacked

    try:
        return unpacked(path.read_bytes())
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None


def finite(value: Any) -> Any:
    """The same with null for every number that JSON does not know."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _digest(content: str | bytes) -> str:
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()
