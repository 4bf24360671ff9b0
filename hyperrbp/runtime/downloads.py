"""Files from the network, as they were published: over https, verified, all of a set or none.

pooch (1.9) verifies single files too, but keeps them one by one, follows redirects to http, and
needs requests.
"""

from __future__ import annotations

import hashlib
import http.client
import tempfile
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hyperrbp.exceptions import DataError, StorageError, message_of

_TIMEOUT = 60.0
"""Seconds that a connection may say nothing."""


@dataclass(frozen=True)
class Digest:
    """What a published file hashes to."""

    algorithm: Literal["MD5", "SHA-256"]
    hexadecimal: str

    def difference(self, content: bytes) -> str | None:
        """Return how the digest of the content differs from this one; None if it does not."""
        if self.algorithm == "MD5":
            found = hashlib.md5(content, usedforsecurity=False).hexdigest()
        else:
            found = hashlib.sha256(content).hexdigest()
        if found == self.hexadecimal:
            return None
        return f"its {self.algorithm} is {found[:12]}…, expected {self.hexadecimal[:12]}…"


@dataclass(frozen=True)
class RemoteFile:
    """A file on the network, before it is unpacked."""

    address: str
    """Where it is published; has to begin with ``https://``."""
    digest: Digest


def download(
    name: str,
    files: Mapping[str, RemoteFile],
    folder: Path,
    unpack: Callable[[bytes], bytes] = lambda content: content,
) -> dict[str, bytes]:
    """Fetch files into a folder, made if need be: all of them, or none.

    Args:
        name: of what they are, for a message.
        files: by the names that they get.
        folder: where they go; what is there under other names stays.
        unpack: makes the content that is kept from the content that was published.

    Returns:
        The contents that were kept, by name.

    Raises:
        DataError: if one cannot be had as it was published.
        StorageError: if one cannot be written.
    """
    contents: dict[str, bytes] = {}
    try:
        with _undone_on_failure(folder) as moved:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".download-", dir=folder) as scratch:
                for file, remote in files.items():
                    contents[file] = unpack(
                        _fetch(remote, f"{name} cannot be downloaded into {folder}")
                    )
                    Path(scratch, file).write_bytes(contents[file])
                for file in files:
                    Path(scratch, file).replace(folder / file)
                    moved.append(folder / file)
    except OSError as error:
        reason = error.strerror or error
        raise StorageError(f"{name} cannot be written into {folder}: {reason}") from error
    return contents


@contextmanager
def _undone_on_failure(folder: Path) -> Iterator[list[Path]]:
    """Remove the listed files, and the folders that were made, unless all goes well."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    files: list[Path] = []
    try:
        yield files
    except BaseException:
        with suppress(OSError):
            for file in files:
                file.unlink()
            for path in made:
                path.rmdir()
        raise


def _fetch(remote: RemoteFile, failure: str) -> bytes:
    """Return the content of a remote file, verified.

    Raises:
        DataError: if it cannot be had, with ``failure`` in front of the reason.
    """
    try:
        with urllib.request.urlopen(_encrypted(remote.address), timeout=_TIMEOUT) as response:
            _encrypted(response.url)  # it may have been redirected
            content: bytes = response.read()
    except (OSError, http.client.HTTPException) as error:
        raise DataError(f"{failure}: {remote.address}: {message_of(error)}") from error
    if difference := remote.digest.difference(content):
        raise DataError(f"{failure}: {remote.address} is not the published file: {difference}")
    return content


def _encrypted(address: str) -> str:
    if not address.startswith("https://"):
        raise ConnectionError(f"{address} is not encrypted")
    return address
