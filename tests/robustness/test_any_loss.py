"""Any loss that people train on: its gradient is right, or it is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from any_modules import FEATURES, B, classes, numbers, whole_numbers
from torch import Tensor, nn
from torch.nn import functional as F
from whole_runs import assert_right, by_differences, gradients, refused, run_of_two

from hyperrbp.data.batches import Batch
from hyperrbp.problems.training.run import TrainingRun


class Parts(nn.Module):
    """A network whose outputs are several tensors by name."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.one, self.two = nn.Linear(6, 5), nn.Linear(5, 3), nn.Linear(5, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.body(x).tanh()
        return {"classes": self.one(y), "value": self.two(y)[:, 0]}


def like_outputs(seed: int) -> Tensor:
    return numbers(B, 3, seed=100 + seed)


def shares(seed: int) -> Tensor:
    return like_outputs(seed).softmax(1)


def counts(seed: int) -> Tensor:
    return whole_numbers(4, B, 3, seed=100 + seed).double()


def signs(seed: int) -> Tensor:
    return like_outputs(seed).sign()


def bits(seed: int) -> Tensor:
    return (like_outputs(seed) > 0).double()


def some_ignored(seed: int) -> Tensor:
    targets = classes(seed)
    targets[0] = -100
    return targets


def both(seed: int) -> dict[str, Tensor]:
    return {"classes": classes(seed), "value": like_outputs(seed)[:, 0]}


def penalized(model: nn.Module, batch: Any) -> Tensor:
    """A loss that calls the model itself, twice."""
    x, y = batch
    return F.cross_entropy(model(x), y) + 0.1 * (model(x) - model(x.flip(1))).square().mean()


def ctc(outputs: Tensor, targets: Tensor) -> Tensor:
    steps = outputs.unsqueeze(0).expand(4, -1, -1) * torch.arange(1, 5).view(-1, 1, 1)
    lengths = torch.full((len(targets),), 4), torch.full((len(targets),), 1)
    return F.ctc_loss(steps.log_softmax(2), 1 + targets[:, None] % 2, *lengths)


def multitask(outputs: dict[str, Tensor], targets: dict[str, Tensor]) -> Tensor:
    return F.cross_entropy(outputs["classes"], targets["classes"]) + F.mse_loss(
        outputs["value"], targets["value"]
    )


def noisy(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs + 0.3 * torch.randn(outputs.shape, dtype=outputs.dtype), targets)


class Averaged:
    """A loss with a state."""

    mean = 1.0

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        loss = F.cross_entropy(outputs, targets)
        self.mean = 0.9 * self.mean + 0.1 * float(loss.detach())
        return loss / self.mean


class Fails:
    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        raise KeyError("no")


@dataclass
class LossRow:
    """A loss with targets that fit it."""

    loss: Any
    targets: Callable[[int], Any] = like_outputs
    words: str | None = None
    bound: float = 1e-5
    model: Callable[[], nn.Module] = lambda: nn.Sequential(
        nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)
    )

    def problem(self) -> tuple[TrainingRun, Tensor]:
        torch.manual_seed(0)
        batches = [(FEATURES(seed), self.targets(seed)) for seed in (1, 2)]
        later = Batch(FEATURES(3), self.targets(3))
        return run_of_two(self.model().double(), batches, loss=self.loss, meta_examples=later)


def double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


LOSSES: dict[str, LossRow] = {
    "weights of classes": LossRow(partial(F.cross_entropy, weight=double(0.5, 1.0, 2.0)), classes),
    "ignore_index": LossRow(F.cross_entropy, some_ignored),
    "label smoothing": LossRow(partial(F.cross_entropy, label_smoothing=0.1), classes),
    "shares of classes": LossRow(F.cross_entropy, shares),
    "one for every example": LossRow(partial(F.cross_entropy, reduction="none"), classes),
    "nll": LossRow(lambda o, y: F.nll_loss(o.log_softmax(1), y), classes),
    "kl_div": LossRow(lambda o, y: F.kl_div(o.log_softmax(1), y, reduction="batchmean"), shares),
    "bce": LossRow(lambda o, y: F.binary_cross_entropy(o.sigmoid(), y), bits),
    "bce with logits": LossRow(
        partial(F.binary_cross_entropy_with_logits, pos_weight=double(2.0, 1.0, 0.5)), bits
    ),
    "mse": LossRow(F.mse_loss),
    "l1": LossRow(F.l1_loss),
    "smooth l1": LossRow(F.smooth_l1_loss),
    "huber": LossRow(partial(F.huber_loss, delta=0.5)),
    "gaussian nll": LossRow(
        lambda o, y: F.gaussian_nll_loss(o[:, :1], y[:, :1], F.softplus(o[:, 1:2]))
    ),
    "poisson nll": LossRow(F.poisson_nll_loss, counts),
    "hinge embedding": LossRow(F.hinge_embedding_loss, signs),
    "soft margin": LossRow(F.soft_margin_loss, signs),
    "multi margin": LossRow(F.multi_margin_loss, classes, words="cannot be differentiated twice"),
    "multi-label soft margin": LossRow(F.multilabel_soft_margin_loss, bits),
    "margin ranking": LossRow(lambda o, y: F.margin_ranking_loss(o[:, 0], o[:, 1], y[:, 0]), signs),
    "triplet": LossRow(
        lambda o, y: F.triplet_margin_loss(o, y, y.roll(1, 0)),
    ),
    "cosine embedding": LossRow(lambda o, y: F.cosine_embedding_loss(o, y, y[:, 0].sign())),
    "ctc": LossRow(ctc, classes, words="cannot be differentiated twice"),
    "calls the model": LossRow(penalized, classes),
    "several outputs": LossRow(multitask, both, model=Parts),
    "draws": LossRow(noisy, classes),
    "a module": LossRow(nn.CrossEntropyLoss(), classes),
    "of every number, shape (B, 3)": LossRow(partial(F.mse_loss, reduction="none")),
    "keeps a state": LossRow(Averaged(), classes, words="under the same seed"),
    "fails": LossRow(Fails(), classes, words="the loss failed: KeyError: 'no'"),
    "no tensor": LossRow(lambda o, y: 1.0, classes, words="the loss gave float"),
    "whole numbers": LossRow(
        lambda o, y: (o.argmax(1) != y).sum(), classes, words=r"the loss gave torch\.int64"
    ),
    "of classes chosen": LossRow(
        lambda o, y: (o.argmax(1) != y).double(), classes, words="depends on no parameter"
    ),
    "detached": LossRow(
        lambda o, y: F.mse_loss(o, y) * o.detach().square().sum(), words="is not its derivative"
    ),
    "by numpy": LossRow(
        lambda o, y: torch.from_numpy(np.square(o.numpy())).mean(), words="the loss failed"
    ),
    "outputs in place": LossRow(lambda o, y: o.sub_(y).square().mean()),
    "targets in place": LossRow(lambda o, y: (o - y.mul_(0.5)).square().mean(), words="in place"),
    "root of nothing": LossRow(
        lambda o, y: (o - o.detach()).square().sum().sqrt() + F.mse_loss(o, y),
        words="is not finite, although the loss is",
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_right_or_refused(name):
    row = LOSSES[name]
    if row.words is not None:
        refused(row.words, row.problem)
        return
    run, theta = row.problem()
    assert_right(gradients(run, theta), by_differences(run, theta), row.bound)
