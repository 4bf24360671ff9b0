"""Networks with a convergent part, and the recurrence that they iterate."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn

from hyperrbp.problems.fixed_point import FixedPoint, Parameters, Update


class Recurrence(NamedTuple):
    """h ← F(h, parameters, x) from h_0; what it is made of may depend on weights by autograd."""

    update: Update
    h0: Tensor
    parameters: Parameters
    x: Any


class ConvergentNetwork(nn.Module, ABC):
    """Inputs → a recurrence → its steady state → an output (Liao et al. 2018, eq. 1-3)."""

    @abstractmethod
    def recurrence(self, inputs: Tensor) -> Recurrence:
        """Return what is iterated for these inputs."""

    @abstractmethod
    def output(self, h: Tensor) -> Tensor:
        """Return G(h), what is read off a state of the shape of h_0."""

    def problem(
        self,
        inputs: Tensor,
        *,
        updates: int,
        loss: Callable[[Tensor], Tensor] | None = None,
        settled: float = 0.0,
    ) -> FixedPoint:
        """Return the recurrence for these inputs as a problem of the current parameters.

        ``loss`` is of the output.
        """
        update, h0, parameters, x = self.recurrence(inputs)
        on_state = None if loss is None else lambda h: loss(self.output(h))
        return FixedPoint(
            update, h0, parameters, x, updates=updates, loss=on_state, settled=settled
        )
