"""Networks that keep running statistics: the gradient is that of the loss that is reported."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from training_runs import differences, directions_of, network, run_of_rule

from hyperrbp.data.batches import Batch
from hyperrbp.hypergradients import hypergradient
from hyperrbp.problems.training.run import TrainingRun

NORMED = ["batch-norm", "instance-norm", "batch-norm-1d", "normed-twice"]
RECALIBRATION = 4


def held_out(of_network: str) -> Batch:
    _, examples = network(of_network)
    return Batch(*[part[40:] for part in examples[:2]])


def exported(of_network: str, problem: TrainingRun, h: Tensor) -> nn.Module:
    """The plain module with the weights and buffers of a state, as it is used afterwards."""
    model, _ = network(of_network)
    nn.utils.vector_to_parameters(h[: problem.weights].clone(), model.parameters())
    left = model.load_state_dict(problem.evaluated(h).buffers, strict=False)
    assert not left.unexpected_keys
    assert not [name for name in left.missing_keys if "running" in name]
    return model.eval()


@pytest.mark.parametrize("rule", ["adamw", "sgd"])
@pytest.mark.parametrize("of_network", NORMED)
def test_the_gradient_is_that_of_the_reported_loss(of_network, rule):
    """Catches statistics that are taken for constants, or a gradient of the loss in training."""
    problem, theta = run_of_rule(rule, of_network, "cosine", steps=8)
    found = hypergradient(problem, theta, "bptt", options={"keep": "states"})
    assert float(found.loss) == pytest.approx(float(problem.loss(found.state)), rel=1e-13)
    along = directions_of(theta, 3)
    truth = differences(problem, theta, along)
    scale = truth.abs().clamp(min=0.05 * float(found.gradient.norm()))
    assert float(((along @ found.gradient - truth).abs() / scale).max()) < 1e-6


@pytest.mark.parametrize("meta", ["held out", "training"])
@pytest.mark.parametrize("of_network", NORMED)
def test_so_is_its_gradient_by_the_weights(of_network, meta):
    """In directions of the state, on held-out and on all training examples."""
    arguments = {} if meta == "held out" else {"meta_examples": None}
    problem, theta = run_of_rule("sgd", of_network, steps=6, **arguments)
    h = problem.last_state(theta).clone()
    loss, g = problem.loss_and_gradient(h)
    assert float(loss) == pytest.approx(float(problem.loss(h)), rel=1e-13)
    assert not g[problem.weights :].any()
    for d in directions_of(h, 4):
        above, below = (float(problem.loss(h + sign * 1e-5 * d)) for sign in (1, -1))
        assert (above - below) / 2e-5 == pytest.approx(float(g @ d), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("of_network", NORMED)
def test_the_exported_module_gives_the_reported_loss(of_network):
    problem, theta = run_of_rule("adamw", of_network, steps=12)
    h = problem.last_state(theta).clone()
    examples = held_out(of_network)
    model = exported(of_network, problem, h)
    with torch.no_grad():
        loss = cross_entropy(model(examples.inputs), examples.targets)
    assert float(loss) == pytest.approx(float(problem.loss(h)), rel=1e-12)
    # One example at a time: nothing in it depends on the others.
    with torch.no_grad():
        each = torch.cat([model(x[None]) for x in examples.inputs])
    torch.testing.assert_close(each, problem.evaluated(h).outputs(examples.inputs))
    untouched, _ = network(of_network)
    for name, buffer in untouched.named_buffers():
        assert torch.equal(buffer, dict(problem.objective.model.named_buffers())[name])


@pytest.mark.parametrize("of_network", NORMED)
def test_its_statistics_are_those_that_torch_accumulates(of_network):
    """In training mode, as the mean over the calls in the first minibatches, without dropout."""
    problem, theta = run_of_rule("sgd", of_network, steps=12)
    h = problem.last_state(theta).clone()
    model = exported(of_network, problem, h)
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._NormBase)]
    for norm in norms:
        norm.train().reset_running_stats()
        norm.calls = 0
        norm.register_forward_pre_hook(average)
    with torch.no_grad():
        for t in range(RECALIBRATION):
            model(problem.input(t).inputs)
    found = problem.evaluated(h).buffers
    for name, buffer in model.named_buffers():
        if "running" in name:
            torch.testing.assert_close(found[name], buffer, rtol=1e-12, atol=1e-13)
            start = dict(problem.objective.model.named_buffers())[name]
            assert not torch.allclose(found[name], start, atol=0.05)


def average(norm: nn.Module, _: object) -> None:
    """Make a running mean the mean of all calls."""
    norm.calls += 1
    norm.momentum = 1 / norm.calls
