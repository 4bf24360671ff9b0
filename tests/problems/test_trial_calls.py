"""Trial calls find what no derivative shows: states, other generators, changes in place."""

from __future__ import annotations

import random
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import dropout, gumbel_softmax
from torch.utils.checkpoint import checkpoint

from hyperrbp.exceptions import UsageError
from hyperrbp.problems.training.trial_calls import Probe, probe


class Model(nn.Module):
    """Anything that a forward pass may do, on top of a linear layer."""

    def __init__(self, then=None) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.register_buffer("scale", torch.ones(3))
        self.calls, self.then = 0, then or (lambda self, y: y)

    def forward(self, x):
        return self.then(self, self.linear(x))


def called(model: nn.Module, x: torch.Tensor | None = None) -> Probe:
    x = torch.randn(4, 3) if x is None else x
    return probe(lambda: model(x), [x], model)


# --- what is refused ------------------------------------------------------------------------------


def counted(self, y):
    self.calls += 1
    return y if self.calls < 100 else 2 * y


def counted_in_a_list(self, y, calls=[1]):  # noqa: B006  # it is the state
    calls.append(1)
    return y * len(calls)


def of_own_generator(self, y, source=torch.Generator()):  # noqa: B008  # it is the state
    return y + torch.randn(y.shape, generator=source)


def mean_so_far(self, y):
    self.scale.mul_(0.9).add_(0.1 * y.detach().mean(0))
    return y


def another_buffer(self, y):
    self.scale = self.scale + 1
    return y


def moves_its_weight(self, y):
    with torch.no_grad():
        self.linear.weight.mul_(0.5)
    return y


class Reversed(torch.autograd.Function):
    @staticmethod
    def forward(context, x):
        return x.clone()

    @staticmethod
    def backward(context, gradient):
        return -gradient


def drawn_by_python(self, y):
    return y + random.random()


def drawn_by_numpy(self, y):
    return y * np.random.rand() * 0 + y  # the global one is meant


@pytest.mark.parametrize(
    ("then", "words"),
    [
        (counted, "state in the attribute 'calls', which was 1 after one call and 2 after"),
        (counted_in_a_list, "something else of the same inputs under the same seed"),
        (of_own_generator, "something else of the same inputs under the same seed"),
        (mean_so_far, r"\(Model\) keeps a state in the buffer 'scale'"),
        (another_buffer, r"\(Model\) keeps a state in the buffer 'scale'"),
        (moves_its_weight, "changes its parameter 'linear.weight' in place"),
        (drawn_by_python, "draws from Python's random module"),
        (drawn_by_numpy, "draws from numpy.random"),
        (lambda self, y: checkpoint(torch.tanh, y, use_reentrant=True), "use_reentrant=False"),
    ],
)
def test_a_state_in_forward_is_refused(then, words):
    with pytest.raises(UsageError, match=words) as refused:
        called(Model(then))
    assert "\n" not in str(refused.value)


def test_a_checkpoint_that_gives_its_parameters_no_gradient_is_refused():
    """Its output needs none, so that a loss without other parameters fails, and with them lies."""

    class Checkpointed(Model):
        def forward(self, x):
            return checkpoint(self.linear, x, use_reentrant=True)

    with pytest.raises(UsageError, match="use_reentrant=False"):
        called(Checkpointed())


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.mul_(1.0),
        lambda x: x.data.add_(1.0),  # which autograd does not see
        nn.ReLU(inplace=True),
    ],
)
def test_inputs_that_are_changed_in_place_are_refused_and_given_back(change):
    model, x = Model(), torch.randn(4, 3)
    kept = x.clone()

    def forward():
        change(x)
        return model(x)

    with pytest.raises(UsageError, match=r"tensor 2 of .* shape \(4, 3\), in place; .* clone"):
        probe(forward, [torch.ones(2), x], model)
    assert torch.equal(x, kept)


# --- what is not ----------------------------------------------------------------------------------


def lazily(self, y):
    if not hasattr(self, "length"):
        self.length = random.random() * 0 + len(y)
    return y


@pytest.mark.parametrize(
    ("then", "draws"),
    [
        (None, False),
        (lazily, False),
        (lambda self, y: y * self.scale, False),
        (lambda self, y: checkpoint(torch.tanh, y, use_reentrant=False), False),
        (
            lambda self, y: {"a": [y, y.argmax(1)], "n": 3, "none": None, "nan": y * torch.nan},
            False,
        ),
        (lambda self, y: dropout(y, 0.5), True),
        (lambda self, y: nn.RReLU()(y), True),
        (lambda self, y: gumbel_softmax(y), True),
        (lambda self, y: (y, torch.rand(3)), True),
    ],
)
def test_random_numbers_of_torch_are_reported(then, draws):
    ours, numpys, torchs = random.getstate(), np.random.get_state()[1], torch.get_rng_state()
    found = called(Model(then))
    assert found == Probe(draws, draws, ())
    assert random.getstate() == ours
    assert (np.random.get_state()[1] == numpys).all()
    if then is None:
        torch.set_rng_state(torchs)


def test_pytorchs_own_generator_is_left_as_it_was():
    model, x = Model(lambda self, y: dropout(y)), torch.randn(4, 3)
    before = torch.get_rng_state()
    called(model, x)
    assert torch.equal(torch.get_rng_state(), before)


def test_numbers_that_are_drawn_and_not_used_are_no_dependence():
    found = called(Model(lambda self, y: (torch.rand(2), y)[1]))
    assert (found.draws, found.depends_on_seed) == (True, False)


@pytest.mark.parametrize(
    "norm", [nn.BatchNorm1d(3), nn.InstanceNorm1d(4, track_running_stats=True)]
)
def test_running_statistics_may_change_and_are_given_back(norm):
    model = nn.Sequential(Model(), norm)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    called(model, torch.randn(4, 3) if isinstance(norm, nn.BatchNorm1d) else torch.randn(2, 4, 3))
    after = dict(model.named_buffers())
    assert all(torch.equal(after[name], value) for name, value in before.items())
    model(torch.randn(4, 3) if isinstance(norm, nn.BatchNorm1d) else torch.randn(2, 4, 3))
    assert any(not torch.equal(after[name], value) for name, value in before.items())


def test_autograd_functions_of_the_users_own_are_named():
    assert called(Model(lambda self, y: Reversed.apply(y).tanh())).custom_functions == ("Reversed",)


def test_warnings_of_the_model_reach_the_user():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        called(Model(lambda self, y: (warnings.warn("look", stacklevel=1), y)[1]))
    assert [str(each.message) for each in caught].count("look") == 3


def test_a_fault_of_the_model_is_passed_on():
    with pytest.raises(ZeroDivisionError):
        called(Model(lambda self, y: y / (1 // 0)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounding_is_no_state(dtype):
    signs = iter([1, -1, 1])
    model = nn.Linear(3, 3).to(dtype)
    x = torch.randn(4, 3, dtype=dtype)
    probe(lambda: model(x) * (1 + next(signs) * 8 * torch.finfo(dtype).eps), [x], model)
    signs = iter([1, -1, 1])
    with pytest.raises(UsageError, match="under the same seed"):
        probe(lambda: model(x) * (1 + next(signs) * 1e4 * torch.finfo(dtype).eps), [x], model)
