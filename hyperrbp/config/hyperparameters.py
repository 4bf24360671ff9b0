"""The section ``hyperparameters``: what is tuned, at which grain, in which box, by which methods.

An implicit method looks at the last state alone. What acted before it and does not move the steady
state (the rates of an early segment, the initial weights) has left no trace there: such a gradient
would be zero or noise, and is refused. What moves the steady state (weight decay, the weights of
examples) is where implicit gradients are sound, the more so the closer the run comes to it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field

from hyperrbp.config.schema import Section
from hyperrbp.hypergradients.method import Horizon
from hyperrbp.problems.training.update_rules import UPDATE_RULES

Box = Annotated[list[float], Field(min_length=2, max_length=2)]
_Part = Literal["net", "layer", "tensor"]


def _by(*, weight: bool = False) -> Any:
    return Field(
        "tensor",
        description="one value for each: net | layer | tensor" + (" | weight" if weight else ""),
    )


def _box(low: float, high: float) -> Any:
    return Field(
        default_factory=lambda: [low, high],
        description="[low, high]: where a search or a screening samples; only the meta-optimizer"
        " adam may leave it",
    )


def _segments() -> Any:
    return Field(
        1, ge=1, le=10**4, description="so many values in turn, each for an equal part of the run"
    )


class LearningRateSection(Section):
    """The learning rates α, which start at inner.learning_rate."""

    by: _Part = _by()
    segments: int = _segments()
    range: Box = _box(math.exp(-4), math.exp(3))


class MomentumSection(Section):
    """The momenta β, which start at inner.momentum."""

    by: _Part = _by()
    segments: int = _segments()
    range: Box = _box(1 / (1 + math.exp(4)), 1 / (1 + math.exp(-4)))


class WeightDecaySection(Section):
    """The weight decays λ, which start at inner.weight_decay."""

    by: Literal["net", "layer", "tensor", "weight"] = _by(weight=True)
    range: Box = _box(1e-6, 0.1)


class InitScaleSection(Section):
    """The factors by which the initial weights are multiplied, which start at 1."""

    by: _Part = _by()
    range: Box = _box(0.1, 10.0)


class ExampleWeightSection(Section):
    """One weight in (0, 2) for each training example; they start at 1, the mean of all losses."""

    range: Box = _box(0.02, 1.98)


class Beta1Section(Section):
    """The decay rates β₁ of first moments, which start at the first of inner.options.betas."""

    by: _Part = _by()
    segments: int = _segments()
    range: Box = _box(0.5, 0.99)


class Beta2Section(Section):
    """The decay rates β₂ of second moments, which start at the second of inner.options.betas."""

    by: _Part = _by()
    segments: int = _segments()
    range: Box = _box(0.9, 0.9999)


class AlphaSection(Section):
    """The smoothing constants of rmsprop, which start at inner.options.alpha."""

    by: _Part = _by()
    segments: int = _segments()
    range: Box = _box(0.9, 0.999)


class EpsSection(Section):
    """The ε of adaptive optimizers, which start at inner.options.eps."""

    by: _Part = _by()
    segments: int = _segments()
    range: Box = _box(1e-10, 1e-3)


class WarmupShareSection(Section):
    """The share of the steps that the warm-up takes; starts at inner.schedule.warmup_share."""

    range: Box = _box(0.01, 0.5)


class EndShareSection(Section):
    """The share of the peak that is left at the end; starts at inner.schedule.end_share."""

    range: Box = _box(0.001, 0.9)


class KnotsSection(Section):
    """The factors of the schedule knots, which start at inner.schedule.knots."""

    range: Box = _box(0.01, 10.0)


class TunedKind(NamedTuple):
    """One kind of hyperparameter that is tuned."""

    by: str
    """The part that has a value of its own: net, layer, tensor, weight or example."""
    segments: int
    """The values in turn, each for an equal part of the run."""
    box: tuple[float, float]
    """The bounds, in natural units."""


class HyperparametersSection(Section):
    """The kinds that are tuned; one that is null keeps its single value from elsewhere."""

    learning_rate: LearningRateSection | None = Field(
        LearningRateSection(), description="{by, segments, range}; null: fixed"
    )
    momentum: MomentumSection | None = Field(
        MomentumSection(), description="{by, segments, range}; null: fixed"
    )
    beta1: Beta1Section | None = Field(None, description="{by, segments, range}; null: fixed")
    beta2: Beta2Section | None = Field(None, description="{by, segments, range}; null: fixed")
    alpha: AlphaSection | None = Field(None, description="{by, segments, range}; null: fixed")
    eps: EpsSection | None = Field(None, description="{by, segments, range}; null: fixed")
    warmup_share: WarmupShareSection | None = Field(None, description="{range}; null: fixed")
    end_share: EndShareSection | None = Field(None, description="{range}; null: fixed")
    knots: KnotsSection | None = Field(None, description="{range}; null: fixed")
    weight_decay: WeightDecaySection | None = Field(None, description="{by, range}; null: fixed")
    init_scale: InitScaleSection | None = Field(None, description="{by, range}; null: fixed")
    example_weight: ExampleWeightSection | None = Field(
        None, description="{range}, which may be {}; null: every example counts alike"
    )

    def tuned(self) -> dict[str, TunedKind]:
        """Return what is tuned, by kind."""
        sections = {kind: getattr(self, kind) for kind in type(self).model_fields}
        return {
            kind: TunedKind(
                getattr(section, "by", "example" if kind == "example_weight" else "net"),
                getattr(section, "segments", 1),
                (section.range[0], section.range[1]),
            )
            for kind, section in sections.items()
            if section is not None
        }


def with_tuned_kinds(tuned: dict[str, Any], inner: dict[str, Any]) -> dict[str, Any]:
    """Return a section with what depends on the optimizer filled in where it is not given.

    A momentum is tuned by default where the optimizer has one that does not start at zero. A
    learning rate is searched where those of the optimizer usually lie.

    Args:
        tuned: the section ``hyperparameters`` as it is given.
        inner: the section ``inner`` as it is given.
    """
    rule = UPDATE_RULES.get(str(inner.get("optimizer", "maclaurin")))
    if rule is None:  # code of the user's own: it says itself what it has
        return {"momentum": None} | tuned
    filled = dict(tuned)
    if "momentum" not in tuned:
        start = inner.get("momentum", rule().defaults().get("momentum", 0.0))
        filled["momentum"] = {} if start else None
    rate = filled.get("learning_rate", {})
    if isinstance(rate, dict) and "range" not in rate:
        filled["learning_rate"] = rate | {"range": list(rule.learning_rate_range)}
    return filled


HORIZONS: dict[str, dict[Horizon, str]] = {
    "learning_rate, momentum, beta1, beta2, alpha, eps": {
        Horizon.RUN: "exact",
        Horizon.WINDOW: "of the last K steps",
        Horizon.STATE: "of a run that has not converged; fades as it does",
    },
    "the same in segments, or a learning_rate on a schedule": {
        Horizon.RUN: "exact",
        Horizon.WINDOW: "refused unless K = T: nothing of the segments before",
        Horizon.STATE: "refused: early segments leave no trace in the last state",
    },
    "warmup_share, end_share, knots": {
        Horizon.RUN: "exact",
        Horizon.WINDOW: "refused unless K = T: nothing of the steps before",
        Horizon.STATE: "refused: a schedule leaves no trace in the last state",
    },
    "weight_decay": {
        Horizon.RUN: "exact",
        Horizon.TANGENTS: "exact; by weight refused: a tangent for every weight",
        Horizon.WINDOW: "of the last K steps",
        Horizon.STATE: "sound at convergence: it moves the steady state",
    },
    "init_scale": {
        Horizon.RUN: "exact",
        Horizon.WINDOW: "refused unless K = T: nothing of the start",
        Horizon.STATE: "refused: a steady state has forgotten its start",
    },
    "example_weight": {
        Horizon.RUN: "exact",
        Horizon.TANGENTS: "refused: a tangent for every example",
        Horizon.WINDOW: "of the last K steps: zero for an example that was not in them",
        Horizon.STATE: "sound at convergence: it moves the steady state",
    },
}
"""What each kind of gradient method finds out about each kind of hyperparameter. Where there is no
entry for tangents (``forward``), it is as for the whole run."""


def unsupported_kinds(
    section: HyperparametersSection,
    horizon: Horizon,
    *,
    trunc: int,
    steps: int,
    scheduled: bool = False,
) -> Iterator[tuple[str, str]]:
    """Yield the kinds whose gradient a method cannot take, each with the reason.

    Args:
        section: what is tuned.
        horizon: what the method differentiates.
        trunc: K, its truncation steps.
        steps: T, training steps of the inner run.
        scheduled: whether the learning rate changes during the run.
    """
    whole = horizon in (Horizon.RUN, Horizon.TANGENTS) or (
        horizon is Horizon.WINDOW and trunc >= steps
    )
    for kind, tuned in section.tuned().items():
        row = _row(kind, tuned, scheduled)
        if row is not None and not whole:
            why = HORIZONS[row][horizon].partition(": ")[2]
            yield kind, f"{why}; expected bptt or forward"
        elif tuned.by in ("weight", "example") and horizon is Horizon.TANGENTS:
            yield kind, f"it would carry a tangent for every {tuned.by}; expected another method"


def _row(kind: str, tuned: TunedKind, scheduled: bool) -> str | None:
    """Return the entry of HORIZONS for a kind that only the whole run tells about."""
    if kind == "init_scale":
        return kind
    if kind in ("warmup_share", "end_share", "knots"):
        return "warmup_share, end_share, knots"
    if tuned.segments > 1 or (kind == "learning_rate" and scheduled):
        return "the same in segments, or a learning_rate on a schedule"
    return None
