"""Data sets: what they hold, where they are looked for, and what is said of damaged ones."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import io
import random
import socket
import struct
import urllib.request
from pathlib import Path

import platformdirs
import pytest
import torch
from torchvision import datasets

from hyperrbp.data import builtin as data
from hyperrbp.data.batches import Batch
from hyperrbp.data.data_set import DataSet
from hyperrbp.exceptions import DataError, StorageError

# --- digits --------------------------------------------------------------------------------------


def test_digits_are_real_and_in_their_order(tmp_path):
    digits = data.load_builtin_set("digits", tmp_path)
    assert digits.train.inputs.shape == (1200, 64)
    assert digits.heldout.inputs.shape == (597, 64)
    for part in (digits.train, digits.heldout):
        assert part.inputs.dtype == torch.float32
        assert part.targets.dtype == torch.int64
        assert part.targets.shape == (len(part.inputs),)
        assert (part.inputs.min(), part.inputs.max()) == (0, 1)
        assert sorted(set(part.targets.tolist())) == list(range(10))
    assert digits.train.targets[:12].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert digits.train.inputs[0, :8].mul(16).tolist() == [0, 0, 5, 13, 9, 1, 0, 0]


@pytest.mark.parametrize("name", data.BUILTIN_SETS)
def test_what_is_known_of_a_set_before_it_is_read(name):
    source = data.BUILTIN_SETS[name]
    assert (source.train_examples, source.features) in [(1200, 64), (60000, 784)]
    assert source.classes == 10


# --- the data root -------------------------------------------------------------------------------


def test_the_argument_names_the_data_root(monkeypatch):
    monkeypatch.setenv("HYPERRBP_DATA", "/from/environment")
    assert data.data_root(Path("/from/argument")) == Path("/from/argument")


def test_else_the_environment_does(monkeypatch):
    monkeypatch.setenv("HYPERRBP_DATA", "/from/environment")
    assert data.data_root() == Path("/from/environment")


@pytest.mark.parametrize("empty", [True, False])
def test_else_the_cache_folder(monkeypatch, empty):
    monkeypatch.setattr(platformdirs, "user_cache_dir", lambda name: f"/cache/{name}")
    if empty:
        monkeypatch.setenv("HYPERRBP_DATA", "")
    else:
        monkeypatch.delenv("HYPERRBP_DATA", raising=False)
    assert data.data_root() == Path("/cache/hyperrbp")


def test_a_tilde_is_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("HYPERRBP_DATA", "~/data")
    assert data.data_root() == Path("/home/someone/data")
    assert data.data_root(Path("~/data")) == Path("/home/someone/data")


# --- idx files -----------------------------------------------------------------------------------

TRAIN, HELDOUT = 20, 12
TORCHVISION = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "kmnist": "KMNIST"}


def pixels(count, side=28):
    return bytes((7 * i) % 256 for i in range(count * side * side))


def images(count, side=28):
    return struct.pack(">4i", 0x0803, count, side, side) + pixels(count, side)


def labels(values):
    return struct.pack(">2i", 0x0801, len(values)) + bytes(values)


def classes(count):
    return [(3 * i) % 10 for i in range(count)]


GOOD = {
    "train-images-idx3-ubyte": images(TRAIN),
    "train-labels-idx1-ubyte": labels(classes(TRAIN)),
    "t10k-images-idx3-ubyte": images(HELDOUT),
    "t10k-labels-idx1-ubyte": labels(classes(HELDOUT)),
}


def write(root, files, folder="MNIST"):
    raw = root / folder / "raw"
    raw.mkdir(parents=True)
    for name, content in files.items():
        (raw / name).write_bytes(content)
    return raw


@pytest.fixture
def offline(monkeypatch):
    tried = []

    def refuse(*args, **kwargs):
        tried.append(args)
        raise OSError("no network in this test")

    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)
    return tried


@pytest.mark.parametrize("name", TORCHVISION)
def test_whole_files_are_read(tmp_path, offline, name):
    """What is there is read to the bit, and is not fetched again even if a download is allowed."""
    write(tmp_path, GOOD, TORCHVISION[name])
    read = data.load_builtin_set(name, tmp_path)
    for part, count in ((read.train, TRAIN), (read.heldout, HELDOUT)):
        assert part.inputs.shape == (count, 784)
        assert part.inputs.dtype == torch.float32
        assert part.targets.tolist() == classes(count)
        expected = torch.tensor(list(pixels(count))).view(count, 784) / 255
        assert torch.equal(part.inputs, expected)
    assert data.load_builtin_set(name, tmp_path, download=True).train.targets.tolist() == classes(
        TRAIN
    )
    assert not offline


@pytest.mark.parametrize("name", TORCHVISION)
def test_nothing_is_downloaded_unless_asked_for(tmp_path, offline, name):
    """Sockets raise; a missing set is refused with the ways to get it, and nothing is made.

    Catches a download that nobody asked for.
    """
    with pytest.raises(DataError) as refused:
        data.load_builtin_set(name, tmp_path / "nowhere")
    message = str(refused.value)
    assert str(tmp_path / "nowhere" / TORCHVISION[name] / "raw") in message
    for hint in ("--data-root", "HYPERRBP_DATA", "--set data.download=true"):
        assert hint in message
    assert not offline
    assert not (tmp_path / "nowhere").exists()


def test_digits_need_no_network(tmp_path, offline):
    assert len(data.load_builtin_set("digits", tmp_path, download=True).train) == 1200
    assert not offline
    assert not list(tmp_path.iterdir())


def test_a_download_that_fails_says_so(tmp_path, offline):
    """Without a network: a data error with the reason, and the folders are gone again."""
    with pytest.raises(DataError, match=r"MNIST cannot be downloaded into .*no network in this"):
        data.load_builtin_set("mnist", tmp_path / "root", download=True)
    assert offline
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("absent", GOOD)
def test_one_missing_file_is_named(tmp_path, offline, absent):
    raw = write(tmp_path, {name: content for name, content in GOOD.items() if name != absent})
    with pytest.raises(DataError) as refused:
        data.load_builtin_set("mnist", tmp_path)
    assert f"{raw} lacks {absent};" in str(refused.value)
    assert not offline


IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"

DAMAGED = [
    (IMAGES, b"", "training part"),
    (LABELS, b"", "training part"),
    ("t10k-images-idx3-ubyte", b"", "held-out part"),
    (IMAGES, GOOD[IMAGES][:3], "training part"),
    (IMAGES, GOOD[IMAGES][:10], "training part"),
    (IMAGES, GOOD[IMAGES][:16], "training part"),
    (IMAGES, GOOD[IMAGES][:-1], "training part"),
    (IMAGES, GOOD[IMAGES][:1000], "training part"),
    (IMAGES, GOOD[IMAGES] + b"x", "training part"),
    (LABELS, GOOD[LABELS][:-1], "training part"),
    (LABELS, GOOD[LABELS][:8], "training part"),
    (IMAGES, b"\x1f\x8b" + GOOD[IMAGES], "training part"),
    (IMAGES, b"<html><body>404 not found</body></html>", "training part"),
    (IMAGES, GOOD[LABELS], "training part"),
    (LABELS, GOOD[IMAGES], "training part"),
    (LABELS, struct.pack(">2i", 0x0A01, TRAIN) + bytes(TRAIN), "training part"),  # no such type
    (LABELS, struct.pack(">2i", 0x0901, TRAIN) + bytes(TRAIN), "training part"),  # signed bytes
    (LABELS, struct.pack(">2i", 0x0C01, TRAIN) + bytes(4 * TRAIN), "training part"),  # int32
    (IMAGES, struct.pack(">4i", 0x0803, -1, 28, 28) + pixels(TRAIN), "training part"),
    (IMAGES, struct.pack(">4i", 0x0803, 2**31 - 1, 28, 28) + pixels(TRAIN), "training part"),
    (IMAGES, images(TRAIN - 1), "19 images for 20 labels"),
    (LABELS, labels(classes(TRAIN + 1)), "20 images for 21 labels"),
    (IMAGES, images(0), ""),
    (LABELS, labels([0] * (TRAIN - 1) + [10]), "labels outside 0 … 9"),
    (LABELS, labels([255] + [0] * (TRAIN - 1)), "labels outside 0 … 9"),
    (IMAGES, images(TRAIN, side=27), "expected 784 features"),
]


@pytest.mark.parametrize(("name", "content", "words"), DAMAGED)
@pytest.mark.parametrize("download", [False, True])
def test_a_damaged_file_is_named(tmp_path, offline, name, content, words, download):
    write(tmp_path, {**GOOD, name: content})
    with pytest.raises(DataError) as refused:
        data.load_builtin_set("mnist", tmp_path, download=download)
    message = str(refused.value)
    assert str(tmp_path) in message
    assert words in message
    assert "\n" not in message
    assert not message.endswith(": ")
    assert not offline


# --- downloads -----------------------------------------------------------------------------------


class Response(io.BytesIO):
    """What urlopen returns; a connection may break in the middle of it."""

    def __init__(self, address: str, content: bytes, breaks: Exception | None = None) -> None:
        super().__init__(content)
        self.url, self.length, self._breaks = address, len(content), breaks

    def read(self, size: int | None = -1) -> bytes:
        if self._breaks:
            raise self._breaks
        return super().read(size)


class Mirror:
    """Serves archives of GOOD; their digests are the published ones. Knows what was asked for."""

    def __init__(self, monkeypatch, class_name: str = "MNIST") -> None:
        packed = {f"{name}.gz": gzip.compress(content) for name, content in GOOD.items()}
        published = [(name, hashlib.md5(content).hexdigest()) for name, content in packed.items()]
        monkeypatch.setattr(getattr(datasets, class_name), "resources", published)
        monkeypatch.setattr(urllib.request, "urlopen", self._urlopen)
        self.archives, self.breaks, self.asked = packed, {}, []

    def _urlopen(self, request, *args, **kwargs) -> Response:
        address = getattr(request, "full_url", request)
        self.asked.append(address)
        name = address.rpartition("/")[2]
        return Response(address, self.archives[name], self.breaks.get(name))


def everything(root: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(root)): path.read_bytes() if path.is_file() else None
        for path in root.rglob("*")
    }


def whole(folder: str) -> dict[str, bytes | None]:
    files = {f"{folder}/raw/{name}": content for name, content in GOOD.items()}
    return {folder: None, f"{folder}/raw": None, **files}


@pytest.mark.parametrize("name", TORCHVISION)
def test_a_good_download_is_read_and_kept(tmp_path, monkeypatch, name):
    """All files over https, unpacked under their names and nothing else; not fetched again.

    Catches an address without encryption, archives kept as they came, and scratch that stays.
    """
    folder = TORCHVISION[name]
    mirror = Mirror(monkeypatch, folder)
    read = data.load_builtin_set(name, tmp_path, download=True)
    assert read.train.targets.tolist() == classes(TRAIN)
    assert read.heldout.targets.tolist() == classes(HELDOUT)
    assert everything(tmp_path) == whole(folder)
    assert {address.rpartition("/")[2] for address in mirror.asked} == set(mirror.archives)
    assert all(address.startswith("https://") for address in mirror.asked)
    count = len(mirror.asked)
    data.load_builtin_set(name, tmp_path, download=True)
    assert len(mirror.asked) == count


@pytest.mark.parametrize("there", GOOD)
def test_only_what_is_missing_is_fetched(tmp_path, monkeypatch, there):
    """What is there already stays as it is, to the bit and the time stamp.

    Catches a set that is fetched as a whole.
    """
    mirror = Mirror(monkeypatch)
    raw = write(tmp_path, {there: GOOD[there]})
    before = (raw / there).stat()
    data.load_builtin_set("mnist", tmp_path, download=True)
    assert f"{there}.gz" not in {address.rpartition("/")[2] for address in mirror.asked}
    assert (raw / there).stat().st_mtime_ns == before.st_mtime_ns
    assert (raw / there).stat().st_ino == before.st_ino
    assert everything(tmp_path) == whole("MNIST")


def spoilt(mirror: Mirror, monkeypatch, how: str, archive: str) -> None:
    content = mirror.archives[archive]
    if how == "flipped":
        middle = len(content) // 2
        content = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    elif how == "cut":
        content = content[:-1]
    elif how == "another":
        content = gzip.compress(GOOD[IMAGES] + b"x")
    elif how == "page":
        content = b"<html>log in to the hotel's network</html>"
    elif how == "breaks":
        mirror.breaks[archive] = http.client.IncompleteRead(content[:5])
    elif how == "reset":
        mirror.breaks[archive] = ConnectionResetError("reset by peer")
    mirror.archives[archive] = content


@pytest.mark.parametrize("how", ["flipped", "cut", "another", "page", "breaks", "reset"])
@pytest.mark.parametrize("which", GOOD)
def test_a_download_is_whole_or_not_at_all(tmp_path, monkeypatch, how, which):
    """Each archive flipped, cut, another, a web page or broken off: nothing of the set appears.

    Catches a checksum not taken, files kept one by one, and a second try without encryption.
    """
    mirror = Mirror(monkeypatch)
    spoilt(mirror, monkeypatch, how, f"{which}.gz")
    with pytest.raises(DataError, match=r"MNIST cannot be downloaded into .*: \S"):
        data.load_builtin_set("mnist", tmp_path / "empty", download=True)
    assert list(tmp_path.iterdir()) == []
    assert all(address.startswith("https://") for address in mirror.asked)
    # What was there before stays, and nothing comes beside it.
    kept = next(name for name in GOOD if name != which)
    write(tmp_path / "some", {kept: GOOD[kept], "notes": b"mine"})
    before = everything(tmp_path)
    with pytest.raises(DataError, match="MNIST cannot be downloaded"):
        data.load_builtin_set("mnist", tmp_path / "some", download=True)
    assert everything(tmp_path) == before


@pytest.mark.parametrize("call", ["write_bytes", "replace"])
@pytest.mark.parametrize("nth", [1, 2, 3, 4])
def test_a_disk_that_fills_up_leaves_nothing_of_a_download(tmp_path, monkeypatch, call, nth):
    """The nth file cannot be written, or moved into its place: nothing of the set appears."""
    Mirror(monkeypatch)
    real, calls = getattr(Path, call), []

    def full(self, *arguments):
        calls.append(self)
        if len(calls) == nth:
            raise OSError(28, "No space left on device")
        return real(self, *arguments)

    monkeypatch.setattr(Path, call, full)
    with pytest.raises(StorageError, match="No space left on device"):
        data.load_builtin_set("mnist", tmp_path / "root", download=True)
    assert len(calls) == nth
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_a_files_place_stops_the_whole_download(tmp_path, monkeypatch):
    """The last file cannot be moved, for real: those before it are taken back."""
    Mirror(monkeypatch)
    (tmp_path / "MNIST" / "raw" / list(GOOD)[-1]).mkdir(parents=True)
    before = everything(tmp_path)
    with pytest.raises(StorageError, match="MNIST cannot be written"):
        data.load_builtin_set("mnist", tmp_path, download=True)
    assert everything(tmp_path) == before


def test_a_set_without_examples_is_refused(monkeypatch, tmp_path):
    nothing = Batch(torch.zeros(0, 64), torch.zeros(0, dtype=torch.int64))
    some = Batch(torch.zeros(5, 64), torch.zeros(5, dtype=torch.int64))
    for pair in ((nothing, some), (some, nothing)):
        source = data.BuiltinSet(lambda root, download, pair=pair: DataSet(*pair), 5, 64, 10)
        monkeypatch.setitem(data.BUILTIN_SETS, "mine", source)
        with pytest.raises(DataError, match=r"data set 'mine' in .*: no examples"):
            data.load_builtin_set("mine", tmp_path)


def test_random_damage_is_a_data_error_or_other_data(tmp_path):
    source = random.Random(0)
    raw = write(tmp_path, GOOD)
    refused = []
    for _ in range(300):
        name = source.choice(list(GOOD))
        content = bytearray(GOOD[name])
        for _ in range(source.choice([1, 1, 3])):
            content[source.randrange(20)] = source.randrange(256)
        if source.random() < 0.3:
            del content[source.randrange(len(content)) :]
        (raw / name).write_bytes(content)
        try:
            read = data.load_builtin_set("mnist", tmp_path)
        except DataError as error:
            refused.append(str(error))
        else:
            assert (len(read.train), len(read.heldout)) == (TRAIN, HELDOUT)
        (raw / name).write_bytes(GOOD[name])
    assert 100 < len(refused) < 300
    assert all(str(tmp_path) in message for message in refused)


def test_a_folder_in_place_of_a_file(tmp_path):
    raw = write(tmp_path, {name: content for name, content in GOOD.items() if name != LABELS})
    (raw / LABELS).mkdir()
    with pytest.raises(DataError, match=f"lacks {LABELS}"):
        data.load_builtin_set("mnist", tmp_path)


# --- real MNIST ----------------------------------------------------------------------------------


def test_real_mnist(data_root):
    if not (data_root / "MNIST" / "raw").is_dir():
        pytest.skip(f"{data_root} holds no MNIST")
    mnist = data.load_builtin_set("mnist", data_root)
    assert mnist.heldout.inputs.shape == (10000, 784)
    assert mnist.train.inputs.shape[1] == 784
    assert len(mnist.train) in (10000, 60000)  # this project's copy has the first 10,000
    assert mnist.train.targets[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert mnist.heldout.targets[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert mnist.train.targets[:10000].bincount().tolist() == [
        1001, 1127, 991, 1032, 980, 863, 1014, 1070, 944, 978,
    ]  # fmt: skip
    for part in (mnist.train, mnist.heldout):
        assert (part.inputs.min(), part.inputs.max()) == (0, 1)
    assert abs(float(mnist.train.inputs[:10000].mean()) - 0.13) < 0.01
