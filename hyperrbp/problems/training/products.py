"""The products of a training step with vectors, written out by hand.

For the state h = (w, v), an adjoint u = (u_w, u_v) of it, the Hessian H of the minibatch's loss and
the weight decay λ, with q = u_v ± α u_w and d = gain q:

    Jᵀu        = (u_w + (H + λ) d, β q)
    (∂F/∂α)ᵀu  = ± ⟨v', u_w⟩
    (∂F/∂β)ᵀu  = ⟨v + gain' g, q⟩      g = ∇L(w) + λ w
    (∂F/∂λ)ᵀu  = gain ⟨w, q⟩

where the inner products run over the weights that share the hyperparameter. The network enters by
its gradient and Hessian products alone, the rule by its elementwise coefficients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property

import torch
from torch import Tensor

from hyperrbp.data.batches import Batch
from hyperrbp.problems.training.hyperparameters import Layout
from hyperrbp.problems.training.objective import Objective, flat
from hyperrbp.problems.training.schedule import RateSchedule
from hyperrbp.problems.training.terms import row_numbers, with_weights
from hyperrbp.problems.training.update_rules import (
    Pieces,
    Rates,
    UpdateRule,
    update_in_place,
    velocity_adjoint,
    with_decay,
)


class StepProducts:
    """The products of one training step F at one θ; nothing here keeps a graph.

    Args:
        objective: the loss of the network, for its gradient and Hessian products.
        rule: the update rule.
        schedule: the rates of every step.
        layout: where in θ everything stands.
        theta: θ, shape (p,).
    """

    def __init__(
        self,
        objective: Objective,
        rule: UpdateRule,
        schedule: RateSchedule,
        layout: Layout,
        theta: Tensor,
    ) -> None:
        self._objective, self._rule, self._layout = objective, rule, layout
        self._theta = theta
        with torch.no_grad():
            self._rates = schedule.rates(theta)
            self.example_weights = layout.example_weights(theta.detach())
            """Natural weights of all training examples; None if they have none."""

    @cached_property
    def _derivatives(self) -> Tensor:
        """The derivatives of the natural values by their entries of θ, shape (p,)."""
        with torch.no_grad():
            return self._layout.derivatives(self._theta)

    @torch.no_grad()
    def transposed(self, w: Pieces, x: Batch, u: Tensor) -> Tensor:
        """Return Jᵀu at the weights w, shape (2N,); J does not depend on the velocities."""
        rates = self._rates[(-1 if x.step is None else x.step)]
        q, direction = self._velocity_adjoint(u, rates)
        terms = with_weights(x, self.example_weights)
        curved = self._objective.hessian_product(w, direction, terms)
        return self._along_state(u, q, direction, curved, rates)

    @torch.no_grad()
    def pullback(self, h: Tensor, x: Batch, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return (Jᵀu, (∂F/∂θ)ᵀu) at h, shapes (2N,) and (p,)."""
        w, v = self._objective.state_pieces(h)
        rates = self._rates[(-1 if x.step is None else x.step)]
        q, direction = self._velocity_adjoint(u, rates)
        terms = with_weights(x, self.example_weights)
        g, curved = self._objective.curvature(w, direction, terms)
        g = with_decay(g, w, rates)
        along = self._along_rates((-1 if x.step is None else x.step), (w, v), g, u, q)
        if self.example_weights is not None:
            self._add_along_examples(along, w, direction, [(1.0, x)])
        return self._along_state(u, q, direction, curved, rates), along * self._derivatives

    def update_by(
        self,
        h: Tensor,
        gradient: Tensor,
        segment: int | None,
        chunks: Iterable[tuple[float, Batch]] | None,
    ) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Return F(h) for a given gradient ∇L of shape (N,), shape (2N,), and u ↦ (∂F/∂θ)ᵀu.

        ``chunks`` are the weighted examples of that gradient, where their weights are tuned.
        """
        with torch.no_grad():
            segment = -1 if segment is None else segment
            rates, pieces = self._rates[segment], self._objective.pieces
            w, v = self._objective.state_pieces(h)
            g = with_decay(pieces(gradient), w, rates)
            image = h.clone()
            update_in_place(*self._objective.state_pieces(image), pieces(gradient), rates)

        @torch.no_grad()
        def along_theta(u: Tensor) -> Tensor:
            q, direction = self._velocity_adjoint(u, rates)
            along = self._along_rates(segment, (w, v), g, u, q)
            if chunks is not None and self.example_weights is not None:
                self._add_along_examples(along, w, direction, chunks)
            return along * self._derivatives

        return image, along_theta

    def _velocity_adjoint(
        self, u: Tensor, rates: Sequence[Rates]
    ) -> tuple[list[Tensor], list[Tensor]]:
        return velocity_adjoint(*self._objective.state_pieces(u), rates)

    def _along_state(
        self,
        u: Tensor,
        q: Pieces,
        direction: Pieces,
        curved: Pieces,
        rates: Sequence[Rates],
    ) -> Tensor:
        """Return Jᵀu, shape (2N,), from H d in pieces."""
        along = torch.empty_like(u)
        for i, (w_i, v_i) in enumerate(zip(*self._objective.state_pieces(along), strict=True)):
            torch.mul(q[i], rates[i].beta, out=v_i)
            w_i.copy_(curved[i])
            if (decay := rates[i].decay) is not None:
                w_i.addcmul_(decay, direction[i])
        weights = self._objective.weights
        along[:weights].add_(u[:weights])
        return along

    def _along_rates(
        self, segment: int, state: tuple[Pieces, Pieces], g: Pieces, u: Tensor, q: Pieces
    ) -> Tensor:
        """Return (∂F/∂ρ)ᵀu by natural values, in the order of θ, shape (p,).

        The weights of the examples are left at zero.
        """
        along, layout, rates = u.new_zeros(self._layout.count), self._layout, self._rates[segment]
        (w, v), (u_w, _) = state, self._objective.state_pieces(u)
        beta = torch.stack([of.beta for of in rates])
        gain = torch.stack([of.gain for of in rates])
        if "learning_rate" in layout.grains:
            of_v = beta * _dots(v, u_w) + gain * _dots(g, u_w)
            layout.collect(along, "learning_rate", segment, self._rule.sign * of_v)
        if "momentum" in layout.grains:
            of_v = _dots(v, q)
            if self._rule.gain_derivative:
                of_v = of_v + self._rule.gain_derivative * _dots(g, q)
            layout.collect(along, "momentum", segment, of_v)
        if (decay := layout.grains.get("weight_decay")) is not None:
            of_w = (
                flat([of.gain * w_i * q_i for of, w_i, q_i in zip(rates, w, q, strict=True)])
                if decay.by == "weight"
                else gain * _dots(w, q)
            )
            layout.collect(along, "weight_decay", segment, of_w)
        return along

    def _add_along_examples(
        self,
        along: Tensor,
        w: Pieces,
        direction: Pieces,
        chunks: Iterable[tuple[float, Batch]],
    ) -> None:
        """Add the derivatives by the natural weights of the examples in these chunks."""
        block = along[self._layout.slices["example_weight"]]
        for share, x in chunks:
            products = self._objective.example_products(w, direction, x[:2])
            block.index_add_(0, row_numbers(x), products, alpha=share / len(x))


def _dots(x: Pieces, y: Pieces) -> Tensor:
    """Return the inner product of every two pieces, shape (number of pieces,)."""
    return torch.stack(
        [torch.vdot(a.reshape(-1), b.reshape(-1)) for a, b in zip(x, y, strict=True)]
    )
