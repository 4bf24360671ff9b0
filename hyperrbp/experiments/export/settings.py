"""What the optimizer of PyTorch is given for every tensor, and how it changes during a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from hyperrbp.problems.training.run import TrainingRun

ByTensor = dict[str, Any]
"""A value by the name of a tensor."""


class Settings:
    """The settings of a run at one θ, in float64.

    Args:
        run: the run.
        theta: its hyperparameters, shape (p,).
    """

    def __init__(self, run: TrainingRun, theta: Tensor) -> None:
        self._layout, self._rule, self._steps = run.layout, run.rule, run.steps
        self._theta = theta.detach().cpu().double()
        whole = self._layout.segments
        # More than one segment a step: only those that some step is in.
        count = min(whole, run.steps)
        values = {kind: self._in_turn(kind) for kind in self._rule.kinds}
        stretches = [
            self._settings(values, stretch if count == whole else stretch * whole // count)
            for stretch in range(count)
        ]
        self.first: dict[str, dict[str, Any]] = stretches[0]
        """Those of the first step, but for the schedule, by tensor."""
        self.changing: dict[str, Sequence[ByTensor]] = {}
        """By key, those that change: in turn, each for an equal part of the run."""
        for key in next(iter(self.first.values())):
            each = [{name: of[key] for name, of in stretch.items()} for stretch in stretches]
            if any(of != each[0] for of in each):
                self.changing[key] = _fewest(each)

    def of_net(self, kind: str) -> list[float]:
        """Return the values of a kind that the whole network shares."""
        return [float(value) for value in self._layout.of_net(self._theta, kind)]

    def by_tensor(self, kind: str) -> ByTensor:
        """Return the values of a kind that does not change, by tensor."""
        each = self._layout.by_tensor(self._theta, kind, 0)
        return dict(zip(self._layout.tensors, map(float, each), strict=True))

    @property
    def decays_by_weight(self) -> bool:
        """Whether every weight has a weight decay of its own, which no setting can be."""
        grain = self._layout.grains.get("weight_decay")
        return grain is not None and grain.by == "weight"

    def _in_turn(self, kind: str) -> list[list[float]]:
        """Return the values of a kind in its own segments, by tensor."""
        layout = self._layout
        if kind == "weight_decay" and self.decays_by_weight:
            return [[0.0] * len(layout.tensors)]
        if kind not in layout.grains:
            return [[layout.fixed[kind]] * len(layout.tensors)]
        count = layout.grains[kind].segments
        return [
            [float(value) for value in layout.by_tensor(self._theta, kind, segment)]
            for segment in range(0, layout.segments, layout.segments // count)
        ]

    def _settings(
        self, values: Mapping[str, list[list[float]]], segment: int
    ) -> dict[str, dict[str, Any]]:
        """Return what every tensor is given in one of the segments of the run."""
        whole = self._layout.segments
        now = {kind: each[segment * len(each) // whole] for kind, each in values.items()}
        return {
            name: self._rule.torch_settings({kind: each[i] for kind, each in now.items()})
            for i, name in enumerate(self._layout.tensors)
        }


def _fewest(values: Sequence[ByTensor]) -> Sequence[ByTensor]:
    """Return the same values in turn, in as few equal parts of the run as they go into."""
    count = len(values)
    for parts in range(2, count):
        if count % parts == 0:
            size = count // parts
            if all(values[i] == values[i - i % size] for i in range(count)):
                return values[::size]
    return values
