"""Measures what a trained network is worth on examples that it has not seen."""

from __future__ import annotations

import torch
from torch import Tensor

from hyperrbp.data.batches import Batch
from hyperrbp.problems.training.run import TrainingRun
from hyperrbp.problems.training.terms import terms


def measures(run: TrainingRun, h: Tensor, examples: Batch, loss: str) -> dict[str, float]:
    """Return the loss; and the accuracy of classes, or else rmse and r2.

    ``rmse`` is the root of the mean squared error over all outputs, ``r2`` the share of the
    targets' variance that is explained: absent where there is none. A loss of the user's own whose
    outputs are not those of a classifier, nor shaped as the targets are, is reported alone.

    Args:
        run: the training run that the state is of.
        h: a state of it.
        examples: what is measured on.
        loss: the name of the loss, as in a recipe.
    """
    total, outputs, network = 0.0, [], run.evaluated(h)
    for share, x in examples.chunks():
        outputs.append(network.outputs(x.inputs))
        total += share * float(network.loss_of(outputs[-1], terms(x)))
    made = torch.cat(outputs)
    targets = examples.targets
    found = {"loss": total}
    if not targets.is_floating_point():
        if targets.dim() == 1 and made.dim() == 2 and made.shape[1] > 1:
            correct = int((made.argmax(1) == targets).sum())
            return found | {"accuracy": correct / len(examples)}
        return found
    if made.numel() != targets.numel():
        return found
    return found | _of_values(made.reshape(targets.shape).double(), targets.double(), loss)


def _of_values(made: Tensor, targets: Tensor, loss: str) -> dict[str, float]:
    """Return the measures of outputs in float64 that are to equal their targets."""
    if loss == "binary-cross-entropy":
        right = (made > 0) == (targets > 0.5)
        return {"accuracy": float(right.double().mean())}
    wrong = float((made - targets).square().mean())
    spread = float((targets - targets.mean(0)).square().mean())
    found = {"rmse": wrong**0.5}
    return found | {"r2": 1 - wrong / spread} if spread > 0 else found
