"""The format of a checkpoint: JSON with its digest, and tensors in a safetensors file beside it.

Two are kept, the newest and the one before it: a checkpoint is whole, or known to be damaged.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyperrbp.exceptions import CheckpointError, StorageError
from hyperrbp.runtime import files

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)


def previous(path: Path) -> Path:
    """Return the path of the checkpoint before the one at ``path``."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def exists(path: Path) -> bool:
    """Whether there is a checkpoint at ``path``, or the one before it."""
    return path.exists() or previous(path).exists()


def save(path: Path, content: dict[str, Any], tensors: dict[str, Tensor] | None = None) -> None:
    """Write a checkpoint, and keep the one before it. Floats survive to the bit.

    Tensors go into a file beside it, which it names with its digest. They are written first, under
    a new name: at any time a checkpoint that is there finds those that it was written with.

    Raises:
        StorageError: if it cannot be written; the one before then stands.
    """
    if tensors is not None:
        packed = packed_tensors(tensors)
        digest = _digest(packed)
        beside = path.with_name(f"{path.stem}-{digest[:16]}.safetensors")
        files.write_atomically(beside, packed)
        content = content | {"tensors": {"file": beside.name, "sha256": digest}}
    body = json.dumps(content, allow_nan=False)
    whole = json.dumps({"sha256": _digest(body), "content": body}) + "\n"
    files.write_atomically(path, whole, keep=previous(path))
    if tensors is not None:
        with suppress(OSError, CheckpointError):  # it stands; the next one sweeps again
            used = {beside, _tensors_of(previous(path))}
            for old in set(path.parent.glob(f"{path.stem}-*.safetensors")) - used:
                old.unlink(missing_ok=True)


def load(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read a checkpoint and its tensors, on the CPU; the one before if it is damaged.

    That is logged; the damaged one is put aside, so that it never takes the place of a whole one.

    Raises:
        CheckpointError: if there is none, or none that is exactly what was written.
        StorageError: if a damaged one cannot be put aside.
    """
    damage: list[CheckpointError] = []
    for file in (path, previous(path)):
        try:
            content = _read(file)
            tensors = _read_beside(file, content)
        except FileNotFoundError:
            continue
        except CheckpointError as error:
            damage.append(error)
            continue
        if damage:
            log.warning("%s; going on from the one before it, %s", damage[0], file.name)
            _put_aside(path)
        return content, tensors
    if damage:
        raise CheckpointError("\n".join(map(str, damage)))
    raise CheckpointError(f"{path}: there is no checkpoint")


def _put_aside(path: Path) -> None:
    try:
        path.replace(path.with_name(f"{path.stem}.damaged{path.suffix}"))
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror or error}") from error


def _read(file: Path) -> dict[str, Any]:
    try:
        wrapper = json.loads(file.read_bytes())
        body = wrapper["content"]
        if _digest(body) != wrapper["sha256"]:
            raise ValueError("its digest does not match")
        content = json.loads(body)
        if not isinstance(content, dict):
            raise ValueError("not a mapping")
    except FileNotFoundError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{file}: the checkpoint is damaged ({error})") from None
    return content


def _read_beside(file: Path, content: dict[str, Any]) -> dict[str, Tensor]:
    if "tensors" not in content:
        return {}
    named = content.pop("tensors")
    try:
        beside, digest = file.with_name(Path(named["file"]).name), named["sha256"]
        packed = beside.read_bytes()
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file}: its tensors cannot be read ({error})") from None
    if _digest(packed) != digest:
        raise CheckpointError(f"{beside}: the checkpoint is damaged (its digest differs)")
    return _unpacked(packed, beside)


def _tensors_of(file: Path) -> Path | None:
    """Return the file of a checkpoint's tensors, if it has any."""
    if not file.exists():
        return None
    named = _read(file).get("tensors")
    return None if named is None else file.with_name(named["file"])


def packed_tensors(tensors: Mapping[str, Tensor]) -> bytes:
    """Return named tensors in the safetensors format."""
    from safetensors.torch import save as packed

    return packed({name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()})


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file, onto the CPU.

    Raises:
        CheckpointError: if it cannot be read.
    """
    try:
        packed = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    return _unpacked(packed, path)


def _unpacked(packed: bytes, path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load as unpacked

    try:
        return unpacked(packed)
    except (SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None


def _digest(content: str | bytes) -> str:
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()
