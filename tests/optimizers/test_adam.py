"""Adam on the hypergradient: its steps, its patience, and a state that survives JSON."""

from __future__ import annotations

import json
import math

import pytest
import torch
from systems import random_linear, small_training_run

from hyperrbp import AdamSettings, GradientSettings, descend, hypergradient
from hyperrbp.hypergradients import METHODS
from hyperrbp.optimizers.adam import Adam, AdamState


def test_the_loop_is_adam_on_the_hypergradient():
    problem, theta = small_training_run(steps=15)
    reference = theta.clone().requires_grad_()
    adam = torch.optim.Adam([reference], lr=0.05)
    schedule = torch.optim.lr_scheduler.StepLR(adam, step_size=4, gamma=0.1)
    settings = GradientSettings("bptt")
    steps = list(descend(problem, theta, settings, AdamSettings(7, 0.05, 0.1, decay_from=4)))
    assert [step.meta_step for step in steps] == list(range(8))
    for step in steps:
        assert torch.equal(step.theta, reference.detach())
        if step.hypergradient is None:
            break
        reference.grad = hypergradient(problem, reference.detach(), "bptt").gradient
        assert torch.equal(step.hypergradient.gradient, reference.grad)
        adam.step()
        schedule.step()
    assert steps[-1].hypergradient is None
    assert steps[-1].meta_loss < steps[0].meta_loss
    assert torch.equal(theta, steps[0].theta), "the given start was changed"


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_descends_a_contraction(method):
    problem, theta = random_linear(steps=40)
    steps = list(
        descend(problem, theta, GradientSettings(method, trunc=30), AdamSettings(20, 0.05))
    )
    assert steps[-1].meta_loss < steps[0].meta_loss


def test_a_state_survives_json_to_the_bit():
    problem, theta = small_training_run(steps=8)
    for dtype in (torch.float32, torch.float64):
        state = AdamState(theta.to(torch.float64) / 3)
        settings = GradientSettings(trunc=3)
        whole = [s.theta for s in descend(problem, theta / 3, settings, AdamSettings(6))]
        for step in descend(problem, state, settings, AdamSettings(6)):
            if step.meta_step == 2:
                break
        again = AdamState.from_state_dict(json.loads(json.dumps(state.state_dict())), like=theta)
        rest = [s.theta for s in descend(problem, again, settings, AdamSettings(6))]
        assert len(rest) == 4
        assert all(torch.equal(a, b) for a, b in zip(whole[3:], rest, strict=True))
        odd = torch.tensor([1 / 3, math.pi, 1e-40], dtype=dtype)
        back = AdamState.from_state_dict(
            json.loads(json.dumps(AdamState(odd).state_dict())), like=odd
        )
        assert torch.equal(back.theta, odd)


def test_the_loop_ends_when_the_best_is_too_old():
    problem, theta = small_training_run(steps=15)
    whole = [s.meta_loss for s in descend(problem, theta, settings=AdamSettings(12, 4.0))]
    ends = set()
    for patience in (1, 2, 4, 12):
        stale = [n - min(range(n + 1), key=whole.__getitem__) for n in range(13)]
        end = next((n for n in range(13) if stale[n] == patience), 12)
        settings = AdamSettings(12, 4.0, patience=patience)
        found = [step.meta_loss for step in descend(problem, theta, settings=settings)]
        assert found == whole[: end + 1]
        ends.add(end)
    assert len(ends) > 1, "nothing to lose patience with"


def test_the_last_evaluation_is_made_again_by_a_run_that_is_resumed():
    """Its record may not have been written; and a longer run goes on from there."""
    problem, theta = small_training_run(steps=8)
    adam = Adam(GradientSettings("bptt"), AdamSettings(3))
    state = adam.init(theta)
    losses = []
    while (found := adam.step(problem, state)) is not None:
        losses.append(found.meta_loss)
    assert len(losses) == 4
    assert adam.step(problem, state) is None
    assert state.updates == 3
    again = adam.restore(json.loads(json.dumps(state.state_dict())), theta)
    assert adam.step(problem, again).meta_loss == losses[-1]
    assert adam.step(problem, again) is None
    longer = Adam(GradientSettings("bptt"), AdamSettings(5))
    more = [longer.step(problem, state).meta_loss for _ in range(3)]
    whole = [
        e.meta_loss for e in descend(problem, theta, GradientSettings("bptt"), AdamSettings(5))
    ]
    assert losses[:3] + more == whole
