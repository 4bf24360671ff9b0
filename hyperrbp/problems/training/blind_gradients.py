"""Refuses gradient methods that would not see what the hyperparameters of a training run do."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hyperrbp.exceptions import UsageError
from hyperrbp.problems.training.hyperparameters import Layout
from hyperrbp.problems.training.update_rules import UpdateRule

_SCHEDULE_KINDS = ("warmup_share", "end_share", "knots")


def refuse_without_derivative(rule: UpdateRule, method: str) -> None:
    """Refuse every gradient method for a rule whose derivatives say nothing.

    Raises:
        UsageError: for such a rule.
    """
    if not rule.differentiable:
        raise UsageError(
            f"{method}: the update of {rule.name} has a derivative of zero almost everywhere, so no"
            " gradient method can tell how a run depends on its hyperparameters; expected a search"
            " without gradients, or another optimizer"
        )


def refuse_last_updates(layout: Layout, scheduled: bool, method: str, updates: int) -> None:
    """Refuse a method that differentiates the last updates alone for what acts before them.

    Args:
        layout: what is tuned.
        scheduled: whether the learning rate changes from step to step.
        method: its name.
        updates: how many updates it differentiates; 0: it knows of the last state alone.

    Raises:
        UsageError: for the first kind of hyperparameter that it would not see.
    """
    for kind, grain in layout.grains.items():
        if kind == "init_scale":
            seen = "nothing of the start", "a steady state has forgotten its start"
        elif kind in _SCHEDULE_KINDS or (kind == "learning_rate" and scheduled):
            seen = "nothing of the steps before", "a schedule leaves no trace in the last state"
        elif grain.segments > 1:
            seen = (
                "nothing of the segments before",
                "early segments leave no trace in the last state",
            )
        else:
            continue
        why = f"the last {updates} steps tell {seen[0]}" if updates else seen[1]
        raise UsageError(f"{method} cannot see {kind}: {why}; expected bptt or forward")


def refuse_zero_moments(
    rule: UpdateRule, tensors: Sequence[str], state: Sequence[Sequence[Tensor]], method: str
) -> None:
    """Refuse to linearize an update at a state where it has no derivative.

    Args:
        rule: the update rule.
        tensors: the names of the parameter tensors.
        state: weights and then slots, each in pieces.
        method: the name of the gradient method.

    Raises:
        UsageError: with the tensors of such weights, and how many.
    """
    found = []
    for name, _, *slots in zip(tensors, *state, strict=True):
        where = rule.not_differentiable(slots)
        if where is not None and bool(where.any()):
            zero = int(torch.count_nonzero(where))
            found.append(f"{name}, whose second moment is zero for {zero} of {where.numel()}")
    if found:
        more = f" (and {len(found) - 3} more)" if len(found) > 3 else ""
        raise UsageError(
            f"{method}: the update of {rule.name} has no derivative at the last state in"
            f" {'; '.join(found[:3])} weights{more}: their gradients have all been zero; expected"
            " bptt or forward"
        )
