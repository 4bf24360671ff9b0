"""A training run as a recurrent map: the hidden state is the weights and the optimizer's slots.

Liao et al. 2018, section 5.3. The flat state is h = (w, s_1, …), each part N long, N being the
number of weights; for SGD with momentum s_1 is the velocity. Unless other hyperparameters are asked
for (``hyperrbp.problems.training.hyperparameters``), θ holds a log learning rate and, where there
is one, a logit momentum for every parameter tensor.

A step is made of three parts that do not know each other: the objective gives ∇L(w) and Hessian
products (``hyperrbp.problems.training.objective``), the schedule gives the rates of the step
(``hyperrbp.problems.training.rates``), and the update rule makes the next state of them
(``hyperrbp.problems.training.update_rules``). With weights of examples, L is their weighted mean;
with a scale of the initial weights, θ enters h_0. The meta loss is that of the network as it is
evaluated (``hyperrbp.problems.training.meta_loss``).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from hyperrbp.data.batches import Batch, Batches, Examples, ListedBatches
from hyperrbp.exceptions import UsageError
from hyperrbp.problems.base import Input, Problem, Pushforward
from hyperrbp.problems.training.blind_gradients import (
    refuse_last_updates,
    refuse_without_derivative,
    refuse_zero_moments,
)
from hyperrbp.problems.training.examined_module import ExaminedModule
from hyperrbp.problems.training.heavy_ball.products import HeavyBallAt
from hyperrbp.problems.training.heavy_ball.step import HeavyBallStep
from hyperrbp.problems.training.hyperparameters import KINDS, Hyperparameters
from hyperrbp.problems.training.inputs import RunInputs, joined
from hyperrbp.problems.training.meta_loss import MetaLoss
from hyperrbp.problems.training.network_loss import LossFunction
from hyperrbp.problems.training.objective import Objective
from hyperrbp.problems.training.products import Place, StepAt, TrainingStep
from hyperrbp.problems.training.rates import RateSchedule, lay_out
from hyperrbp.problems.training.schedules import Schedule
from hyperrbp.problems.training.trained_network import TrainedNetwork
from hyperrbp.problems.training.update_rules import UpdateRule, update_rule
from hyperrbp.problems.training.update_rules.heavy_ball import HeavyBall


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
        accumulate: equal parts of a minibatch whose mean gradient makes a step.
        autocast: the format in which the forward pass of training may compute, such as
            ``torch.bfloat16``; the weights keep theirs.
        recalibration: minibatches of the first steps whose statistics stand for running ones where
            a network with batch normalization is evaluated.
        initial_weights: flat, shape (N,), in the order of ``model.named_parameters()``; the
            model's current ones if not given.
        hyperparameters: what θ holds; learning rate and momentum of every tensor if not given.
        seed: of the random numbers that the module draws: those of a step depend on it alone.

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
    ) -> None:
        if steps < 1:
            raise UsageError(f"a training run has at least 1 step, not {steps}")
        self.steps = steps
        self.rule = update_rule(optimizer)
        """The update rule."""
        self.schedule = Schedule(schedule) if isinstance(schedule, str) else schedule
        """The schedule of the learning rate."""
        self.objective = Objective(model, loss, autocast=autocast, accumulate=accumulate)
        self._inputs = RunInputs(
            ListedBatches(batches) if isinstance(batches, Sequence) else batches,
            self.objective,
            seed,
        )
        self._meta_loss = MetaLoss(
            self.objective if meta_loss is None else self.objective.with_loss(meta_loss),
            self._inputs.batches,
            meta_examples,
            min(recalibration, steps),
        )
        self.tensors = self.objective.tensors
        """The names of the parameter tensors, in the order of the state and of θ."""
        own = self.objective.initial_weights()
        self._initial_weights = own if initial_weights is None else initial_weights.detach()
        if self._initial_weights.shape != own.shape:
            raise UsageError(
                f"initial weights of shape {tuple(self._initial_weights.shape)} for a model of"
                f" {len(own)} weights"
            )
        self.layout = lay_out(
            hyperparameters, self.rule, self.schedule, self.objective, self.population
        )
        """Where in θ every hyperparameter stands."""
        self._weighted = "example_weight" in self.layout.grains
        if self._weighted and meta_examples is None:
            raise UsageError(
                "weights of training examples need a meta loss on other examples: on the same ones,"
                " it falls as they vanish"
            )
        self._rates = rates = RateSchedule(self.layout, self.rule, self.schedule)
        plain = rates.constant and clip_norm is None
        self._step: HeavyBallStep | TrainingStep
        if plain and isinstance(self.rule, HeavyBall) and self.rule.plain:
            self._step = HeavyBallStep(self.objective, self.rule, self.layout)
        else:
            self._step = TrainingStep(self.objective, self.rule, rates, self.layout, clip_norm)
        self._module = ExaminedModule(
            self.objective, self._meta_loss.network, self._initial_weights, self._inputs
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
        _, gradient = self._meta_loss.on_training_examples(h)
        return {
            "weights": float(w.norm()),
            **{name: float(slot.norm()) for name, slot in zip(names, slots, strict=True)},
            "loss gradient": float(gradient.norm()),
        }

    def in_precision(self, dtype: torch.dtype) -> TrainingRun:
        """Return the same run, of the same weights and examples, in another precision."""
        other = copy.copy(self)
        other.objective = self.objective.in_precision(dtype)
        other._step = self._step.with_objective(other.objective)
        other._initial_weights = self._initial_weights.to(dtype)
        other._inputs = self._inputs.in_precision(dtype, other.objective)
        reported = self._meta_loss.network
        other._meta_loss = self._meta_loss.of(
            other.objective
            if reported is self.objective
            else other.objective.with_loss(reported.loss),
            other._inputs.batches,
            dtype,
        )
        other._module = self._module.of(
            other.objective, other._meta_loss.network, other._initial_weights, other._inputs
        )
        return other

    def examine(self, like: TrainingRun | None = None) -> None:
        """Try the module on the first minibatch, and find out whether it can be differentiated.

        Args:
            like: a run of the same network, from other weights; what its examination has shown
                holds here too.

        Raises:
            UsageError: if it cannot, with the reason.
        """
        self._module.check(None if like is None else like._module)

    def _begin(self) -> None:
        """Take notice of what has changed since the last run: the module is the user's."""
        self.objective.recheck()
        self._step.recheck()
        self._module.check_again()

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
        return self._inputs(t)

    def population(self) -> Iterable[tuple[float, Batch]]:
        """Yield all training examples, in weighted chunks."""
        return self._inputs.batches.population()

    def sample(self) -> Iterable[tuple[float, Batch]] | None:
        """Return the last minibatches, where an average over all would take many updates."""
        if isinstance(self._step, HeavyBallStep) and not self.objective.couples:
            return None
        return self._inputs.last(self.steps)

    def merge(self, inputs: Sequence[Input]) -> Iterable[tuple[float, Input]]:
        """Join them into one batch, cut into chunks, where F is affine in the mean gradient."""
        segments = {self._rates.segment(self._place(x).step, self.steps) for x in inputs}
        affine = isinstance(self._step, HeavyBallStep) and not self.objective.couples
        whole = joined(inputs) if affine and len(segments) == 1 else None
        return super().merge(inputs) if whole is None else whole

    def _place(self, x: Batch, example_weights: Tensor | None = None) -> Place:
        return self._inputs.place(x, self.steps, example_weights)

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
        places = self._inputs.places(start, stop, self.steps, weights)
        return self._step.at(theta).states(h, places)

    # --- its products -----------------------------------------------------------------------------

    def refuse_gradient(self, method: str, updates: int) -> None:
        """Refuse a gradient method that would not see what θ does.

        Raises:
            UsageError: for an update rule without derivatives, and where only the last updates are
                differentiated, for hyperparameters of other steps.
        """
        refuse_without_derivative(self.rule, method)
        if updates < self.steps:
            refuse_last_updates(self.layout, not self._rates.constant, method, updates)

    def refuse_last_state(self, method: str, h: Tensor) -> None:
        """Refuse to linearize the update at a state where it has no derivative.

        Raises:
            UsageError: with the tensors where that is so.
        """
        refuse_zero_moments(self.rule, self.tensors, self.objective.state_pieces(h), method)

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
                return at.update_by(h.detach(), self._meta_loss.on_training_examples(h)[1])
            chunks = list(self.population() if chunks is None else chunks)
        else:
            chunks = list(self._inputs.spread() if chunks is None else chunks)
        places = [(share, self._place(x, weights)) for share, x in chunks]
        if len({of.step for _, of in places}) > 1 or (
            self._weighted and not isinstance(at, HeavyBallAt)
        ):
            return super().mean_theta_pullback(h, theta, chunks)
        return at.mean_pullback(h.detach(), places)

    # --- the meta loss ----------------------------------------------------------------------------

    @property
    def _evaluates_as_trained(self) -> bool:
        """Whether the loss that is reported is, on the same examples, the one trained on."""
        return self._meta_loss.network is self.objective and not (
            self.objective.draws or self.objective.couples or self.objective.autocast
        )

    def evaluated(self, h: Tensor) -> TrainedNetwork:
        """Return the network with the weights of a state, in evaluation mode."""
        self.examine()
        return self._meta_loss.trained(h[: self.weights])

    def loss_and_gradient(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Return the meta loss and its gradient, which is zero along the slots."""
        self.examine()
        loss, g = self._meta_loss.value_and_gradient(h)
        return loss, torch.cat([g, *[torch.zeros_like(g) for _ in self.rule.slots]])

    def loss(self, h: Tensor) -> Tensor:
        """Return the meta loss alone, shape ()."""
        self.examine()
        return self._meta_loss.value(h[: self.weights])

    def batch_loss(self, h: Tensor, t: int) -> float:
        """Return the loss on the minibatch of step t, as it is trained on."""
        self.examine()
        at = self._place(self.input(t))
        with torch.no_grad(), self.objective.drawing(at.x.seed):
            parameters = self.objective.pieces(h.detach()[: self.weights])
            return float(self.objective.value(parameters, at.x))
