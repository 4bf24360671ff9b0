"""Checkpoints: whole or absent at any instant, and never read where they are damaged."""

from __future__ import annotations

import errno
import io
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from stat import S_ISDIR

import pytest
import torch
from factories import SIX_STEPS, outcome, recipe
from processes import watch_the_disk
from runs import number_of
from torch import Tensor
from typer.testing import CliRunner

from hyperrbp.cli import app as cli
from hyperrbp.exceptions import CheckpointError, StorageError
from hyperrbp.experiments import checkpoint
from hyperrbp.experiments.train import train_recipe
from hyperrbp.experiments.tune import tune_recipe
from hyperrbp.runtime import files
from hyperrbp.runtime.callbacks import Callback

State = tuple[dict, dict[str, Tensor]]
"""The content and the tensors of a checkpoint."""


# --- a disk that can be stopped ------------------------------------------------------------------


class Crash(BaseException):
    """The process ends: nothing that it would do later touches a file."""


def crash_at(moment: int) -> Callable[[str], None]:
    numbers = count(1)

    def crash(name: str) -> None:
        if next(numbers) >= moment:
            raise Crash

    return crash


def full_at(moment: int) -> Callable[[str], None]:
    """One call fails; what tidies up after it does not."""
    numbers = count(1)

    def fail(name: str) -> None:
        if next(numbers) == moment:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return fail


def watching(moment: Callable[[str], None], act: Callable[[], None]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        watch_the_disk(patch, moment)
        act()


def moments_of(act: Callable[[], None]) -> int:
    seen = count()
    watching(lambda name: next(seen), act)
    return next(seen)


# --- whole or absent -----------------------------------------------------------------------------


def generation(number: int, with_tensors: bool = True) -> State:
    source = torch.Generator().manual_seed(number)
    content = {"epoch": number, "rates": [0.1 * number, 5e-324, 1 / 3], "best": {"of": "é"}}
    tensors = {"weight": torch.randn(3, 4, generator=source), "none": torch.zeros(2, 0)}
    return content, tensors if with_tensors else {}


def write(file: Path, state: State) -> None:
    checkpoint.save(file, state[0], state[1] or None)


def alike(one: State, other: State) -> bool:
    return (
        one[0] == other[0]
        and one[1].keys() == other[1].keys()
        and all(torch.equal(tensor, other[1][name]) for name, tensor in one[1].items())
    )


def which(file: Path, with_tensors: bool = True) -> int:
    """The generation that is loaded; whole, or this fails."""
    found = checkpoint.load(file)
    number = found[0]["epoch"]
    assert alike(found, generation(number, with_tensors))
    return number


def two_generations(folder: Path, with_tensors: bool = True) -> Path:
    """The checkpoint of generation 2 in a new folder, beside generation 1."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    file = folder / "checkpoint.json"
    for number in (1, 2):
        write(file, generation(number, with_tensors))
    return file


@pytest.mark.parametrize("with_tensors", [False, True])
@pytest.mark.parametrize("stop", [crash_at, full_at])
def test_a_save_stopped_at_any_call_leaves_the_old_or_the_new(tmp_path, caplog, stop, with_tensors):
    """A crash, and a full disk, before, after and amid each file-system call of a save.

    Catches writing in place, and tensors that overwrite those of the checkpoint before.
    """
    new, newer = generation(3, with_tensors), generation(4, with_tensors)
    found = []

    def save() -> None:
        write(tmp_path / "run" / "checkpoint.json", new)

    two_generations(tmp_path / "run", with_tensors)
    for moment in range(1, 1 + moments_of(save)):
        file = two_generations(tmp_path / "run", with_tensors)
        returned = False
        with suppress(Crash, StorageError):
            watching(stop(moment), save)
            returned = True
        found.append(which(file, with_tensors))
        assert found[-1] == 3 or not returned
        write(file, newer)
        assert which(file, with_tensors) == 4
        file.unlink()
        assert which(file, with_tensors) == found[-1], "the one before is not what was loaded"
        left = len(files.leftovers(file.parent))
        assert len(list(file.parent.iterdir())) == left + (3 if with_tensors else 1)
    assert {*found} == {2, 3}
    assert not caplog.records, "a checkpoint was damaged"


def test_a_first_save_stopped_at_any_call_leaves_none_or_the_new(tmp_path):
    """The same where there is no checkpoint yet. Catches a first one that is there in part."""
    file = tmp_path / "checkpoint.json"

    def save() -> None:
        write(file, generation(1))

    there = []
    for moment in range(1, 1 + moments_of(save)):
        for old in tmp_path.iterdir():
            old.unlink()
        with pytest.raises(Crash):
            watching(crash_at(moment), save)
        there.append(checkpoint.exists(file))
        if there[-1]:
            assert which(file) == 1
        else:
            with pytest.raises(CheckpointError, match="there is no checkpoint"):
                checkpoint.load(file)
        write(file, generation(2))
        assert which(file) == 2
    assert {*there} == {False, True}


def _bytes(file: Path) -> bytes:
    """What is in it, past :data:`CALLS`."""
    with io.FileIO(file) as raw:
        return raw.readall()


class Disk:
    """What is left of a folder when the power fails: what has been synced, and no more."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names = self._names()
        self.data = {file.stat().st_ino: _bytes(file) for file in folder.iterdir()}

    def _names(self) -> dict[str, int]:
        return {file.name: file.stat().st_ino for file in self.folder.iterdir()}

    def sync(self, opened: int) -> None:
        known = os.fstat(opened)
        if S_ISDIR(known.st_mode):
            self.names = self._names()
            return
        for file in self.folder.iterdir():
            if file.stat().st_ino == known.st_ino:
                self.data[known.st_ino] = _bytes(file)

    def after_power_cut(self, folder: Path) -> Iterator[Path]:
        """With the newest names and with those synced last; of either, the data synced last."""
        for names in (self._names(), self.names):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            for name, inode in names.items():
                (folder / name).write_bytes(self.data.get(inode, b""))
            yield folder


@pytest.mark.parametrize("with_tensors", [False, True])
def test_a_power_cut_at_any_call_leaves_the_old_or_the_new(
    tmp_path, monkeypatch, caplog, with_tensors
):
    """The power fails at each call of a save: what was never synced is gone.

    Catches a missing sync, of the file or of the folder.
    """
    file = two_generations(tmp_path / "run", with_tensors)
    disk, found = Disk(file.parent), []
    fsync = os.fsync

    def synced(opened: int) -> None:
        fsync(opened)
        disk.sync(opened)

    def loaded() -> list[int]:
        return [
            which(folder / file.name, with_tensors)
            for folder in disk.after_power_cut(tmp_path / "left")
        ]

    def power_cut(name: str) -> None:
        found.extend(loaded())

    monkeypatch.setattr(os, "fsync", synced)
    watching(power_cut, lambda: write(file, generation(3, with_tensors)))
    assert {*found} == {2, 3}
    assert loaded() == [3, 3], "a save that has returned is gone"
    assert not caplog.records, "a checkpoint was damaged"


def test_a_checkpoint_may_have_tensors_where_the_one_before_had_none(tmp_path):
    file = tmp_path / "checkpoint.json"
    for number, with_tensors in ((1, False), (2, True), (3, True), (4, False), (5, False)):
        write(file, generation(number, with_tensors))
        assert which(file, with_tensors) == number
    write(file, generation(6))
    file.unlink()
    assert which(file, with_tensors=False) == 5


def test_what_is_not_finite_is_refused_and_leaves_the_old(tmp_path):
    file = two_generations(tmp_path / "run")
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="JSON compliant"):
            checkpoint.save(file, {"epoch": 3, "loss": value})
        assert which(file) == 2


