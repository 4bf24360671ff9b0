"""What a meta step should cost, from a few much shorter ones."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass

import torch

from hyperrbp.descent import GradientSettings
from hyperrbp.dynamics import Problem
from hyperrbp.gradients import Method, hypergradient, method_class
from hyperrbp.meter import SavedBytes, process_peak_bytes


@dataclass(frozen=True)
class Forecast:
    """The expected cost of one meta step."""

    seconds: float
    saved_bytes: int
    """Peak bytes that autograd keeps."""
    process_bytes: int
    """Peak of the process: what it holds now, and what autograd will keep."""


def forecast(problem: Problem, theta: torch.Tensor, settings: GradientSettings) -> Forecast:
    """Extrapolate runs of few steps and few truncation steps to the ones asked for.

    Both costs are affine in T and in K for every method, so three probes tell them; each is timed
    (the better of two) and metered in separate passes.
    """
    method = settings.method
    if isinstance(method, str):
        method = method_class(method)(**settings.options)
    trunc = _two(settings.trunc, 2, 12)
    steps = _two(
        problem.steps,
        min(problem.steps, method.steps_needed(trunc[-1], settings.averaging) + 10),
        40,
    )
    origin = _probe(problem, theta, settings, method, steps[0], trunc[0])
    estimate = list(origin)
    for near, far, wanted, probe in (
        (steps[0], steps[-1], problem.steps, (steps[-1], trunc[0])),
        (trunc[0], trunc[-1], settings.trunc, (steps[0], trunc[-1])),
    ):
        if far > near:
            there = _probe(problem, theta, settings, method, *probe)
            for i in range(2):
                slope = max(0.0, (there[i] - origin[i]) / (far - near))
                estimate[i] += slope * (wanted - near)
    seconds, saved = estimate
    return Forecast(seconds, round(saved), process_peak_bytes() + round(saved))


def _two(wanted: int, start: int, further: int) -> tuple[int, ...]:
    """One or two probe lengths, neither longer than what is asked for."""
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
        result = hypergradient(shorter, theta, method, trunc=trunc, averaging=settings.averaging)
        float(result.gradient.sum())  # waits for the device
        return time.perf_counter() - start

    with SavedBytes() as saved:
        once()
    return min(once(), once()), float(saved.peak)
