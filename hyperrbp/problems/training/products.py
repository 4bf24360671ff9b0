"""The map F of a training run with its products at a step, for any update rule.

``hyperrbp.problems.training.elementwise`` has the algebra. Here states and adjoints are flat, of
shape (n,) with n = (1 + slots) N, and the rates come from θ, of shape (p,).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from hyperrbp.exceptions import UsageError
from hyperrbp.problems.training.elementwise import ElementwiseUpdate, StepPrograms
from hyperrbp.problems.training.hyperparameters import KINDS, Layout
from hyperrbp.problems.training.network_loss import flat
from hyperrbp.problems.training.objective import Objective
from hyperrbp.problems.training.rates import RateSchedule
from hyperrbp.problems.training.terms import Structure, Terms
from hyperrbp.problems.training.update_rules import UpdateRule


class Place:
    """A batch at its place in the run.

    Args:
        x: the batch, with the weights of its examples.
        rows: which training examples they are; asked for only where their weights are tuned.
        step: the number of the step.
        steps: T.
    """

    __slots__ = ("rows", "step", "steps", "x")

    def __init__(self, x: Terms, rows: Tensor | None, step: int, steps: int) -> None:
        self.x, self.rows, self.step, self.steps = x, rows, step, steps


class TrainingStep:
    """F(h, θ, x), the map of one training step.

    Args:
        objective: the loss of the network, for its gradient and Hessian products.
        rule: the update rule.
        schedule: the rates of every step.
        layout: where in θ everything stands.
        clip_norm: the largest norm of a gradient; None: any.
    """

    def __init__(
        self,
        objective: Objective,
        rule: UpdateRule,
        schedule: RateSchedule,
        layout: Layout,
        clip_norm: float | None = None,
    ) -> None:
        self.objective, self.layout, self.schedule = objective, layout, schedule
        self.update = ElementwiseUpdate(rule, objective.shapes, clip_norm)
        self.rule = rule
        self._programs: dict[Structure | None, StepPrograms] = {}

    def with_objective(self, objective: Objective) -> TrainingStep:
        """Return the same step with the loss of another network of the same shapes."""
        return TrainingStep(objective, self.rule, self.schedule, self.layout, self.update.clip_norm)

    def recheck(self) -> None:
        """Compare every traced function with the module once more, at its next call."""
        for programs in self._programs.values():
            programs.advance.recheck()
            programs.pullback.recheck()

    def step(self, h: Tensor, theta: Tensor, at: Place) -> Tensor:
        """Return F(h, θ, x), shape (n,), with graphs to h and θ where they require a gradient."""
        state = self.objective.state_pieces(h)
        rates, t = self.rates(theta, at), number_of(at, h)
        weights = at.x.weights
        if torch.is_grad_enabled() and (
            h.requires_grad or (weights is not None and weights.requires_grad)
        ):
            g = self.objective.gradient_with_graph(state[0], at.x)
        else:
            g = self.objective.gradient([piece.detach() for piece in state[0]], at.x)
        moved = self.update(state, self.update.clipped(g), rates, t)
        return _joined(moved)

    def at(self, theta: Tensor) -> StepAt:
        """Return what a step at one θ is made of: its states and its products."""
        return StepAt(self, theta.detach())

    def rates(self, theta: Tensor, at: Place) -> list[Tensor]:
        """Return the rates at a place by the rule's kinds, with a graph to θ."""
        rates = self.schedule.rates(theta, at.step, at.steps)
        return [rates[kind] for kind in self.rule.kinds]

    def programs(self, structure: Structure | None) -> StepPrograms:
        """Return the traced functions for batches of one structure."""
        found = self._programs.get(structure)
        if found is None:
            found = StepPrograms(self.objective, self.update, structure)
            self._programs[structure] = found
        return found