def test_tensors_are_read_from_a_file_and_a_fault_names_it(tmp_path):
    file, tensors = tmp_path / "weights.safetensors", generation(1)[1]
    with pytest.raises(CheckpointError, match=r"weights\.safetensors cannot be read"):
        checkpoint.read_tensors(file)
    packed = checkpoint.packed_tensors(tensors)
    file.write_bytes(packed[:-1])
    with pytest.raises(CheckpointError, match=r"weights\.safetensors cannot be read"):
        checkpoint.read_tensors(file)
    file.write_bytes(packed)
    assert alike(({}, checkpoint.read_tensors(file)), ({}, tensors))


# --- damage --------------------------------------------------------------------------------------


def damaged(whole: bytes, flips: int, cuts: int, seed: int = 0) -> Iterator[bytes]:
    """Contents with one bit flipped, and contents cut short."""
    chance = random.Random(seed)
    for _ in range(flips):
        flipped = bytearray(whole)
        flipped[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        yield bytes(flipped)
    for length in [0, len(whole) - 1, *(chance.randrange(len(whole)) for _ in range(cuts))][:cuts]:
        yield whole[:length]


def parts(file: Path) -> list[Path]:
    """The files that a checkpoint consists of."""
    content = json.loads(json.loads(file.read_bytes())["content"])
    return [file, *(file.with_name(content[key]["file"]) for key in ("tensors",) if key in content)]


@pytest.mark.parametrize(("with_tensors", "part"), [(False, 0), (True, 0), (True, 1)])
def test_of_a_damaged_checkpoint_the_one_before_is_loaded(tmp_path, caplog, with_tensors, part):
    """150 flipped bits and 20 cuts of the newest: the old one is loaded, and the damage named.

    Catches a digest that is not looked at, and an old one that is not there when it is needed.
    """
    file = two_generations(tmp_path / "run", with_tensors)
    hurt = parts(file)[part]
    whole = {there: there.read_bytes() for there in file.parent.iterdir()}
    for content in damaged(whole[hurt], flips=150, cuts=20):
        for there, before in whole.items():
            there.write_bytes(before)
        hurt.write_bytes(content)
        caplog.clear()
        if which(file, with_tensors) == 2:
            assert content == whole[hurt][:-1], "only the end of the line is missing"
            assert part == 0
            assert not caplog.records
        else:
            (record,) = caplog.records
            assert record.levelname == "WARNING"
            assert f"{hurt}: the checkpoint is damaged" in record.getMessage()


@pytest.mark.parametrize("part", [0, 1])
def test_where_both_are_damaged_both_are_named(tmp_path, part):
    """40 flipped bits and 10 cuts of each of the two. Catches a fault that tells half of it."""
    file = two_generations(tmp_path / "run")
    both = [parts(each)[part] for each in (file, checkpoint.previous(file))]
    whole = {there: there.read_bytes() for there in file.parent.iterdir()}
    harmless = {content[:-1] for content in whole.values()} if part == 0 else set()
    choices = zip(
        *(damaged(whole[hurt], 40, 10, seed=i) for i, hurt in enumerate(both)), strict=True
    )
    for contents in choices:
        if harmless & {*contents}:
            continue
        for hurt, content in zip(both, contents, strict=True):
            hurt.write_bytes(content)
        before = {there: there.read_bytes() for there in file.parent.iterdir()}
        with pytest.raises(CheckpointError) as raised:
            checkpoint.load(file)
        assert all(f"{hurt}: " in str(raised.value) for hurt in both)
        assert len(str(raised.value).splitlines()) == 2
        assert {there: there.read_bytes() for there in file.parent.iterdir()} == before


@pytest.mark.parametrize("part", [0, 1])
def test_a_damaged_checkpoint_never_takes_the_place_of_a_whole_one(tmp_path, part):
    """After the old one was loaded, a crash at any call of the next save.

    Catches a damaged one that is kept as the one before.
    """

    file = tmp_path / "run" / "checkpoint.json"

    def load_the_old() -> None:
        hurt = parts(two_generations(file.parent))[part]
        hurt.write_bytes(hurt.read_bytes()[:-9])
        assert which(file) == 1

    def save() -> None:
        write(file, generation(3))

    load_the_old()
    for moment in range(1, 1 + moments_of(save)):
        load_the_old()
        with pytest.raises(Crash):
            watching(crash_at(moment), save)
        assert which(file) in (1, 3)
        write(file, generation(4))
        assert which(file) == 4
        file.unlink()
        assert which(file) in (1, 3)


# --- a whole run over damage ---------------------------------------------------------------------


class CopiesTheFolder(Callback):
    """Copies the folder before one record is written: a run killed there."""

    def __init__(self, number: int, to: Path) -> None:
        self.number, self.to = number, to

    def on_start(self, context) -> None:
        self.folder = context.folder

    def on_record(self, record) -> None:
        if number_of(record) == self.number:
            shutil.copytree(self.folder.path, self.to, ignore=shutil.ignore_patterns(".lock"))


def hurt_contents(whole: bytes) -> list[bytes]:
    """Four flipped bits, nothing, and the first half."""
    return [*damaged(whole, 4, 0), b"", whole[: len(whole) // 2]]


def test_tune_resumed_over_a_damaged_checkpoint_ends_with_the_same_bits(tmp_path, caplog):
    """The command, six damages: exit code 0, the damage on stderr, and not a bit is different.

    Catches damage that ends the run, and records kept that will be taken again.
    """
    at_four = CopiesTheFolder(4, tmp_path / "at four")
    tune_recipe(recipe(SIX_STEPS["tune"]), tmp_path / "whole", callbacks=[at_four])
    file = tmp_path / "run" / "checkpoint.json"
    for content in hurt_contents((at_four.to / file.name).read_bytes()):
        shutil.rmtree(file.parent, ignore_errors=True)
        shutil.copytree(at_four.to, file.parent)
        file.write_bytes(content)
        caplog.clear()
        done = CliRunner().invoke(cli.app, ["tune", str(file.parent), "--resume", "--quiet"])
        assert done.exit_code == 0, done.output
        assert f"note: {file}: the checkpoint is damaged" in done.stderr
        assert "going on from the one before it, checkpoint.previous.json" in caplog.text
        assert outcome(file.parent) == outcome(tmp_path / "whole")


@pytest.mark.parametrize("part", [0, 1])
def test_train_resumed_over_a_damaged_checkpoint_ends_with_the_same_bits(tmp_path, caplog, part):
    """Six damages of the content, and six of the tensors. Catches records that stand twice."""
    at_five = CopiesTheFolder(5, tmp_path / "at five")
    train_recipe(recipe(SIX_STEPS["train"]), tmp_path / "whole", callbacks=[at_five])
    file = tmp_path / "run" / "checkpoint.json"
    hurt = parts(at_five.to / file.name)[part]
    for content in hurt_contents(hurt.read_bytes()):
        shutil.rmtree(file.parent, ignore_errors=True)
        shutil.copytree(at_five.to, file.parent)
        (file.parent / hurt.name).write_bytes(content)
        caplog.clear()
        train_recipe(recipe(SIX_STEPS["train"]), file.parent, resume=True)
        assert f"{file.parent / hurt.name}: the checkpoint is damaged" in caplog.text
        assert outcome(file.parent) == outcome(tmp_path / "whole")
