"""SGD with momentum as a recurrent map."""

from __future__ import annotations

import math

import pytest
import torch
from systems import small_training_run
from torch import nn
from torch.nn.functional import cross_entropy

from hyperrbp.data.batches import Batch, ListedBatches, ShuffledBatches
from hyperrbp.exceptions import DivergedError, UsageError
from hyperrbp.optimizers.adam import AdamSettings, descend
from hyperrbp.problems.training.run import TrainingRun
from hyperrbp.problems.training.update_rules import UPDATE_RULES


def model_of(problem: TrainingRun, h: torch.Tensor, hidden: int = 6) -> nn.Module:
    model = nn.Sequential(nn.Linear(5, hidden), nn.Tanh(), nn.Linear(hidden, 3)).double()
    nn.utils.vector_to_parameters(h[: problem.weights], model.parameters())
    return model


def flat(model: nn.Module) -> torch.Tensor:
    return nn.utils.parameters_to_vector(model.parameters()).detach()


def test_one_update_by_hand():
    """v' = βv − (1−β)g, w' = w + αv' on a one-weight least squares."""
    model = nn.Linear(1, 1, bias=False).double()
    problem = TrainingRun(
        model,
        [(torch.tensor([[2.0]]).double(), torch.tensor([[1.0]]).double())],
        steps=1,
        loss=nn.functional.mse_loss,
        initial_weights=torch.tensor([3.0]).double(),
    )
    theta = problem.initial_theta(0.1, 0.9)
    h = torch.tensor([3.0, 0.5]).double()
    gradient = 2 * (3.0 * 2 - 1) * 2  # d/dw (2w − 1)²
    v = 0.9 * 0.5 - 0.1 * gradient
    expected = torch.tensor([3.0 + 0.1 * v, v]).double()
    torch.testing.assert_close(problem.step(h, theta, problem.input(0)), expected)


@pytest.mark.parametrize("optimizer", sorted(UPDATE_RULES))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_fast_run_is_the_step_again_and_again(optimizer, dtype):
    problem, theta = small_training_run(steps=30, optimizer=optimizer)
    if dtype is torch.float32:
        examples = Batch(*(next(iter(problem.population()))[1]))
        problem = TrainingRun(
            model_of(problem, problem.initial_state()).float(),
            ShuffledBatches(Batch(examples.inputs.float(), examples.targets), 8, 3),
            steps=30,
            optimizer=optimizer,
        )
        theta = theta.float()
    start = problem.initial_state()
    kept = start.clone()
    fast = problem.run(theta, 3, 30, start)
    assert torch.equal(start, kept), "the given state was changed"
    h = start
    for t in range(3, 30):
        h = problem.step(h, theta, problem.input(t))
    assert torch.equal(fast, h)
    graph = start.clone().requires_grad_()
    for t in range(3, 30):
        graph = problem.step(graph, theta, problem.input(t))
    assert torch.equal(fast, graph.detach()), "the differentiable step has other bits"


def test_loss_gradient_is_zero_on_the_velocities_and_chunks_add_up(monkeypatch):
    problem, theta = small_training_run(steps=5)
    h = problem.run(theta, 0, 5, problem.initial_state())
    loss, gradient = problem.loss_and_gradient(h)
    ((_, everything),) = problem.population()
    model = model_of(problem, h)
    truth = cross_entropy(model(everything.inputs), everything.targets)
    truth.backward()
    expected = torch.cat([p.grad.reshape(-1) for p in model.parameters()])
    torch.testing.assert_close(loss, truth.detach())
    torch.testing.assert_close(gradient[: problem.weights], expected)
    assert not gradient[problem.weights :].any()
    whole = everything.chunks
    monkeypatch.setattr(Batch, "chunks", lambda self, size=7: whole(size))
    assert len(list(problem.population())) == 6
    again, pieces = problem.loss_and_gradient(h)
    torch.testing.assert_close(again, loss)
    torch.testing.assert_close(pieces, gradient)


def test_meta_examples_are_what_the_meta_loss_is_taken_on():
    problem, theta = small_training_run(steps=5)
    h = problem.run(theta, 0, 5, problem.initial_state())
    other = Batch(
        torch.randn(9, 5, generator=torch.Generator().manual_seed(0)).double(),
        torch.zeros(9, dtype=torch.int64),
    )
    model = model_of(problem, h)
    ((_, everything),) = problem.population()
    problem = TrainingRun(
        model, ShuffledBatches(Batch(*everything[:2]), 8, 3), steps=5, meta_examples=other
    )
    truth = cross_entropy(model(other.inputs), other.targets).detach()
    torch.testing.assert_close(problem.loss_and_gradient(h)[0], truth)


def test_accuracy_counts_the_right_ones():
    problem, _ = small_training_run(steps=5)
    h = problem.initial_state()
    ((_, everything),) = problem.population()
    predicted = model_of(problem, h)(everything.inputs).argmax(1)
    wrong = (predicted + 1) % 3
    half = torch.cat([predicted[:10], wrong[10:]])
    assert problem.evaluated(h).accuracy(Batch(everything.inputs, half)) == 10 / 40


