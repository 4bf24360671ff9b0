"""Examines a module before its first training step: is its gradient that of its loss?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from hyperrbp.data.batches import Batch
from hyperrbp.exceptions import UsageError, is_foreseen, type_and_message_of
from hyperrbp.problems.training.derivative_check import check_derivatives
from hyperrbp.problems.training.network_loss import flat
from hyperrbp.problems.training.objective import Objective
from hyperrbp.problems.training.terms import Terms, terms
from hyperrbp.problems.training.trial_calls import probe
from hyperrbp.runtime.randomness import generator

_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")

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
        if not loss.requires_grad:
            raise UsageError("the loss depends on no parameter of the model: it has no gradient")
        with _refused_again(objective.model):
            gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
    _refuse_unreached(objective, gradients)
    _refuse_not_finite(objective, loss, gradients)
    _check_derivatives(*_in_double(objective, w, at._replace(seed=source)))


def _draws(objective: Objective, w: Tensor, x: Terms) -> bool:
    """Return whether the module draws random numbers; see ``probe`` for what is refused."""
    leaves = [piece.detach().requires_grad_() for piece in objective.pieces(w)]
    return probe(lambda: objective.value(leaves, x), x.tensors, objective.model).draws


def signature(objective: Objective) -> tuple[Any, ...]:
    """Return what an examination holds for: the numbers, modes and hooks of every module.

    Two that are equal are those of one function, if the loss has not changed.
    """
    model = objective.model
    held = set(objective.held)
    return tuple(
        (
            id(module),
            module.training if model.training else name not in held,
            tuple(
                value
                for key, value in vars(module).items()
                if key != "training" and isinstance(value, int | float | str)
            ),
            tuple(id(hook) for hooks in _HOOKS for hook in vars(module)[hooks].values()),
        )
        for name, module in model.named_modules()
    )


@contextmanager
def _refused_again(model: nn.Module) -> Iterator[None]:
    """Refuse a module that is called inside, in backward, where it has its own weights again."""
    ours = {module: name for name, module in model.named_modules()}

    def refuse(module: nn.Module, _: Any) -> None:
        if module in ours and next(module.parameters(), None) is not None:
            raise UsageError(
                f"the model's '{ours[module]}' ({type(module).__name__}) is called again in"
                " backward, as by torch.utils.checkpoint, with other weights than those of the"
                " run; call it without: bptt:keep=checkpoints saves more memory"
            )

    handle = register_module_forward_pre_hook(refuse)
    try:
        yield
    finally:
        handle.remove()


def _refuse_not_finite(
    objective: Objective, loss: Tensor, gradients: Sequence[Tensor | None]
) -> None:
    wrong = [
        name
        for name, g in zip(objective.tensors, gradients, strict=True)
        if g is not None and not g.isfinite().all()
    ]
    if wrong and loss.isfinite():
        raise UsageError(
            f"the gradient of the loss by '{wrong[0]}' is not finite, although the loss is: a"
            " square root or a norm of zeros, or torch.where around such an operation, does this;"
            " keep its arguments away from there (torch.where inside as well)"
        )


def _refuse_unreached(objective: Objective, gradients: Sequence[Tensor | None]) -> None:
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


def _in_double(objective: Objective, w: Tensor, x: Terms) -> tuple[Objective, Tensor, Terms]:
    """Return all in float64; or as it is, where the module makes tensors of one format only."""
    double = objective.in_precision(torch.float64)
    wide = tuple(t.double() if t.is_floating_point() else t for t in x.tensors)
    of_double = double, w.detach().double(), x._replace(tensors=wide)
    try:
        with torch.no_grad(), double.drawing(x.seed):
            double.value(double.pieces(of_double[1]), of_double[2])
    except UsageError:
        if w.dtype == torch.float64:
            raise
        return objective, w.detach(), x
    return of_double


def _check_derivatives(objective: Objective, w: Tensor, x: Terms) -> None:
    dtype = w.dtype

    def pieces(at: Tensor) -> list[Tensor]:
        return objective.pieces(at.to(dtype))

    def value(at: Tensor) -> Tensor:
        with objective.drawing(x.seed):
            return objective.value(pieces(at), x).double()

    def gradient(at: Tensor) -> Tensor:
        return flat(objective.gradient(pieces(at), x)).double()

    def hessian_product(at: Tensor, d: Tensor) -> Tensor:
        try:
            return flat(objective.hessian_product(pieces(at), pieces(d), x)).double()
        except (RuntimeError, NotImplementedError) as error:
            if is_foreseen(error):
                raise
            raise UsageError(
                f"the loss cannot be differentiated twice: {type_and_message_of(error)}"
            ) from error

    check_derivatives(
        value,
        gradient,
        hessian_product,
        w.double(),
        objective.tensors,
        objective.sizes,
        generator(0, "derivative check"),
        fixed=_paddings(objective),
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
