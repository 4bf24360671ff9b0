"""A training run as a recurrent map: the hidden state is the weights and the velocities.

Liao et al. 2018, section 5.3. The flat state is h = (w, v), each of the N weights long. Unless
other hyperparameters are asked for (``hyperrbp.problems.training.hyperparameters``), θ holds a
log learning rate and a logit momentum for every parameter tensor: θ = (a, b) with α = exp(a) and
β = sigmoid(b).

A step is made of three parts that do not know each other: the objective gives ∇L(w) and Hessian
products (``hyperrbp.problems.training.objective``), the schedule gives the rates of the step
(``hyperrbp.problems.training.schedule``), and the update rule makes the next state of them
(``hyperrbp.problems.training.update_rules``). With weights of examples, L is the weighted mean
of their losses; with a scale of the initial weights, θ enters h_0.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from hyperrbp.data.batches import Batch, Batches, ConvertedBatches, Examples, ListedBatches
from hyperrbp.exceptions import UsageError
from hyperrbp.problems.base import Input, Problem, Pushforward
from hyperrbp.problems.training.hyperparameters import KINDS, Hyperparameters, Layout
from hyperrbp.problems.training.objective import LossFunction, Objective, flat
from hyperrbp.problems.training.products import StepProducts
from hyperrbp.problems.training.schedule import RateSchedule
from hyperrbp.problems.training.tangents import TangentUpdate
from hyperrbp.problems.training.terms import with_weights, without_weights
from hyperrbp.problems.training.update_rules import UPDATE_RULES, update_in_place


class TrainingRun(Problem):
    """T training steps of a classifier, or of any module with a mean loss.

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
        meta_examples: Examples | None = None,
        loss: LossFunction = cross_entropy,
        update: str = "maclaurin",
        initial_weights: Tensor | None = None,
        hyperparameters: Hyperparameters | None = None,
    ) -> None:
        if steps < 1:
            raise UsageError(f"a training run has at least 1 step, not {steps}")
        if update not in UPDATE_RULES:
            raise UsageError(f"unknown update '{update}'; there are {', '.join(UPDATE_RULES)}")
        self.steps = steps
        self.objective = Objective(model, loss)
        self.tensors = self.objective.tensors
        """The names of the parameter tensors, in the order of the state and of θ."""
        self._rule = UPDATE_RULES[update]
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
        """Where in θ every hyperparameter stands."""
        self._schedule = RateSchedule(self.layout, self._rule, self.objective.shapes)
        if self._weighted and meta_examples is None:
            raise UsageError(
                "weights of training examples need a meta loss on other examples: on the same ones,"
                " it falls as they vanish"
            )

    @property
    def weights(self) -> int:
        """N, the number of weights; the state has 2N entries."""
        return self.objective.weights

    def initial_theta(self, learning_rate: float, momentum: float, **others: float) -> Tensor:
        """Return θ with one value of each kind for all parts, given in natural units.

        Raises:
            UsageError: for a value outside the limits of its kind.
        """
        values = {"learning_rate": learning_rate, "momentum": momentum, **others}
        return self.layout.uniform(values, self._initial_weights)

    def theta_of(self, hyperparameters: Mapping[str, Mapping[str, float]]) -> Tensor:
        """Return θ with these values, as ``describe`` gives them.

        Raises:
            UsageError: if they are not those of this run, or out of their limits.
        """
        return self.layout.named(hyperparameters, self._initial_weights)

    def describe(self, theta: Tensor) -> Mapping[str, Mapping[str, float]]:
        """Return ``{"learning_rate": {tensor: α}, "momentum": {tensor: β}}``, and other kinds."""
        return self.layout.by_name(self.layout.natural(theta))

    def by_name(self, values: Tensor) -> dict[str, dict[str, float]]:
        """Return values in the order of θ, shape (p,), as ``{kind: {name: value}}``."""
        return self.layout.by_name(values)

    def norms(self, h: Tensor) -> Mapping[str, float]:
        """Return ‖w‖, ‖v‖, and ‖∇L‖ on all training examples."""
        w, v = torch.split(h, self.weights)
        _, gradient = self._training_loss(h)
        return {
            "weights": float(w.norm()),
            "velocity": float(v.norm()),
            "loss gradient": float(gradient.norm()),
        }

    def in_precision(self, dtype: torch.dtype) -> TrainingRun:
        """Return the same run, of the same weights and examples, in another precision."""
        other = copy.copy(self)
        other.objective = self.objective.in_precision(dtype)
        other._initial_weights = self._initial_weights.to(dtype)
        other._batches = ConvertedBatches(self._batches, dtype)
        if self._meta_examples is not None:
            other._meta_examples = self._meta_examples.in_precision(dtype)
        other._last_loss = None
        return other

    def initial_state(self, theta: Tensor | None = None) -> Tensor:
        """Return the initial weights, scaled if θ says so, and zero velocities, shape (2N,)."""
        w = self._initial_weights
        if "init_scale" in self.layout.grains:
            if theta is None:
                raise UsageError("the initial weights of this run depend on θ")
            w = w * self.layout.by_weight(theta, "init_scale", 0)
        return torch.cat([w, torch.zeros_like(w)])

    def input(self, t: int) -> Batch:
        """Return the minibatch of step t, with the segment of the run that t is in."""
        batch = self._batches(t)
        segments = self.layout.segments
        return batch if segments == 1 else batch.at_step(t * segments // self.steps)

    def population(self) -> Iterable[tuple[float, Batch]]:
        """Yield all training examples, in weighted chunks."""
        return self._batches.population()

    def merge(self, inputs: Sequence[Input]) -> Iterable[tuple[float, Input]]:
        """Join them into one batch, cut into chunks: both rules are affine in the mean gradient."""
        if len({len(batch) for batch in inputs}) > 1:
            return super().merge(inputs)
        if len({batch.step for batch in inputs}) > 1:
            return super().merge(inputs)
        rows = [batch.rows for batch in inputs if batch.rows is not None]
        joined = Batch(
            torch.cat([batch.inputs for batch in inputs]),
            torch.cat([batch.targets for batch in inputs]),
            torch.cat(rows) if len(rows) == len(inputs) else None,
            inputs[0].step,
        )
        return joined.chunks()

    def step(self, h: Tensor, theta: Tensor, x: Batch) -> Tensor:
        """Return the weights and velocities after one update, shape (2N,)."""
        w, v = torch.split(h, self.weights)
        terms = with_weights(x, self.layout.example_weights(theta))
        if torch.is_grad_enabled() and (h.requires_grad or terms[-1].requires_grad):
            g = self.objective.differentiable_gradient(w, terms)
        else:
            g = flat(self.objective.gradient(self.objective.pieces(w.detach()), terms))
        alpha, beta, decay = self._schedule.of_weights(theta, (-1 if x.step is None else x.step))
        if self._schedule.decays:
            g = torch.addcmul(g, decay, w)
        return self._rule.apply(w, v, g, alpha, beta)

    def prepare(self, theta: Tensor) -> None:
        """Trace what runs once a step or once a product."""
        terms = with_weights(self.input(0), self.layout.example_weights(theta.detach()))
        self.objective.trace(self._initial_weights, terms)

    def states(self, theta: Tensor, start: int, stop: int, h: Tensor) -> Iterator[Tensor]:
        """Yield, bit for bit, what ``step`` gives again and again: in place, in one buffer."""
        with torch.no_grad():
            h = h.clone()
            w, v = self.objective.state_pieces(h)  # they share the storage of h
            rates = self._schedule.rates(theta)
            example_weights = self.layout.example_weights(theta.detach())
        for t in range(start, stop):
            x = self.input(t)
            g = self.objective.gradient(w, with_weights(x, example_weights))
            update_in_place(w, v, g, rates[(-1 if x.step is None else x.step)])
            yield h

    def transposed_at(self, h: Tensor, theta: Tensor) -> Callable[[Batch, Tensor], Tensor]:
        """Return (x, u) ↦ Jᵀu at (h, θ, x), shape (2N,)."""
        products = self._products(theta)
        w, _ = self.objective.state_pieces(h.detach())
        return lambda x, u: products.transposed(w, x, u)

    def pullback_at(self, theta: Tensor) -> Callable[[Tensor, Batch, Tensor], tuple[Tensor, ...]]:
        """Return (h, x, u) ↦ (Jᵀu, (∂F/∂θ)ᵀu) at (h, θ, x), shapes (2N,) and (p,)."""
        return self._products(theta).pullback

    def pushforward_at(self, theta: Tensor) -> Pushforward:
        """Return (h, x, S) ↦ (F(h, θ, x), J S + ∂F/∂θ), S of shape (p, 2N): in place.

        Raises:
            UsageError: for weights of examples, and weight decay of every weight: there are too
                many of them to carry a tangent for each.
        """
        return TangentUpdate(self.objective, self._rule, self._schedule, self.layout, theta)

    def mean_theta_pullback(
        self, h: Tensor, theta: Tensor, chunks: Iterable[tuple[float, Input]] | None = None
    ) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Return an update by the mean gradient of the chunks, in which both rules are affine."""
        if chunks is None and not self._weighted:
            mean = self._training_loss(h)[1]
            return self._products(theta).update_by(h.detach(), mean, -1, None)
        chunks = list(self.population() if chunks is None else chunks)
        if len({(-1 if x.step is None else x.step) for _, x in chunks}) > 1:
            return super().mean_theta_pullback(h, theta, chunks)
        products = self._products(theta)
        weighted = [(share, with_weights(x, products.example_weights)) for share, x in chunks]
        mean = self.objective.mean_gradient(h.detach()[: self.weights], weighted)[1]
        return products.update_by(h.detach(), mean, chunks[0][1].step, chunks)

    def _products(self, theta: Tensor) -> StepProducts:
        return StepProducts(self.objective, self._rule, self._schedule, self.layout, theta)

    def loss_and_gradient(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Return the meta loss and its gradient, which is zero along the velocities."""
        loss, g = (
            self._training_loss(h)
            if self._meta_examples is None
            else self.objective.mean_gradient(
                h.detach()[: self.weights], without_weights(self._meta_examples.chunks())
            )
        )
        return loss, torch.cat([g, torch.zeros_like(g)])

    def loss(self, h: Tensor) -> Tensor:
        """Return the meta loss alone, shape ()."""
        chunks = self.population() if self._meta_examples is None else self._meta_examples.chunks()
        return self.objective.mean_value(h.detach()[: self.weights], without_weights(chunks))

    def _training_loss(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss on all training examples and ∇L; kept, since it is asked for twice."""
        at, version, known = self._last_loss or (None, 0, None)
        if known is None or at is None or at() is not h or version != h._version:
            known = self.objective.mean_gradient(
                h.detach()[: self.weights], without_weights(self.population())
            )
            self._last_loss = weakref.ref(h), h._version, known
        return known

    def accuracy(self, h: Tensor, examples: Batch) -> float:
        """Return the share of examples whose largest output is their class."""
        with torch.no_grad():
            parameters = self.objective.pieces(h.detach()[: self.weights])
            right = sum(
                int((self.objective.outputs(parameters, x.inputs).argmax(1) == x.targets).sum())
                for _, x in examples.chunks()
            )
        return right / len(examples)

    def batch_loss(self, h: Tensor, t: int) -> float:
        """Return the loss on the minibatch of step t."""
        with torch.no_grad():
            parameters = self.objective.pieces(h.detach()[: self.weights])
            return float(self.objective.value(parameters, self.input(t)[:2]))
