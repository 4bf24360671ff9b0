"""The result of a tuning run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from hyperrbp.experiments.results.document import Number, Part, Values
from hyperrbp.experiments.results.records import ChoiceRecord, RollbackRecord
from hyperrbp.experiments.results.run import RunResult


class BestStep(Part):
    """The meta step with the lowest loss; with ``inner.fresh``, the candidate that was chosen."""

    meta_step: int
    meta_loss: float
    """With ``inner.fresh``, its mean over the common draws."""
    standard_error: Number = None
    """Of that mean; absent where there is one draw for all."""
    averaged: int | None = None
    """θ is the mean of those of so many meta steps, of which this is the last; absent for one."""


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


class Candidate(Part):
    """A θ that might be the best of a run with ``inner.fresh``, run from the common draws."""

    meta_step: int
    """Where its loss was evaluated; of an average, the last one."""
    averaged: int | None = None
    """See ``BestStep``."""
    meta_loss: Spread
    """Of each draw."""
    standard_error: Number
    """Of its mean."""
    difference: Number
    """Of the loss to that of the untuned start, the mean over the draws."""
    difference_error: Number
    """The standard error of that mean."""

    @property
    def diverged(self) -> int:
        """The draws from which the run turned non-finite."""
        return self.meta_loss.values.count(None)


class CommonDraws(Part):
    """How the best of a run with ``inner.fresh`` was chosen: on draws of no meta step."""

    draws: int
    """Of initial weights and minibatches, the same for all candidates."""
    candidates: list[Candidate]
    """The first one is the untuned start."""
    chosen: int
    """Which of them."""


class TuneResult(RunResult):
    """``result.json`` of ``hyperrbp tune``."""

    kind: Literal["tune"] = "tune"
    improved: bool | None = None
    """Whether the best θ has a lower meta loss than the untuned start; absent from older runs."""
    setback: str | None = None
    """What is said first: that it has not, or that the run ended above its start."""
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
    common_draws: CommonDraws | None = None
    """How the best was chosen; absent unless ``inner.fresh``."""
    untuned_loss: Number = None
    """The meta loss of the start: of the run, or with ``inner.fresh`` over the common draws."""
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
