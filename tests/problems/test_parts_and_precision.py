"""A minibatch in parts, and a forward pass in a lower precision: what they change, and by how much.

The bounds of bfloat16 are about twice the largest distances of 5 seeds; those of a run that is
unstable know none.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from whole_runs import by_differences, gradients, relative, run_of_two

from hyperrbp import TrainingRun, hypergradient
from hyperrbp.data.batches import Batch, ShuffledBatches

# --- accumulate -----------------------------------------------------------------------------------


def examples(count: int, seed: int) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 6, generator=source, dtype=torch.float64)
    return inputs, inputs[:, :3].argmax(1)


def run_in_parts(parts: int, *between: nn.Module, loss=F.cross_entropy, optimizer: str = "sgd"):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), *between, nn.Tanh(), nn.Linear(5, 3)).double()
    return run_of_two(
        model,
        [examples(12, seed) for seed in (1, 2)],
        loss=loss,
        meta_examples=Batch(*examples(9, 3)),
        accumulate=parts,
        optimizer=optimizer,
    )


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("parts", [2, 3, 12])
def test_a_minibatch_in_parts_is_the_minibatch(parts, optimizer):
    whole, theta = run_in_parts(1, optimizer=optimizer)
    cut, _ = run_in_parts(parts, optimizer=optimizer)
    assert relative(cut.last_state(theta), whole.last_state(theta)) < 1e-12
    truth = gradients(whole, theta)["graph"]
    for keep, found in gradients(cut, theta).items():
        assert relative(found, truth) < 1e-12, keep


def test_batch_normalization_has_the_statistics_of_each_part():
    cut, theta = run_in_parts(3, nn.BatchNorm1d(5))
    whole, _ = run_in_parts(1, nn.BatchNorm1d(5))
    model = whole.objective.model.train()
    x, y = examples(12, 1)
    value = torch.stack(
        [F.cross_entropy(model(a), b) for a, b in zip(x.split(4), y.split(4), strict=True)]
    ).mean()
    truth = torch.cat([g.flatten() for g in torch.autograd.grad(value, model.parameters())])
    h = cut.initial_state(theta)
    velocity = cut.step(h, theta, cut.input(0))[cut.weights :]
    assert relative(velocity, truth) < 1e-12
    assert relative(whole.step(h, theta, whole.input(0))[whole.weights :], truth) > 1e-3
    for keep, found in gradients(cut, theta).items():
        assert relative(found, by_differences(cut, theta)) < 1e-6, keep


# --- bfloat16 -------------------------------------------------------------------------------------


def images(count: int, source: torch.Generator) -> Batch:
    """Examples of ten classes, each a pattern of 8 × 8 pixels with noise."""
    patterns = torch.rand(10, 64, generator=torch.Generator().manual_seed(7))
    labels = torch.randint(0, 10, (count,), generator=source)
    return Batch((patterns[labels] + 0.5 * torch.rand(count, 64, generator=source)) / 1.5, labels)


def dense() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10))


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 4, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


def classifier(network, optimizer: str, seed: int, **options) -> tuple[TrainingRun, Tensor]:
    torch.manual_seed(seed)
    source = torch.Generator().manual_seed(seed)
    run = TrainingRun(
        network(),
        ShuffledBatches(images(200, source), 20, seed),
        steps=20,
        meta_examples=images(100, source),
        optimizer=optimizer,
        **options,
    )
    rates = {"sgd": {"learning_rate": 0.1, "momentum": 0.8}, "adamw": {"learning_rate": 3e-3}}
    return run, run.initial_theta(**rates[optimizer])


BOUNDS = {dense: (0.9999, 0.01), convolutional: (0.998, 0.08)}
"""The least cosine, and how far the ratio of the norms may be from 1."""
BF16 = {"autocast": torch.bfloat16}


def agreement(found: Tensor, truth: Tensor) -> tuple[float, float]:
    """Return the cosine of two gradients, and the ratio of their norms."""
    return float(F.cosine_similarity(found, truth, dim=0)), float(found.norm() / truth.norm())


@pytest.mark.parametrize(
    "seed", [0, *[pytest.param(s, marks=pytest.mark.slow) for s in range(1, 5)]]
)
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("network", [dense, convolutional])
def test_a_gradient_in_bfloat16_is_that_in_float32_to_a_few_percent(network, optimizer, seed):
    run, theta = classifier(network, optimizer, seed)
    lower, _ = classifier(network, optimizer, seed, **BF16)
    assert lower.last_state(theta).dtype is torch.float32
    truth = gradients(run, theta)["states"]
    found = gradients(lower, theta)
    for keep in found:
        cosine, ratio = agreement(found[keep], truth)
        least, off = BOUNDS[network]
        assert cosine > least, keep
        assert ratio == pytest.approx(1, abs=off), keep
        assert relative(found[keep], found["graph"]) < 1e-3, keep
    assert relative(found["states"], truth) > 1e-6, "it was float32"


def test_a_series_in_bfloat16_is_that_in_float32_to_a_few_percent():
    run, theta = classifier(dense, "sgd", 0)
    lower, _ = classifier(dense, "sgd", 0, **BF16)
    found, truth = (hypergradient(of, theta, "neumann", trunc=10).gradient for of in (lower, run))
    cosine, ratio = agreement(found, truth)
    assert cosine > 0.999
    assert ratio == pytest.approx(1, abs=0.05)


def test_the_loss_that_is_reported_is_of_the_precision_of_the_weights():
    run, theta = classifier(dense, "sgd", 0)
    lower, _ = classifier(dense, "sgd", 0, **BF16)
    h = run.last_state(theta)
    assert torch.equal(run.loss(h), lower.loss(h))
