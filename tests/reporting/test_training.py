"""What a training run shows: on TensorBoard, in lines, and in the table at its end."""

from __future__ import annotations

import io
import time

import pytest
import torch
from factories import memory_text, tuning_text
from rich.console import Console
from runs import StopsAt, records_of
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hyperrbp.config.loading import parse_any
from hyperrbp.experiments.results.document import Measured
from hyperrbp.experiments.results.records import (
    EpochGradient,
    EpochRecord,
    PenaltyRecord,
    TrainingStepRecord,
)
from hyperrbp.experiments.results.train import InnerRunResult
from hyperrbp.experiments.run_folder import RunFolder
from hyperrbp.experiments.train import train_recipe
from hyperrbp.hypergradients.method import Status
from hyperrbp.reporting.figures import draw_trainings
from hyperrbp.reporting.results import training_page
from hyperrbp.reporting.training import TrainingBar, facts
from hyperrbp.reporting.training_tensorboard import TrainingBoard, mosaic, scalars

MEMORY = memory_text(training__epochs=4, training__validate_every=2)
INNER = tuning_text(meta__steps=1)


def events_of(folder):
    events = EventAccumulator(str(folder / "events"), size_guidance={"images": 0, "scalars": 0})
    events.Reload()
    return events


def test_every_record_is_one_point_on_tensorboard(tmp_path):
    recipe = parse_any(MEMORY)
    with pytest.raises(KeyboardInterrupt):
        train_recipe(recipe, tmp_path / "run", callbacks=[TrainingBoard(), StopsAt(4)])
    time.sleep(1.1)  # event files are named by the second
    train_recipe(recipe, tmp_path / "run", resume=True, callbacks=[TrainingBoard()])
    events = events_of(tmp_path / "run")
    records = records_of(tmp_path / "run")
    loss = events.Scalars("training/loss")
    assert [event.step for event in loss] == [0, 1, 2, 3, 4]
    assert [event.value for event in loss] == pytest.approx([r["loss"] for r in records])
    tags = set(events.Tags()["scalars"])
    assert {
        "training/loss", "validation/loss", "validation/pixel_error", "gradient/norm",
        "gradient/residual", "gradient/steady_state_residual", "gradient/products",
        "seconds/inference", "seconds/gradient", "seconds/update", "seconds/validation",
    } <= tags  # fmt: skip
    for tag in tags:
        steps = [event.step for event in events.Scalars(tag)]
        if tag.startswith("validation/"):
            assert steps == [0, 2, 4]
        if tag.startswith("gradient/"):
            assert steps == [1, 2, 3, 4]
        assert len(set(steps)) == len(steps)
    (image,) = events.Tags()["images"]
    assert image == "original, corrupted, retrieved"
    images = events.Images(image)
    assert [event.step for event in images] == [0, 2, 4]
    assert (images[0].height, images[0].width) == (3 * 9 + 1, 2 * 9 + 1)
    for epoch in (0, 2, 4):
        inference = EventAccumulator(
            str(tmp_path / "run" / "events" / f"inference_at_epoch_{epoch}")
        )
        inference.Reload()
        for key in ("change_norms", "energy"):
            points = inference.Scalars(f"inference/{key}")
            assert [event.step for event in points] == [1, 2, 3, 4, 5]
            assert [event.value for event in points] == pytest.approx(records[epoch][key])


@pytest.mark.parametrize(("text", "stop"), [(MEMORY, 0), (INNER, 4)])
def test_tensorboard_after_a_stop_before_the_first_checkpoint(tmp_path, text, stop):
    recipe = parse_any(text)
    with pytest.raises(KeyboardInterrupt):
        train_recipe(recipe, tmp_path / "run", callbacks=[TrainingBoard(), StopsAt(stop)])
    time.sleep(1.1)
    train_recipe(recipe, tmp_path / "run", resume=True, callbacks=[TrainingBoard()])
    steps = [event.step for event in events_of(tmp_path / "run").Scalars("training/loss")]
    assert steps == list(range(len(records_of(tmp_path / "run"))))


