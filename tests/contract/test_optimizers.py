"""The contract of every registered optimizer: it has these tests by standing in the registry."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from itertools import islice

import pytest
import torch
from factories import recipe, tuning_text

from hyperrbp.experiments.experiment import Experiment
from hyperrbp.experiments.meta_optimizer import meta_optimizer
from hyperrbp.optimizers import OPTIMIZERS, SAMPLERS
from hyperrbp.optimizers.base import Evaluation, minimize
from hyperrbp.optimizers.optuna_samplers import check_installed

ENDING = [name for name in OPTIMIZERS if name not in SAMPLERS]
"""Optuna's searches go on for as long as they are asked."""
STEPS, SEVERAL = 11, 14
"""Meta steps, and more evaluations than the screening takes."""
TEXT = tuning_text(
    gradient={"method": "bptt"}, meta={"steps": STEPS, "screened": 6, "learning_rate": 0.2}
)


@pytest.fixture(params=OPTIMIZERS)
def name(request) -> str:
    """Each optimizer whose libraries are installed."""
    if request.param in SAMPLERS:
        pytest.importorskip("optuna")
        check_installed(request.param)
    return request.param


@cache
def experiment(seed: int = 3) -> Experiment:
    return Experiment(recipe(TEXT, seed=seed))


def evaluations(name: str, seed: int = 3) -> Iterator[Evaluation]:
    made = experiment(seed)
    optimizer = meta_optimizer(made, name)
    return minimize(optimizer, made.problem, optimizer.init(made.theta))


@cache
def several(name: str) -> list[Evaluation]:
    return list(islice(evaluations(name), SEVERAL))


def bits(found: list[Evaluation]) -> list[tuple]:
    """All of them that does not depend on the clock."""
    return [
        (e.meta_step, e.meta_loss, e.theta.tolist(), e.training_steps, e.pruned, e.source)
        for e in found
    ]


def test_it_begins_at_the_start(name):
    assert torch.equal(several(name)[0].theta, experiment().theta)


def test_it_counts_whole_runs_and_has_their_losses(name):
    whole = [found for found in several(name) if found.complete]
    assert [found.meta_step for found in whole] == list(range(len(whole)))
    for found in whole[:3]:
        problem = experiment().problem(found.meta_step)
        h = problem.run(found.theta, 0, problem.steps, problem.initial_state(found.theta))
        assert found.meta_loss == float(problem.loss(h))
        assert found.training_steps == problem.steps


def test_what_it_proposes_is_finite_and_in_its_box(name):
    low, high = experiment().box
    for found in several(name):
        assert found.theta.isfinite().all()
        assert found.theta.dtype == experiment().theta.dtype
        if name != "adam":  # which has none
            assert ((low <= found.theta) & (found.theta <= high)).all()


def test_its_seed_decides_all(name):
    assert bits(list(islice(evaluations(name), SEVERAL))) == bits(several(name))
    assert bits(list(islice(evaluations(name, seed=4), SEVERAL))) != bits(several(name))


def test_it_is_resumed_after_any_evaluation_with_the_same_bits(name):
    """By the plain numbers of its state, in another process, as it were.

    What comes again is the last evaluation, if any: its record may not have been written. Runs that
    were given up may be forgotten.
    """
    made, whole = experiment(), [found for found in several(name) if found.complete]
    optimizer = meta_optimizer(made, name)
    state, found = optimizer.init(made.theta), []
    while len(found) < len(whole):
        evaluation = optimizer.step(made.problem, state)
        if evaluation.complete:
            found[evaluation.meta_step :] = [evaluation]
            content = json.loads(json.dumps(state.state_dict(), allow_nan=False))
            if len(found) in (1, 4, 8):
                optimizer = meta_optimizer(made, name)
                state = optimizer.restore(content, made.theta)
    assert bits(found) == bits(whole)


def test_its_state_has_the_best(name):
    made = experiment()
    optimizer = meta_optimizer(made, name)
    state = optimizer.init(made.theta)
    for found, _ in zip(minimize(optimizer, made.problem, state), range(SEVERAL), strict=False):
        if not found.complete:
            continue
        seen = [e for e in several(name) if e.complete and e.meta_step <= found.meta_step]
        best = min(seen, key=lambda e: e.meta_loss)
        assert (state.best_step, state.best_loss) == (best.meta_step, best.meta_loss)
        assert torch.equal(state.best_theta, best.theta)


@pytest.mark.parametrize("name", ENDING)
def test_it_ends_after_its_meta_steps_and_stays_so(name):
    made = experiment()
    optimizer = meta_optimizer(made, name)
    state = optimizer.init(made.theta)
    whole = [found for found in minimize(optimizer, made.problem, state) if found.complete]
    assert len(whole) == STEPS + 1
    assert optimizer.step(made.problem, state) is None


def test_its_sentence_is_short(name):
    assert 0 < len(OPTIMIZERS[name]) < 90
