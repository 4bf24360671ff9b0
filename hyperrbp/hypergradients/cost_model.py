"""A model of what a meta step costs, fitted to a few much shorter ones."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass

import torch

from hyperrbp.hypergradients import Method, make_task, method_class, run_and_differentiate
from hyperrbp.hypergradients.settings import GradientSettings
from hyperrbp.problems.base import Problem
from hyperrbp.runtime.metering import SavedBytes, process_peak_bytes


@dataclass(frozen=True)
class Cost:
    """The expected cost of one meta step."""

    seconds: float
    saved_bytes: int
    """Peak bytes that autograd keeps, and those of the states that the method does."""
    process_bytes: int
    """Peak of the process: what it holds now, and what autograd will keep."""


@dataclass(frozen=True)
class CostModel:
    """Seconds and kept bytes of a meta step as functions of T and K."""

    steps: int
    trunc: int
    origin: tuple[float, float]
    """(seconds, bytes) at these steps and this trunc."""
    per_step: tuple[float, float]
    per_trunc: tuple[float, float]
    method: Method
    parameters: int
    state_bytes: int

    def at(self, steps: int, trunc: int) -> Cost:
        """Return the cost of a run of T = ``steps`` differentiated with K = ``trunc``."""
        seconds, saved = (
            self.origin[i]
            + self.per_step[i] * (steps - self.steps)
            + self.per_trunc[i] * (trunc - self.trunc)
            for i in range(2)
        )
        kept = round(saved) + self.method.states_kept(steps, self.parameters) * self.state_bytes
        return Cost(seconds, kept, process_peak_bytes() + kept)


def predicted_cost(problem: Problem, theta: torch.Tensor, settings: GradientSettings) -> Cost:
    """Predict the cost of one meta step, from runs of few steps and truncation steps."""
    return cost_model(problem, theta, settings).at(problem.steps, settings.trunc)


def cost_model(problem: Problem, theta: torch.Tensor, settings: GradientSettings) -> CostModel:
    """Fit the cost to runs no longer than the one asked for.

    But for the states that a method keeps, it is affine in T and in K for every method, so three
    probes tell it; each is timed (the better of two) and metered in separate passes.
    """
    method = settings.method
    if isinstance(method, str):
        method = method_class(method)(**settings.options)
    problem.prepare(theta)
    longest = settings.trunc
    while longest > 1 and method.steps_needed(longest, settings.averaging) > problem.steps:
        longest -= 1
    trunc = _two(longest, 2, 12)
    steps = _two(
        problem.steps,
        min(problem.steps, method.steps_needed(trunc[-1], settings.averaging) + 10),
        40,
    )
    origin = _probe(problem, theta, settings, method, steps[0], trunc[0])
    rates = []
    for near, far, probe in (
        (steps[0], steps[-1], (steps[-1], trunc[0])),
        (trunc[0], trunc[-1], (steps[0], trunc[-1])),
    ):
        rate = (0.0, 0.0)
        if far > near:
            there = _probe(problem, theta, settings, method, *probe)
            rate = (
                max(0.0, (there[0] - origin[0]) / (far - near)),
                max(0.0, (there[1] - origin[1]) / (far - near)),
            )
        rates.append(rate)
    state_bytes = problem.initial_state(theta).nbytes
    per_step, per_trunc = rates
    return CostModel(
        steps[0], trunc[0], origin, per_step, per_trunc, method, len(theta), state_bytes
    )


def _two(wanted: int, start: int, further: int) -> tuple[int, ...]:
    """Return one or two probe lengths, neither longer than what is asked for."""
    first = min(start, wanted)
    second = min(first + further, wanted)
    return (first, second) if second > first else (first,)


def _probe(
    problem: Problem,
    theta: torch.Tensor,
    settings: GradientSettings,
    method: Method,
    steps: int,
    trunc: int,
) -> tuple[float, float]:
    shorter = copy.copy(problem)
    shorter.steps = steps

    def once() -> float:
        start = time.perf_counter()
        # What the gradient is worth, with so few of its terms, makes no difference here.
        task = make_task(shorter, theta, method, trunc, settings.averaging)
        result = run_and_differentiate(method, task)
        float(result.gradient.sum())  # waits for the device
        return time.perf_counter() - start

    with SavedBytes() as saved:
        once()
    return min(once(), once()), float(saved.peak)
