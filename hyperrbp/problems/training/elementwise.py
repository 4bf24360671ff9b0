"""One training step and its products, for any update rule.

With h = (w, s), the gradient g = clip(∇L(w; x)), the rates ρ = R(θ, t) of the step and the update
(w', s') = U(w, s, g; ρ, t), which is elementwise in w, s and g:

    A = ∂(w', s')/∂(w, s)    B = ∂(w', s')/∂g    C = ∂(w', s')/∂ρ    D = ∂clip/∂∇L    H = ∇²L

    Jᵀu         = Aᵀu + (H Dᵀ Bᵀu, 0)
    J v         = A v + B D H v_w
    (∂F/∂θ)ᵀu   = (∂ρ/∂θ)ᵀ Cᵀu + (∂∇L/∂θ)ᵀ Dᵀ Bᵀu      the latter for weights of examples

The network enters by its gradient and Hessian products alone, the rule by the derivatives of a few
elementwise operations, the schedule by its rates.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hyperrbp.problems.training.objective import Objective, pulled_back
from hyperrbp.problems.training.terms import Structure
from hyperrbp.problems.training.update_rules import UpdateRule
from hyperrbp.runtime.tracing import TracedFunction

Pieces = Sequence[Tensor]
"""One tensor for every parameter tensor, of its shape."""


class ElementwiseUpdate:
    """(w, s, ∇L; ρ, t) ↦ (w', s'), with a clipping of the gradient before, for all tensors.

    Args:
        rule: the update rule of one tensor.
        shapes: of the parameter tensors.
        clip_norm: the largest norm of the gradient; None: any.
    """

    def __init__(
        self, rule: UpdateRule, shapes: Sequence[torch.Size], clip_norm: float | None
    ) -> None:
        self.rule, self._shapes, self.clip_norm = rule, shapes, clip_norm
        self._sizes = [shape.numel() for shape in shapes]

    @property
    def parts(self) -> int:
        """The number of vectors of N entries that make a state."""
        return 1 + len(self.rule.slots)

    def clipped(self, g: Pieces) -> Pieces:
        """Return g, scaled to the largest norm, as ``torch.nn.utils.clip_grad_norm_`` does."""
        if self.clip_norm is None:
            return g
        norm = torch.linalg.vector_norm(
            torch.stack([torch.linalg.vector_norm(piece) for piece in g])
        )
        scale = (self.clip_norm / (norm + 1e-6)).clamp(max=1.0)
        return [piece * scale for piece in g]

    def __call__(
        self, state: Sequence[Pieces], g: Pieces, rates: Sequence[Tensor], t: Tensor
    ) -> list[list[Tensor]]:
        """Return the next state, in parts and pieces, from a gradient that is clipped.

        Args:
            state: weights, and then slots.
            g: the clipped gradient.
            rates: by the rule's kinds; one for every tensor, shape (tensors,), or for every weight,
                shape (N,).
            t: the number of the step, shape ().
        """
        by_tensor = [self.split(rate) for rate in rates]
        moved = []
        for i, g_i in enumerate(g):
            own = {kind: rate[i] for kind, rate in zip(self.rule.kinds, by_tensor, strict=True)}
            w, slots = self.rule.update(state[0][i], [part[i] for part in state[1:]], g_i, own, t)
            moved.append((w, *slots))
        return [list(part) for part in zip(*moved, strict=True)]

    def split(self, rate: Tensor) -> Sequence[Tensor]:
        """Return what each tensor has of a rate."""
        if len(rate) == len(self._shapes):
            return rate.unbind()
        return [
            piece.view(shape)
            for piece, shape in zip(torch.split(rate, self._sizes), self._shapes, strict=True)
        ]

    def diagonals(
        self,
        state: Sequence[Pieces],
        g: Pieces,
        rates: Sequence[Tensor],
        t: Tensor,
        i: int,
        by: Sequence[str] = (),
    ) -> tuple[list[Tensor], list[list[Tensor]]]:
        """Return (w', s') of tensor i, and the diagonals of its derivatives.

        ``found[o][j]`` is the derivative of part o by input j, of the shape of the tensor; the
        inputs are the parts of the state, the clipped gradient, and the rates of the kinds in
        ``by``.
        """
        with torch.enable_grad():
            own = {
                kind: self.split(rate)[i] for kind, rate in zip(self.rule.kinds, rates, strict=True)
            }
            inputs = [
                tensor.detach().clone().requires_grad_()
                for tensor in (
                    *[part[i] for part in state],
                    g[i],
                    *[own[kind].to(g[i].dtype).expand_as(g[i]) for kind in by],
                )
            ]
            count = len(state)
            varied = dict(zip(by, inputs[count + 1 :], strict=True))
            w, slots = self.rule.update(inputs[0], inputs[1:count], inputs[count], own | varied, t)
            moved = [w, *slots]
            found = [
                list(
                    torch.autograd.grad(
                        part.sum(), inputs, retain_graph=True, materialize_grads=True
                    )
                )
                if part.requires_grad
                else [torch.zeros_like(tensor) for tensor in inputs]
                for part in moved
            ]
        return [part.detach() for part in moved], found


class StepPrograms:
    """The functions that run once a step, for batches of one structure; traced when called often.

    Tensors come and go as flat lists: the pieces of all parts of the state (and of an adjoint), the
    rates by kind, the number of the step, and the batch.
    """

    def __init__(
        self, objective: Objective, update: ElementwiseUpdate, structure: Structure | None
    ) -> None:
        self._objective, self._update, self._structure = objective, update, structure
        self._pieces = len(objective.tensors)
        self.advance = TracedFunction(self._advance)
        self.pullback = TracedFunction(self._pullback)

    def _advance(self, *tensors: Tensor) -> Sequence[Tensor]:
        state, (rates, t, batch) = self._taken(tensors, 1)
        g = self._objective.gradient_of(self._structure, *state[0], *batch)
        moved = self._update(state, self._update.clipped(g), rates, t)
        return [piece for part in moved for piece in part]

    def _pullback(self, *tensors: Tensor) -> Sequence[Tensor]:
        """Return Jᵀu in pieces, Cᵀu by kind, and the adjoint of the weights of the examples."""
        both, (rates, t, batch) = self._taken(tensors, 2)
        count = len(both) // 2
        state, u = both[:count], both[count:]
        x = self._objective.terms_of(batch, self._structure)
        with torch.enable_grad():
            w = [piece.detach().requires_grad_() for piece in state[0]]
            weights = [] if x.weights is None else [x.weights.detach().requires_grad_()]
            if weights:
                x = x._replace(weights=weights[0])
            gradient = self._objective.gradient_with_graph(w, x)
            # The rule sees its own copies of all inputs: its derivatives are partial ones.
            raw = [piece.detach().requires_grad_() for piece in gradient]
            parts = [[piece.detach().requires_grad_() for piece in part] for part in state]
            own = [rate.detach().requires_grad_() for rate in rates]
            moved = self._update(parts, self._update.clipped(raw), own, t)
            along_state = [piece for part in parts for piece in part]
            along = pulled_back(
                [piece for part in moved for piece in part],
                [*along_state, *raw, *own],
                [piece for part in u for piece in part],
            )
            of_state, left = along[: len(along_state)], along[len(along_state) :]
            direction, of_rates = left[: len(raw)], left[len(raw) :]
            curved = pulled_back(gradient, [*w, *weights], direction)
        of_weights = [a + b for a, b in zip(of_state, curved[: len(w)], strict=False)]
        return [
            piece.detach()
            for piece in (*of_weights, *of_state[len(w) :], *of_rates, *curved[len(w) :])
        ]

    def _taken(
        self, tensors: Sequence[Tensor], states: int
    ) -> tuple[list[Sequence[Tensor]], tuple[Sequence[Tensor], Tensor, Sequence[Tensor]]]:
        parts = states * self._update.parts
        pieces = [
            tensors[start : start + self._pieces]
            for start in range(0, parts * self._pieces, self._pieces)
        ]
        rest = tensors[parts * self._pieces :]
        kinds = len(self._update.rule.kinds)
        return pieces, (rest[:kinds], rest[kinds], rest[kinds + 1 :])