def measured(**seconds: float) -> Measured:
    return Measured.until_now(seconds, {phase: {"process": 64} for phase in seconds})


def test_a_record_becomes_scalars_and_facts():
    record = EpochRecord(
        epoch=3,
        loss=0.5,
        validation={"loss": 0.25, "pixel_error": 0.125},
        gradient=EpochGradient(norm=2.0, status=Status.CONVERGED, products=7),
        penalty=PenaltyRecord(value=0.1, quantity=1.5, error=None, exact=True, products=9),
        measured=measured(update=1.5),
    )
    assert scalars(record) == {
        "training/loss": 0.5,
        "validation/loss": 0.25,
        "validation/pixel_error": 0.125,
        "gradient/norm": 2.0,
        "gradient/products": 7.0,
        "penalty/value": 0.1,
        "penalty/quantity": 1.5,
        "penalty/products": 9.0,
        "seconds/update": 1.5,
        "peak_bytes_update/process": 64,
    }
    assert facts(record) == [
        ("loss", "0.5"), ("validation", "0.25"), ("pixel-error", "12.50%"),
        ("gradient", "converged, norm 2"), ("penalty", "0.1 (of 1.5)"), ("seconds", "1.50"),
    ]  # fmt: skip
    penalty = record.penalty.model_copy(update={"error": 0.25})
    assert ("penalty", "0.1 (of 1.5 ± 0.25)") in facts(
        record.model_copy(update={"penalty": penalty})
    )
    inner = TrainingStepRecord(step=4, meta_loss=2.0, measured=measured())
    assert scalars(inner) == {"training/loss": 2.0}
    failed = RESULT.model_copy(update={"status": "epoch 3: bad"})
    assert training_page(failed).row_count == 1 + training_page(RESULT).row_count


RESULT = InnerRunResult(
    status="done", meta_loss=1.0, heldout={"loss": 1.0, "accuracy": 0.5}, train_steps=3,
    seconds=1.0, peak_bytes=5, device="cpu", weights="w", seed=1, wall_seconds=1.0, run_folder=".",
    inexact_resumes=[], environment={}, hyperparameters={},
)  # fmt: skip


def test_a_mosaic_has_gaps():
    rows = torch.stack([torch.zeros(3, 2, 4), torch.ones(3, 2, 4)])
    grid = mosaic(rows)
    assert grid.shape == (2 * 3 + 1, 3 * 5 + 1)
    assert not grid[1:3, 1:5].any()
    assert (grid[4:6, 11:15] == 1).all()
    assert set(grid[0].tolist()) == set(grid[3].tolist()) == {0.5}
    assert (grid == 0.5).sum() == grid.numel() - rows.numel()


@pytest.mark.parametrize(("text", "unit"), [(MEMORY, "epoch"), (INNER, "step")])
def test_a_bar_shows_how_far_it_is_and_the_newest_of_each_fact(tmp_path, text, unit):
    screen = io.StringIO()
    bar = TrainingBar(Console(file=screen, force_terminal=True, width=100))
    train_recipe(parse_any(text), tmp_path / "run", callbacks=[bar])
    shown = screen.getvalue()
    assert f"run folder {tmp_path / 'run'}" in shown
    for words in (unit, "loss", "ETA") if unit == "epoch" else (unit, "loss"):
        assert words in shown


def test_a_bar_that_never_began_ends_quietly():
    screen = io.StringIO()
    TrainingBar(Console(file=screen)).on_end()
    assert screen.getvalue() == ""


def test_trainings_are_plotted_together(tmp_path):
    for name, text in (("memory", MEMORY), ("inner", INNER)):
        train_recipe(parse_any(text), tmp_path / name)
    folders = [RunFolder(tmp_path / name) for name in ("memory", "inner")]
    draw_trainings(folders, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