def test_theta_is_log_rates_then_logit_momenta():
    problem, _ = small_training_run()
    theta = problem.initial_theta(0.25, 0.8)
    assert theta.shape == (8,)
    described = problem.describe(theta)
    assert list(described["learning_rate"]) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert described["learning_rate"]["2.bias"] == pytest.approx(0.25, rel=1e-14)
    assert described["momentum"]["0.weight"] == pytest.approx(0.8, rel=1e-14)
    theta[1], theta[6] = 0.0, 0.0
    assert problem.describe(theta)["learning_rate"]["0.bias"] == 1.0
    assert problem.describe(theta)["momentum"]["2.weight"] == 0.5


def batch(features: int = 4) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(torch.zeros(6, features), torch.zeros(6, dtype=torch.int64))]


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: TrainingRun(nn.ReLU(), batch(), steps=1), "no parameters"),
        (lambda: TrainingRun(nn.Linear(4, 3), batch(), steps=0), "at least 1 step"),
        (
            lambda: TrainingRun(nn.Linear(4, 3), batch(), steps=1, optimizer="adm"),
            "unknown optimizer",
        ),
        (lambda: TrainingRun(nn.Linear(4, 3), [], steps=1), "at least one minibatch"),
        (
            lambda: TrainingRun(nn.Linear(4, 3), batch(), steps=1, initial_weights=torch.zeros(7)),
            r"\(7,\) for a model of 15 weights",
        ),
        (lambda: ShuffledBatches(Batch(*batch()[0]), 7, 0), "batch size 7"),
        (
            lambda: TrainingRun(nn.Linear(4, 3), batch(), steps=1).initial_theta(0.0, 0.5),
            "above 0",
        ),
        (
            lambda: TrainingRun(nn.Linear(4, 3), batch(), steps=1).initial_theta(0.1, 1.0),
            "between 0 and 1",
        ),
        (
            lambda: TrainingRun(nn.Linear(4, 3), batch(), steps=1).initial_theta(0.1, 1 - 1e-15),
            "out of the range of float32",
        ),
        (
            lambda: TrainingRun(nn.Linear(4, 3), batch(), steps=1).initial_theta(1e300, 0.5),
            "out of the range of float32",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused(build, words):
    with pytest.raises(UsageError, match=words):
        build()


def test_listed_batches_come_in_turn():
    one, two = batch()[0], (torch.ones(2, 4), torch.ones(2, dtype=torch.int64))
    batches = ListedBatches([one, two])
    assert [len(batches(t)) for t in range(4)] == [6, 2, 6, 2]
    assert [weight for weight, _ in batches.population()] == [0.75, 0.25]


def test_the_loss_at_a_state_is_remembered_but_never_for_another():
    problem, theta = small_training_run(steps=5)
    h = problem.run(theta, 0, 5, problem.initial_state())
    u = torch.ones_like(h)

    def fresh(state: torch.Tensor) -> list[torch.Tensor]:
        other, _ = small_training_run(steps=5)
        loss, gradient = other.loss_and_gradient(state)
        image, product = other.mean_theta_pullback(state, theta, list(other.population()))
        return [loss, gradient, image, product(u)]

    def asked(state: torch.Tensor) -> list[torch.Tensor]:
        loss, gradient = problem.loss_and_gradient(state)
        image, product = problem.mean_theta_pullback(state, theta)
        return [loss, gradient, image, product(u)]

    for state in (h, h + 0.5):
        for found, expected in zip(asked(state), fresh(state), strict=True):
            assert torch.equal(found, expected)
    h.mul_(0.5)  # the same tensor with other values
    for found, expected in zip(asked(h), fresh(h), strict=True):
        assert torch.equal(found, expected)
    ((_, everything),) = problem.population()
    problem = TrainingRun(
        model_of(problem, h), ShuffledBatches(Batch(*everything[:2]), 8, 3), steps=5,
        meta_examples=Batch(*(tensor[:9] for tensor in everything[:2])),
    )  # fmt: skip
    loss, _ = problem.loss_and_gradient(h)
    assert not torch.equal(loss, fresh(h)[0]), "the training loss stood in for the validation loss"
    assert torch.equal(asked(h)[3], fresh(h)[3])


def picky(outputs, targets):
    if not outputs.isfinite().all():
        raise ValueError("expected finite outputs")
    if (outputs.abs() > 1e6).any():
        raise ValueError("expected small outputs")
    return cross_entropy(outputs, targets, reduction="none")


def picky_run() -> tuple[TrainingRun, torch.Tensor]:
    problem, theta = small_training_run(steps=12)
    examples = Batch(*next(iter(problem.population()))[1][:2])
    model = model_of(problem, problem.initial_state())
    return TrainingRun(model, ShuffledBatches(examples, 8, 3), steps=12, loss=picky), theta


def test_a_loss_that_refuses_what_overflowed_is_no_loss():
    """It ends as any run that diverges. Catches its exception on the way out."""
    problem, theta = picky_run()
    h = torch.full_like(problem.initial_state(), math.nan)
    loss, g = problem.loss_and_gradient(h)
    assert loss.isnan()
    assert g[: problem.weights].isnan().all()
    with pytest.raises(DivergedError, match="is not finite"):
        list(descend(problem, theta + 700.0, settings=AdamSettings(1)))


def test_a_loss_that_fails_on_finite_outputs_is_said():
    problem, _ = picky_run()
    with pytest.raises(UsageError, match="the loss failed: ValueError: expected small outputs"):
        problem.loss(1e7 * (1 + problem.initial_state()))
