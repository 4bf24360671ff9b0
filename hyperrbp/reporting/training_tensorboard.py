"""Writes a training run for TensorBoard: its records, and images where there are any."""

from __future__ import annotations

import shutil
from collections.abc import Mapping

import torch
from torch.utils.tensorboard import SummaryWriter

from hyperrbp.experiments.results.records import EpochRecord, TrainRecord
from hyperrbp.experiments.train import TrainCallback, TrainContext
from hyperrbp.reporting.tensorboard import event_writer


class TrainingBoard(TrainCallback):
    """Writes ``events/``: each record once, also after a resume."""

    def on_start(self, context: TrainContext) -> None:
        """Open the event files; what a resumed run wrote after its last checkpoint is purged."""
        self._trainer = trainer = context.trainer
        self._folder = context.folder
        self._validated = sum(record.validation is not None for record in context.earlier)
        self._writer = event_writer(context.folder.events, trainer.position)
        if trainer.position == 0:
            text = trainer.recipe.to_yaml()
            self._writer.add_text("recipe", "\n".join(f"    {row}" for row in text.splitlines()))

    def on_record(self, record: TrainRecord) -> None:
        """Add a point to every curve; images and curves over an inference where it validates."""
        number = record.number
        for tag, value in scalars(record).items():
            self._writer.add_scalar(tag, value, number)
        if record.validation is not None:
            pictures = self._trainer.pictures()
            if pictures is not None:
                names, rows = pictures
                grid = mosaic(rows)
                self._writer.add_image(", ".join(names), grid, number, dataformats="HW")
            self._validated += 1
            # The 1st, 2nd, 4th, 8th …: more would drown the list of runs.
            often_enough = number == self._trainer.last or self._validated.bit_count() == 1
            if often_enough and isinstance(record, EpochRecord):
                self._inference(record)
        self._writer.flush()

    def _inference(self, record: EpochRecord) -> None:
        # A run of its own beside the others: its axis counts updates, not epochs.
        place = self._folder.events / f"inference_at_epoch_{record.epoch}"
        shutil.rmtree(place, ignore_errors=True)
        with SummaryWriter(str(place)) as writer:
            curves = {"change_norms": record.change_norms, "energy": record.energy}
            for key, curve in curves.items():
                for t, value in enumerate(curve or (), start=1):
                    if value is not None:
                        writer.add_scalar(f"inference/{key}", value, t)

    def on_end(self) -> None:
        """Close the files."""
        if hasattr(self, "_writer"):
            self._writer.close()


def scalars(record: TrainRecord) -> dict[str, float]:
    """Return every number of a record that makes a curve, by its tag."""
    tags = {"training/loss": record.any_loss}
    groups: dict[str, Mapping[str, object]] = {"validation": record.validation or {}}
    if isinstance(record, EpochRecord):
        groups["gradient"] = dict(record.gradient or ())
        groups["penalty"] = dict(record.penalty or ())
    for group, values in groups.items():
        for name, value in values.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                tags[f"{group}/{name}"] = float(value)
    for phase, seconds in record.measured.seconds.items():
        tags[f"seconds/{phase}"] = seconds
    for phase, peaks in record.measured.peak_bytes.items():
        for name, peak in peaks.items():
            tags[f"peak_bytes_{phase}/{name}"] = peak
    return tags


def mosaic(rows: torch.Tensor, gap: int = 1) -> torch.Tensor:
    """Join images of shape (rows, columns, height, width) with grey gaps between them."""
    down, across, height, width = rows.shape
    grid = torch.full((down * (height + gap) + gap, across * (width + gap) + gap), 0.5)
    for i in range(down):
        for j in range(across):
            y, x = gap + i * (height + gap), gap + j * (width + gap)
            grid[y : y + height, x : x + width] = rows[i, j]
    return grid
