"""The coefficients of v' = β v + gain g, w' = w + signed v', and the update itself.

A function here takes and returns weights, velocities and gradients in pieces: one tensor for every
parameter tensor of the network.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hyperrbp.problems.training.hyperparameters import Layout
from hyperrbp.problems.training.update_rules.heavy_ball import HeavyBall

Pieces = Sequence[Tensor]
"""One tensor for every parameter tensor, of its shape."""

_KINDS = ("learning_rate", "momentum", "weight_decay")


class Coefficients(NamedTuple):
    """The coefficients of one update of one parameter tensor, shape () each or that of the tensor.

    They are what a rule makes of the hyperparameters, without a graph.
    """

    signed: Tensor
    """± α, with the sign of the rule."""
    beta: Tensor
    """β."""
    gain: Tensor
    """gain(β), the factor of the gradient."""
    decay: Tensor | None
    """λ; None if there is no weight decay."""


class CoefficientSchedule:
    """The coefficients of every step, which are constant within a segment of the run.

    Args:
        layout: where in θ every rate stands.
        rule: the update rule, which turns hyperparameters into coefficients.
        shapes: those of the parameter tensors.
    """

    def __init__(self, layout: Layout, rule: HeavyBall, shapes: Sequence[torch.Size]) -> None:
        self._layout, self._rule, self._shapes = layout, rule, shapes
        self.decays = "weight_decay" in layout.grains or layout.fixed["weight_decay"] > 0
        """Whether there is any weight decay."""

    def by_segment(self, theta: Tensor) -> list[list[Coefficients]]:
        """Return the coefficients of every parameter tensor, for each segment of the run.

        They have no graph where gradients are disabled, and none that leads to θ.
        """
        theta = theta.detach()
        return [self._in_segment(theta, segment) for segment in range(self._layout.segments)]

    def of_weights(self, theta: Tensor, segment: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return (α, β, λ) of every weight in a segment, shape (N,) each, with a graph to θ."""
        alpha, beta, decay = (self._layout.by_weight(theta, kind, segment) for kind in _KINDS)
        return alpha, beta, decay

    def _in_segment(self, theta: Tensor, segment: int) -> list[Coefficients]:
        alpha, beta, decay = (self._layout.by_tensor(theta, kind, segment) for kind in _KINDS)
        return [
            Coefficients(
                self._rule.sign * a,
                b,
                self._rule.gain(b),
                c.view(shape if c.dim() else ()) if self.decays else None,
            )
            for a, b, c, shape in zip(alpha, beta, decay, self._shapes, strict=True)
        ]


def with_decay(g: Pieces, w: Pieces, rates: Sequence[Coefficients]) -> Pieces:
    """Return ∇L + λ w."""
    return [
        g_i if of.decay is None else torch.addcmul(g_i, of.decay, w_i)
        for g_i, w_i, of in zip(g, w, rates, strict=True)
    ]


def update_in_place(w: Pieces, v: Pieces, g: Pieces, rates: Sequence[Coefficients]) -> None:
    """Turn (w, v) into (w', v'), with the bits of ``HeavyBall.apply``."""
    with torch.no_grad():
        for w_i, v_i, g_i, of in zip(w, v, with_decay(g, w, rates), rates, strict=True):
            v_i.mul_(of.beta).addcmul_(of.gain, g_i)
            w_i.addcmul_(of.signed, v_i)


def velocity_adjoint(
    u_w: Pieces, u_v: Pieces, rates: Sequence[Coefficients]
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the adjoint of v', q = u_v ± α u_w, and that of the gradient, gain · q.

    ``u_w`` and ``u_v`` are the adjoints of w' and v' as the next step leaves them.
    """
    q = [torch.addcmul(v_i, of.signed, w_i) for w_i, v_i, of in zip(u_w, u_v, rates, strict=True)]
    return q, [of.gain * q_i for q_i, of in zip(q, rates, strict=True)]
