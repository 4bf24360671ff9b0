"""Examines a module before its first training step: is its gradient that of its loss?"""

from __future__ import annotations

from torch import Tensor

from hyperrbp.data.batches import Batch
from hyperrbp.problems.training.objective import Objective
from hyperrbp.problems.training.terms import terms
from hyperrbp.problems.training.trial_calls import probe


def examine(objective: Objective, w: Tensor, x: Batch, seed: int) -> None:
    """Call the module on a minibatch, and hold its derivatives against finite differences.

    Whether it draws random numbers is noted in ``objective.draws``.

    Args:
        objective: the loss that is trained on.
        w: weights, shape (N,).
        x: a minibatch.
        seed: of the run.

    Raises:
        UsageError: if it is no function of weights and inputs that can be differentiated twice.
    """
    at = terms(x)
    pieces = objective.pieces(w.detach())
    found = probe(lambda: objective.value(pieces, at), at.tensors, objective.model)
    objective.draws = found.draws
