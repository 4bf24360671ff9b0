"""What is measured of one gradient method."""

from __future__ import annotations

import os

import pytest
from comparisons import CLASSES, FEATURES, HIDDEN, TINY, B, T
from torch.utils.flop_counter import FlopCounterMode

from hyperrbp.config.loading import parse
from hyperrbp.experiments import measurement
from hyperrbp.experiments.experiment import Experiment, gradient_settings
from hyperrbp.experiments.measurement import Timing, TimingBegun
from hyperrbp.experiments.method_specs import MethodSpec, method_specs
from hyperrbp.hypergradients import hypergradient
from hyperrbp.runtime.metering import SavedBytes


def flops_of(work):
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def tiny_problem(hidden, steps=6):
    recipe = parse(TINY.replace("[8]", hidden).replace("steps: 30", f"steps: {steps}"))
    experiment = Experiment(recipe)
    return experiment.problem(), experiment.theta


@pytest.mark.parametrize("traced", [False, True])
def test_flops_of_an_inner_run_by_hand(traced):
    layer = 2 * B * FEATURES * CLASSES
    first, second = 2 * B * FEATURES * HIDDEN, 2 * B * HIDDEN * CLASSES
    # Outputs and the gradient of each layer, and for the second that of its inputs.
    for hidden, each in (("[]", 2 * layer), ("[8]", 2 * first + 3 * second)):
        problem, theta = tiny_problem(hidden)
        if traced:
            problem.prepare(theta)
        found = flops_of(lambda: problem.run(theta, 0, 6, problem.initial_state()))  # noqa: B023
        assert found == 6 * each


def test_flops_of_a_product_by_hand():
    problem, theta = tiny_problem("[]")
    layer = 2 * B * FEATURES * CLASSES

    def series(trunc):
        return flops_of(lambda: hypergradient(problem, theta, "neumann", trunc=trunc))

    # X Wᵀ and Gᵀ X; then X Dᵀ, and the change of G against X.
    assert series(5) - series(2) == 3 * 4 * layer


# --- measurement ---------------------------------------------------------------------------------


def test_the_clock_takes_all_specs_in_turn_after_a_warm_up():
    messages = []
    specs = method_specs(["neumann"], [2], [6])
    recipe = parse(TINY.replace("steps: 30", "steps: 6"))
    measurement.clock(recipe, None, specs, 2, messages.append)
    assert [(type(message), message.index) for message in messages] == [
        (kind, index) for _ in range(3) for index in range(2) for kind in (TimingBegun, Timing)
    ]
    timings = [message for message in messages if isinstance(message, Timing)]
    assert [timing.warm_up for timing in timings] == [True] * 2 + [False] * 4
    for timing in timings:
        assert set(timing.seconds) == {"inner run", "meta-gradient"}
        assert min(timing.seconds.values()) > 0


def test_a_spec_samples_by_the_seed_of_the_recipe():
    recipe = parse("seed: 77\n" + TINY)
    spec = MethodSpec("rbp", (("z0", "uniform"),), 2, T)
    found = measurement.exact(recipe, None, spec, None)
    experiment = Experiment(recipe)

    def expected(seed):
        averaging = gradient_settings(recipe).averaging
        result = hypergradient(
            experiment.problem(), experiment.theta, "rbp", trunc=2, averaging=averaging,
            options={"z0": "uniform"}, seed=seed,
        )  # fmt: skip
        return experiment.problem().by_name(result.gradient)

    assert found == expected(77)
    assert found != expected(0)


def test_a_plan_predicts_the_bytes_of_every_spec():
    recipe = parse(TINY.replace("steps: 30", "steps: 20"))
    field = method_specs(["bptt:keep=states"], [2], [10, 80])
    plan = measurement.plan(recipe, None, field, None)
    graph, states, longer_graph, longer_states = plan.predictions
    assert all(predicted.seconds > 0 for predicted in plan.predictions)
    experiment = Experiment(recipe)
    for spec, predicted in ((field[0], graph), (field[2], longer_graph)):
        problem = experiment.problem()
        problem.steps = spec.train_steps
        with SavedBytes() as saved:
            hypergradient(problem, experiment.theta, "bptt")
        assert predicted.saved_bytes == pytest.approx(saved.peak, rel=0.02)
    state = experiment.problem().initial_state().nbytes
    assert longer_states.saved_bytes - states.saved_bytes == 70 * state
    assert plan.environment == experiment.environment()
    assert plan.recipe == experiment.recipe
    assert 0 < plan.available <= total_memory()


def test_a_trunc_that_is_too_long_leaves_the_shorter_one_alone():
    recipe = parse(TINY.replace("steps: 30", "steps: 15"))
    plan = measurement.plan(recipe, None, method_specs(["tbptt"], [2, 28], [15]), None)
    assert plan.predictions[1].saved_bytes > 0


def total_memory():
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
