"""Gradients of whole training runs, and the two things that they are held against.

Finite differences of the loss after the run, and the same training in plain PyTorch.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hyperrbp.exceptions import UsageError
from hyperrbp.hypergradients import hypergradient
from hyperrbp.problems.training.hyperparameters import Grain, Hyperparameters
from hyperrbp.problems.training.network_loss import takes_model
from hyperrbp.problems.training.run import TrainingRun
from hyperrbp.runtime.randomness import generator, seeded

KEPT = ("graph", "states", "checkpoints")
"""What ``bptt`` keeps of a run."""
VALUES = {
    "sgd": {"learning_rate": 0.1, "momentum": 0.6},
    "adamw": {"learning_rate": 0.02, "weight_decay": 0.1},
}
"""Two hyperparameters of the whole network, off the defaults of their optimizer."""
EPS = 1e-3
"""Of AdamW: the first updates of tensors with small gradients are no sign functions."""


def run_of_two(
    model: nn.Module,
    batches: Sequence[Any],
    *,
    optimizer: str = "sgd",
    steps: int = 5,
    **arguments: Any,
) -> tuple[TrainingRun, Tensor]:
    """Return a run with the two hyperparameters of ``VALUES``, and its θ."""
    from hyperrbp.problems.training.update_rules import update_rule

    values = VALUES[optimizer]
    rule = update_rule(optimizer)
    if optimizer == "adamw":
        rule = type(rule)(eps=EPS)
    run = TrainingRun(
        model,
        batches,
        steps=steps,
        optimizer=rule,
        hyperparameters=Hyperparameters({kind: Grain("net") for kind in values}),
        **arguments,
    )
    return run, run.initial_theta(**values)


def gradients(run: TrainingRun, theta: Tensor) -> dict[str, Tensor]:
    """Return the gradient by ``bptt`` for each of what it can keep."""
    return {
        keep: hypergradient(run, theta, "bptt", options={"keep": keep}).gradient for keep in KEPT
    }


def loss_after(run: TrainingRun, theta: Tensor) -> float:
    """Return the meta loss after a run."""
    return float(run.loss(run.last_state(theta)))


def by_differences(run: TrainingRun, theta: Tensor, step: float = 1e-5) -> Tensor:
    """Return the gradient of the loss after a run by central differences."""
    found = torch.zeros_like(theta)
    for i in range(len(theta)):
        moved = torch.zeros_like(theta)
        moved[i] = step
        found[i] = (loss_after(run, theta + moved) - loss_after(run, theta - moved)) / (2 * step)
    return found


def relative(found: Tensor, truth: Tensor) -> float:
    """Return ‖found − truth‖ / ‖truth‖."""
    return float((found.double() - truth.double()).norm() / truth.double().norm())


def weights_by_torch(
    model: nn.Module,
    batches: Sequence[Any],
    loss: Callable[..., Tensor],
    *,
    optimizer: str = "sgd",
    steps: int = 5,
    draws: bool = False,
) -> Tensor:
    """Train a copy of a module as one does, and return the weights that were trained, flat.

    Args:
        draws: whether to seed each step as a run does.
    """
    model = copy.deepcopy(model)
    if not model.training:
        model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    values = VALUES[optimizer]
    rates = {"lr": values["learning_rate"]}
    made: torch.optim.Optimizer = (
        torch.optim.SGD(trained, **rates, momentum=values["momentum"])
        if optimizer == "sgd"
        else torch.optim.AdamW(trained, **rates, weight_decay=values["weight_decay"], eps=EPS)
    )
    for t in range(steps):
        batch = batches[t % len(batches)]
        made.zero_grad()
        source = generator(0, "random layers", t).initial_seed() if draws else 0
        with seeded(source), torch.enable_grad():
            value = loss(model, batch) if takes_model(loss) else loss(model(batch[0]), batch[1])
            value.mean().backward()
        made.step()
    return nn.utils.parameters_to_vector(trained).detach()


def refused(words: str, make: Callable[[], Any]) -> None:
    """Expect a refusal of one line, by the time that a first gradient is asked for."""
    with pytest.raises(UsageError, match=words) as found:
        gradients(*make())
    assert "\n" not in str(found.value)


def assert_right(found: dict[str, Tensor], truth: Tensor, bound: float) -> None:
    assert truth.norm() > 1e-4, "too small to be held against anything"
    for keep, gradient in found.items():
        assert relative(gradient, truth) < bound, (keep, gradient, truth)
