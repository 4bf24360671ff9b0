"""One downloader for all data sets; tests/data holds what it promises for each set."""

from __future__ import annotations

import hashlib
import io
import urllib.request

import pytest

from hyperrbp.exceptions import DataError
from hyperrbp.runtime.downloads import Digest, RemoteFile, download

CONTENT = b"published"
SHA256 = Digest("SHA-256", hashlib.sha256(CONTENT).hexdigest())
MD5 = Digest("MD5", hashlib.md5(CONTENT).hexdigest())


class Response(io.BytesIO):
    def __init__(self, content: bytes, url: str) -> None:
        super().__init__(content)
        self.url = url


@pytest.fixture
def network(monkeypatch):
    """Addresses that were asked for; one with 'redirected' in it leads to http."""
    asked: list[str] = []

    def urlopen(address, **kwargs):
        asked.append(address)
        led_to = address.replace("https", "http") if "redirected" in address else address
        return Response(CONTENT, led_to)

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    return asked


@pytest.mark.parametrize("digest", [SHA256, MD5])
def test_a_verified_file_is_kept_and_returned(tmp_path, network, digest):
    files = {"a": RemoteFile("https://example.org/a.gz", digest)}
    folder = tmp_path / "new" / "folder"
    assert download("Set", files, folder, unpack=bytes.upper) == {"a": b"PUBLISHED"}
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {"a": b"PUBLISHED"}
    assert network == ["https://example.org/a.gz"]


@pytest.mark.parametrize(
    ("address", "asked"), [("http://example.org/a", 0), ("https://example.org/redirected", 1)]
)
def test_nothing_comes_over_http(tmp_path, network, address, asked):
    """Neither where the address says so, nor where it leads there."""
    files = {"a": RemoteFile(address, SHA256)}
    with pytest.raises(DataError, match=r"Set cannot be downloaded into .* is not encrypted"):
        download("Set", files, tmp_path / "new")
    assert len(network) == asked
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_download_leaves_nothing(tmp_path, network):
    """Ctrl-C between two files of a set: nothing of it appears, and what was there stays."""
    (tmp_path / "mine").write_text("mine")

    def interrupted(content: bytes) -> bytes:
        if len(network) == 2:
            raise KeyboardInterrupt
        return content

    files = {name: RemoteFile(f"https://example.org/{name}", SHA256) for name in "abc"}
    with pytest.raises(KeyboardInterrupt):
        download("Set", files, tmp_path, unpack=interrupted)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_difference_names_both_digests():
    assert SHA256.difference(CONTENT) is None
    assert "its MD5 is" in (MD5.difference(b"other") or "")
