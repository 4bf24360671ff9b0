"""Examines a module before its first training step: is its gradient that of its loss?"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hyperrbp.data.batches import Batch
from hyperrbp.exceptions import UsageError
from hyperrbp.problems.training.derivative_check import check_derivatives
from hyperrbp.problems.training.network_loss import flat
from hyperrbp.problems.training.objective import Objective
from hyperrbp.problems.training.terms import Terms, terms
from hyperrbp.problems.training.trial_calls import probe
from hyperrbp.runtime.randomness import generator

_FEW = 4
"""Examples on which derivatives are held against finite differences."""


def examine(objective: Objective, w: Tensor, x: Batch, seed: int) -> None:
    """Call the module on a minibatch, and hold its derivatives against finite differences.

    The differences are taken in float64, on a few examples and with the random numbers of one
    seed. Whether the module draws any is noted in ``objective.draws``.

    Args:
        objective: the loss that is trained on.
        w: weights, shape (N,).
        x: a minibatch.
        seed: of the run.

    Raises:
        UsageError: if it is no function of weights and inputs that can be differentiated twice, or
            does not depend on a parameter.
    """
    whole = terms(x)
    few = _first(x, whole, objective)
    try:
        at, draws = few, _draws(objective, w, few)
    except Exception:
        if few is whole:
            raise
        # A module may be made for minibatches of one size.
        at, draws = whole, _draws(objective, w, whole)
    objective.draws = draws
    source = generator(seed, "random layers").initial_seed()
    leaves = [piece.detach().requires_grad_() for piece in objective.pieces(w)]
    with torch.enable_grad(), objective.drawing(source):
        loss = objective.value(leaves, at)
    _refuse_unreached(objective, loss, leaves)
    _check_derivatives(objective, w, at, source)


def _draws(objective: Objective, w: Tensor, x: Terms) -> bool:
    """Return whether the module draws random numbers; see ``probe`` for what is refused."""
    leaves = [piece.detach().requires_grad_() for piece in objective.pieces(w)]
    return probe(lambda: objective.value(leaves, x), x.tensors, objective.model).draws


def _refuse_unreached(objective: Objective, loss: Tensor, leaves: list[Tensor]) -> None:
    if not loss.requires_grad:
        raise UsageError("the loss depends on no parameter of the model: it has no gradient")
    gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
    unreached = [n for n, g in zip(objective.tensors, gradients, strict=True) if g is None]
    if unreached:
        few = ", ".join(f"'{name}'" for name in unreached[:3]) + (" …" if unreached[3:] else "")
        raise UsageError(
            f"the loss does not reach {few}: torch.optim would leave such parameters as they are;"
            " hold them fixed with requires_grad_(False), in a recipe with model.frozen"
        )


def _first(x: Batch, at: Terms, objective: Objective) -> Terms:
    """Return a few examples; all of them where the batch cannot be cut."""
    count = _FEW * objective.accumulate
    if len(x) <= count or any(tensor.shape[:1] != (len(x),) for tensor in at.tensors):
        return at
    return at._replace(tensors=tuple(tensor[:count] for tensor in at.tensors))


def _check_derivatives(objective: Objective, w: Tensor, x: Terms, source: int) -> None:
    double = objective.in_precision(torch.float64)
    wide = x._replace(
        tensors=tuple(t.double() if t.is_floating_point() else t for t in x.tensors), seed=source
    )

    def value(at: Tensor) -> Tensor:
        with double.drawing(source):
            return double.value(double.pieces(at), wide)

    def gradient(at: Tensor) -> Tensor:
        return flat(double.gradient(double.pieces(at), wide))

    def hessian_product(at: Tensor, d: Tensor) -> Tensor:
        return flat(double.hessian_product(double.pieces(at), double.pieces(d), wide))

    check_derivatives(
        value,
        gradient,
        hessian_product,
        w.detach().double(),
        double.tensors,
        double.sizes,
        generator(0, "derivative check"),
        fixed=_paddings(double),
    )


def _paddings(objective: Objective) -> Tensor | None:
    """Return which weights are rows of embeddings that stand for padding: bool, shape (N,).

    Their gradient is left out on purpose.
    """
    padded = {
        id(module.weight): module.padding_idx
        for module in objective.model.modules()
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.padding_idx is not None
    }
    if not padded:
        return None
    fixed = torch.zeros(objective.weights, dtype=torch.bool)
    named = dict(objective.model.named_parameters())
    for name, piece in zip(objective.tensors, objective.pieces(fixed), strict=True):
        if (row := padded.get(id(named[name]))) is not None:
            piece[row] = True
    return fixed
