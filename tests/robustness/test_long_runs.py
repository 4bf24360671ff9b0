"""A run of thousands of meta steps: what it holds and what it leaves on disk do not grow."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch
from factories import recipe, tuning_text
from processes import live
from runs import number_of, records_of
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hyperrbp import tune_recipe
from hyperrbp.experiments.run_folder import RunFolder
from hyperrbp.reporting.tensorboard import TensorBoard
from hyperrbp.runtime.callbacks import Callback

TINY = tuning_text(
    name="tiny",
    model={"options": {"hidden": [3]}, "init_std": 0.3},
    inner__steps=4,
    gradient__trunc=2,
    meta={"steps": 200, "learning_rate": 0.01},
)
MiB = 2**20


class Watcher(Callback):
    """What the process holds, and what is in the run folder, at some meta steps."""

    def __init__(self, at: tuple[int, ...]) -> None:
        self._at = at
        self.tensor_bytes: list[int] = []
        self.objects: list[int] = []
        self.resident: list[int] = []
        self.files: list[set[str]] = []
        self.checkpoints: list[int] = []

    def on_start(self, context) -> None:
        self._folder, experiment = context.folder.path, context.experiment
        experiment.problem().prepare(experiment.theta)  # what is called 500 times is traced then

    def on_record(self, record) -> None:
        if number_of(record) not in self._at:
            return
        found = [path for path in self._folder.rglob("*") if path.is_file()]
        self.files.append({str(path.relative_to(self._folder)) for path in found})
        self.checkpoints += [p.stat().st_size for p in found if p.name.startswith("checkpoint")]
        del found
        self.tensor_bytes.append(live())
        self.objects.append(len(gc.get_objects()))
        self.resident.append(resident())


def resident() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    pytest.skip("the system does not say")


def event_steps(folder: Path) -> list[int]:
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return [event.step for event in events.Scalars("meta/loss")]


@pytest.mark.parametrize(
    ("first", "steps", "grows"),
    [(100, 200, 4 * MiB), pytest.param(550, 2000, 8 * MiB, marks=pytest.mark.slow)],
)
def test_a_long_run_holds_and_leaves_no_more_than_a_short_one(tmp_path, first, steps, grows):
    """Tensor bytes to the byte, objects to 50, resident memory to MiB; files, checkpoints, events.

    Catches records or states that are kept, files that pile up, and steps that are drawn twice.
    """
    at = (first, (first + steps) // 2, steps - 1)
    watcher, board = Watcher(at), TensorBoard()
    before = torch.get_num_threads()
    try:
        tune_recipe(recipe(TINY, meta__steps=steps), tmp_path / "run", callbacks=[board, watcher])
    finally:
        torch.set_num_threads(before)
    assert watcher.tensor_bytes == [watcher.tensor_bytes[0]] * 3
    assert watcher.tensor_bytes[0] > 100 * 64 * 4, "the data are not even counted"
    assert watcher.objects[2] - watcher.objects[0] < 50
    assert watcher.resident[2] - watcher.resident[0] < grows
    assert watcher.files[0] == watcher.files[1] == watcher.files[2]
    assert max(watcher.checkpoints) < 1.25 * min(watcher.checkpoints)
    run = RunFolder(tmp_path / "run")
    assert [record["meta_step"] for record in records_of(run)] == list(range(steps + 1))
    assert event_steps(run.events) == list(range(steps + 1))
