"""SGD with momentum as a recurrent map: the hidden state is the weights and the velocities.

Liao et al. 2018, section 5.3. The flat state is h = (w, v), each of the N weights long; θ holds a
log learning rate and a logit momentum for every parameter tensor, θ = (a, b) with α = exp(a) and
β = sigmoid(b).

The update is one of

``maclaurin``  v' = β v − (1 − β) ∇L(w),  w' = w + α v'   (Maclaurin et al. 2015, Algorithm 1)
``pytorch``    v' = β v + ∇L(w),          w' = w − α v'   (``torch.optim.SGD``, dampening 0)

In exact arithmetic the first is ``torch.optim.SGD`` with learning rate α(1 − β) and momentum β,
whose buffer is −v / (1 − β).
"""

from __future__ import annotations

import copy
import math
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from hyperrbp.dynamics import Input, Problem, Pushforward
from hyperrbp.errors import UsageError
from hyperrbp.problems.batches import Batch, Batches, ConvertedBatches, ListedBatches
from hyperrbp.problems.objective import Loss, Objective, flat


@dataclass(frozen=True)
class Update:
    """One form of SGD with momentum; ``effective_rate`` is its learning rate in torch.optim.SGD."""

    gain: Callable[[Tensor], Tensor]  # v' = β v + gain(β) ∇L(w)
    gain_slope: float  # its derivative
    sign: float  # w' = w + sign · α v'
    effective_rate: Callable[[float, float], float]  # (α, β) → lr


UPDATES: dict[str, Update] = {
    "maclaurin": Update(lambda beta: beta - 1, 1.0, 1.0, lambda alpha, beta: alpha * (1 - beta)),
    "pytorch": Update(torch.ones_like, 0.0, -1.0, lambda alpha, beta: alpha),
}


