"""SGD with momentum as a recurrent map: the hidden state is the weights and the velocities.

Liao et al. 2018, section 5.3. The flat state is h = (w, v), each of the N weights long; θ holds,
unless other hyperparameters are asked for (:mod:`hyperrbp.problems.training.hyperparameters`), a log
learning rate and a logit momentum for every parameter tensor, θ = (a, b) with α = exp(a) and
β = sigmoid(b).

With a weight decay λ, ∇L below stands for ∇L(w) + λ w, as in ``torch.optim.SGD``; with weights of
examples, L is the weighted mean of their losses; with a scale of the initial weights, θ enters h_0.

The update is one of

``maclaurin``  v' = β v − (1 − β) ∇L(w),  w' = w + α v'   (Maclaurin et al. 2015, Algorithm 1)
``pytorch``    v' = β v + ∇L(w),          w' = w − α v'   (``torch.optim.SGD``, dampening 0)

In exact arithmetic the first is ``torch.optim.SGD`` with learning rate α(1 − β) and momentum β,
whose buffer is −v / (1 − β).
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from hyperrbp.data.batches import Batch, Batches, ConvertedBatches, ListedBatches
from hyperrbp.exceptions import UsageError
from hyperrbp.problems.base import Input, Problem, Pushforward
from hyperrbp.problems.training.hyperparameters import KINDS, Hyperparameters, Layout
from hyperrbp.problems.training.objective import Loss, Objective, Terms, flat


@dataclass(frozen=True)
class Update:
    """One form of SGD with momentum; ``effective_rate`` is its learning rate in torch.optim.SGD."""

    gain: Callable[[Tensor], Tensor]  # v' = β v + gain(β) ∇L(w)
    gain_derivative: float  # its derivative
    sign: float  # w' = w + sign · α v'
    effective_rate: Callable[[float, float], float]  # (α, β) → lr


UPDATES: dict[str, Update] = {
    "maclaurin": Update(lambda beta: beta - 1, 1.0, 1.0, lambda alpha, beta: alpha * (1 - beta)),
    "pytorch": Update(torch.ones_like, 0.0, -1.0, lambda alpha, beta: alpha),
}


class _Rates(NamedTuple):
    """What an update of one parameter tensor is made with, shape () each or that of the tensor."""

    signed: Tensor  # ± α
    beta: Tensor
    gain: Tensor
    decay: Tensor | None  # λ; None if there is no weight decay


class TrainingRun(Problem):
    """T steps of SGD with momentum on a classifier (or any module with a mean loss).

    Args:
        model: any module whose output depends on its parameters and its input alone. Its own
            parameters are only read. Modules with buffers or dropout are refused.
        batches: the minibatch of every step, or a plain list of (inputs, targets).
        steps: T.
        meta_examples: what the meta loss is taken on; the training examples if not given.
        loss: the mean loss of a batch.
        update: ``maclaurin`` or ``pytorch``.
        initial_weights: flat, shape (N,), in the order of ``model.named_parameters()``; the
            model's current ones if not given.
        hyperparameters: what θ holds; learning rate and momentum of every tensor if not given.

    Raises:
        UsageError: for a model or an argument that it cannot train.
    """

    transient = frozenset(kind for kind, of in KINDS.items() if of.transient)

    def __init__(
        self,
        model: nn.Module,
        batches: Batches | Sequence[tuple[Tensor, Tensor]],
        *,
        steps: int,
        meta_examples: Batch | None = None,
        loss: Loss = cross_entropy,
        update: str = "maclaurin",
        initial_weights: Tensor | None = None,
        hyperparameters: Hyperparameters | None = None,
    ) -> None:
        if steps < 1:
            raise UsageError(f"a training run has at least 1 step, not {steps}")
        if update not in UPDATES:
            raise UsageError(f"unknown update '{update}'; there are {', '.join(UPDATES)}")
        self.steps = steps
        self.objective = Objective(model, loss)
        self.tensors = self.objective.tensors
        """The names of the parameter tensors, in the order of the state and of θ."""
        self._update = UPDATES[update]
        self._batches: Batches = (
            ListedBatches(batches) if isinstance(batches, Sequence) else batches
        )
        self._meta_examples = meta_examples
        self._last_loss: tuple[weakref.ref[Tensor], int, tuple[Tensor, Tensor]] | None = None
        own = self.objective.initial_weights()
        self._initial_weights = own if initial_weights is None else initial_weights.detach()
        if self._initial_weights.shape != own.shape:
            raise UsageError(
                f"initial weights of shape {tuple(self._initial_weights.shape)} for a model of"
                f" {len(own)} weights"
            )
        hyperparameters = hyperparameters or Hyperparameters()
        self._weighted = "example_weight" in hyperparameters.tuned
        examples = sum(len(x) for _, x in self.population()) if self._weighted else 0
        self.layout = Layout(hyperparameters, self.tensors, self.objective.sizes, examples)
        """Where in θ everything stands."""
        self._decays = "weight_decay" in self.layout.grains or self.layout.fixed["weight_decay"] > 0
        if self._weighted and meta_examples is None:
            raise UsageError(
                "weights of training examples need a meta loss on other examples: on the same ones,"
                " it falls as they vanish"
            )

    @property
    def weights(self) -> int:
        """N, the number of weights; the state has 2N entries."""
        return sum(self.objective.sizes)

    def initial_theta(self, learning_rate: float, momentum: float, **others: float) -> Tensor:
        """θ with one value of each kind for all parts, in natural units.

        Raises:
            UsageError: for a value outside the limits of its kind.
        """
        values = {"learning_rate": learning_rate, "momentum": momentum, **others}
        return self.layout.uniform(values, self._initial_weights)

    def theta_of(self, hyperparameters: Mapping[str, Mapping[str, float]]) -> Tensor:
        """θ with these values, as :meth:`describe` gives them.

        Raises:
            UsageError: if they are not those of this run, or out of their limits.
        """
        return self.layout.named(hyperparameters, self._initial_weights)

    def describe(self, theta: Tensor) -> Mapping[str, Mapping[str, float]]:
        """``{"learning_rate": {tensor: α}, "momentum": {tensor: β}}``, and what else is tuned."""
        return self.layout.by_name(self.layout.natural(theta))

    def by_name(self, values: Tensor) -> dict[str, dict[str, float]]:
        """Values in the order of θ, shape (p,), as ``{kind: {name: value}}``."""
        return self.layout.by_name(values)

    def norms(self, h: Tensor) -> Mapping[str, float]:
        """‖w‖, ‖v‖, and ‖∇L‖ on all training examples."""
        w, v = torch.split(h, self.weights)
        _, gradient = self._training_loss(h)
        return {
            "weights": float(w.norm()),
            "velocity": float(v.norm()),
            "loss gradient": float(gradient.norm()),
        }

    def in_precision(self, dtype: torch.dtype) -> TrainingRun:
        """The same run, from the same weights and examples, in another floating-point format."""
        other = copy.copy(self)
        other.objective = self.objective.in_precision(dtype)
        other._initial_weights = self._initial_weights.to(dtype)
        other._batches = ConvertedBatches(self._batches, dtype)
        if self._meta_examples is not None:
            other._meta_examples = self._meta_examples.in_precision(dtype)
        other._last_loss = None
        return other

    def initial_state(self, theta: Tensor | None = None) -> Tensor:
        """The initial weights, scaled if θ says so, and velocities at rest."""
        w = self._initial_weights
        if "init_scale" in self.layout.grains:
            if theta is None:
                raise UsageError("the initial weights of this run depend on θ")
            w = w * self._spread(self.layout.by_tensor(theta, "init_scale", 0))
        return torch.cat([w, torch.zeros_like(w)])

    def input(self, t: int) -> Batch:
        """The minibatch of step t, with the stretch of the run that t is in."""
        batch = self._batches(t)
        segments = self.layout.segments
        return batch if segments == 1 else batch.in_segment(t * segments // self.steps)

    def population(self) -> Iterable[tuple[float, Batch]]:
        """All training examples, in weighted chunks."""
        return self._batches.population()

    def merge(self, inputs: Sequence[Input]) -> Iterable[tuple[float, Input]]:
        """One batch of them all, cut into chunks: both updates are affine in the mean gradient."""
        if len({len(batch) for batch in inputs}) > 1:
            return super().merge(inputs)
        if len({batch.segment for batch in inputs}) > 1:
            return super().merge(inputs)
        rows = [batch.rows for batch in inputs if batch.rows is not None]
        joined = Batch(
            torch.cat([batch.inputs for batch in inputs]),
            torch.cat([batch.targets for batch in inputs]),
            torch.cat(rows) if len(rows) == len(inputs) else None,
            inputs[0].segment,
        )
        return joined.chunks()

    def step(self, h: Tensor, theta: Tensor, x: Batch) -> Tensor:
        """One update of the weights and velocities, shape (2N,)."""
        w, v = torch.split(h, self.weights)
        terms = self._terms(x, theta)
        if torch.is_grad_enabled() and (h.requires_grad or terms[-1].requires_grad):
            g = self.objective.differentiable_gradient(w, terms)
        else:
            g = flat(self.objective.gradient(self.objective.pieces(w.detach()), terms))
        kinds = ("learning_rate", "momentum", "weight_decay")
        alpha, beta, decay = (
            self._spread(self.layout.by_tensor(theta, kind, x.segment)) for kind in kinds
        )
        if self._decays:
            g = torch.addcmul(g, decay, w)
        v = torch.addcmul(beta * v, self._update.gain(beta), g)
        return torch.cat([torch.addcmul(w, self._update.sign * alpha, v), v])

    def prepare(self, theta: Tensor) -> None:
        """Trace what runs once a step or once a product."""
        self.objective.trace(self._initial_weights, self._terms(self.input(0), theta.detach()))

    def states(self, theta: Tensor, start: int, stop: int, h: Tensor) -> Iterator[Tensor]:
        """Bit for bit what :meth:`step` does again and again, in place, in one buffer."""
        with torch.no_grad():
            h = h.clone()
            w, v = self._halves(h)  # the pieces share the storage of h
            rates = self._rates(theta)
            examples = self._example_weights(theta.detach())
        for t in range(start, stop):
            x = self.input(t)
            g = self.objective.gradient(w, _weighted(x, examples))
            _update_in_place(w, v, g, rates[x.segment])
            yield h

    def transposed_at(self, h: Tensor, theta: Tensor) -> Callable[[Batch, Tensor], Tensor]:
        """(x, u) ↦ Jᵀu at (h, θ, x), shape (2N,).

        With u = (u_w, u_v), q = u_v ± α u_w, H the Hessian of the minibatch's loss and the weight
        decay λ, Jᵀu = (u_w + (H + λ) (gain q), β q).
        """
        with torch.no_grad():
            w, _ = self._halves(h.detach())
            every, examples = self._rates(theta), self._example_weights(theta.detach())

        def product(x: Batch, u: Tensor) -> Tensor:
            with torch.no_grad():
                rates = every[x.segment]
                q, direction = self._adjoint_of_velocity(u, rates)
                curved = self.objective.hessian_product(w, direction, _weighted(x, examples))
                return self._along_h(u, q, direction, curved, rates)

        return product

    def pullback_at(self, theta: Tensor) -> Callable[[Tensor, Batch, Tensor], tuple[Tensor, ...]]:
        """(h, x, u) ↦ (Jᵀu, (∂F/∂θ)ᵀu) at (h, θ, x), shapes (2N,) and (p,)."""
        with torch.no_grad():
            every, examples = self._rates(theta), self._example_weights(theta.detach())
            slopes = self.layout.slopes(theta)

        def pullback(h: Tensor, x: Batch, u: Tensor) -> tuple[Tensor, Tensor]:
            with torch.no_grad():
                w, v = self._halves(h)
                rates = every[x.segment]
                q, direction = self._adjoint_of_velocity(u, rates)
                g, curved = self.objective.curvature(w, direction, _weighted(x, examples))
                g = _decayed(g, w, rates)
                along = self._along_natural(x.segment, rates, (w, v), g, u, q)
                if self._weighted:
                    self._along_examples(along, w, direction, [(1.0, x)])
                return self._along_h(u, q, direction, curved, rates), along * slopes

        return pullback

    def pushforward_at(self, theta: Tensor) -> Pushforward:
        """(h, x, S) ↦ (F(h, θ, x), J S + ∂F/∂θ), S of shape (p, 2N): in place.

        All Hessian products of an update come from one graph of ∇L, walked once for all tangents: H
        is symmetric. At the size of the paper's network that takes two thirds of the time of
        forward-over-reverse products.

        Raises:
            UsageError: for weights of examples, and weight decay of every weight: there are too
                many of them to carry a tangent for each.
        """
        layout, update = self.layout, self._update
        if too_many := [
            kind for kind, of in layout.grains.items() if of.by in ("weight", "example")
        ]:
            raise UsageError(f"forward mode cannot carry a tangent for every {too_many[0]}")
        with torch.no_grad():
            kinds = ("learning_rate", "momentum", "weight_decay")
            coefficients = [
                [self._spread(layout.by_tensor(theta.detach(), kind, s)) for kind in kinds]
                for s in range(layout.segments)
            ]
            slopes = layout.slopes(theta).tolist()
        ends = torch.tensor(self.objective.sizes).cumsum(0).tolist()
        own = [slice(end - size, end) for end, size in zip(ends, self.objective.sizes, strict=True)]

        def felt(tangents: Tensor, kind: str, segment: int, change: Callable[[], Tensor]) -> None:
            """Adds what each hyperparameter of a kind changes in its own tensors alone."""
            if kind not in layout.grains:
                return
            changed = change()
            for row, tensors in layout.rows(kind, segment):
                for i in tensors:
                    tangents[row, own[i]].add_(changed[own[i]], alpha=slopes[row])

        @torch.no_grad()
        def pushforward(h: Tensor, x: Batch, tangents: Tensor) -> tuple[Tensor, Tensor]:
            w, v = torch.split(h, self.weights)
            along_w, along_v = torch.split(tangents, self.weights, dim=1)
            alpha, beta, decay = coefficients[x.segment]
            gain, signed = update.gain(beta), update.sign * alpha
            g, curved = self.objective.hessian_products(w, along_w, x[:2])
            if self._decays:
                g, curved = torch.addcmul(g, decay, w), torch.addcmul(curved, decay, along_w)
            along_v.mul_(beta).addcmul_(gain, curved)
            felt(along_v, "momentum", x.segment, lambda: v + update.gain_derivative * g)
            felt(along_v, "weight_decay", x.segment, lambda: gain * w)
            after = torch.addcmul(beta * v, gain, g)
            along_w.addcmul_(signed, along_v)
            felt(along_w, "learning_rate", x.segment, lambda: update.sign * after)
            return torch.cat([torch.addcmul(w, signed, after), after]), tangents

        return pushforward

    def mean_theta_pullback(
        self, h: Tensor, theta: Tensor, chunks: Iterable[tuple[float, Input]] | None = None
    ) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """An update by the mean gradient of the chunks, in which both forms of it are affine."""
        if chunks is None and not self._weighted:
            mean, segment = self._training_loss(h)[1], -1
        else:
            chunks = list(self.population() if chunks is None else chunks)
            if len({x.segment for _, x in chunks}) > 1:
                return super().mean_theta_pullback(h, theta, chunks)
            segment, terms = chunks[0][1].segment, self._example_weights(theta.detach())
            weighted = [(share, _weighted(x, terms)) for share, x in chunks]
            mean = self.objective.mean_gradient(h.detach()[: self.weights], weighted)[1]
        with torch.no_grad():
            h, rates = h.detach(), self._rates(theta)[segment]
            w, v = self._halves(h)
            g = _decayed(self.objective.pieces(mean), w, rates)
            image, slopes = h.clone(), self.layout.slopes(theta)
            _update_in_place(*self._halves(image), self.objective.pieces(mean), rates)

        def along_theta(u: Tensor) -> Tensor:
            with torch.no_grad():
                q, direction = self._adjoint_of_velocity(u, rates)
                along = self._along_natural(segment, rates, (w, v), g, u, q)
                if chunks is not None and self._weighted:
                    self._along_examples(along, w, direction, chunks)
                return along * slopes

        return image, along_theta

    def _adjoint_of_velocity(
        self, u: Tensor, rates: Sequence[_Rates]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """q = u_v ± α u_w, the adjoint of v', and that of ∇L, gain q; in pieces."""
        q = [
            torch.addcmul(v_i, of.signed, w_i)
            for w_i, v_i, of in zip(*self._halves(u), rates, strict=True)
        ]
        return q, [of.gain * q_i for q_i, of in zip(q, rates, strict=True)]

    def _along_h(
        self,
        u: Tensor,
        q: Sequence[Tensor],
        direction: Sequence[Tensor],
        curved: Sequence[Tensor],
        rates: Sequence[_Rates],
    ) -> Tensor:
        along = torch.empty_like(u)
        for i, (w_i, v_i) in enumerate(zip(*self._halves(along), strict=True)):
            torch.mul(q[i], rates[i].beta, out=v_i)
            w_i.copy_(curved[i])
            if (decay := rates[i].decay) is not None:
                w_i.addcmul_(decay, direction[i])
        along[: self.weights].add_(u[: self.weights])
        return along

    def _along_natural(
        self,
        segment: int,
        rates: Sequence[_Rates],
        state: tuple[Sequence[Tensor], Sequence[Tensor]],
        g: Sequence[Tensor],
        u: Tensor,
        q: Sequence[Tensor],
    ) -> Tensor:
        """(∂F/∂·)ᵀu by natural values but the weights of examples, in the order of θ, shape (p,).

        Of each tensor, ∂w'/∂α = ± v', ∂v'/∂β = v + gain' ∇L and ∂v'/∂λ = gain w.
        """
        along, layout = u.new_zeros(self.layout.count), self.layout
        (w, v), (u_w, _) = state, self._halves(u)
        beta = torch.stack([of.beta for of in rates])
        gain = torch.stack([of.gain for of in rates])
        if "learning_rate" in layout.grains:
            of_v = beta * _dots(v, u_w) + gain * _dots(g, u_w)
            layout.collect(along, "learning_rate", segment, self._update.sign * of_v)
        if "momentum" in layout.grains:
            of_v = _dots(v, q)
            if self._update.gain_derivative:
                of_v = of_v + self._update.gain_derivative * _dots(g, q)
            layout.collect(along, "momentum", segment, of_v)
        if (decay := layout.grains.get("weight_decay")) is not None:
            of_w = (
                flat([of.gain * w_i * q_i for of, w_i, q_i in zip(rates, w, q, strict=True)])
                if decay.by == "weight"
                else gain * _dots(w, q)
            )
            layout.collect(along, "weight_decay", segment, of_w)
        return along

    def _along_examples(
        self,
        along: Tensor,
        w: Sequence[Tensor],
        direction: Sequence[Tensor],
        chunks: Iterable[tuple[float, Batch]],
    ) -> None:
        """Adds what the weights of the examples in these chunks change, by their natural values."""
        block = along[self.layout.slices["example_weight"]]
        for share, x in chunks:
            products = self.objective.example_products(w, direction, x[:2])
            block.index_add_(0, _rows(x), products, alpha=share / len(x))

    def loss_and_gradient(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """The meta loss of the weights; its gradient with respect to the velocities is zero."""
        loss, g = (
            self._training_loss(h)
            if self._meta_examples is None
            else self.objective.mean_gradient(
                h.detach()[: self.weights], _plain(self._meta_examples.chunks())
            )
        )
        return loss, torch.cat([g, torch.zeros_like(g)])

    def loss(self, h: Tensor) -> Tensor:
        """The meta loss alone, shape ()."""
        chunks = self.population() if self._meta_examples is None else self._meta_examples.chunks()
        return self.objective.mean_value(h.detach()[: self.weights], _plain(chunks))

    def _training_loss(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """The loss on all training examples and its gradient; a method asks for it twice at h_T."""
        at, version, known = self._last_loss or (None, 0, None)
        if known is None or at is None or at() is not h or version != h._version:
            known = self.objective.mean_gradient(
                h.detach()[: self.weights], _plain(self.population())
            )
            self._last_loss = weakref.ref(h), h._version, known
        return known

    def accuracy(self, h: Tensor, examples: Batch) -> float:
        """The share of examples whose largest output is their class."""
        with torch.no_grad():
            parameters = self.objective.pieces(h.detach()[: self.weights])
            right = sum(
                int((self.objective.outputs(parameters, x.inputs).argmax(1) == x.targets).sum())
                for _, x in examples.chunks()
            )
        return right / len(examples)

    def batch_loss(self, h: Tensor, t: int) -> float:
        """The loss on the minibatch of step t."""
        with torch.no_grad():
            parameters = self.objective.pieces(h.detach()[: self.weights])
            return float(self.objective.value(parameters, self.input(t)[:2]))

    def _halves(self, h: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """The weights and the velocities of a state, or of an adjoint, in pieces."""
        w, v = torch.split(h, self.weights)
        return self.objective.pieces(w), self.objective.pieces(v)

    def _rates(self, theta: Tensor) -> list[list[_Rates]]:
        """What every tensor is updated with, for each stretch of the run."""
        theta, every = theta.detach(), []
        for segment in range(self.layout.segments):
            alpha, beta, decay = (
                self.layout.by_tensor(theta, kind, segment)
                for kind in ("learning_rate", "momentum", "weight_decay")
            )
            every.append(
                [
                    _Rates(
                        self._update.sign * a,
                        b,
                        self._update.gain(b),
                        c.view(shape if c.dim() else ()) if self._decays else None,
                    )
                    for a, b, c, shape in zip(
                        alpha, beta, decay, self.objective.shapes, strict=True
                    )
                ]
            )
        return every

    def _example_weights(self, theta: Tensor) -> Tensor | None:
        """One for every training example, with its graph; None if they have none."""
        if not self._weighted:
            return None
        return KINDS["example_weight"].natural(self.layout.block(theta, "example_weight", 0))

    def _terms(self, x: Batch, theta: Tensor) -> Terms:
        return _weighted(x, self._example_weights(theta))

    def _spread(self, rates: Sequence[Tensor]) -> Tensor:
        # Expanding and joining has a deterministic backward pass on every device; indexing has not.
        return torch.cat(
            [rate.expand(size) for rate, size in zip(rates, self.objective.sizes, strict=True)]
        )


def _plain(chunks: Iterable[tuple[float, Batch]]) -> Iterable[tuple[float, Terms]]:
    """Chunks without the weights of their examples: what a meta loss is taken on."""
    return ((share, x[:2]) for share, x in chunks)


def _rows(x: Batch) -> Tensor:
    if x.rows is None:
        raise UsageError("weights of examples need batches that say which examples they hold")
    return x.rows


def _weighted(x: Batch, examples: Tensor | None) -> Terms:
    """What the objective is given: a batch, with the weights of its examples if they have any."""
    return x[:2] if examples is None else (*x[:2], examples[_rows(x)])


def _decayed(g: Sequence[Tensor], w: Sequence[Tensor], rates: Sequence[_Rates]) -> Sequence[Tensor]:
    """∇L + λ w, in pieces."""
    return [
        g_i if of.decay is None else torch.addcmul(g_i, of.decay, w_i)
        for g_i, w_i, of in zip(g, w, rates, strict=True)
    ]


def _dots(x: Sequence[Tensor], y: Sequence[Tensor]) -> Tensor:
    """The inner product of every two pieces."""
    return torch.stack(
        [torch.vdot(a.reshape(-1), b.reshape(-1)) for a, b in zip(x, y, strict=True)]
    )


def _update_in_place(
    w: Sequence[Tensor], v: Sequence[Tensor], g: Sequence[Tensor], rates: Sequence[_Rates]
) -> None:
    with torch.no_grad():
        for w_i, v_i, g_i, of in zip(w, v, _decayed(g, w, rates), rates, strict=True):
            v_i.mul_(of.beta).addcmul_(of.gain, g_i)
            w_i.addcmul_(of.signed, v_i)
