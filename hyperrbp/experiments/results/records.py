"""The lines of ``records.jsonl``: one for each meta step, epoch or stretch of training steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import JsonValue

from hyperrbp.experiments.results.document import Document, Measured, Number, Part, Values
from hyperrbp.experiments.results.examination import ExaminationReport, StatusOf, VerdictOf


class Record(Document):
    """One line of ``records.jsonl``."""

    measured: Measured

    @property
    def number(self) -> int:
        """Its meta step, epoch or training step: the first one is 0."""
        raise NotImplementedError


# --- tuning ---------------------------------------------------------------------------------------


class AveragingRecord(Part):
    """See ``hyperrbp.hypergradients.Averaging``."""

    estimator: str
    minibatches: int
    series: int


class ChoiceRecord(Part):
    """The gradient method that was chosen on the way, and why."""

    meta_step: int
    label: str
    why: str
    method: str
    trunc: int
    averaging: AveragingRecord
    options: dict[str, JsonValue]


class RollbackRecord(Part):
    """A return to the best θ, after something was not finite."""

    meta_step: int
    reason: str
    to_meta_step: int


class GradientInformation(Part):
    """The gradient that a trust region follows, where it was taken at an earlier evaluation."""

    meta_step: int
    status: StatusOf
    residual: Number
    products: int
    norm: Number


class Diagnostics(Part):
    """What a gradient tells about itself without any further run."""

    growth_rate: Number
    """Of the norms of the series' terms."""
    above_noise: Number
    """The share of its components that stand out of the minibatch noise."""
    norms: Values
    """Of the last state."""


class StepRecord(Record):
    """A meta step: one θ whose loss was evaluated.

    Kinds of hyperparameters with very many values are given by their summary statistics.
    """

    meta_step: int
    meta_loss: float
    hyperparameters: Mapping[str, Values]
    """By kind, in natural units."""
    source: str | None = None
    """What proposed θ, where several parts of an optimizer may."""
    gradient_information: GradientInformation | None = None
    choice: ChoiceRecord | None = None
    """Made right before this meta step."""
    rollbacks: list[RollbackRecord] | None = None
    """Made right before this meta step."""

    @property
    def number(self) -> int:
        """The meta step."""
        return self.meta_step


class EvaluationRecord(StepRecord):
    """A meta step of which only the loss is known."""

    kind: Literal["evaluation"] = "evaluation"


class GradientRecord(StepRecord):
    """A meta step at which a hypergradient was taken, with respect to the unconstrained θ.

    That is: to log learning rate, logit momentum and so on.
    """

    kind: Literal["gradient"] = "gradient"
    gradient: Mapping[str, Values]
    standard_error: Mapping[str, Values] | None
    """Over the series that were averaged; None for fewer than two."""
    gradient_norm: Number
    gradient_norms: Mapping[str, Number]
    """By kind of hyperparameter."""
    status: StatusOf
    residual: Number
    residuals: list[list[Number]]
    """Of each series, term by term."""
    products: int
    """With the Jacobian or its transpose."""
    structurally_zero: dict[str, list[str] | int]
    """By kind, the names of the values that the update does not feel, or how many there are."""
    steady_state_residual: Number
    diagnostics: Diagnostics
    verdict: VerdictOf
    check: ExaminationReport | None = None
    """At every ``gradient.check_every``-th meta step."""
    warning: str | None = None
    """Given once, at the first gradient that should not be followed."""


# --- training -------------------------------------------------------------------------------------


class EpochGradient(Part):
    """The largest norms and residuals of an epoch's gradients; absent where none was finite."""

    norm: Number = None
    residual: Number = None
    steady_state_residual: Number = None
    status: StatusOf | None
    """The most alarming one; None where no gradient was taken through a steady state."""
    products: int


class PenaltyRecord(Part):
    """See ``hyperrbp.problems.penalties.Penalty``; of the epoch's last example."""

    value: Number
    quantity: Number
    error: Number
    exact: bool
    products: int


class TrainRecord(Record):
    """What came of training a network a little further."""

    loss: Number = None
    """On some training examples; see each kind."""
    validation: Mapping[str, Number] | None = None
    """Measures that choose between epochs."""

    @property
    def any_loss(self) -> float:
        """The loss of the record, whatever it is taken over; NaN where it was not finite."""
        raise NotImplementedError


class EpochRecord(TrainRecord):
    """An epoch of a network with a convergent part; epoch 0 is the untrained start.

    The loss is over all training examples.
    """

    kind: Literal["epoch"] = "epoch"
    epoch: int
    penalty: PenaltyRecord | None = None
    gradient: EpochGradient | None = None
    change_norms: Sequence[Number] | None = None
    """‖h_t − h_{t−1}‖ for each update of one inference, where the epoch was validated."""
    energy: Sequence[Number] | None = None
    """Of a memory, after each update of that inference."""

    @property
    def number(self) -> int:
        """The epoch."""
        return self.epoch

    @property
    def any_loss(self) -> float:
        """The loss over the training examples."""
        return float("nan") if self.loss is None else self.loss


class TrainingStepRecord(TrainRecord):
    """A stretch of the training steps of an inner run, from ``step`` on.

    The loss is on the minibatch of ``step``; it is absent from the last record.
    """

    kind: Literal["training_step"] = "training_step"
    step: int
    meta_loss: Number = None
    """After the last step, over all examples; in the last record only."""

    @property
    def number(self) -> int:
        """The training step."""
        return self.step

    @property
    def any_loss(self) -> float:
        """The loss on the minibatch, or at the end over all examples."""
        loss = self.meta_loss if self.loss is None else self.loss
        return float("nan") if loss is None else loss
