"""Measures gradient methods for a comparison; each function here runs in a process of its own."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from hyperrbp.config.recipe import Recipe
from hyperrbp.experiments.experiment import Experiment, gradient_settings
from hyperrbp.experiments.method_specs import MethodSpec
from hyperrbp.hypergradients import Hypergradient
from hyperrbp.hypergradients.cost_model import CostModel, cost_model
from hyperrbp.hypergradients.method import Phase, Status, unmetered
from hyperrbp.hypergradients.settings import GradientSettings
from hyperrbp.problems.base import Problem
from hyperrbp.runtime.metering import LiveBytes, PhaseMeter, SavedBytes, available_bytes
from hyperrbp.runtime.subprocesses import Send

ByName = Mapping[str, Mapping[str, float]]
"""Values of θ: ``{kind: {name: value}}``."""


@dataclass(frozen=True)
class Prediction:
    """What one meta-gradient should cost."""

    seconds: float
    saved_bytes: int


@dataclass(frozen=True)
class Plan:
    """What there is to measure, and with what."""

    predictions: list[Prediction]
    """Of each spec."""
    available: int | None
    """Bytes of memory; None where that cannot be found out."""
    environment: dict[str, str | int]
    recipe: Recipe
    """As it is run."""


@dataclass(frozen=True)
class Measurement:
    """A gradient, and what it takes besides time."""

    gradient: ByName
    structurally_zero: list[bool]
    """In the order of θ, shape (p,)."""
    status: Status
    products: int
    residual: float | None
    steady_state_residual: float
    process_peak_bytes: int
    peak_bytes: int
    saved_bytes: int
    trajectory_bytes: int
    flops: int


@dataclass(frozen=True)
class TimingBegun:
    """The message that a spec is about to be timed."""

    index: int
    """Of the spec."""


@dataclass(frozen=True)
class Timing:
    """The message that a spec has been timed."""

    index: int
    """Of the spec."""
    seconds: Mapping[str, float]
    """By phase."""
    warm_up: bool


def plan(recipe: Recipe, data_root: Path | None, specs: Sequence[MethodSpec], send: Send) -> Plan:
    """Predict what each spec costs, and find out what there is."""
    experiment = Experiment(recipe, data_root)
    models: dict[str, CostModel] = {}
    # The longest first: what is fitted to it serves the others of the same method.
    for spec in sorted(specs, key=lambda c: (-c.train_steps, -(c.trunc or 0))):
        if spec.label not in models:
            problem, settings = _setting(experiment, recipe, spec)
            models[spec.label] = cost_model(problem, experiment.theta, settings)
    costs = [models[spec.label].at(spec.train_steps, spec.trunc or 1) for spec in specs]
    on_gpu = experiment.device.type == "cuda"
    return Plan(
        predictions=[Prediction(cost.seconds, cost.saved_bytes) for cost in costs],
        available=torch.cuda.mem_get_info()[0] if on_gpu else available_bytes(),
        environment=experiment.environment(),
        recipe=experiment.recipe,
    )


def _setting(
    experiment: Experiment, recipe: Recipe, spec: MethodSpec
) -> tuple[Problem, GradientSettings]:
    """Return the inner run, as long as the spec wants it, and how it is differentiated."""
    problem = copy.copy(experiment.problem())
    problem.steps = spec.train_steps
    return problem, gradient_settings(spec.recipe(recipe))


def _differentiate(
    experiment: Experiment, recipe: Recipe, spec: MethodSpec, phase: Phase
) -> Hypergradient:
    problem, settings = _setting(experiment, recipe, spec)
    return settings.hypergradient(problem, experiment.theta, seed=recipe.seed, phase=phase)


def exact(recipe: Recipe, data_root: Path | None, spec: MethodSpec, send: Send) -> ByName:
    """Return the gradient of a spec, and measure nothing."""
    experiment = Experiment(recipe, data_root)
    found = _differentiate(experiment, recipe, spec, unmetered)
    return experiment.problem().by_name(found.gradient)


def meter(recipe: Recipe, data_root: Path | None, spec: MethodSpec, send: Send) -> Measurement:
    """Measure what the gradient of a spec takes besides time."""
    experiment = Experiment(recipe, data_root)
    experiment.problem().prepare(experiment.theta)  # no peak below is that of the tracing
    process = PhaseMeter(experiment.device)
    found = _differentiate(experiment, recipe, spec, process.phase)
    with SavedBytes(*experiment.data.tensors) as saved, LiveBytes() as live:
        _differentiate(experiment, recipe, spec, unmetered)
    # By itself: it hooks into every module's graph, which then lives for longer.
    with FlopCounterMode(display=False) as flops:
        _differentiate(experiment, recipe, spec, unmetered)
    peaks = process.peak_bytes.values()
    return Measurement(
        gradient=experiment.problem().by_name(found.gradient),
        structurally_zero=found.structurally_zero.tolist(),
        status=found.status,
        products=found.products,
        residual=found.residual,
        steady_state_residual=found.steady_state_residual,
        process_peak_bytes=max(peak["process"] for peak in peaks),
        peak_bytes=max(peak.get("allocator", 0) for peak in peaks) or live.peak,
        saved_bytes=saved.peak + found.trajectory_bytes,
        trajectory_bytes=found.trajectory_bytes,
        flops=flops.get_total_flops(),
    )


def clock(
    recipe: Recipe,
    data_root: Path | None,
    specs: Sequence[MethodSpec],
    repeats: int,
    send: Send,
) -> None:
    """Send the seconds of every phase of every spec in turn, after a warm-up.

    Every ``Timing`` comes after a ``TimingBegun``.
    """
    experiment = Experiment(recipe, data_root)
    experiment.problem().prepare(experiment.theta)
    for repeat in range(-1, repeats):
        for index, spec in enumerate(specs):
            send(TimingBegun(index))
            timer = PhaseMeter(experiment.device)
            _differentiate(experiment, recipe, spec, timer.phase)
            send(Timing(index, timer.seconds, warm_up=repeat < 0))
