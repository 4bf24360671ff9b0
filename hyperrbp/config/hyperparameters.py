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
                getattr(section, "by", "example"),
                getattr(section, "segments", 1),
                (section.range[0], section.range[1]),
            )
            for kind, section in sections.items()
            if section is not None
        }


HORIZONS: dict[str, dict[Horizon, str]] = {
    "learning_rate, momentum": {
        Horizon.RUN: "exact",
        Horizon.WINDOW: "of the last K steps",
        Horizon.STATE: "of a run that has not converged; fades as it does",
    },
    "learning_rate, momentum in segments": {
        Horizon.RUN: "exact",
        Horizon.WINDOW: "refused unless K = T: nothing of the segments before",
        Horizon.STATE: "refused: early segments leave no trace in the last state",
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
    section: HyperparametersSection, horizon: Horizon, *, trunc: int, steps: int
) -> Iterator[tuple[str, str]]:
    """Yield the kinds whose gradient a method cannot take, each with the reason.

    Args:
        section: what is tuned.
        horizon: what the method differentiates.
        trunc: K, its truncation steps.
        steps: T, training steps of the inner run.
    """
    whole = horizon in (Horizon.RUN, Horizon.TANGENTS) or (
        horizon is Horizon.WINDOW and trunc >= steps
    )
    for kind, tuned in section.tuned().items():
        row = "init_scale" if kind == "init_scale" else "learning_rate, momentum in segments"
        if (tuned.segments > 1 or kind == "init_scale") and not whole:
            why = HORIZONS[row][horizon].partition(": ")[2]
            yield kind, f"{why}; expected bptt or forward"
        elif tuned.by in ("weight", "example") and horizon is Horizon.TANGENTS:
            yield kind, f"it would carry a tangent for every {tuned.by}; expected another method"
