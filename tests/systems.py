"""Small problems whose gradients are known, and the networks that they are made of."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from hyperrbp.data.batches import Batch, ShuffledBatches
from hyperrbp.problems.base import Problem
from hyperrbp.problems.fixed_point import FixedPoint
from hyperrbp.problems.graph_net import GraphNet
from hyperrbp.problems.hopfield import Hopfield
from hyperrbp.problems.training.hyperparameters import Grain, Hyperparameters
from hyperrbp.problems.training.run import TrainingRun


@dataclass
class Linear(Problem):
    """h' = A h + B θ + c with L(h) = ½‖h‖² + ⟨q, h⟩: its implicit gradient has a closed form."""

    A: Tensor
    B: Tensor
    c: Tensor
    q: Tensor
    steps: int
    h0: Tensor | None = None

    def initial_state(self, theta: Tensor | None = None) -> Tensor:
        return torch.zeros_like(self.c) if self.h0 is None else self.h0

    def step(self, h, theta, x):
        return self.A @ h + self.B @ theta + self.c

    def input(self, t):
        return None

    def population(self):
        return [(1.0, None)]

    def loss_and_gradient(self, h):
        return 0.5 * h @ h + self.q @ h, h + self.q

    def fixed_point(self, theta: Tensor) -> Tensor:
        eye = torch.eye(len(self.c), dtype=self.c.dtype)
        return torch.linalg.solve(eye - self.A, self.B @ theta + self.c)

    def closed_form(self, theta: Tensor) -> Tensor:
        eye = torch.eye(len(self.c), dtype=self.c.dtype)
        g = self.fixed_point(theta) + self.q
        return self.B.T @ torch.linalg.solve((eye - self.A).T, g)


def random_linear(n: int = 12, p: int = 5, norm: float = 0.6, steps: int = 80, seed: int = 0):
    """A random contraction, not symmetric, of spectral norm ``norm``, in float64."""
    source = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=source, dtype=torch.float64)

    A = normal(n, n)
    A *= norm / torch.linalg.matrix_norm(A, 2)
    return Linear(A, normal(n, p), normal(n), normal(n), steps), normal(p)


def small_training_run(
    steps: int = 30, *, optimizer: str = "maclaurin", hidden: int = 6, batch: int = 8, seed: int = 3
) -> tuple[TrainingRun, Tensor]:
    """A tanh classifier of three classes on 40 random examples in float64, and its start θ."""
    source = torch.Generator().manual_seed(seed)
    inputs = torch.randn(40, 5, generator=source, dtype=torch.float64)
    targets = torch.randint(0, 3, (40,), generator=source)
    model = nn.Sequential(nn.Linear(5, hidden), nn.Tanh(), nn.Linear(hidden, 3)).double()
    count = sum(tensor.numel() for tensor in model.parameters())
    weights = 0.5 * torch.randn(count, generator=source, dtype=torch.float64)
    run = TrainingRun(
        model,
        ShuffledBatches(Batch(inputs, targets), batch, seed),
        steps=steps,
        optimizer=optimizer,
        initial_weights=weights,
    )
    return run, run.initial_theta(0.3, 0.6)


def small_memory_network(
    *,
    a: float = 1.0,
    b: float = 0.5,
    readout: str = "state",
    init_std: float = 0.5,
    images: int = 3,
    seed: int = 5,
) -> tuple[Hopfield, Tensor]:
    """A Hopfield memory of 6 observed and 5 hidden neurons in float64, and binary images for it."""
    source = torch.Generator().manual_seed(seed)
    network = Hopfield(6, 5, a=a, b=b, readout=readout, init_std=init_std, generator=source)
    return network.double(), torch.randint(0, 2, (images, 6), generator=source).double()


