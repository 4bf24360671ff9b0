"""Tries a network and a loss on a few examples before anything is trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from hyperrbp.config.recipe import Recipe
from hyperrbp.data.batches import Batch
from hyperrbp.exceptions import UsageError, is_foreseen, type_and_message_of
from hyperrbp.experiments.data_module import DataModule
from hyperrbp.problems.training.run import TrainingRun
from hyperrbp.problems.training.terms import terms
from hyperrbp.runtime import user_code


def check_network_and_loss(run: TrainingRun, data: DataModule, recipe: Recipe) -> None:
    """Check that outputs and losses are what a training run can use.

    Raises:
        UsageError: if the network or the loss fails, makes something of the wrong shape, or what
            cannot be differentiated twice.
    """
    parts = run.objective.accumulate
    count = 2 if parts == 1 else min(2 * parts, recipe.inner.batch_size)
    x = data.shown(count)
    model = _named("model", recipe.model.name)
    loss = _named("inner.loss", data.loss_name)
    parameters = run.objective.pieces(run.objective.initial_weights())
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        with _reported(f"{model}, on inputs of shape {_shape(x.tensors[0])}"):
            made = run.objective.outputs(parameters, x.inputs)
        _check_outputs(made, x.targets, len(x), model, data)
        shapes = f"outputs of shape {_shape(made)} and targets of {_shape(x.targets)}"
        with _reported(f"{loss}, on {shapes}"):
            losses = data.loss(made, x.targets)
    _check_losses(losses, len(x), loss)
    with _reported(f"{loss} of {model} cannot be differentiated twice"):
        _differentiate_twice(run, x)


@contextmanager
def _reported(what: str) -> Iterator[None]:
    """Turn whatever the user's code raises into a fault of ``what``."""
    try:
        yield
    except Exception as error:
        if is_foreseen(error):
            raise
        raise UsageError(f"{what}: {type_and_message_of(error)}") from error


def _check_outputs(made: Tensor, targets: Tensor, count: int, model: str, data: DataModule) -> None:
    if not isinstance(made, Tensor) or made.dim() == 0 or len(made) != count:
        shape = tuple(made.shape) if isinstance(made, Tensor) else type(made).__name__
        raise UsageError(
            f"{model} made {shape} of {count} examples; expected a tensor of shape ({count}, …)"
        )
    if data.loss_name != "cross-entropy":
        return
    wanted = (*targets.shape, data.outputs)
    if made.shape != wanted:
        raise UsageError(
            f"{model} made outputs of shape {tuple(made.shape)} of {count} examples; expected"
            f" {wanted}, one for each class"
        )


def _check_losses(losses: object, count: int, loss: str) -> None:
    if not isinstance(losses, Tensor) or not losses.is_floating_point():
        raise UsageError(f"{loss} made {type(losses).__name__}; expected a tensor of floats")
    if losses.shape not in ((), (count,)):
        raise UsageError(
            f"{loss} made losses of shape {tuple(losses.shape)} for {count} examples; expected one"
            f" an example, ({count},), or their mean, ()"
        )


def _differentiate_twice(run: TrainingRun, x: Batch) -> None:
    w = run.objective.initial_weights().requires_grad_()
    with torch.enable_grad():
        gradient = run.objective.differentiable_gradient(w, terms(x))
        if gradient.requires_grad:  # or else the loss is affine
            torch.autograd.grad(gradient.sum(), w)


def _named(key: str, name: str) -> str:
    return user_code.described(name) if user_code.is_code(name) else f"{key} {name}"


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))
