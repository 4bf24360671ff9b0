"""The folder of a run: its files, and how they are written and read.

================================  ================================================================
``recipe.yaml``                   the recipe as it was run, every key spelt out
``records.jsonl``                 one JSON record a meta step, epoch or stretch of training steps
``checkpoint.json``               where to go on; tensors, of ``train`` or the earlier θ of
                                  ``tune`` with ``inner.fresh``, are in a file beside it
``checkpoint.previous.json``      the one before it, in case that one is damaged
``.lock``                         which process uses the folder, while one does
``result.json``                   the answer
``hyperparameters.yaml``          ``tune``: the tuned hyperparameters, in summary where very many
``parameter_groups.py``           ``tune``: the same, as parameter groups for ``torch.optim``
``weight_decay.safetensors``      ``tune``: for it, where every weight has a weight decay of its own
``example_weights.safetensors``   ``tune``: for it, where every training example has a weight
``weights.safetensors``           ``train``: the trained weights, by parameter name
``events/``                       TensorBoard
================================  ================================================================
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml

from hyperrbp.config.loading import read_any
from hyperrbp.config.recipe import Recipe
from hyperrbp.config.schema import BaseRecipe
from hyperrbp.exceptions import CheckpointError, StorageError, UsageError
from hyperrbp.experiments import checkpoint
from hyperrbp.experiments.resume import accept_environment, check_same_recipe, differences
from hyperrbp.runtime import files
from hyperrbp.runtime.locks import LOCK, held

if TYPE_CHECKING:
    from torch import Tensor

    from hyperrbp.experiments.results.document import Document
    from hyperrbp.experiments.results.records import Record
    from hyperrbp.experiments.results.run import InexactResume

R = TypeVar("R", bound="Record")
D = TypeVar("D", bound="Document")

log = logging.getLogger(__name__)


def default_folder(name: str) -> Path:
    """Return ``runs/<name>-<UTC time>``."""
    return Path("runs") / f"{name}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"


@contextmanager
def open_run(run: Path | RunFolder, resume: bool) -> Iterator[RunFolder]:
    """Lock the folder of a run to begin, or to go on with, and yield it.

    Args:
        run: the folder; one that is open already is passed on as it is.
        resume: go on with the run in it.

    Raises:
        UsageError: if there is something in it already, or nothing to go on with.
        LockError: if another process is using it.
        StorageError: if it cannot be made.
    """
    if isinstance(run, RunFolder):
        yield run
        return
    folder = RunFolder(run)
    if resume and not folder.recipe_file.exists():
        raise UsageError(f"--resume: there is no run in {folder.path}")
    if not resume and not (folder.path / LOCK).exists():
        folder.check_new()
    with held(folder.path):
        if not resume:
            folder.check_new()
        yield folder


class RunFolder:
    """The folder of one run; see the top of the module for what is in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recipe_file = path / "recipe.yaml"
        self.records_file = path / "records.jsonl"
        self.checkpoint_file = path / "checkpoint.json"
        self.result_file = path / "result.json"
        self.yaml_file = path / "hyperparameters.yaml"
        self.groups_file = path / "parameter_groups.py"
        self.weights_file = path / "weights.safetensors"
        self.events = path / "events"
        self.inexact_resumes: list[InexactResume] = []
        """What had changed, for each resume in another environment."""

    def check_new(self) -> None:
        """Refuse a folder that has something in it.

        Raises:
            UsageError: if it does, or is no folder.
        """
        if self.path.exists() and not self.path.is_dir():
            raise UsageError(f"--out {self.path}: not a folder")
        ours = {self.path / LOCK, *files.leftovers(self.path)}
        if self.path.is_dir() and set(self.path.iterdir()) - ours:
            raise UsageError(
                f"--out {self.path}: the folder is not empty; choose another, or go on with the run"
                " in it with --resume"
            )

    def create(self, recipe: BaseRecipe) -> None:
        """Make the folder and write the recipe into it; sweep up what a killed run left."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            for leftover in files.leftovers(self.path):
                leftover.unlink()
        except OSError as error:
            raise StorageError(f"{self.path}: {error.strerror or error}") from error
        files.write_atomically(self.recipe_file, recipe.to_yaml())

    def check_same(self, recipe: BaseRecipe) -> None:
        """Refuse to go on with another recipe than the one that the run began with.

        Raises:
            CheckpointError: naming each key that differs.
        """
        check_same_recipe(self.path, read_any(self.recipe_file), recipe)

    # --- checkpoints ------------------------------------------------------------------------------

    def save(
        self,
        content: Mapping[str, Any],
        environment: Mapping[str, Any],
        tensors: dict[str, Tensor] | None = None,
    ) -> None:
        """Write a checkpoint; the one before it is kept."""
        known = {"environment": dict(environment), "inexact_resumes": self.inexact_resumes}
        checkpoint.save(self.checkpoint_file, {**content, **known}, tensors)

    def load(
        self, environment: Mapping[str, Any], inexact: bool = False
    ) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        """Return the newest whole checkpoint and its tensors; None if there never was one.

        Args:
            environment: what the bits of the steps to come depend on.
            inexact: accept that it was another for the steps taken; this is logged, and noted in
                the result.

        Raises:
            CheckpointError: if there is none that is whole, or without ``inexact``.
        """
        if not checkpoint.exists(self.checkpoint_file) and not any(map(_is_json, self._lines())):
            return None
        content, tensors = checkpoint.load(self.checkpoint_file)
        try:
            then, self.inexact_resumes = content["environment"], content["inexact_resumes"]
            changed = differences(then, environment)
        except (KeyError, AttributeError) as error:
            raise CheckpointError(
                f"{self.checkpoint_file}: not of this version ({error})"
            ) from None
        if changed:
            accept_environment(self.path, changed, inexact)
            self.inexact_resumes = [*self.inexact_resumes, changed]
        return content, tensors

    # --- records ----------------------------------------------------------------------------------

    def append(self, record: Record) -> None:
        """Add a record, and see it on the disk."""
        from hyperrbp.experiments.results.document import to_json

        try:
            with self.records_file.open("a", encoding="utf-8") as file:
                file.write(to_json(record) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise StorageError(f"{self.records_file}: {error.strerror or error}") from error

    def records(self, expected: type[R]) -> list[R]:
        """Return all whole records; a torn last line is left out.

        Args:
            expected: the class of the records of this run, or what they have in common.

        Raises:
            CheckpointError: naming the first line that is no such record.
        """
        return [record for _, record in self._lines_with(expected)]

    def forget_from(self, number: int) -> None:
        """Drop the records from this number on, which will be taken again."""
        from hyperrbp.experiments.results.records import Record

        kept = [line for line, record in self._lines_with(Record) if record.number < number]
        files.write_atomically(self.records_file, "".join(f"{line}\n" for line in kept))

    def _lines_with(self, expected: type[R]) -> list[tuple[str, R]]:
        """Return each whole line with its record."""
        # Not above: a folder is locked before PyTorch, which they need, is imported.
        from hyperrbp.experiments.results.reading import read_record

        lines = self._lines()
        return [
            (line, read_record(line, expected, f"{self.records_file}:{number}"))
            for number, line in enumerate(lines, start=1)
            if number < len(lines) or _is_json(line)
        ]

    def _lines(self) -> list[str]:
        try:
            return self.records_file.read_text(encoding="utf-8", errors="replace").splitlines()
        except FileNotFoundError:
            return []

    # --- the answer -------------------------------------------------------------------------------

    def write_result(self, result: Document) -> None:
        """Write the answer, for machines."""
        from hyperrbp.experiments.results.document import to_json

        files.write_atomically(self.result_file, to_json(result, indent=2) + "\n")

    def write_hyperparameters(
        self,
        hyperparameters: Mapping[str, Any],
        parameter_groups: str,
        tensors: Mapping[str, Mapping[str, Tensor]],
    ) -> None:
        """Write the answer of a tuning run, for people and for the next training script.

        ``tensors`` are those that the script reads, by the name of their file.
        """
        files.write_atomically(
            self.yaml_file, yaml.safe_dump(dict(hyperparameters), sort_keys=False)
        )
        files.write_atomically(self.groups_file, parameter_groups)
        for name, packed in tensors.items():
            files.write_atomically(self.path / name, checkpoint.packed_tensors(packed))

    def result(self, expected: type[D]) -> D:
        """Return the answer of a finished run.

        Args:
            expected: the class of the result, or what several have in common.

        Raises:
            CheckpointError: if there is none, or another.
        """
        from hyperrbp.experiments.results.reading import read_result

        try:
            text = self.result_file.read_text(encoding="utf-8")
        except FileNotFoundError:
            hint = (
                f"; it is unfinished: hyperrbp {self.verb} {self.path} --resume"
                if self.recipe_file.exists()
                else ""
            )
            raise CheckpointError(f"{self.path} holds no result{hint}") from None
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{self.result_file} cannot be read: {error}") from None
        return read_result(text, expected, str(self.result_file))

    @property
    def verb(self) -> str:
        """The command that made this run, ``tune`` or ``train``, by its records if it has any."""
        from hyperrbp.experiments.results.records import Record, TrainRecord

        records = self.records(Record)
        if records:
            return "train" if isinstance(records[0], TrainRecord) else "tune"
        return "tune" if isinstance(read_any(self.recipe_file), Recipe) else "train"


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True