_Rates = tuple[Tensor, Tensor, Tensor]
"""(± α, β, gain) of one parameter tensor, shape () each."""


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

    Raises:
        UsageError: for a model or an argument that it cannot train.
    """

    transient = frozenset({"learning_rate", "momentum"})

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

    @property
    def weights(self) -> int:
        """N, the number of weights; the state has 2N entries."""
        return sum(self.objective.sizes)

    def initial_theta(self, learning_rate: float, momentum: float) -> Tensor:
        """θ with one learning rate α > 0 and one momentum 0 < β < 1 for every tensor."""
        if not (0 < learning_rate < math.inf and 0 < momentum < 1):
            raise UsageError("a learning rate is above 0, and a momentum between 0 and 1")
        logit = math.log(momentum) - math.log1p(-momentum)
        values = [math.log(learning_rate)] * len(self.tensors) + [logit] * len(self.tensors)
        theta = self._initial_weights.new_tensor(values)
        rate, momentum_held = float(theta[0].exp()), float(theta[-1].sigmoid())
        if not (0 < rate < math.inf and 0 < momentum_held < 1):
            raise UsageError(
                f"learning rate {learning_rate:g} and momentum {momentum!r} are out of the range of"
                f" {str(theta.dtype).removeprefix('torch.')}"
            )
        return theta

    def theta_of(self, hyperparameters: Mapping[str, Mapping[str, float]]) -> Tensor:
        """θ with these learning rates and momenta, as :meth:`describe` gives them.

        Raises:
            UsageError: if they are not one of each for every tensor, or out of their range.
        """
        values = []
        for kind in ("learning_rate", "momentum"):
            named = hyperparameters.get(kind, {})
            if set(named) != set(self.tensors):
                different = ", ".join(sorted(set(named) ^ set(self.tensors)))
                raise UsageError(f"{kind}: not of this network; tensors that differ: {different}")
            values += [float(named[name]) for name in self.tensors]
        rates, momenta = torch.tensor(values, dtype=torch.float64).chunk(2)
        if not ((rates > 0) & rates.isfinite() & (momenta > 0) & (momenta < 1)).all():
            raise UsageError("a learning rate is above 0, and a momentum between 0 and 1")
        return torch.cat([rates.log(), momenta.logit()]).to(self._initial_weights)

    def describe(self, theta: Tensor) -> Mapping[str, Mapping[str, float]]:
        """``{"learning_rate": {tensor: α}, "momentum": {tensor: β}}``."""
        a, b = theta.detach().chunk(2)
        return self.by_name(torch.cat([a.exp(), b.sigmoid()]))

    def by_name(self, values: Tensor) -> dict[str, dict[str, float]]:
        """Values in the order of θ, shape (p,), as ``{kind: {tensor: value}}``."""
        rates, momenta = values.detach().chunk(2)
        return {
            "learning_rate": dict(zip(self.tensors, rates.tolist(), strict=True)),
            "momentum": dict(zip(self.tensors, momenta.tolist(), strict=True)),
        }

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

    def initial_state(self) -> Tensor:
        """The initial weights, and velocities at rest."""
        return torch.cat([self._initial_weights, torch.zeros_like(self._initial_weights)])

    def input(self, t: int) -> Batch:
        """The minibatch of step t."""
        return self._batches(t)

    def population(self) -> Iterable[tuple[float, Batch]]:
        """All training examples, in weighted chunks."""
        return self._batches.population()

    def merge(self, inputs: Sequence[Input]) -> Iterable[tuple[float, Input]]:
        """One batch of them all, cut into chunks: both updates are affine in the mean gradient."""
        if len({len(batch) for batch in inputs}) > 1:
            return super().merge(inputs)
        joined = Batch(*(torch.cat(parts) for parts in zip(*inputs, strict=True)))
        return joined.chunks()

    def step(self, h: Tensor, theta: Tensor, x: Batch) -> Tensor:
        """One update of the weights and velocities, shape (2N,)."""
        w, v = torch.split(h, self.weights)
        if torch.is_grad_enabled() and h.requires_grad:
            g = self.objective.differentiable_gradient(w, x)
        else:
            g = flat(self.objective.gradient(self.objective.pieces(w.detach()), x))
        alpha, beta = self._rates(theta)
        v = torch.addcmul(beta * v, self._update.gain(beta), g)
        return torch.cat([torch.addcmul(w, self._update.sign * alpha, v), v])

    def prepare(self, theta: Tensor) -> None:
        """Trace what runs once a step or once a product."""
        self.objective.trace(self._initial_weights, self.input(0))

    def states(self, theta: Tensor, start: int, stop: int, h: Tensor) -> Iterator[Tensor]:
        """Bit for bit what :meth:`step` does again and again, in place, in one buffer."""
        with torch.no_grad():
            h = h.clone()
            w, v = self._halves(h)  # the pieces share the storage of h
            rates = self._rates_by_tensor(theta)
        for t in range(start, stop):
            g = self.objective.gradient(w, self.input(t))
            _update_in_place(w, v, g, rates)
            yield h

    def transposed_at(self, h: Tensor, theta: Tensor) -> Callable[[Batch, Tensor], Tensor]:
        """(x, u) ↦ Jᵀu at (h, θ, x), shape (2N,).

        With u = (u_w, u_v), q = u_v ± α u_w and H the Hessian of the minibatch's loss,
        Jᵀu = (u_w + H (gain q), β q).
        """
        with torch.no_grad():
            w, _ = self._halves(h.detach())
            rates = self._rates_by_tensor(theta)

        def product(x: Batch, u: Tensor) -> Tensor:
            with torch.no_grad():
                q, direction = self._adjoint_of_velocity(u, rates)
                return self._along_h(u, q, self.objective.hessian_product(w, direction, x), rates)

        return product

    def pullback_at(self, theta: Tensor) -> Callable[[Tensor, Batch, Tensor], tuple[Tensor, ...]]:
        """(h, x, u) ↦ (Jᵀu, (∂F/∂θ)ᵀu) at (h, θ, x), shapes (2N,) and (p,)."""
        with torch.no_grad():
            rates = self._rates_by_tensor(theta)

        def pullback(h: Tensor, x: Batch, u: Tensor) -> tuple[Tensor, Tensor]:
            with torch.no_grad():
                w, v = self._halves(h)
                q, direction = self._adjoint_of_velocity(u, rates)
                g, curved = self.objective.curvature(w, direction, x)
                along_theta = self._along_theta(theta, v, g, u)
                return self._along_h(u, q, curved, rates), along_theta

        return pullback

    def pushforward_at(self, theta: Tensor) -> Pushforward:
        """(h, x, S) ↦ (F(h, θ, x), J S + ∂F/∂θ), S of shape (p, 2N): in place.

        All Hessian products of an update come from one graph of ∇L, walked once for all tangents: H
        is symmetric. At the size of the paper's network that takes two thirds of the time of
        forward-over-reverse products.
        """
        count = len(self.tensors)
        with torch.no_grad():
            alpha, beta = self._rates(theta.detach())
            gain, signed = self._update.gain(beta), self._update.sign * alpha
            slope = self._update.gain_slope
        ends = torch.tensor(self.objective.sizes).cumsum(0).tolist()
        own = [slice(end - size, end) for end, size in zip(ends, self.objective.sizes, strict=True)]

        @torch.no_grad()
        def pushforward(h: Tensor, x: Batch, tangents: Tensor) -> tuple[Tensor, Tensor]:
            w, v = torch.split(h, self.weights)
            along_w, along_v = torch.split(tangents, self.weights, dim=1)
            g, curved = self.objective.hessian_products(w, along_w, x)
            along_v.mul_(beta).addcmul_(gain, curved)
            feels_momentum = beta * (1 - beta) * (v + slope * g)
            v = torch.addcmul(beta * v, gain, g)
            feels_rate = signed * v
            for i, part in enumerate(own):  # a rate is felt by its own tensor alone
                along_v[count + i, part] += feels_momentum[part]
            along_w.addcmul_(signed, along_v)
            for i, part in enumerate(own):
                along_w[i, part] += feels_rate[part]
            return torch.cat([torch.addcmul(w, signed, v), v]), tangents

        return pushforward

    def mean_theta_pullback(
        self, h: Tensor, theta: Tensor, chunks: Iterable[tuple[float, Input]] | None = None
    ) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """An update by the mean gradient of the chunks, in which both forms of it are affine."""
        mean = (
            self._training_loss(h)[1]
            if chunks is None
            else self.objective.mean_gradient(h.detach()[: self.weights], chunks)[1]
        )
        with torch.no_grad():
            h = h.detach()
            g, (_, v) = self.objective.pieces(mean), self._halves(h)
            image = h.clone()
            _update_in_place(*self._halves(image), g, self._rates_by_tensor(theta))
        return image, lambda u: self._along_theta(theta, v, g, u)

    def _adjoint_of_velocity(
        self, u: Tensor, rates: Sequence[_Rates]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """q = u_v ± α u_w, the adjoint of v', and that of ∇L, gain q; in pieces."""
        q = [
            torch.addcmul(v_i, signed, w_i)
            for w_i, v_i, (signed, _, _) in zip(*self._halves(u), rates, strict=True)
        ]
        return q, [gain * q_i for q_i, (_, _, gain) in zip(q, rates, strict=True)]

    def _along_h(
        self, u: Tensor, q: Sequence[Tensor], curved: Sequence[Tensor], rates: Sequence[_Rates]
    ) -> Tensor:
        along = torch.empty_like(u)
        for i, (w_i, v_i) in enumerate(zip(*self._halves(along), strict=True)):
            torch.mul(q[i], rates[i][1], out=v_i)
            w_i.copy_(curved[i])
        along[: self.weights].add_(u[: self.weights])
        return along

    def _along_theta(
        self, theta: Tensor, v: Sequence[Tensor], g: Sequence[Tensor], u: Tensor
    ) -> Tensor:
        """∂w'/∂a = ± α v' and ∂v'/∂b = β(1 − β)(v + gain' ∇L), times u, summed over each tensor."""
        with torch.no_grad():
            u_w, u_v = self._halves(u)
            # Every sum over a tensor is one of these four inner products.
            v_w, v_v, g_w, g_v = (
                torch.stack(
                    [torch.vdot(a.reshape(-1), b.reshape(-1)) for a, b in zip(x, y, strict=True)]
                )
                for x, y in ((v, u_w), (v, u_v), (g, u_w), (g, u_v))
            )
            a, b = theta.detach().chunk(2)
            signed, beta = self._update.sign * a.exp(), b.sigmoid()
            along_a = signed * (beta * v_w + self._update.gain(beta) * g_w)
            v_q, g_q = v_v + signed * v_w, g_v + signed * g_w
            along_b = beta * (1 - beta) * (v_q + self._update.gain_slope * g_q)
            return torch.cat([along_a, along_b])

    def loss_and_gradient(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """The meta loss of the weights; its gradient with respect to the velocities is zero."""
        loss, g = (
            self._training_loss(h)
            if self._meta_examples is None
            else self.objective.mean_gradient(
                h.detach()[: self.weights], self._meta_examples.chunks()
            )
        )
        return loss, torch.cat([g, torch.zeros_like(g)])

    def _training_loss(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """The loss on all training examples and its gradient; a method asks for it twice at h_T."""
        at, version, known = self._last_loss or (None, 0, None)
        if known is None or at is None or at() is not h or version != h._version:
            known = self.objective.mean_gradient(h.detach()[: self.weights], self.population())
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
            return float(self.objective.value(parameters, self.input(t)))

    def _halves(self, h: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """The weights and the velocities of a state, or of an adjoint, in pieces."""
        w, v = torch.split(h, self.weights)
        return self.objective.pieces(w), self.objective.pieces(v)

    def _rates_by_tensor(self, theta: Tensor) -> list[_Rates]:
        a, b = theta.detach().chunk(2)
        signed, beta = self._update.sign * a.exp(), b.sigmoid()
        gain = self._update.gain(beta)
        return list(zip(signed.unbind(), beta.unbind(), gain.unbind(), strict=True))

    def _rates(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """α and β of every weight, shape (N,) each."""
        a, b = theta.chunk(2)
        return self._spread(a.exp()), self._spread(b.sigmoid())

    def _spread(self, rates: Tensor) -> Tensor:
        # Expanding and joining has a deterministic backward pass on every device; indexing has not.
        return torch.cat(
            [rate.expand(size) for rate, size in zip(rates, self.objective.sizes, strict=True)]
        )


def _update_in_place(
    w: Sequence[Tensor], v: Sequence[Tensor], g: Sequence[Tensor], rates: Sequence[_Rates]
) -> None:
    with torch.no_grad():
        for w_i, v_i, g_i, (signed, beta, gain) in zip(w, v, g, rates, strict=True):
            v_i.mul_(beta).addcmul_(gain, g_i)
            w_i.addcmul_(signed, v_i)
