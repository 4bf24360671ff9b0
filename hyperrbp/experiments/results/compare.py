"""The report of ``hyperrbp compare``."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import JsonValue, Strict

from hyperrbp.config.recipe import Recipe
from hyperrbp.experiments.results.document import Document, Environment, Number, Part, Values
from hyperrbp.experiments.results.examination import AgreementReport, StatusOf, VerdictOf


class NotMeasured(StrEnum):
    """Why a method was not measured."""

    SKIPPED = "skipped"
    """It should need more memory than there is."""
    OUT_OF_MEMORY = "out of memory"
    FAILED = "failed"


class MethodRow(Part):
    """One gradient method at one truncation and one length of run; null: it was not measured.

    Ratios are those of Table 3 of the paper: the baseline's over the method's.
    """

    method: str
    label: str
    """The method with its options, as on the command line."""
    options: dict[str, JsonValue]
    trunc: int | None
    """K; None where the method has no use for it."""
    train_steps: int
    """T."""
    status: StatusOf | Annotated[NotMeasured, Strict(False)]
    message: str | None
    """Why it was not measured."""
    seconds: Number
    """Of one meta-gradient: the median over the repeats."""
    seconds_iqr: Number
    """The distance between their quartiles; None for a single repeat."""
    seconds_by_phase: dict[str, float] | None
    peak_bytes: int | None
    """Of the allocator on a GPU, else of all live tensors."""
    process_peak_bytes: int | None
    saved_bytes: int | None
    """What autograd and the method keep for a backward pass, without the data set."""
    trajectory_bytes: int | None
    """Of them, the states that the method keeps."""
    flops: int | None
    products: int | None
    """With the Jacobian or its transpose."""
    time_ratio: Number
    memory_ratio: Number
    peak_ratio: Number
    process_ratio: Number
    paper_time_ratio: Number
    """What the paper published for it; None where it has no number."""
    paper_memory_ratio: Number
    cosine: Number
    """Of the angle between the gradient and the exact one."""
    sign_agreement: Number
    descent: Number
    verdict: VerdictOf | None
    norm_ratio: Number
    by_kind: dict[str, AgreementReport] | None
    """The agreement with the exact gradient for each kind of hyperparameter."""
    residual: Number
    steady_state_residual: Number
    gradient: dict[str, Values] | None
    structurally_zero: list[bool] | None
    """In the order of θ, shape (p,)."""

    @property
    def measured(self) -> bool:
        """Whether the method was measured."""
        return not isinstance(self.status, NotMeasured)


class BaselineCosts(Part):
    """What plain back-propagation costs at one length of run."""

    seconds: float
    saved_bytes: int
    peak_bytes: int
    process_peak_bytes: int
    flops: int


class Baseline(Part):
    """What the ratios and the agreements refer to."""

    method: str
    """Whose costs the ratios are taken to."""
    by_train_steps: dict[int, BaselineCosts]
    exact: str
    """The method whose gradient is the exact one."""
    exact_unknown: dict[int, str]
    """By T, why there is no exact gradient."""


class CompareReport(Document):
    """``comparison.json``."""

    kind: Literal["compare"] = "compare"
    baseline: Baseline
    environment: Environment
    recipe: Recipe
    rows: list[MethodRow]
