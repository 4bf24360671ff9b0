"""Which gradient method sees which kind of hyperparameter: the table, refusals, and reasons."""

from __future__ import annotations

import pytest
import torch
from systems import run_of

from hyperrbp.config.hyperparameters import HORIZONS, HyperparametersSection
from hyperrbp.config.loading import parse
from hyperrbp.exceptions import RecipeError, UsageError
from hyperrbp.hypergradients import (
    METHODS,
    Averaging,
    chosen_method,
    hypergradient,
    make_task,
    method_class,
    run_and_differentiate,
)
from hyperrbp.hypergradients.method import Horizon
from hyperrbp.problems.training.hyperparameters import KINDS, Grain

RECIPES = {
    "learning_rate, momentum, beta1, beta2, alpha, eps": "{}",
    "the same in segments, or a learning_rate on a schedule": "{momentum: {segments: 2}}",
    "warmup_share, end_share, knots": "{warmup_share: {}}",
    "weight_decay": "{weight_decay: {}}",
    "init_scale": "{init_scale: {by: net}}",
    "example_weight": "{example_weight: {}}",
}


def entry(row: str, horizon: Horizon) -> str:
    return HORIZONS[row].get(horizon, HORIZONS[row][Horizon.RUN])


def text_of(row: str, method: str, trunc: int = 5) -> str:
    schedule = ", schedule: {warmup_share: 0.2}" if "warmup" in row else ""
    return (
        f"hyperparameters: {RECIPES[row]}\n"
        f"gradient: {{method: {method}, trunc: {trunc}, averaging: {{minibatches: 1}}}}\n"
        f"inner: {{steps: 20, batch_size: 50, weight_decay: 0.01{schedule}}}\n"
        "data: {validation_examples: 50}\nmeta: {loss: validation}"
    )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("row", HORIZONS)
def test_a_recipe_is_refused_where_the_table_says_so(row, method):
    horizon = method_class(method).horizon
    said = entry(row, horizon)
    if not said.startswith("refused"):
        parse(text_of(row, method))
        return
    with pytest.raises(RecipeError, match="cannot see"):
        parse(text_of(row, method))
    if "unless K = T" in said:
        parse(text_of(row, method, trunc=20))


def test_a_refusal_names_the_kind_the_reason_and_what_would_do():
    with pytest.raises(RecipeError) as raised:
        parse(text_of("init_scale", "neumann"))
    (fault,) = raised.value.faults
    assert fault.key == "gradient.method"
    assert fault.message == (
        "neumann cannot see init_scale: a steady state has forgotten its start; expected bptt or"
        " forward"
    )


def regardless(problem, theta, method: str, averaging: Averaging) -> torch.Tensor:
    """The gradient with K = 3, whether it is worth anything or not."""
    chosen = chosen_method(method)
    task = make_task(problem, theta, chosen, 3, averaging)
    return run_and_differentiate(chosen, task).gradient


@pytest.mark.parametrize("method", ["neumann", "rbp", "cg", "gmres"])
def test_an_implicit_gradient_of_what_it_cannot_see_is_zero(method):
    """The reason for the refusals: not even an approximation."""
    problem, theta = run_of({"learning_rate": Grain("tensor", 3), "init_scale": Grain("net")})
    averaging = Averaging(minibatches=2)
    with pytest.raises(UsageError, match=f"{method} cannot see learning_rate"):
        hypergradient(problem, theta, method, trunc=3, averaging=averaging)
    gradient = regardless(problem, theta, method, averaging)
    early, last, scale = gradient[:8], gradient[8:12], gradient[12:]
    assert torch.equal(early, torch.zeros_like(early))
    assert torch.equal(scale, torch.zeros_like(scale))
    assert (last != 0).all()
    exact = hypergradient(problem, theta, "bptt").gradient
    assert (exact != 0).all()


def test_a_window_sees_nothing_before_it():
    problem, theta = run_of({"learning_rate": Grain("net", 3), "init_scale": Grain("net")})
    gradient = regardless(problem, theta, "tbptt", Averaging(minibatches=1))
    assert (gradient != 0).tolist() == [False, False, True, False]


def test_every_kind_has_a_section_a_row_and_limits_that_hold_its_box():
    assert set(HyperparametersSection.model_fields) == set(KINDS)
    section = HyperparametersSection.model_validate({kind: {} for kind in KINDS})
    for kind, (_, _, (low, high)) in section.tuned().items():
        bottom, top = KINDS[kind].limits
        assert bottom < low < high < top
        assert any(kind in row for row in HORIZONS)


@pytest.mark.parametrize(
    ("text", "key", "words"),
    [
        (
            "hyperparameters: {learning_rate: null, momentum: null}",
            "hyperparameters",
            "all are null",
        ),
        ("hyperparameters: {weight_decay: {}}", "inner.weight_decay", "a number above 0, got 0"),
        (
            "hyperparameters: {momentum: {range: [0.5, 1.0]}}",
            "hyperparameters.momentum.range",
            "expected 0 < low < high, below 1, got [0.5, 1]",
        ),
        (
            "hyperparameters: {learning_rate: {range: [2, 1]}}",
            "hyperparameters.learning_rate.range",
            "expected 0 < low < high, got [2, 1]",
        ),
        (
            "hyperparameters: {momentum: {segments: 300}}\ngradient: {method: bptt}",
            "hyperparameters.momentum.segments",
            "expected at most the 200 steps of inner.steps, got 300",
        ),
        (
            "hyperparameters: {example_weight: {}}",
            "meta.loss",
            "expected validation, got train",
        ),
        (
            "hyperparameters: {momentum: {by: weight}}",
            "hyperparameters.momentum.by",
            "expected one of net, layer, tensor, got 'weight'",
        ),
    ],
)
def test_what_cannot_be_tuned_is_said_at_its_key(text, key, words):
    with pytest.raises(RecipeError) as raised:
        parse(text)
    assert key in [fault.key for fault in raised.value.faults]
    assert words in str(raised.value)
