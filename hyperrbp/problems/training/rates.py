"""The rates with which every step of a training run is made, as a function of θ and the step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from hyperrbp.data.batches import Batch
from hyperrbp.problems.training.hyperparameters import Grain, Hyperparameters, Layout
from hyperrbp.problems.training.objective import Objective
from hyperrbp.problems.training.schedules import Schedule
from hyperrbp.problems.training.update_rules import UpdateRule


def lay_out(
    hyperparameters: Hyperparameters | None,
    rule: UpdateRule,
    schedule: Schedule,
    objective: Objective,
    population: Callable[[], Iterable[tuple[float, Batch]]],
) -> Layout:
    """Return where in θ the hyperparameters of a run stand.

    Args:
        hyperparameters: what θ holds; learning rate and momentum of every tensor if not given.
        rule: the update rule.
        schedule: of the learning rate.
        objective: for the parameter tensors.
        population: yields all training examples; asked only where each has a weight.

    Raises:
        UsageError: for a kind that neither the rule nor the schedule has.
    """
    known = (*rule.kinds, *schedule.kinds, "init_scale", "example_weight")
    hyperparameters = hyperparameters or Hyperparameters(
        {kind: Grain() for kind in ("learning_rate", "momentum") if kind in known}
    )
    hyperparameters.refuse_other_than(
        known, f"neither {rule.name} nor the schedule {schedule.shape}"
    )
    shares = {"warmup_share": schedule.warmup_share, "end_share": schedule.end_share}
    weighted = "example_weight" in hyperparameters.tuned
    return Layout(
        hyperparameters,
        objective.tensors,
        objective.sizes,
        sum(len(x) for _, x in population()) if weighted else 0,
        rule.defaults() | shares,
    )


class RateSchedule:
    """ρ = R(θ, t): the hyperparameters of the update rule at step t.

    The learning rate is its peak times the factor of the schedule; segments multiply it.

    Args:
        layout: where in θ everything stands.
        rule: the update rule, for the kinds that it has.
        schedule: of the learning rate.
    """

    def __init__(self, layout: Layout, rule: UpdateRule, schedule: Schedule) -> None:
        self._layout, self._kinds, self._schedule = layout, rule.kinds, schedule
        self.constant = schedule.constant and not set(layout.grains) & set(schedule.kinds)
        """Whether nothing changes within a segment of the run."""
        self.decays = "weight_decay" in layout.grains or layout.fixed["weight_decay"] > 0
        """Whether there is any weight decay."""
        self.tuned = tuple(
            kind
            for kind in rule.kinds
            if kind in layout.grains
            or (kind == "learning_rate" and set(layout.grains) & set(schedule.kinds))
        )
        """The kinds of rates that depend on θ, in the order of the rule's."""

    def segment(self, step: int, steps: int) -> int:
        """Return the segment of the run that a step is in."""
        return self._layout.segment(step, steps)

    def rates(self, theta: Tensor, step: int, steps: int) -> dict[str, Tensor]:
        """Return the natural values of every kind at a step, with a graph to θ.

        A kind has one for every tensor, shape (tensors,), in float64 (for a number near 1, its
        distance to 1 is what counts); or one for every weight, shape (N,), in the format of θ.
        """
        layout, segment = self._layout, self.segment(step, steps)
        wide = theta.double()
        found = {}
        for kind in self._kinds:
            if kind in layout.grains and layout.grains[kind].by == "weight":
                found[kind] = torch.cat(layout.by_tensor(theta, kind, segment))
            else:
                found[kind] = torch.stack(layout.by_tensor(wide, kind, segment))
        if not self.constant:
            factor = self._factor(wide, step, steps)
            found["learning_rate"] = found["learning_rate"] * factor
        return found

    def transposed(
        self, theta: Tensor, step: int, steps: int, along: Mapping[str, Tensor]
    ) -> Tensor:
        """Return (∂ρ/∂θ)ᵀ of cotangents of at least the tuned kinds, shape (p,)."""
        with torch.enable_grad():
            theta = theta.detach().requires_grad_()
            rates = self.rates(theta, step, steps)
            if not self.tuned:
                return torch.zeros_like(theta)
            (product,) = torch.autograd.grad(
                [rates[kind] for kind in self.tuned],
                theta,
                [along[kind].to(rates[kind].dtype) for kind in self.tuned],
                materialize_grads=True,
            )
        return product

    def jacobian(self, theta: Tensor, step: int, steps: int) -> dict[str, Tensor]:
        """Return ∂ρ/∂θ of every tuned kind, with one rate for each tensor: (tensors, p) each."""
        with torch.enable_grad():
            theta = theta.detach().requires_grad_()
            rates = self.rates(theta, step, steps)
            each = torch.eye(len(self._layout.tensors), dtype=torch.float64, device=theta.device)
            return {
                kind: torch.autograd.grad(
                    rates[kind], theta, each, is_grads_batched=True, retain_graph=True
                )[0]
                for kind in self.tuned
            }

    def _factor(self, theta: Tensor, step: int, steps: int) -> Tensor:
        layout = self._layout
        warmup, end = (layout.of_net(theta, kind)[0] for kind in ("warmup_share", "end_share"))
        knots = (
            layout.of_net(theta, "knots")
            if "knots" in layout.grains
            else theta.new_tensor(self._schedule.knots)
        )
        at = theta.new_tensor(float(step))
        return self._schedule.factor(at, steps, warmup, end, knots)
