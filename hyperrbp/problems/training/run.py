"""A training run as a recurrent map: the hidden state is the weights and the optimizer's slots.

Liao et al. 2018, section 5.3. The flat state is h = (w, s_1, …), each part N long, N being the
number of weights; for SGD with momentum s_1 is the velocity. Unless other hyperparameters are asked
for (``hyperrbp.problems.training.hyperparameters``), θ holds a log learning rate and, where the
optimizer has a momentum, its logit, for every parameter tensor: θ = (a, b) with α = exp(a) and
β = sigmoid(b).

A step is made of three parts that do not know each other: the objective gives ∇L(w) and Hessian
products (``hyperrbp.problems.training.objective``), the schedule gives the rates of the step
(``hyperrbp.problems.training.rates``), and the update rule makes the next state of them
(``hyperrbp.problems.training.update_rules``). With weights of examples, L is the weighted mean
of their losses; with a scale of the initial weights, θ enters h_0. Where a loss is reported, the
network is evaluated (``hyperrbp.problems.training.trained_network``).
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from hyperrbp.data.batches import CHUNK, Batch, Batches, ConvertedBatches, Examples, ListedBatches
from hyperrbp.exceptions import UsageError
from hyperrbp.problems.base import Input, Problem, Pushforward
from hyperrbp.problems.training.examination import examine, signature
from hyperrbp.problems.training.heavy_ball.products import HeavyBallAt
from hyperrbp.problems.training.heavy_ball.step import HeavyBallStep
from hyperrbp.problems.training.hyperparameters import KINDS, Grain, Hyperparameters, Layout
from hyperrbp.problems.training.network_loss import LossFunction
from hyperrbp.problems.training.objective import Objective
from hyperrbp.problems.training.products import Place, StepAt, TrainingStep
from hyperrbp.problems.training.rates import RateSchedule
from hyperrbp.problems.training.schedules import Schedule
from hyperrbp.problems.training.terms import Terms, row_numbers, terms, without_weights
from hyperrbp.problems.training.trained_network import TrainedNetwork
from hyperrbp.problems.training.update_rules import UpdateRule, update_rule
from hyperrbp.problems.training.update_rules.heavy_ball import HeavyBall
from hyperrbp.runtime.process_state import ONE_THREAD
from hyperrbp.runtime.randomness import generator

_POPULATION = 32
"""Minibatches that stand for all training examples where their updates are averaged, not their
gradients."""
_SAMPLE = 4
"""Minibatches that do where only a diagnosis depends on the average."""
_INFERENCE = (
    "nothing has a derivative under torch.inference_mode; call a run outside of it: it keeps no"
    " graph that was not asked for"
)
_LARGE = 10**6
"""Weights from which on a data set is evaluated in chunks of the size of a minibatch."""


class TrainingRun(Problem):
    """T training steps of a classifier, or of any module with a mean loss.

    What cannot be differentiated is refused, with its name: before the first step, the module is
    called twice, and its derivatives are held against finite differences.

    Args:
        model: the module. Its parameters are only read; those that require no gradient are held
            fixed.
        batches: the minibatch of every step, or a plain list of (inputs, targets).
        steps: T.
        meta_examples: what the meta loss is taken on; the training examples if not given.
        loss: the mean loss of a batch, of (outputs, targets); or of (model, batch), if its first
            parameter is called ``model``.
        meta_loss: the same for the meta loss, where it is another one, without label smoothing say.
        optimizer: the name of an update rule, or one with its options.
        schedule: the name of a shape, or a schedule.
        clip_norm: the largest norm of a gradient; None: any.
        accumulate: equal parts of a minibatch whose gradients are taken one after the other.
        autocast: the format in which the forward pass of training may compute, such as
            ``torch.bfloat16``; the weights keep theirs.
        recalibration: minibatches of the first steps whose statistics stand for running ones where
            a network with batch normalization is evaluated.
        initial_weights: flat, shape (N,), in the order of ``model.named_parameters()``; the
            model's current ones if not given.
        hyperparameters: what θ holds; learning rate and momentum of every tensor if not given.
        seed: of the random numbers that the module draws: those of a step depend on it alone.
        checked: whether the module is examined before the first step.

    Raises:
        UsageError: for a model or an argument that it cannot train.
    """

    transient = frozenset(kind for kind, of in KINDS.items() if of.transient)

    def __init__(
        self,
        model: nn.Module,
        batches: Batches | Sequence[tuple[Any, Any]],
        *,
        steps: int,
        meta_examples: Examples | None = None,
        loss: LossFunction = cross_entropy,
        meta_loss: LossFunction | None = None,
        optimizer: str | UpdateRule = "maclaurin",
        schedule: str | Schedule = "constant",
        clip_norm: float | None = None,
        accumulate: int = 1,
        autocast: torch.dtype | None = None,
        recalibration: int = 10,
        initial_weights: Tensor | None = None,
        hyperparameters: Hyperparameters | None = None,
        seed: int = 0,
        checked: bool = True,
    ) -> None:
        if steps < 1:
            raise UsageError(f"a training run has at least 1 step, not {steps}")
        self.steps = steps
        self.rule = update_rule(optimizer)
        """The update rule."""
        self.schedule = Schedule(schedule) if isinstance(schedule, str) else schedule
        """The schedule of the learning rate."""
        self._batches: Batches = (
            ListedBatches(batches) if isinstance(batches, Sequence) else batches
        )
        self.objective = Objective(model, loss, autocast=autocast, accumulate=accumulate)
        self._evaluated = (
            self.objective if meta_loss is None else self.objective.with_loss(meta_loss)
        )
        self.tensors = self.objective.tensors
        """The names of the parameter tensors, in the order of the state and of θ."""
        self._meta_examples = meta_examples
        self._recalibration, self._seed = recalibration, seed
        self._last_loss: tuple[weakref.ref[Tensor], int, tuple[Tensor, Tensor]] | None = None
        own = self.objective.initial_weights()
        self._initial_weights = own if initial_weights is None else initial_weights.detach()
        if self._initial_weights.shape != own.shape:
            raise UsageError(
                f"initial weights of shape {tuple(self._initial_weights.shape)} for a model of"
                f" {len(own)} weights"
            )
        self.layout = self._laid_out(hyperparameters)
        """Where in θ every hyperparameter stands."""
        if self._weighted and meta_examples is None:
            raise UsageError(
                "weights of training examples need a meta loss on other examples: on the same ones,"
                " it falls as they vanish"
            )
        rates = RateSchedule(self.layout, self.rule, self.schedule)
        by_hand = isinstance(self.rule, HeavyBall) and self.rule.plain
        self._step: HeavyBallStep | TrainingStep
        if by_hand and rates.constant and clip_norm is None:
            assert isinstance(self.rule, HeavyBall)
            self._step = HeavyBallStep(self.objective, self.rule, self.layout)
        else:
            self._step = TrainingStep(self.objective, self.rule, rates, self.layout, clip_norm)
        self._examined = not checked
        self._examined_as: Any = None

    def _laid_out(self, hyperparameters: Hyperparameters | None) -> Layout:
        known = (*self.rule.kinds, *self.schedule.kinds, "init_scale", "example_weight")
        hyperparameters = hyperparameters or Hyperparameters(
            {kind: Grain() for kind in ("learning_rate", "momentum") if kind in known}
        )
        for kind in hyperparameters.tuned:
            if kind not in known:
                raise UsageError(
                    f"{kind.replace('_', ' ')}: neither {self.rule.name} nor the schedule"
                    f" {self.schedule.shape} has it; there are {', '.join(known)}"
                )
        self._weighted = "example_weight" in hyperparameters.tuned
        examples = sum(len(x) for _, x in self._batches.population()) if self._weighted else 0
        shares = {
            "warmup_share": self.schedule.warmup_share,
            "end_share": self.schedule.end_share,
        }
        return Layout(
            hyperparameters,
            self.tensors,
            self.objective.sizes,
            examples,
            self.rule.defaults() | shares,
        )

    @property
    def weights(self) -> int:
        """N, the number of weights; the state has N entries for them and N for each slot."""
        return self.objective.weights

    def initial_theta(
        self, learning_rate: float | None = None, momentum: float | None = None, **others: float
    ) -> Tensor:
        """Return θ with one value of each kind for all parts, given in natural units.

        Kinds that are not given have the optimizer's default, or stand as the schedule has them.

        Raises:
            UsageError: for a value outside the limits of its kind.
        """
        given = {"learning_rate": learning_rate, "momentum": momentum, **others}
        values: dict[str, float | Sequence[float]] = {"knots": list(self.schedule.knots)}
        values |= {kind: value for kind, value in given.items() if value is not None}
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
        """Return the norms of the weights and of each slot, and ‖∇L‖ on all training examples."""
        w, *slots = torch.split(h, self.weights)
        names = ["velocity"] if isinstance(self.rule, HeavyBall) else self.rule.slots
        _, gradient = self._training_loss(h)
        return {
            "weights": float(w.norm()),
            **{name: float(slot.norm()) for name, slot in zip(names, slots, strict=True)},
            "loss gradient": float(gradient.norm()),
        }

    def in_precision(self, dtype: torch.dtype) -> TrainingRun:
        """Return the same run, of the same weights and examples, in another precision."""
        other = copy.copy(self)
        other.objective = self.objective.in_precision(dtype)
        other._evaluated = (
            other.objective
            if self._evaluated is self.objective
            else other.objective.with_loss(self._evaluated.loss)
        )
        other._step = self._step.with_objective(other.objective)
        other._initial_weights = self._initial_weights.to(dtype)
        other._batches = ConvertedBatches(self._batches, dtype)
        if self._meta_examples is not None:
            other._meta_examples = self._meta_examples.in_precision(dtype)
        other._last_loss, other._examined_as = None, None
        return other

    def examine(self, like: TrainingRun | None = None) -> None:
        """Try the module on the first minibatch, and find out whether it can be differentiated.

        Args:
            like: a run of the same network, from other weights; what its examination has shown
                holds here too.

        Raises:
            UsageError: if it cannot, with the reason.
        """
        if self._examined:
            return
        with ONE_THREAD:
            if like is not None and like._examined:
                self.objective.draws = like.objective.draws
            else:
                examine(self.objective, self._initial_weights, self._batches(0), self._seed)
            self._evaluated.draws = self.objective.draws
            self._examined, self._examined_as = True, signature(self.objective)

    def _begin(self) -> None:
        """Take notice of what has changed since the last run: the module is the user's."""
        if torch.is_inference_mode_enabled():
            raise UsageError(_INFERENCE)
        self.objective.recheck()
        self._step.recheck()
        if self._examined_as not in (None, signature(self.objective)):
            self._examined = False
        self.examine()

    # --- the run ----------------------------------------------------------------------------------

    def initial_state(self, theta: Tensor | None = None) -> Tensor:
        """Return the initial weights, scaled if θ says so, and zero slots, shape (n,)."""
        w = self._initial_weights
        if "init_scale" in self.layout.grains:
            if theta is None:
                raise UsageError("the initial weights of this run depend on θ")
            w = w * self.layout.by_weight(theta, "init_scale", 0)
        return torch.cat([w, *[torch.zeros_like(w) for _ in self.rule.slots]])

    def input(self, t: int) -> Batch:
        """Return the minibatch of step t."""
        return self._batches(t).at_step(t)

    def population(self) -> Iterable[tuple[float, Batch]]:
        """Yield all training examples, in weighted chunks."""
        return self._batches.population()

    def sample(self) -> Iterable[tuple[float, Batch]] | None:
        """Return the last minibatches, where an average over all would take many updates."""
        if isinstance(self._step, HeavyBallStep) and not self.objective.couples:
            return None
        last = range(max(0, self.steps - _SAMPLE), self.steps)
        return [(1 / len(last), self._batches(t)) for t in last]

    def merge(self, inputs: Sequence[Input]) -> Iterable[tuple[float, Input]]:
        """Join them into one batch, cut into chunks, where F is affine in the mean gradient."""
        places = [self._place(batch) for batch in inputs]
        joinable = (
            isinstance(self._step, HeavyBallStep)
            and not self.objective.couples
            and len({len(batch) for batch in inputs}) == 1
            and len({at.step * self.layout.segments // at.steps for at in places}) == 1
            and all(isinstance(part, Tensor) for batch in inputs for part in batch[:2])
        )
        if not joinable:
            return super().merge(inputs)
        rows = [batch.rows for batch in inputs if batch.rows is not None]
        joined = Batch(
            torch.cat([batch.inputs for batch in inputs]),
            torch.cat([batch.targets for batch in inputs]),
            torch.cat(rows) if len(rows) == len(inputs) else None,
            inputs[0].step,
        )
        return joined.chunks()

    def _place(self, x: Batch, example_weights: Tensor | None = None) -> Place:
        """Return a batch at its place in the run: by default, at the last step."""
        step = self.steps - 1 if x.step is None else x.step
        seed = (
            generator(self._seed, "random layers", step).initial_seed()
            if self.objective.draws
            else None
        )
        return Place(
            terms(x, example_weights, seed),
            None if example_weights is None else row_numbers(x),
            step,
            self.steps,
        )

    def step(self, h: Tensor, theta: Tensor, x: Batch) -> Tensor:
        """Return the weights and slots after one update, shape (n,)."""
        if x.step == 0:
            self._begin()
        else:
            self.examine()
        return self._step.step(h, theta, self._place(x, self.layout.example_weights(theta)))

    def prepare(self, theta: Tensor) -> None:
        """Trace what runs once a step or once a product."""
        self.examine()
        if isinstance(self._step, HeavyBallStep):
            at = self._place(self.input(0), self.layout.example_weights(theta.detach()))
            self.objective.trace(self._initial_weights, at.x)

    def states(self, theta: Tensor, start: int, stop: int, h: Tensor) -> Iterator[Tensor]:
        """Yield, bit for bit, what ``step`` gives again and again: in place, in one buffer."""
        if start:
            self.examine()
        else:
            self._begin()
        with torch.no_grad():
            weights = self.layout.example_weights(theta.detach())
        places = (self._place(self.input(t), weights) for t in range(start, stop))
        return self._step.at(theta).states(h, places)

    # --- its products -----------------------------------------------------------------------------

    def transposed_at(self, h: Tensor, theta: Tensor) -> Callable[[Batch, Tensor], Tensor]:
        """Return (x, u) ↦ Jᵀu at (h, θ, x), shape (n,)."""
        at, weights = self._at(theta)
        h = h.detach()
        return lambda x, u: at.transposed(h, self._place(x, weights), u)

    def pullback_at(self, theta: Tensor) -> Callable[[Tensor, Batch, Tensor], tuple[Tensor, ...]]:
        """Return (h, x, u) ↦ (Jᵀu, (∂F/∂θ)ᵀu) at (h, θ, x), shapes (n,) and (p,)."""
        at, weights = self._at(theta)
        return lambda h, x, u: at.pullback(h, self._place(x, weights), u)

    def pushforward_at(self, theta: Tensor) -> Pushforward:
        """Return (h, x, S) ↦ (F(h, θ, x), J S + ∂F/∂θ), S of shape (p, n): in place.

        Raises:
            UsageError: for weights of examples, and weight decay of every weight: there are too
                many of them to carry a tangent for each.
        """
        at, weights = self._at(theta)
        pushforward = at.pushforward
        return lambda h, x, tangents: pushforward(h, self._place(x, weights), tangents)

    def _at(self, theta: Tensor) -> tuple[HeavyBallAt | StepAt, Tensor | None]:
        self.examine()
        with torch.no_grad():
            return self._step.at(theta), self.layout.example_weights(theta.detach())

    def mean_theta_pullback(
        self, h: Tensor, theta: Tensor, chunks: Iterable[tuple[float, Input]] | None = None
    ) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Return the mean of F over the population, or over other chunks, and u ↦ (∂F̄/∂θ)ᵀu.

        By SGD it is the update by the mean gradient. Other updates are averaged over minibatches of
        the size of the run's, of which at most 32, spread evenly, stand for all training examples.
        """
        at, weights = self._at(theta)
        if isinstance(at, HeavyBallAt) and not self.objective.couples:
            if chunks is None and not self._weighted and self._evaluates_as_trained:
                return at.update_by(h.detach(), self._training_loss(h)[1])
            chunks = list(self.population() if chunks is None else chunks)
        else:
            chunks = list(self._minibatches() if chunks is None else chunks)
        places = [(share, self._place(x, weights)) for share, x in chunks]
        if len({of.step for _, of in places}) > 1 or (
            self._weighted and not isinstance(at, HeavyBallAt)
        ):
            return super().mean_theta_pullback(h, theta, chunks)
        return at.mean_pullback(h.detach(), places)

    def _minibatches(self) -> Iterator[tuple[float, Batch]]:
        """Yield minibatches of the population that stand for all of it."""
        size = len(self._batches(0))
        every = [x for _, chunk in self.population() for _, x in chunk.chunks(size)]
        whole = [x for x in every if len(x) == size] or every
        kept = whole[:: -(-len(whole) // _POPULATION)]
        yield from ((1 / len(kept), x) for x in kept)

    # --- the meta loss ----------------------------------------------------------------------------

    @property
    def _evaluates_as_trained(self) -> bool:
        """Whether the loss that is reported is, on the same examples, the one trained on."""
        return self._evaluated is self.objective and not (
            self.objective.draws or self.objective.couples or self.objective.autocast
        )

    def evaluated(self, h: Tensor) -> TrainedNetwork:
        """Return the network with the weights of a state, in evaluation mode."""
        self.examine()
        first = range(min(self._recalibration, self.steps)) if self.objective.normalizing else ()
        return TrainedNetwork(
            self._evaluated, h[: self.weights], [terms(self._batches(t)) for t in first]
        )

    def _chunks(self, examples: Examples | None) -> Iterable[tuple[float, Terms]]:
        """Yield examples as an evaluation takes them; None: all training examples."""
        chunks = self.population() if examples is None else examples.chunks()
        if self.weights > _LARGE:
            size = min(CHUNK, len(self._batches(0)))
            chunks = (
                (share * of_chunk, x)
                for share, chunk in chunks
                for of_chunk, x in chunk.chunks(size)
            )
        return without_weights(chunks)

    def loss_and_gradient(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Return the meta loss and its gradient, which is zero along the slots."""
        loss, g = (
            self._training_loss(h)
            if self._meta_examples is None
            else self.evaluated(h).mean_loss_and_gradient(self._chunks(self._meta_examples))
        )
        return loss, torch.cat([g, *[torch.zeros_like(g) for _ in self.rule.slots]])

    def loss(self, h: Tensor) -> Tensor:
        """Return the meta loss alone, shape ()."""
        return self.evaluated(h).mean_loss(self._chunks(self._meta_examples))

    def _training_loss(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss on all training examples and ∇L; kept, since it is asked for twice."""
        at, version, known = self._last_loss or (None, 0, None)
        if known is None or at is None or at() is not h or version != h._version:
            known = self.evaluated(h).mean_loss_and_gradient(self._chunks(None))
            self._last_loss = weakref.ref(h), h._version, known
        return known

    def accuracy(self, h: Tensor, examples: Batch) -> float:
        """Return the share of examples whose largest output is their class."""
        network = self.evaluated(h)
        right = sum(
            int((network.outputs(x.inputs).argmax(1) == x.targets).sum())
            for _, x in examples.chunks()
        )
        return right / len(examples)

    def batch_loss(self, h: Tensor, t: int) -> float:
        """Return the loss on the minibatch of step t, as it is trained on."""
        self.examine()
        at = self._place(self.input(t))
        with torch.no_grad(), self.objective.drawing(at.x.seed):
            return float(
                self.objective.value(self.objective.pieces(h.detach()[: self.weights]), at.x)
            )
