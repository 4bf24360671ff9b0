"""One spec of a comparison, measured: each function here runs in a process of its own."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from hyperrbp.config.recipe import Recipe
from hyperrbp.experiments.experiment import Experiment, gradient_settings
from hyperrbp.experiments.method_specs import MethodSpec
from hyperrbp.hypergradients import Hypergradient
from hyperrbp.hypergradients.cost_model import CostModel, cost_model
from hyperrbp.hypergradients.method import Phase, unmetered
from hyperrbp.hypergradients.settings import GradientSettings
from hyperrbp.problems.base import Problem
from hyperrbp.runtime.metering import LiveBytes, PhaseMeter, SavedBytes, available_bytes
from hyperrbp.runtime.subprocesses import Report


def plan(
    recipe: Recipe, data_root: Path | None, field: Sequence[MethodSpec], report: Report
) -> dict[str, Any]:
    """What each spec should cost, and what there is."""
    experiment = Experiment(recipe, data_root)
    models: dict[str, CostModel] = {}
    # The longest first: what is fitted to it serves the others of the same method.
    for spec in sorted(field, key=lambda c: (-c.train_steps, -(c.trunc or 0))):
        if spec.label not in models:
            problem, settings = _setting(experiment, recipe, spec)
            models[spec.label] = cost_model(problem, experiment.theta, settings)
    costs = [models[c.label].at(c.train_steps, c.trunc or 1) for c in field]
    on_gpu = experiment.device.type == "cuda"
    return {
        "predicted": [{"seconds": cost.seconds, "saved_bytes": cost.saved_bytes} for cost in costs],
        "available": torch.cuda.mem_get_info()[0] if on_gpu else available_bytes(),
        "environment": experiment.environment(),
        "recipe": experiment.recipe.model_dump(),
    }


def _setting(
    experiment: Experiment, recipe: Recipe, spec: MethodSpec
) -> tuple[Problem, GradientSettings]:
    """The one inner run, as long as the spec wants it, and how it is differentiated."""
    problem = copy.copy(experiment.problem())
    problem.steps = spec.train_steps
    return problem, gradient_settings(spec.recipe(recipe))


def _differentiate(
    experiment: Experiment, recipe: Recipe, spec: MethodSpec, phase: Phase
) -> Hypergradient:
    problem, settings = _setting(experiment, recipe, spec)
    return settings.hypergradient(problem, experiment.theta, seed=recipe.seed, phase=phase)


def exact(
    recipe: Recipe, data_root: Path | None, spec: MethodSpec, report: Report
) -> dict[str, dict[str, float]]:
    """A spec's gradient alone, by name."""
    experiment = Experiment(recipe, data_root)
    found = _differentiate(experiment, recipe, spec, unmetered)
    return experiment.problem().by_name(found.gradient)


def meter(
    recipe: Recipe, data_root: Path | None, spec: MethodSpec, report: Report
) -> dict[str, Any]:
    """A spec's gradient, and what it takes besides time."""
    experiment = Experiment(recipe, data_root)
    experiment.problem().prepare(experiment.theta)  # no peak below is that of the tracing
    process = PhaseMeter(experiment.device)
    found = _differentiate(experiment, recipe, spec, process.phase)
    with SavedBytes(*experiment.data_tensors) as saved, LiveBytes() as live:
        _differentiate(experiment, recipe, spec, unmetered)
    # By itself: it hooks into every module's graph, which then lives for longer.
    with FlopCounterMode(display=False) as flops:
        _differentiate(experiment, recipe, spec, unmetered)
    peaks = process.peak_bytes.values()
    return {
        "gradient": experiment.problem().by_name(found.gradient),
        "structurally_zero": found.structurally_zero.tolist(),
        "status": str(found.status),
        "products": found.products,
        "residual": found.residual,
        "steady_state_residual": found.steady_state_residual,
        "process_peak_bytes": max(peak["process"] for peak in peaks),
        "peak_bytes": max(peak.get("allocator", 0) for peak in peaks) or live.peak,
        "saved_bytes": saved.peak + found.trajectory_bytes,
        "trajectory_bytes": found.trajectory_bytes,
        "flops": flops.get_total_flops(),
    }


def clock(
    recipe: Recipe,
    data_root: Path | None,
    field: Sequence[MethodSpec],
    repeats: int,
    report: Report,
) -> None:
    """Reports the seconds of every phase of every spec in turn, after a warm-up."""
    experiment = Experiment(recipe, data_root)
    experiment.problem().prepare(experiment.theta)
    for repeat in range(-1, repeats):
        for index, spec in enumerate(field):
            report(("begins", index, None))
            watch = PhaseMeter(experiment.device)
            _differentiate(experiment, recipe, spec, watch.phase)
            report(("took", index, watch.seconds if repeat >= 0 else None))
