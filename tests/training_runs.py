"""Small training runs of every update rule, on networks with what people train with.

A rule that is registered is among ``RULES``, and so in every test that is parametrized by them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from hyperrbp.data.batches import Batch, ShuffledBatches
from hyperrbp.problems.training.hyperparameters import Grain, Hyperparameters
from hyperrbp.problems.training.run import TrainingRun
from hyperrbp.problems.training.schedules import Schedule
from hyperrbp.problems.training.update_rules import UPDATE_RULES, UpdateRule
from hyperrbp.problems.training.update_rules.rmsprop import RMSprop
from hyperrbp.problems.training.update_rules.sgd import SGD

DOUBLE = torch.float64

RULES: dict[str, UpdateRule] = {name: rule() for name, rule in UPDATE_RULES.items()} | {
    "sgd-nesterov": SGD(nesterov=True),
    "sgd-dampened": SGD(dampening=0.3),
    "rmsprop-centered": RMSprop(centered=True),
}
"""Every registered rule with its default options, and variants of options."""
DIFFERENTIABLE = [name for name, rule in RULES.items() if rule.differentiable]

SCHEDULES = {
    "constant": Schedule(),
    # It ends between two steps, for T = 20 as for 40 and 100: nowhere near its kink.
    "cosine": Schedule("cosine", 0.13, 0.1),
    "linear": Schedule("linear", 0.13, 0.2),
    "knots": Schedule("knots", 0.0, 0.0, (0.5, 1.2, 0.4)),
}
SEGMENTS = "segments"
"""A learning rate of its own in each third of the run."""

NATURAL = {"momentum": 0.6, "beta1": 0.8, "beta2": 0.97, "alpha": 0.95, "weight_decay": 0.02}


def learning_rate(rule: UpdateRule) -> float:
    """Small enough that no run is chaotic: derivatives by finite differences exist."""
    return 0.1 if "momentum" in rule.kinds and "eps" not in rule.kinds else 0.01


# --- networks -------------------------------------------------------------------------------------


class Gpt(nn.Module):
    """A transformer of one layer, its embedding tied to its head, with the causal mask a buffer."""

    def __init__(self, tokens: int = 7, width: int = 8, block: int = 5) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, width)
        self.position = nn.Parameter(torch.randn(block, width) * 0.1)
        self.layer = nn.TransformerEncoderLayer(
            width, 2, 16, 0.1, activation="gelu", batch_first=True, norm_first=True
        )
        self.head = nn.Linear(width, tokens, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(block))

    def forward(self, x: Tensor) -> Tensor:
        at = self.layer(self.embedding(x) + self.position, src_mask=self.mask, is_causal=True)
        return self.head(at).transpose(1, 2)


class NormedTwice(nn.Module):
    """A network that calls one BatchNorm twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 4), nn.Linear(4, 4)
        self.norm, self.last = nn.BatchNorm1d(4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.softplus(self.norm(self.first(x)))
        return self.last(torch.tanh(self.norm(self.second(x))))


def _vectors(count: int) -> Batch:
    return Batch(torch.randn(count, 5, dtype=DOUBLE), torch.randint(0, 3, (count,)))


def _images(count: int) -> Batch:
    return Batch(torch.randn(count, 1, 6, 6, dtype=DOUBLE), torch.randint(0, 3, (count,)))


def _texts(count: int) -> Batch:
    return Batch(torch.randint(0, 7, (count, 5)), torch.randint(0, 7, (count, 5)))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Batch]]] = {
    "mlp": (
        lambda: nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Dropout(0.1), nn.Linear(6, 3)),
        _vectors,
    ),
    "batch-norm": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Softplus(), nn.Flatten(), nn.Linear(48, 3)
        ),
        _images,
    ),
    "gpt": (Gpt, _texts),
    "instance-norm": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 3, 3),
            nn.InstanceNorm2d(3, affine=True, track_running_stats=True),
            nn.Softplus(),
            nn.Flatten(),
            nn.Linear(48, 3),
        ),
        _images,
    ),
    "batch-norm-1d": (
        lambda: nn.Sequential(
            nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.1), nn.Linear(6, 3)
        ),
        _vectors,
    ),
    "normed-twice": (NormedTwice, _vectors),
}
"""By name, a network and its examples; in float64, with smooth activations."""


