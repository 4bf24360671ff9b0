"""A training on TensorBoard: a reader of records, and of pictures where there are any."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch.utils.tensorboard import SummaryWriter

from hyperrbp.reporting.tensorboard import event_writer
from hyperrbp.reporting.training import loss_of

if TYPE_CHECKING:
    from hyperrbp.experiments.run_folder import RunFolder
    from hyperrbp.experiments.train import Record
    from hyperrbp.experiments.trainers.base import Trainer

WATCHED = {"change_norms": "norm of h_t − h_{t−1}", "energy": "energy of the memory"}
"""Curves over the updates of one inference, in records that validate."""


class TrainingBoard:
    """Writes ``events/``: each record once, also after a resume."""

    def started(self, trainer: Trainer, folder: RunFolder, earlier: Sequence[Record]) -> None:
        """Open the event files; what a resumed run wrote after its last checkpoint is purged."""
        self._trainer, self._folder = trainer, folder
        self._validated = sum("validation" in record for record in earlier)
        self._writer = event_writer(folder.events, trainer.position)
        if trainer.position == 0:
            text = trainer.recipe.to_yaml()
            self._writer.add_text("recipe", "\n".join(f"    {row}" for row in text.splitlines()))

    def stepped(self, record: Record) -> None:
        """One point on every curve; pictures and curves over an inference where it validates."""
        number = record[self._trainer.unit]
        for tag, value in scalars(record).items():
            self._writer.add_scalar(tag, value, number)
        if "validation" in record:
            pictures = self._trainer.pictures()
            if pictures is not None:
                names, rows = pictures
                grid = mosaic(rows)
                self._writer.add_image(", ".join(names), grid, number, dataformats="HW")
            self._validated += 1
            # The 1st, 2nd, 4th, 8th …: more would drown the list of runs.
            if number == self._trainer.last or self._validated.bit_count() == 1:
                self._inference(record, number)
        self._writer.flush()

    def _inference(self, record: Record, number: int) -> None:
        # A run of its own beside the others: its axis counts updates, not epochs.
        place = self._folder.events / f"inference_at_epoch_{number}"
        shutil.rmtree(place, ignore_errors=True)
        with SummaryWriter(str(place)) as writer:
            for key in WATCHED:
                for t, value in enumerate(record.get(key, ()), start=1):
                    if value is not None:
                        writer.add_scalar(f"inference/{key}", value, t)

    def stopped(self) -> None:
        """Close the files."""
        if hasattr(self, "_writer"):
            self._writer.close()


def scalars(record: Record) -> dict[str, float]:
    """Every number of a record that makes a curve, by its tag."""
    tags = {"training/loss": loss_of(record)}
    for group in ("validation", "gradient", "penalty"):
        for name, value in record.get(group, {}).items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                tags[f"{group}/{name}"] = float(value)
    for phase, seconds in record["measured"]["seconds"].items():
        tags[f"seconds/{phase}"] = seconds
    for phase, peaks in record["measured"]["peak_bytes"].items():
        for name, peak in peaks.items():
            tags[f"peak_bytes_{phase}/{name}"] = peak
    return tags


def mosaic(rows: torch.Tensor, gap: int = 1) -> torch.Tensor:
    """Images of shape (rows, columns, height, width) as one, with grey gaps between them."""
    down, across, height, width = rows.shape
    grid = torch.full((down * (height + gap) + gap, across * (width + gap) + gap), 0.5)
    for i in range(down):
        for j in range(across):
            y, x = gap + i * (height + gap), gap + j * (width + gap)
            grid[y : y + height, x : x + width] = rows[i, j]
    return grid
