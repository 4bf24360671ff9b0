"""Measures what a trained network is worth on examples that it has not seen."""

from __future__ import annotations

import torch
from torch import Tensor

from hyperrbp.data.batches import Examples
from hyperrbp.problems.training.run import TrainingRun
from hyperrbp.problems.training.terms import terms


def measures(run: TrainingRun, h: Tensor, examples: Examples, loss: str) -> dict[str, float]:
    """Return the loss; and the accuracy of classes, or else rmse and r2.

    The accuracy of sequences is that of their tokens. ``rmse`` is the root of the mean squared
    error over all outputs, ``r2`` the share of the targets' variance that is explained: absent
    where there is none. A loss of the user's own whose outputs are not those of a classifier, nor
    shaped as the targets are, is reported alone.

    Args:
        run: the training run that the state is of.
        h: a state of it.
        examples: what is measured on.
        loss: the name of the loss, as in a recipe.
    """
    total, right, count, network = 0.0, 0, 0, run.evaluated(h)
    made: list[Tensor] = []
    wanted: list[Tensor] = []
    for share, x in examples.chunks():
        outputs, targets = network.outputs(x.inputs), x.targets
        total += share * float(network.loss_of(outputs, terms(x)))
        if _are_classes(outputs, targets):
            right += int((outputs.argmax(-1) == targets).sum())
            count += targets.numel()
        elif _are_values(outputs, targets):
            made.append(outputs.reshape(targets.shape).double())
            wanted.append(targets.double())
    found = {"loss": total}
    if count:
        return found | {"accuracy": right / count}
    return found | _of_values(torch.cat(made), torch.cat(wanted), loss) if made else found


def _are_classes(outputs: object, targets: object) -> bool:
    """Return whether targets are classes, of examples or tokens, and outputs one for each class."""
    return (
        isinstance(outputs, Tensor)
        and isinstance(targets, Tensor)
        and not targets.is_floating_point()
        and outputs.shape[:-1] == targets.shape
        and outputs.shape[-1] > 1
    )


def _are_values(outputs: object, targets: object) -> bool:
    return (
        isinstance(outputs, Tensor)
        and isinstance(targets, Tensor)
        and targets.is_floating_point()
        and outputs.numel() == targets.numel()
    )


def _of_values(made: Tensor, targets: Tensor, loss: str) -> dict[str, float]:
    """Return the measures of outputs in float64 that are to equal their targets."""
    if loss == "binary-cross-entropy":
        right = (made > 0) == (targets > 0.5)
        return {"accuracy": float(right.double().mean())}
    wrong = float((made - targets).square().mean())
    spread = float((targets - targets.mean(0)).square().mean())
    found = {"rmse": wrong**0.5}
    return found | {"r2": 1 - wrong / spread} if spread > 0 else found