def network(name: str, count: int = 60, seed: int = 0) -> tuple[nn.Module, Batch]:
    """Return a new network and so many examples, the same ones at every call."""
    make, examples = NETWORKS[name]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make().double(), examples(count)


# --- runs -----------------------------------------------------------------------------------------


def tuned_kinds(rule: UpdateRule, schedule: Schedule, segments: int = 1) -> dict[str, Grain]:
    """Return all kinds of a rule and a schedule, one of each for the whole network."""
    tuned = {kind: Grain("net") for kind in rule.kinds}
    tuned["learning_rate"] = Grain("net", segments)
    if schedule.warmup_share:
        tuned["warmup_share"] = Grain("net")
    if schedule.end_share:
        tuned["end_share"] = Grain("net")
    if schedule.shape == "knots":
        tuned["knots"] = Grain("net", len(schedule.knots))
    return tuned


def run_of_rule(
    rule: str,
    of_network: str = "mlp",
    schedule: str = "constant",
    *,
    steps: int = 20,
    eps: float = 1e-3,
    tuned: dict[str, Grain] | None = None,
    fixed: dict[str, float] | None = None,
    batch: int = 8,
    **arguments: Any,
) -> tuple[TrainingRun, Tensor]:
    """A run that is tuned in all that its rule and schedule have, and a θ off its start.

    The loss that is trained on has label smoothing, the meta loss has none.
    """
    model, examples = network(of_network)
    of_rule = RULES[rule]
    chosen = SCHEDULES.get(schedule, SCHEDULES["constant"])
    if tuned is None:
        tuned = tuned_kinds(of_rule, chosen, 3 if schedule == SEGMENTS else 1)
    settings: dict[str, Any] = {
        "loss": partial(cross_entropy, label_smoothing=0.1),
        "meta_loss": cross_entropy,
        "meta_examples": Batch(*[part[40:] for part in examples[:2]]),
        "recalibration": 4,
    }
    problem = TrainingRun(
        model,
        ShuffledBatches(Batch(*[part[:40] for part in examples[:2]]), batch, 3),
        steps=steps,
        optimizer=of_rule,
        schedule=chosen,
        hyperparameters=Hyperparameters(tuned, fixed or {}),
        **(settings | arguments),
    )
    values = {kind: value for kind, value in NATURAL.items() if kind in tuned}
    values |= {"eps": eps} if "eps" in tuned else {}
    values |= {"init_scale": 0.9} if "init_scale" in tuned else {}
    theta = problem.initial_theta(learning_rate(of_rule), **values)
    source = torch.Generator().manual_seed(5)
    return problem, theta + 0.05 * torch.randn(len(theta), generator=source, dtype=DOUBLE)


def reported(problem: TrainingRun, theta: Tensor) -> float:
    """The meta loss of the whole run at θ."""
    return float(problem.loss(problem.last_state(theta)))


def differences(
    problem: TrainingRun, theta: Tensor, directions: Tensor, fine: bool = False
) -> Tensor:
    """Central finite differences of the meta loss of whole runs, one for each direction.

    Where they are fine, they are exact up to the fourth power of their step instead of the second,
    at twice the price.
    """

    def along(d: Tensor, step: float) -> float:
        above, below = (reported(problem, theta + sign * step * d) for sign in (1, -1))
        return (above - below) / (2 * step)

    return torch.tensor(
        [(4 * along(d, 2e-4) - along(d, 4e-4)) / 3 if fine else along(d, 5e-5) for d in directions],
        dtype=DOUBLE,
    )


def directions_of(theta: Tensor, count: int = 8, seed: int = 1) -> Tensor:
    """Random directions in the space of θ, of length 1."""
    source = torch.Generator().manual_seed(seed)
    found = torch.randn(count, len(theta), generator=source, dtype=DOUBLE)
    return found / found.norm(dim=1, keepdim=True)
