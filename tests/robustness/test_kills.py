"""Runs that are killed at any instant, by ``kill -9`` itself, and resumed."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from factories import SIX_STEPS, outcome, recipe
from processes import FORKS, watch_the_disk
from runs import number_of, records_of

from hyperrbp.exceptions import UsageError
from hyperrbp.experiments import checkpoint
from hyperrbp.experiments.run_folder import RunFolder
from hyperrbp.experiments.train import train_recipe
from hyperrbp.experiments.tune import tune_recipe
from hyperrbp.reporting.tensorboard import TensorBoard
from hyperrbp.reporting.training_tensorboard import TrainingBoard
from hyperrbp.runtime.callbacks import Callback

SMALL = {
    "tune": recipe(SIX_STEPS["tune"], meta__steps=12),
    "train": recipe(SIX_STEPS["train"], training__epochs=12),
}
UNSAVED = {"tune": 1, "train": 2}
"""So many records may be lost: those from one checkpoint to the next."""


# --- in the process that is killed ---------------------------------------------------------------


class Tells(Callback):
    """Tells another process how many records it has seen, and which was last."""

    def __init__(self, counts) -> None:
        self._counts = counts

    def on_record(self, record) -> None:
        self._counts[:] = [self._counts[0] + 1, number_of(record)]


def run(verb: str, folder: Path, counts, resume: bool) -> None:
    if verb == "tune":
        tune_recipe(SMALL[verb], folder, resume=resume, callbacks=[TensorBoard(), Tells(counts)])
    else:
        train_recipe(SMALL[verb], folder, resume=resume, callbacks=[TrainingBoard(), Tells(counts)])


def go_on(verb: str, folder: Path, counts, call: str, moment: int) -> None:
    """Resume, or begin anew where nothing had begun; be killed at this moment of such a call."""
    moments = count(1)

    def kill(name: str) -> None:
        if call in ("any", name) and next(moments) == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    watch_the_disk(pytest.MonkeyPatch(), kill)
    try:
        run(verb, folder, counts, resume=True)
    except UsageError as error:
        if "there is no run" not in str(error):
            raise
        run(verb, folder, counts, resume=False)


# --- in the process that kills -------------------------------------------------------------------


How = tuple[str, float]
"""A call that touches files and which of its moments; or a time, in records."""


def killed(verb: str, folder: Path, how: How = ("any", 0)) -> bool:
    """Go on with a run; whether it was killed, or else has ended well."""
    counts = FORKS.RawArray("i", [0, -1])
    process = FORKS.Process(target=go_on, args=(verb, folder, counts, *how), daemon=True)
    process.start()
    if how[0] == "time":
        records, seconds = divmod(how[1], 1)
        deadline = time.monotonic() + 120
        while counts[0] < records and process.is_alive() and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.05 * seconds)
        process.kill()
    process.join(120)
    assert process.exitcode in (0, -signal.SIGKILL)
    assert counts[1] + 1 - len(standing(folder)) <= UNSAVED[verb], "too much is lost"
    return process.exitcode != 0


def standing(folder: Path) -> list[dict]:
    """The records that a resumed run does not take again."""
    run = RunFolder(folder)
    if not checkpoint.exists(run.checkpoint_file):
        return []
    content, _ = checkpoint.load(run.checkpoint_file)
    return records_of(run)[: content.get("meta_step", content.get("epoch"))]


def runs_with(kills: int, verb: str, folder: Path, chance: random.Random) -> Iterator[Path]:
    """As many runs as it takes for so many kills, each resumed after every one to its end."""
    done = 0
    for path in (folder / str(number) for number in count()):
        stood = []
        while killed(verb, path, choice(done, chance) if done < kills else ("any", 0)):
            done += 1
            stood.append(standing(path))
        records = records_of(path)
        assert all(records[: len(before)] == before for before in stood), "taken again"
        yield path
        if done == kills:
            return


def choice(number: int, chance: random.Random) -> How:
    """Half of them at a time, a quarter where a file takes another's place."""
    if number % 2 == 0:
        return "time", 4 * chance.random()
    if number % 4 == 1:
        return "any", chance.randrange(1, 450)
    return "replace", chance.randrange(5, 25)


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """All that TensorBoard shows but what was measured: step and value, by event folder and tag."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = {}
    for place in sorted({file.parent for file in folder.rglob("events.out.tfevents.*")}):
        events = EventAccumulator(str(place))
        events.Reload()
        for tag in events.Tags()["scalars"]:
            if not tag.startswith(("seconds/", "peak_bytes")):
                name = f"{place.relative_to(folder)}: {tag}"
                found[name] = [(event.step, event.value) for event in events.Scalars(tag)]
    return found


def all_of(folder: Path) -> tuple:
    return outcome(folder), curves(folder)


@pytest.mark.parametrize("kills", [8, pytest.param(200, marks=pytest.mark.slow)])
def test_tuning_runs_killed_at_any_instant_end_with_the_same_bits(tmp_path, caplog, kills):
    """SIGKILLs, half before, amid or after a call that touches files, half at random times.

    At most one meta step is lost by each; records, result, Adam's moments and each step of every
    curve are those of a run left alone. Catches checkpoints ahead of their records, or too rare,
    moments that are not restored, and steps drawn twice.
    """
    assert not killed("tune", tmp_path / "whole")
    expected = all_of(tmp_path / "whole")
    for tag in ("meta/loss", "momentum/output.bias", "learning_rate/hidden1.weight"):
        assert [step for step, _ in expected[1][f"events: {tag}"]] == list(range(13))
    for path in runs_with(kills, "tune", tmp_path / "killed", random.Random(1)):
        assert all_of(path) == expected
    assert "damaged" not in caplog.text


@pytest.mark.parametrize("kills", [4, pytest.param(80, marks=pytest.mark.slow)])
def test_training_runs_killed_at_any_instant_end_with_the_same_bits(tmp_path, caplog, kills):
    """The same of a network with a convergent part, with its tensors and its weights.

    Catches tensors that overwrite those of the checkpoint before.
    """
    assert not killed("train", tmp_path / "whole")
    expected = all_of(tmp_path / "whole")
    for path in runs_with(kills, "train", tmp_path / "killed", random.Random(2)):
        assert all_of(path) == expected
    assert "damaged" not in caplog.text


# --- a record that was being written -------------------------------------------------------------


def test_a_record_cut_at_any_offset_is_dropped_and_taken_again(tmp_path):
    """The last record cut at every offset: the others are read. At four of them the run goes on.

    It ends with the records, the bits and the curves of a run left alone. Catches a torn record
    that is refused, or appended to, and a step drawn twice.
    """
    assert not killed("tune", tmp_path / "whole")
    expected = all_of(tmp_path / "whole")
    assert killed("tune", tmp_path / "killed", ("any", 400))
    whole, before = RunFolder(tmp_path / "whole"), standing(tmp_path / "killed")
    assert 2 < len(before) < 10
    run = RunFolder(tmp_path / "run")
    lines = RunFolder(tmp_path / "killed").records_file.read_bytes().splitlines(True)
    torn = whole.records_file.read_bytes().splitlines(True)[len(before)]
    shutil.copytree(tmp_path / "killed", run.path)
    for cut in range(len(torn) - 1):
        run.records_file.write_bytes(b"".join(lines[: len(before)]) + torn[:cut])
        assert records_of(run) == before
    last = len(torn) - 1
    for cut in (0, 1, last // 2, last):
        shutil.rmtree(run.path)
        shutil.copytree(tmp_path / "killed", run.path)
        run.records_file.write_bytes(b"".join(lines[: len(before)]) + torn[:cut])
        assert not killed("tune", run.path)
        assert records_of(run)[: len(before)] == before
        assert all_of(run.path) == expected
