"""The update rules of a training run: SGD with momentum, in two forms.

``maclaurin``  v' = β v − (1 − β) g,  w' = w + α v'   (Maclaurin et al. 2015, Algorithm 1)
``pytorch``    v' = β v + g,          w' = w − α v'   (``torch.optim.SGD``, dampening 0)

Here g = ∇L(w) + λ w with a weight decay λ, as in ``torch.optim.SGD``. In exact arithmetic the first
is ``torch.optim.SGD`` with learning rate α(1 − β) and momentum β, whose buffer is −v / (1 − β).

Both are elementwise in w, v and g, and written as v' = β v + gain(β) g, w' = w + sign · α v'.
A function here takes and returns weights, velocities and gradients in pieces: one tensor for every
parameter tensor of the network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

Pieces = Sequence[Tensor]
"""One tensor for every parameter tensor, of its shape."""


class Rates(NamedTuple):
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


@dataclass(frozen=True)
class UpdateRule:
    """One form of SGD with momentum: v' = β v + gain(β) g, w' = w + sign · α v'."""

    gain: Callable[[Tensor], Tensor]
    """β → the factor of the gradient."""
    gain_derivative: float
    """The derivative of ``gain``, which is a constant."""
    sign: float
    """1 where velocities point downhill, −1 where they point uphill."""
    effective_rate: Callable[[float, float], float]
    """(α, β) → the learning rate with which ``torch.optim.SGD`` does the same."""

    def rates(self, alpha: Tensor, beta: Tensor, decay: Tensor | None) -> Rates:
        """Return the coefficients of an update with these hyperparameters."""
        return Rates(self.sign * alpha, beta, self.gain(beta), decay)

    def apply(self, w: Tensor, v: Tensor, g: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
        """Return (w', v') as one vector, with a graph; all arguments are flat, shape (N,)."""
        v = torch.addcmul(beta * v, self.gain(beta), g)
        return torch.cat([torch.addcmul(w, self.sign * alpha, v), v])


UPDATE_RULES: dict[str, UpdateRule] = {
    "maclaurin": UpdateRule(
        lambda beta: beta - 1, 1.0, 1.0, lambda alpha, beta: alpha * (1 - beta)
    ),
    "pytorch": UpdateRule(torch.ones_like, 0.0, -1.0, lambda alpha, beta: alpha),
}
"""The update rules by the name that a recipe gives them."""


def with_decay(g: Pieces, w: Pieces, rates: Sequence[Rates]) -> Pieces:
    """Return ∇L + λ w."""
    return [
        g_i if of.decay is None else torch.addcmul(g_i, of.decay, w_i)
        for g_i, w_i, of in zip(g, w, rates, strict=True)
    ]


def update_in_place(w: Pieces, v: Pieces, g: Pieces, rates: Sequence[Rates]) -> None:
    """Turn (w, v) into (w', v'), with the bits of ``UpdateRule.apply``."""
    with torch.no_grad():
        for w_i, v_i, g_i, of in zip(w, v, with_decay(g, w, rates), rates, strict=True):
            v_i.mul_(of.beta).addcmul_(of.gain, g_i)
            w_i.addcmul_(of.signed, v_i)


def velocity_adjoint(
    u_w: Pieces, u_v: Pieces, rates: Sequence[Rates]
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the adjoint of v', q = u_v ± α u_w, and that of the gradient, gain · q.

    ``u_w`` and ``u_v`` are the adjoints of w' and v' as the next step leaves them.
    """
    q = [torch.addcmul(v_i, of.signed, w_i) for w_i, v_i, of in zip(u_w, u_v, rates, strict=True)]
    return q, [of.gain * q_i for q_i, of in zip(q, rates, strict=True)]
