"""What a recipe tunes, at which grain, in which box, and which gradient methods can see it.

An implicit method looks at the last state alone. What acted before it and does not move the steady
state (the rates of an early stretch, the initial weights) has left no trace there: such a gradient
would be zero or noise, and is refused. What moves the steady state (weight decay, the weights of
examples) is where implicit gradients are sound, the more so the closer the run comes to it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field

from hyperrbp.config.schema import KeyFault, Section
from hyperrbp.hypergradients.method import Horizon

Box = Annotated[list[float], Field(min_length=2, max_length=2)]
_Part = Literal["net", "layer", "tensor"]


def _by(*, weight: bool = False) -> Any:
    return Field(
        "tensor", description="a value for: net | layer | tensor" + (" | weight" if weight else "")
    )


def _box(low: float, high: float) -> Any:
    return Field(
        default_factory=lambda: [low, high],
        description="[low, high]: the box that a search draws from; the descent may leave it",
    )


def _segments() -> Any:
    return Field(1, ge=1, le=10**4, description="values for so many equal stretches of the run")


class LearningRateSection(Section):
    """α, from inner.learning_rate."""

    by: _Part = _by()
    segments: int = _segments()
    range: Box = _box(math.exp(-4), math.exp(3))


class MomentumSection(Section):
    """β, from inner.momentum."""

    by: _Part = _by()
    segments: int = _segments()
    range: Box = _box(1 / (1 + math.exp(4)), 1 / (1 + math.exp(-4)))


class WeightDecaySection(Section):
    """λ, from inner.weight_decay."""

    by: Literal["net", "layer", "tensor", "weight"] = _by(weight=True)
    range: Box = _box(1e-6, 0.1)


class InitScaleSection(Section):
    """The factor that the initial weights are multiplied by, from 1."""

    by: _Part = _by()
    range: Box = _box(0.1, 10.0)


class ExampleWeightSection(Section):
    """One weight in (0, 2) for each training example, from 1: the plain mean of their losses."""

    range: Box = _box(0.02, 1.98)


class HyperparametersSection(Section):
    """What is tuned. A kind that is null keeps the one value that the recipe names elsewhere."""

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

    def tuned(self) -> dict[str, tuple[str, int, tuple[float, float]]]:
        """By kind: the parts, the number of segments and the box, in natural units."""
        sections = {kind: getattr(self, kind) for kind in type(self).model_fields}
        return {
            kind: (
                getattr(section, "by", "example"),
                getattr(section, "segments", 1),
                (section.range[0], section.range[1]),
            )
            for kind, section in sections.items()
            if section is not None
        }


_LIMITS = {"momentum": 1.0, "example_weight": 2.0}


def contradictions(
    section: HyperparametersSection, *, steps: int, weight_decay: float
) -> Iterator[KeyFault]:
    """What is wrong with the section, whatever the gradient method."""
    tuned = section.tuned()
    if not tuned:
        yield ("hyperparameters",), "expected at least one kind that is tuned; all are null"
    for kind, (_, segments, (low, high)) in tuned.items():
        most = _LIMITS.get(kind, math.inf)
        if not 0 < low < high < most:
            below = f", below {most:g}" if math.isfinite(most) else ""
            yield (
                ("hyperparameters", kind, "range"),
                f"expected 0 < low < high{below}, got [{low:g}, {high:g}]",
            )
        if segments > steps:
            yield (
                ("hyperparameters", kind, "segments"),
                f"expected at most the {steps} steps of inner.steps, got {segments}",
            )
    if "weight_decay" in tuned and weight_decay == 0:
        yield (
            ("inner", "weight_decay"),
            "hyperparameters.weight_decay starts here; expected a number above 0, got 0",
        )


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
"""What each kind of gradient method sees of each kind of hyperparameter. Where there is no entry
for tangents (``forward``), it is as for the whole run."""


def unseen(
    section: HyperparametersSection, horizon: Horizon, *, trunc: int, steps: int
) -> Iterator[tuple[str, str]]:
    """The kinds that a method cannot see, each with the reason."""
    whole = horizon in (Horizon.RUN, Horizon.TANGENTS) or (
        horizon is Horizon.WINDOW and trunc >= steps
    )
    for kind, (by, segments, _) in section.tuned().items():
        row = "init_scale" if kind == "init_scale" else "learning_rate, momentum in segments"
        if (segments > 1 or kind == "init_scale") and not whole:
            why = HORIZONS[row][horizon].partition(": ")[2]
            yield kind, f"{why}; expected bptt or forward"
        elif by in ("weight", "example") and horizon is Horizon.TANGENTS:
            yield kind, f"it would carry a tangent for every {by}; expected another method"
