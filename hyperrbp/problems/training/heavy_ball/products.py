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

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property

import torch
from torch import Tensor

from hyperrbp.problems.training.heavy_ball.coefficients import (
    Coefficients,
    CoefficientSchedule,
    Pieces,
    update_in_place,
    velocity_adjoint,
    with_decay,
)
from hyperrbp.problems.training.heavy_ball.tangents import TangentUpdate
from hyperrbp.problems.training.hyperparameters import Layout
from hyperrbp.problems.training.network_loss import flat, len_of
from hyperrbp.problems.training.objective import Objective
from hyperrbp.problems.training.products import Place
from hyperrbp.problems.training.update_rules.heavy_ball import HeavyBall


class HeavyBallAt:
    """A step of SGD with momentum at one θ; nothing here keeps a graph.

    Args:
        objective: the loss of the network, for its gradient and Hessian products.
        rule: the update rule.
        schedule: the coefficients of every step.
        layout: where in θ everything stands.
        theta: θ, shape (p,).
    """

    def __init__(
        self,
        objective: Objective,
        rule: HeavyBall,
        schedule: CoefficientSchedule,
        layout: Layout,
        theta: Tensor,
    ) -> None:
        self._objective, self._rule, self._layout = objective, rule, layout
        self._schedule, self._theta = schedule, theta
        with torch.no_grad():
            self._rates = schedule.by_segment(theta)

    @cached_property
    def _derivatives(self) -> Tensor:
        """The derivatives of the natural values by their entries of θ, shape (p,)."""
        with torch.no_grad():
            return self._layout.derivatives(self._theta)

    @cached_property
    def pushforward(self) -> TangentUpdate:
        """(h, at, S) ↦ (F(h, θ, x), J S + ∂F/∂θ), in place of S."""
        return TangentUpdate(self._objective, self._rule, self._schedule, self._layout, self._theta)

    def states(self, h: Tensor, places: Iterable[Place]) -> Iterator[Tensor]:
        """Yield, bit for bit, what the step gives again and again: in place, in one buffer."""
        with torch.no_grad():
            h = h.clone()
            w, v = self._objective.state_pieces(h)  # they share the storage of h
        gradient, rates = self._objective.gradient, self._rates
        for at in places:
            now = rates[0] if len(rates) == 1 else rates[self._segment(at)]
            update_in_place(w, v, gradient(w, at.x), now)
            yield h

    @torch.no_grad()
    def transposed(self, h: Tensor, at: Place, u: Tensor) -> Tensor:
        """Return Jᵀu at h, shape (2N,); J does not depend on the velocities."""
        w, _ = self._objective.state_pieces(h)
        rates = self._rates[self._segment(at)]
        q, direction = self._velocity_adjoint(u, rates)
        curved = self._objective.hessian_product(w, direction, at.x)
        return self._along_state(u, q, direction, curved, rates)

    @torch.no_grad()
    def pullback(self, h: Tensor, at: Place, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return (Jᵀu, (∂F/∂θ)ᵀu) at h, shapes (2N,) and (p,)."""
        w, v = self._objective.state_pieces(h)
        segment = self._segment(at)
        rates = self._rates[segment]
        q, direction = self._velocity_adjoint(u, rates)
        g, curved = self._objective.curvature(w, direction, at.x)
        g = with_decay(g, w, rates)
        along = self._along_rates(segment, (w, v), g, u, q)
        if at.rows is not None:
            self._add_along_examples(along, w, direction, [(1.0, at)])
        return self._along_state(u, q, direction, curved, rates), along * self._derivatives

    def mean_pullback(
        self, h: Tensor, places: Sequence[tuple[float, Place]]
    ) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Return the mean F̄ of F over places of one segment, shape (2N,), and u ↦ (∂F̄/∂θ)ᵀu.

        The rule is affine in the gradient: this is the update by the mean gradient.
        """
        mean = self._objective.mean_gradient(
            h.detach()[: self._objective.weights], [(share, at.x) for share, at in places]
        )[1]
        weighted = places if places[0][1].rows is not None else ()
        return self.update_by(h, mean, self._segment(places[0][1]), weighted)

    def update_by(
        self,
        h: Tensor,
        gradient: Tensor,
        segment: int = -1,
        weighted: Sequence[tuple[float, Place]] = (),
    ) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Return F(h) for a given gradient ∇L of shape (N,), shape (2N,), and u ↦ (∂F/∂θ)ᵀu.

        ``weighted`` are the examples of that gradient, where their weights are tuned.
        """
        with torch.no_grad():
            rates, pieces = self._rates[segment], self._objective.pieces
            w, v = self._objective.state_pieces(h)
            g = with_decay(pieces(gradient), w, rates)
            image = h.clone()
            into_w, into_v = self._objective.state_pieces(image)
            update_in_place(into_w, into_v, pieces(gradient), rates)

        @torch.no_grad()
        def along_theta(u: Tensor) -> Tensor:
            q, direction = self._velocity_adjoint(u, rates)
            along = self._along_rates(segment, (w, v), g, u, q)
            if weighted:
                self._add_along_examples(along, w, direction, weighted)
            return along * self._derivatives

        return image, along_theta

    def _segment(self, at: Place) -> int:
        return self._layout.segment(at.step, at.steps)

    def _velocity_adjoint(
        self, u: Tensor, rates: Sequence[Coefficients]
    ) -> tuple[list[Tensor], list[Tensor]]:
        u_w, u_v = self._objective.state_pieces(u)
        return velocity_adjoint(u_w, u_v, rates)

    def _along_state(
        self,
        u: Tensor,
        q: Pieces,
        direction: Pieces,
        curved: Pieces,
        rates: Sequence[Coefficients],
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
        places: Iterable[tuple[float, Place]],
    ) -> None:
        """Add the derivatives by the natural weights of the examples in these batches."""
        block = along[self._layout.slices["example_weight"]]
        for share, at in places:
            assert at.rows is not None
            products = self._objective.example_products(w, direction, at.x)
            block.index_add_(0, at.rows, products, alpha=share / len_of(at.x))


def _dots(x: Pieces, y: Pieces) -> Tensor:
    """Return the inner product of every two pieces, shape (number of pieces,)."""
    return torch.stack(
        [torch.vdot(a.reshape(-1), b.reshape(-1)) for a, b in zip(x, y, strict=True)]
    )
