"""The result of a tuning run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from hyperrbp.experiments.results.document import Number, Part, Values
from hyperrbp.experiments.results.records import ChoiceRecord, RollbackRecord
from hyperrbp.experiments.results.run import RunResult


class BestStep(Part):
    """The meta step with the lowest loss."""

    meta_step: int
    meta_loss: float


class StoppedEarly(Part):
    """The last meta step of a run that ended for lack of progress."""

    meta_step: int


class LastStep(Part):
    """Where the optimizer stood at the end."""

    meta_step: int
    """Updates that were made."""
    hyperparameters: Mapping[str, Values]


class GrainRecord(Part):
    """See ``hyperrbp.problems.training.hyperparameters.Grain``."""

    by: str
    segments: int


class Spread(Part):
    """A measure over several replicates; null where a run turned non-finite."""

    mean: Number
    """Over the finite ones."""
    deviation: Number
    """Their standard deviation; None for fewer than two."""
    values: list[Number]
    """Of each replicate."""


class ReplicateMeasures(Part):
    """What one θ is worth on held-out examples, over several replicates."""

    loss: Spread
    accuracy: Spread | None = None
    rmse: Spread | None = None
    r2: Spread | None = None
    diverged: int
    """The replicates that turned non-finite."""

    def measures(self) -> dict[str, Spread]:
        """Return the measures that there are, by name."""
        named = {"loss": self.loss, "accuracy": self.accuracy, "rmse": self.rmse, "r2": self.r2}
        return {name: spread for name, spread in named.items() if spread is not None}


class ReplicateComparison(Part):
    """The tuned θ and the start, each trained from the same other seeds."""

    seeds: int
    tuned: ReplicateMeasures
    untuned: ReplicateMeasures


class TuneResult(RunResult):
    """``result.json`` of ``hyperrbp tune``."""

    kind: Literal["tune"] = "tune"
    optimizer: str
    method: str
    trunc: int
    train_steps: int
    """T, of each inner run."""
    meta_steps: int
    """Asked for."""
    meta_loss: list[float]
    """Of every meta step."""
    stopped_early: StoppedEarly | None
    best: BestStep
    hyperparameters: Mapping[str, Values]
    """The tuned ones: those of the best meta step."""
    last: LastStep
    untuned: Mapping[str, Values]
    """The start."""
    grains: dict[str, GrainRecord]
    """By kind of hyperparameter."""
    warnings: list[str]
    choices: list[ChoiceRecord]
    rollbacks: list[RollbackRecord]
    given_up: int
    """Runs that were not taken to their end, or diverged."""
    test: ReplicateComparison | None = None
    """On the held-out examples; absent for ``record.test_seeds: 0``."""
