"""The losses that a recipe can name: one function and one registry line each.

A loss maps outputs and targets to one number an example, shape (B,); their mean is what is trained
on. It must be differentiable twice, or hypergradients are those of its smooth parts alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from hyperrbp.exceptions import UsageError

if TYPE_CHECKING:
    from torch import Tensor

AUTO = "auto"
"""The name that stands for cross-entropy with whole targets, the squared error with others."""


@dataclass(frozen=True)
class Loss:
    """A built-in loss, and what its targets are.

    ``classes``: whole numbers 0 … classes − 1, shape (B,), or (B, T) of sequences. ``values``:
    floats, shape (B, outputs). ``shares``: the same, in [0, 1].
    """

    function: Callable[[Tensor, Tensor], Tensor]
    targets: Literal["classes", "values", "shares"]


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return −log softmax(outputs)[class]; of sequences, its mean over the tokens of each.

    Args:
        outputs: shape (B, classes), or (B, T, classes) of sequences.
        targets: classes, shape (B,) or (B, T).
    """
    from torch.nn import functional

    if outputs.dim() != targets.dim() + 1 or targets.dim() not in (1, 2):
        wanted = "(examples, classes)" if targets.dim() == 1 else "(examples, tokens, classes)"
        raise UsageError(
            f"cross-entropy needs outputs of shape {wanted}; the network makes"
            f" {tuple(outputs.shape)}"
        )
    if targets.dim() == 1:
        return functional.cross_entropy(outputs, targets, reduction="none")
    each = functional.cross_entropy(outputs.flatten(0, 1), targets.flatten(), reduction="none")
    return each.view(targets.shape).mean(1)


def smoothed_cross_entropy(share: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the cross-entropy with targets of which a share is spread over all classes."""

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        spread = -outputs.log_softmax(1).mean(1)
        if spread.dim() > 1:
            spread = spread.flatten(1).mean(1)
        return (1 - share) * cross_entropy(outputs, targets) + share * spread

    return loss


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean of (output − target)²."""
    return _mean((_like(outputs, targets) - targets).square())


def absolute_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean of |output − target|; its curvature is zero wherever it is defined."""
    return _mean((_like(outputs, targets) - targets).abs())


def huber(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return half the squared error up to a distance of 1, and linear from there."""
    from torch.nn import functional

    return _mean(functional.huber_loss(_like(outputs, targets), targets, reduction="none"))


def binary_cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the cross-entropy of sigmoid(outputs) with targets in [0, 1]."""
    from torch.nn import functional

    return _mean(
        functional.binary_cross_entropy_with_logits(
            _like(outputs, targets), targets, reduction="none"
        )
    )


LOSSES: dict[str, Loss] = {
    "cross-entropy": Loss(cross_entropy, "classes"),
    "mse": Loss(squared_error, "values"),
    "mae": Loss(absolute_error, "values"),
    "huber": Loss(huber, "values"),
    "binary-cross-entropy": Loss(binary_cross_entropy, "shares"),
}


def _like(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return outputs in the shape of the targets: (B,) will do for (B, 1); nothing is broadcast."""
    if outputs.shape == targets.shape:
        return outputs
    if outputs.shape[:1] == targets.shape[:1] and outputs.numel() == targets.numel():
        return outputs.reshape(targets.shape)
    raise UsageError(
        f"the network makes outputs of shape {tuple(outputs.shape)} for targets of shape"
        f" {tuple(targets.shape)}"
    )


def _mean(of_each_output: Tensor) -> Tensor:
    """Return the mean over the outputs of each example, shape (B,)."""
    return of_each_output.flatten(1).mean(1)
