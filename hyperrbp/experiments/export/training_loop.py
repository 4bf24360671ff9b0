"""The lines of a training loop that does what a run did, for the heading of the module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hyperrbp.config.inner_run import InnerSection


def training_step(
    inner: InnerSection, *, weighted: bool, before_step: Sequence[str], scheduled: bool
) -> list[str]:
    """Return the lines of one training step.

    Args:
        inner: the section of the recipe.
        weighted: whether every training example has a weight.
        before_step: lines between the gradient and the step of the optimizer.
        scheduled: whether there is a scheduler.
    """
    lines = ["optimizer.zero_grad()"]
    backward = _backward(inner, weighted)
    if inner.accumulate > 1:
        batch = "inputs, targets" + (", minibatch" if weighted else "")
        lines.append(f"for {batch} in parts:  # {inner.accumulate} equal ones of a minibatch")
        backward = [f"    {line}" for line in backward]
    lines += backward
    if inner.clip_norm is not None:
        lines.append(f"torch.nn.utils.clip_grad_norm_(model.parameters(), {inner.clip_norm!r})")
    lines += [*before_step, "optimizer.step()"]
    return [*lines, "scheduler.step()"] if scheduled else lines


def _backward(inner: InnerSection, weighted: bool) -> list[str]:
    if weighted:  # the loss of each example, whichever it is
        lines = ['losses = loss_of(model(inputs), targets, reduction="none")']
        mean = "(weights[minibatch] * losses).mean()"
    else:
        smoothing = f", label_smoothing={inner.label_smoothing!r}" if inner.label_smoothing else ""
        loss = "torch.nn.functional.cross_entropy" if smoothing else "loss_of"
        lines, mean = [f"loss = {loss}(model(inputs), targets{smoothing})"], "loss"
    if inner.precision == "bf16":
        lines = [
            "with torch.autocast(inputs.device.type, torch.bfloat16):",
            *[f"    {line}" for line in lines],
        ]
    if inner.accumulate > 1:
        mean = f"({mean} / {inner.accumulate})"
    return [*lines, f"{mean}.backward()"]