def small_memory(
    steps: int = 80, *, loss: str = "l1", settled: float = 0.0, **of_network
) -> tuple[FixedPoint, Tensor]:
    """The memory as a problem, and its θ; the mean L1 loss is far from its kinks."""
    network, images = small_memory_network(**of_network)

    def mean_loss(shown: Tensor) -> Tensor:
        gap = shown - (3.0 * images - 1.2)
        return gap.abs().mean() if loss == "l1" else gap.square().mean()

    problem = network.problem(images, updates=steps, loss=mean_loss, settled=settled)
    return problem, problem.initial_theta()


def small_graph(nodes: int = 8, links: int = 11, seed: int = 1) -> Tensor:
    """A random undirected graph: (source, target) pairs in both directions, shape (2, 2 links)."""
    source = torch.Generator().manual_seed(seed)
    pairs = torch.combinations(torch.arange(nodes))
    one_way = pairs[torch.randperm(len(pairs), generator=source)[:links]].T
    return torch.cat([one_way, one_way.flip(0)], 1)


def small_graph_network(
    edges: Tensor, nodes: int = 8, *, aggregation: str = "sum", scale: float = 0.2, seed: int = 3
) -> tuple[GraphNet, Tensor]:
    """A graph network of three classes in float64, its weights scaled down, and node features."""
    source = torch.Generator().manual_seed(seed)
    network = GraphNet(
        edges, nodes, 4, 3, aggregation=aggregation, generator=source, dtype=torch.float64
    )
    with torch.no_grad():
        for tensor in network.cell.parameters():
            if tensor.ndim == 1:
                tensor.normal_(0.0, 0.3, generator=source)
            else:
                tensor.mul_(scale)
    return network, torch.randn(nodes, 4, generator=source, dtype=torch.float64)


def small_graph_net(
    steps: int = 150, *, settled: float = 0.0, **of_network
) -> tuple[FixedPoint, Tensor]:
    """The graph network with the cross-entropy on five of its nodes as a problem, and its θ."""
    network, features = small_graph_network(small_graph(), **of_network)
    labelled, classes = torch.tensor([0, 2, 3, 5, 6]), torch.tensor([0, 2, 1, 1, 0])

    def loss(logits: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits[labelled], classes)

    problem = network.problem(features, updates=steps, loss=loss, settled=settled)
    return problem, problem.initial_theta()


class WithRidge(nn.Linear):
    """A linear classifier whose last output is a small ridge: training converges to a point."""

    def forward(self, inputs):
        ridge = 0.05 * (self.weight.square().sum() + self.bias.square().sum())
        return torch.cat([super().forward(inputs), ridge.expand(len(inputs), 1)], 1)


def cross_entropy_and_ridge(outputs, targets):
    return nn.functional.cross_entropy(outputs[:, :-1], targets) + outputs[0, -1]


VALUES = {
    "learning_rate": 0.3,
    "momentum": 0.6,
    "weight_decay": 0.02,
    "init_scale": 1.3,
    "example_weight": 0.8,
}


def examples(count: int, source: torch.Generator) -> Batch:
    inputs = torch.randn(count, 5, generator=source, dtype=torch.float64)
    return Batch(inputs, torch.randint(0, 3, (count,), generator=source))


def run_of(
    tuned: dict[str, Grain],
    *,
    optimizer: str = "maclaurin",
    steps: int = 9,
    fixed: dict[str, float] | None = None,
    **arguments,
) -> tuple[TrainingRun, torch.Tensor]:
    """A classifier on 24 examples with a validation loss on 30 others, and a θ off its start."""
    source = torch.Generator().manual_seed(3)
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    count = sum(tensor.numel() for tensor in model.parameters())
    problem = TrainingRun(
        model,
        ShuffledBatches(examples(24, source), 8, 3),
        steps=steps,
        optimizer=optimizer,
        meta_examples=examples(30, source),
        loss=partial(cross_entropy, reduction="none"),
        initial_weights=0.5 * torch.randn(count, generator=source, dtype=torch.float64),
        hyperparameters=Hyperparameters(tuned, fixed or {}),
        **arguments,
    )
    theta = problem.initial_theta(**VALUES)
    return problem, theta + 0.2 * torch.randn(len(theta), generator=source, dtype=torch.float64)
