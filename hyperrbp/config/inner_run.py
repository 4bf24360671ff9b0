"""The section ``inner`` of a tuning recipe: the training run that is tuned."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from hyperrbp.config.schema import Section
from hyperrbp.problems.losses import AUTO as AUTO_LOSS
from hyperrbp.problems.losses import LOSSES
from hyperrbp.problems.training.schedules import SHAPES
from hyperrbp.problems.training.update_rules import UPDATE_RULES

STARTS = ("learning_rate", "momentum", "weight_decay")
"""The kinds of hyperparameters whose values at the start are keys of this section."""


class ScheduleSection(Section):
    """How the learning rate changes during the run: a factor of its peak."""

    shape: str = Field(
        "constant",
        description=" | ".join(SHAPES)
        + "; linear and cosine fall to end_share; knots: linear between the factors of knots",
    )
    warmup_share: float = Field(
        0.0, ge=0, le=1, description="share of the steps in which the rate rises to its peak"
    )
    end_share: float = Field(
        0.0, ge=0, le=1, description="share of the peak that linear and cosine fall to"
    )
    knots: list[Annotated[float, Field(gt=0)]] = Field(
        default_factory=lambda: [1.0],
        min_length=1,
        description="factors of the peak, evenly spaced over the run, for the shape knots",
    )


class InnerSection(Section):
    """The inner run: the optimizer, its schedule, and what it trains on at every step."""

    steps: int = Field(200, ge=1, le=10**9, description="T, training steps of one inner run")
    epochs: int | None = Field(
        None,
        ge=1,
        le=10**9,
        description="T in passes over the training examples, in place of steps",
    )
    batch_size: int = Field(200, ge=1, description="training examples in a minibatch")
    optimizer: str = Field(
        "maclaurin",
        description="update rule: maclaurin, the paper's, v'=βv−(1−β)g, w'=w+αv' | sgd, adam,"
        " adamw, rmsprop, as torch.optim has them | lion, which no gradient method can"
        " differentiate | code of your own that makes a rule: file.py:function",
    )
    options: dict[str, Any] = Field(
        default_factory=dict,
        description="options of the optimizer, by their names in torch.optim: sgd: dampening,"
        " nesterov; adam, adamw: betas, eps; rmsprop: alpha, eps, centered; lion: betas; code: its"
        " keyword arguments",
    )
    learning_rate: float | None = Field(
        None,
        gt=0,
        description="α of every tensor at the start, at its peak; null: the optimizer's"
        " default. The paper's is exp(-1)",
    )
    momentum: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="β of every tensor at the start, for maclaurin, sgd and rmsprop; null: the"
        " optimizer's default",
    )
    weight_decay: float | None = Field(
        None,
        ge=0,
        lt=1000,
        description="λ of every tensor at the start: λ/2 ‖w‖² in the loss, for adamw and lion apart"
        " from it; null: the optimizer's default",
    )
    schedule: ScheduleSection = ScheduleSection()
    clip_norm: float | None = Field(
        None, gt=0, description="the largest norm of a gradient; null: any"
    )
    accumulate: int = Field(
        1,
        ge=1,
        description="equal parts of a minibatch whose mean gradient makes a step, as in gradient"
        " accumulation; it saves no memory here",
    )
    precision: Literal["full", "bf16"] = Field(
        "full",
        description="what the forward pass of training computes in: full, the precision of the"
        " weights | bf16, by torch.autocast",
    )
    recalibration: int = Field(
        10,
        ge=1,
        description="minibatches whose statistics batch normalization uses where a loss is"
        " evaluated",
    )
    loss: str = Field(
        AUTO_LOSS,
        description="auto | "
        + " | ".join(LOSSES)
        + " | code of your own, of (outputs, targets): file.py:function; auto: cross-entropy if the"
        " targets are whole numbers, else mse",
    )
    label_smoothing: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of each target that is spread over all classes in training, but not in"
        " the meta loss; for cross-entropy",
    )
    fresh: bool = Field(
        False,
        description="use new initial weights and batches at every meta step; the paper does not",
    )

    @model_validator(mode="before")
    @classmethod
    def _with_defaults(cls, given: Any) -> Any:
        """Fill in the defaults of the optimizer that is named."""
        if not isinstance(given, dict):
            return given
        name = given.get("optimizer", cls.model_fields["optimizer"].default)
        if not isinstance(name, str) or name not in UPDATE_RULES:
            return given
        defaults = UPDATE_RULES[name]().defaults()
        missing = [kind for kind in STARTS if kind in defaults and given.get(kind) is None]
        return given | {kind: defaults[kind] for kind in missing}

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.epochs is not None and "steps" in self.model_fields_set:
            raise ValueError("expected inner.steps or inner.epochs, not both")
        return self

    @model_serializer(mode="wrap")
    def _without_unknown_steps(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = serialize(self)
        if self.epochs is not None:  # which number of steps they are, the data will tell
            del values["steps"]
        return values

    def starts(self) -> dict[str, float]:
        """Return the values that are given for kinds of hyperparameters, fixed or at the start."""
        schedule = self.schedule
        found = {kind: getattr(self, kind) for kind in STARTS}
        found |= {"warmup_share": schedule.warmup_share, "end_share": schedule.end_share}
        return {kind: value for kind, value in found.items() if value is not None}