class StepAt:
    """A training step at one θ; nothing here keeps a graph."""

    def __init__(self, step: TrainingStep, theta: Tensor) -> None:
        self._step, self._theta = step, theta
        self._objective, self._layout, self._schedule = step.objective, step.layout, step.schedule
        self._update, self._rule, self._tuned = step.update, step.rule, step.schedule.tuned
        self._known: dict[int, list[Tensor]] = {}

    def states(self, h: Tensor, places: Iterable[Place]) -> Iterator[Tensor]:
        """Yield what ``TrainingStep.step`` gives again and again."""
        for at in places:
            with torch.no_grad():
                state = self._objective.state_pieces(h)
                tensors = [piece for part in state for piece in part]
                programs = self._step.programs(at.x.structure)
                with self._objective.drawing(at.x.seed):
                    moved = programs.advance(*tensors, *self._after_state(h, at))
                h = flat(moved)
            yield h

    @torch.no_grad()
    def pullback(self, h: Tensor, at: Place, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return (Jᵀu, (∂F/∂θ)ᵀu), shapes (n,) and (p,)."""
        along, of_rates, of_examples = self._pull_back(h, at, u)
        kinds = dict(zip(self._rule.kinds, of_rates, strict=True))
        of_theta = self._schedule.transposed(self._theta, at.step, at.steps, kinds)
        if of_examples is not None:
            assert at.rows is not None
            place = self._layout.slices["example_weight"]
            natural = self._layout.example_weights(self._theta)
            assert natural is not None
            derivative = KINDS["example_weight"].derivative(natural[at.rows])
            of_theta[place].index_add_(0, at.rows, of_examples * derivative)
        return along, of_theta

    @torch.no_grad()
    def transposed(self, h: Tensor, at: Place, u: Tensor) -> Tensor:
        """Return Jᵀu, shape (n,)."""
        return self._pull_back(h, at, u)[0]

    def _pull_back(
        self, h: Tensor, at: Place, u: Tensor
    ) -> tuple[Tensor, Sequence[Tensor], Tensor | None]:
        state, adjoint = (self._objective.state_pieces(part) for part in (h, u))
        tensors = [piece for part in (*state, *adjoint) for piece in part]
        programs = self._step.programs(at.x.structure)
        with self._objective.drawing(at.x.seed):
            found = programs.pullback(*tensors, *self._after_state(h, at))
        count = len(tensors) // 2
        kinds = len(self._rule.kinds)
        return (
            flat(found[:count]),
            found[count : count + kinds],
            found[count + kinds] if len(found) > count + kinds else None,
        )

    @torch.no_grad()
    def pushforward(self, h: Tensor, at: Place, tangents: Tensor) -> tuple[Tensor, Tensor]:
        """Return (F(h, θ, x), J S + ∂F/∂θ) for tangents S of shape (p, n).

        Raises:
            UsageError: for weights of examples, and weight decay of every weight: there are too
                many of them to carry a tangent for each.
        """
        refuse_many_tangents(self._layout)
        objective, weights = self._objective, self._objective.weights
        state = objective.state_pieces(h)
        raw, curved = objective.hessian_products(h[:weights], tangents[:, :weights], at.x)
        g, along_g = self._clipped_tangents(raw, curved)
        rates, t = self._rates(at), number_of(at, h)
        jacobian = self._schedule.jacobian(self._theta, at.step, at.steps)
        rows = [
            [piece.reshape(len(tangents), -1) for piece in torch.split(part, objective.sizes, 1)]
            for part in (*torch.split(tangents, weights, 1), along_g)
        ]
        moved: list[Sequence[Tensor]] = []
        after: list[list[Tensor]] = []
        for i, size in enumerate(objective.sizes):
            made, diagonals = self._update.diagonals(state, g, rates, t, i, self._tuned)
            moved.append(made)
            inputs = [rows[j][i] for j in range(len(rows))]
            direct = [
                jacobian[kind][i].to(h.dtype)[:, None].expand(-1, size) for kind in self._tuned
            ]
            after.append(
                [
                    sum(
                        (
                            diagonal.reshape(-1) * tangent
                            for diagonal, tangent in zip(of, [*inputs, *direct], strict=True)
                        ),
                        torch.zeros_like(inputs[0]),
                    )
                    for of in diagonals
                ]
            )
        parts = range(self._update.parts)
        image = flat([moved[i][o] for o in parts for i in range(len(moved))])
        return image, torch.cat([after[i][o] for o in parts for i in range(len(after))], 1)

    def _clipped_tangents(self, raw: Tensor, curved: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return the clipped gradient in pieces, and D H v for the rows H v."""
        objective = self._objective
        if self._update.clip_norm is None:
            return objective.pieces(raw), curved
        with torch.enable_grad():
            leaf = raw.detach().requires_grad_()
            clipped = flat(self._update.clipped(objective.pieces(leaf)))
            # D is symmetric: the same products, from the left.
            (along,) = torch.autograd.grad(clipped, leaf, curved, is_grads_batched=True)
        return objective.pieces(clipped.detach()), along

    @torch.no_grad()
    def mean_pullback(
        self, h: Tensor, places: Iterable[tuple[float, Place]]
    ) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Return the mean F̄ of F over weighted places, and u ↦ (∂F̄/∂θ)ᵀu; one pass over them.

        Every rate acts on its own element alone, so the mean of C is the mean of its diagonals.
        Weights of examples are not among the parameters here.
        """
        objective, kinds = self._objective, self._tuned
        state = objective.state_pieces(h)
        image = torch.zeros_like(h)
        last: Place | None = None
        means: dict[tuple[int, int], Tensor] = {}
        for share, at in places:
            g = self._update.clipped(objective.gradient(state[0], at.x))
            rates, t = self._rates(at), number_of(at, h)
            for i, into in enumerate(zip(*objective.state_pieces(image), strict=True)):
                moved, diagonals = self._update.diagonals(state, g, rates, t, i, kinds)
                for part, piece in zip(into, moved, strict=True):
                    part.add_(piece, alpha=share)
                for o, of in enumerate(diagonals):
                    if not kinds:
                        continue
                    own = torch.stack(of[len(state) + 1 :])
                    mean = means.setdefault((o, i), torch.zeros_like(own))
                    mean.add_(own, alpha=share)
            last = at
        if last is None:
            raise UsageError("there are no training examples")
        step, steps = last.step, last.steps

        @torch.no_grad()
        def along_theta(u: Tensor) -> Tensor:
            if not kinds:
                return torch.zeros_like(self._theta)
            of_kinds: list[list[Tensor]] = [[] for _ in kinds]
            for i, adjoints in enumerate(zip(*objective.state_pieces(u), strict=True)):
                products = torch.stack([means[o, i] * u_o for o, u_o in enumerate(adjoints)]).sum(0)
                for k, product in enumerate(products):
                    of_kinds[k].append(product)
            along = {
                kind: flat(pieces)
                if self._by_weight(kind)
                else torch.stack([piece.sum() for piece in pieces])
                for kind, pieces in zip(kinds, of_kinds, strict=True)
            }
            return self._schedule.transposed(self._theta, step, steps, along)

        return image, along_theta

    def _by_weight(self, kind: str) -> bool:
        grain = self._layout.grains.get(kind)
        return grain is not None and grain.by == "weight"

    def _rates(self, at: Place) -> list[Tensor]:
        """Return the rates at a place, which are kept for as long as they stay the same."""
        if not self._schedule.constant:
            return self._step.rates(self._theta, at)
        segment = self._schedule.segment(at.step, at.steps)
        if segment not in self._known:
            self._known[segment] = self._step.rates(self._theta, at)
        return self._known[segment]

    def _after_state(self, h: Tensor, at: Place) -> list[Tensor]:
        weights = [] if at.x.weights is None else [at.x.weights]
        return [*self._rates(at), number_of(at, h), *at.x.tensors, *weights]


def number_of(at: Place, like: Tensor) -> Tensor:
    """Return the number of a step as a tensor, shape ()."""
    return torch.tensor(float(at.step), dtype=torch.float64, device=like.device)


def refuse_many_tangents(layout: Layout) -> None:
    """Refuse kinds that have too many entries to carry a tangent for each.

    Raises:
        UsageError: for weights of examples, and weight decay of every weight.
    """
    for kind, grain in layout.grains.items():
        if grain.by in ("weight", "example"):
            raise UsageError(f"forward mode cannot carry a tangent for every {kind}")


def _joined(parts: Sequence[Sequence[Tensor]]) -> Tensor:
    return flat([piece for part in parts for piece in part])
