"""The examination of one hypergradient: all diagnostics that are in scope, and the verdict."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hyperrbp.exceptions import DivergedError
from hyperrbp.hypergradients import chosen_method
from hyperrbp.hypergradients.agreement import Agreement, agreement
from hyperrbp.hypergradients.diagnostics.finite_differences import (
    FiniteDifferences,
    finite_differences,
    refute,
)
from hyperrbp.hypergradients.diagnostics.last_state import LastState
from hyperrbp.hypergradients.diagnostics.linear_solve import LinearSolve, linear_solve
from hyperrbp.hypergradients.diagnostics.noise import Noise, noise
from hyperrbp.hypergradients.diagnostics.series import Series, neumann_series
from hyperrbp.hypergradients.diagnostics.short_horizon import BIASED, ShortHorizon, short_horizon
from hyperrbp.hypergradients.diagnostics.smoothness import FRACTIONS, Smoothness, smoothness
from hyperrbp.hypergradients.diagnostics.spectrum import Spectrum, spectrum
from hyperrbp.hypergradients.diagnostics.steady_state import SteadyState, steady_state
from hyperrbp.hypergradients.diagnostics.verdict import Evidence, Verdict, judge
from hyperrbp.hypergradients.implicit import ImplicitMethod
from hyperrbp.hypergradients.method import Gradient, Status
from hyperrbp.hypergradients.settings import GradientSettings
from hyperrbp.problems.base import Jacobian, Problem
from hyperrbp.runtime.callbacks import ProgressTracker
from hyperrbp.runtime.randomness import generator

OPERATOR_MINIBATCHES = 10
"""The spectrum and the solve are those of the mean Jacobian of at most so many minibatches."""
NOISE_SERIES = 8
_ROUGH = "the loss is rough at that scale"


@dataclass(frozen=True)
class Scope:
    """Which diagnostics are run; all but the first few cost further runs."""

    exact: bool = True
    """Compare it with the exact gradient, by BPTT."""
    horizon: bool = True
    spectrum: bool = True
    differences: int = 2
    """Random directions of finite differences; 0 for none."""
    double: bool = True
    """Take the exact gradient and its differences in float64 too, where the problem can."""
    meta_learning_rate: float | None = 0.05
    """Of the step whose smoothness is measured; None: it is not."""


@dataclass(frozen=True)
class Examination:
    """The diagnostics of a gradient; None where one was not run, or does not suit the method."""

    at: LastState
    settings: GradientSettings
    found: Gradient
    steady_state: SteadyState
    verdict: Verdict
    series: Series
    solve: LinearSolve | None
    spectrum: Spectrum | None
    noise: Noise | None
    horizon: ShortHorizon | None
    exact: Tensor | None
    """Shape (p,), in the problem's precision."""
    exact_double: Tensor | None
    agreement: Agreement | None
    """Of the gradient with the exact one."""
    differences: list[FiniteDifferences]
    """Of the exact gradient; float64 last."""
    smoothness: Smoothness | None
    seconds: Mapping[str, float]
    """What each part took: ``the run``, ``the exact gradient``, …"""

    @property
    def precision(self) -> Agreement | None:
        """Return the agreement of the exact gradient with the one in float64."""
        if self.exact is None or self.exact_double is None:
            return None
        return agreement(self.exact.tolist(), self.exact_double.tolist())

    def findings(self) -> list[str]:
        """Return what else a reader should know, worst first, each in a sentence."""
        return list(_findings(self))

    def to_json(self) -> dict[str, Any]:
        """Return plain numbers, by kind and name where they belong to a parameter."""
        named = self.at.problem.by_name
        names = [f"{kind}/{name}" for kind, name in _names(self.at)]
        document: dict[str, Any] = {
            "loss": float(self.at.loss),
            "verdict": str(self.verdict),
            "trusted": self.verdict.trusted,
            "why": self.verdict.sentence,
            "findings": self.findings(),
            "gradient": named(self.found.gradient),
            "status": str(self.found.status),
            "products": self.found.products,
            "steady_state": asdict(self.steady_state),
            "series": {
                "norms": self.series.norms,
                "gradients": self.series.gradients.tolist(),
                "growth_rate": self.series.growth_rate,
                "last_share": self.series.last_share,
                "smallest_term": self.series.smallest_term,
            },
            "solve": None
            if self.solve is None
            else asdict(self.solve) | {"sentence": self.solve.outcome.sentence},
            "spectrum": None if self.spectrum is None else _spectrum(self.spectrum),
            "noise": None
            if self.noise is None
            else {
                "standard_error": named(self.noise.standard_error),
                "samples": self.noise.samples,
                "distinguishable": sum(self.noise.distinguishable),
                "share": self.noise.share,
            },
            "horizon": None
            if self.horizon is None
            else {
                "truncs": self.horizon.truncs,
                "cosines": self.horizon.cosines,
                "flipped": [[names[i] for i in flips] for flips in self.horizon.flipped],
                "bias": self.horizon.bias,
                "settled": self.horizon.settled,
            },
            "exact": None if self.exact is None else named(self.exact),
            "agreement": None if self.agreement is None else asdict(self.agreement),
            "precision": None if self.precision is None else asdict(self.precision),
            "differences": [asdict(one) for one in self.differences],
            "smoothness": None
            if self.smoothness is None
            else asdict(self.smoothness)
            | {"falls": self.smoothness.falls, "ratio": self.smoothness.ratio},
        }
        return document


def _spectrum(found: Spectrum) -> dict[str, Any]:
    return {
        "radius": found.radius,
        "eigenvalues": [[value.real, value.imag] for value in found.eigenvalues],
        "ritz_values": [[value.real, value.imag] for value in found.ritz_values],
        "norm": found.norm,
        "largest_singular_value": found.largest_singular_value,
        "krylov_smallest": found.krylov_smallest,
        "krylov_condition": found.krylov_condition,
        "krylov_dimension": found.krylov_dimension,
        "cg_condition": found.cg_condition,
        "singular": found.singular,
        "bound": found.bound,
        "products": found.products,
    }


def examine(
    problem: Problem,
    theta: Tensor,
    settings: GradientSettings | None = None,
    scope: Scope | None = None,
    *,
    at: LastState | None = None,
    exact: Tensor | None = None,
    seed: int = 0,
    tracker: ProgressTracker | None = None,
) -> Examination:
    """Run the diagnostics in ``scope`` on the gradient that ``settings`` give at θ.

    Args:
        problem: what is run.
        theta: the parameters, shape (p,).
        settings: how the gradient in question is taken.
        scope: which diagnostics.
        at: the last state at θ, if it is known already.
        exact: the exact gradient, if it is known already.
        seed: of everything random.
        tracker: learns of each part that begins, and of the seconds that are done.

    Raises:
        UsageError: for a method that does not fit the problem.
        DivergedError: if the run itself is not finite: then there is no gradient to examine.
    """
    settings, scope = settings or GradientSettings(), scope or Scope()
    part = _Parts(tracker or ProgressTracker(), settings, scope)
    with part("the run"):
        at = at or LastState.of_run(problem, theta)
    if not (at.h.isfinite().all() and at.loss.isfinite()):
        raise DivergedError("the run that was to be differentiated is not finite at its end")
    part.expect(problem.steps)
    with part("the gradient in question"):
        found = at.gradient(_with_samples(settings), seed=seed)
        steady = steady_state(at, seed)
        zero = [name in steady.structurally_zero[kind] for kind, name in _names(at)]
    operator = at.jacobian(min(settings.averaging.minibatches, OPERATOR_MINIBATCHES))
    with part("the series and the solve"):
        series = neumann_series(
            operator.transposed, at.g, at.sensitivity.theta_transposed, 2 * settings.trunc
        )
        solve = _solve(at, settings, operator, seed, all(zero))
    if scope.exact and exact is None:
        with part("the exact gradient"):
            exact = found.gradient if found.status is Status.EXACT else at.exact_gradient()
    exact_double, differences, refuted = None, list[FiniteDifferences](), False
    if exact is not None and scope.differences:
        with part("finite differences"):
            differences.append(finite_differences(problem, theta, exact, scope.differences, seed))
    double = problem.in_precision(torch.float64) if scope.double else None
    if exact is not None and double is not None and theta.dtype is not torch.float64:
        with part("the same in float64"):
            twice = LastState.of_run(double, theta.double())
            exact_double = twice.exact_gradient()
            if scope.differences:
                differences.append(
                    finite_differences(double, twice.theta, exact_double, scope.differences, seed)
                )
                refuted = refute(double, twice.theta, differences[-1], seed)
    elif differences:
        with part("finite differences over other steps"):
            refuted = refute(problem, theta, differences[-1], seed)
    longer = eigenvalues = smooth = None
    if scope.horizon:
        with part("longer truncations"):
            longer = short_horizon(at, settings, seed)
    if scope.spectrum:
        with part("the spectrum"):
            eigenvalues = spectrum(operator, at.g, settings.trunc, seed=seed)
    if scope.meta_learning_rate is not None:
        with part("the loss along a step"):
            smooth = smoothness(
                problem, theta, float(at.loss), found.gradient, scope.meta_learning_rate
            )
    spread = noise(found)
    held = None if exact is None else agreement(found.gradient.tolist(), exact.tolist())
    verdict = judge(
        Evidence(
            gradient=found.gradient.tolist(),
            structurally_zero=zero,
            status=found.status,
            agreement=held,
            horizon=longer,
            above_noise=None if spread is None else spread.above_noise,
            refuted=refuted,
        )
    )
    return Examination(
        at=at,
        settings=settings,
        found=found,
        steady_state=steady,
        verdict=verdict,
        series=series,
        solve=solve,
        spectrum=eigenvalues,
        noise=spread,
        horizon=longer,
        exact=exact,
        exact_double=exact_double,
        agreement=held,
        differences=differences,
        smoothness=smooth,
        seconds=part.seconds,
    )


class _Parts:
    """Measures how long each part takes, and reports it."""

    def __init__(self, tracker: ProgressTracker, settings: GradientSettings, scope: Scope) -> None:
        self._tracker, self._settings, self._scope = tracker, settings, scope
        self._expected: dict[str, float] = {}
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, what: str) -> Iterator[None]:
        self._tracker.begin(what)
        started = time.perf_counter()
        yield
        self.seconds[what] = time.perf_counter() - started
        self._tracker.advance(self._expected.get(what, 0.0))

    def expect(self, steps: int) -> None:
        """From the seconds of the run: a product takes about three gradients, float64 twice."""
        run, scope, K = self.seconds["the run"], self._scope, self._settings.trunc
        product = 3 * run / steps
        of_operator = product * min(self._settings.averaging.minibatches, OPERATOR_MINIBATCHES)
        differences = 2 * scope.differences * run
        self._expected = {
            "the gradient in question": NOISE_SERIES * K * product,
            "the series and the solve": 4 * K * of_operator,
        }
        if scope.exact:
            self._expected["the exact gradient"] = 5 * run
        if scope.exact and scope.differences:
            self._expected["finite differences"] = differences
        if scope.exact and scope.double:
            self._expected["the same in float64"] = 2 * (6 * run + differences)
        if scope.horizon:
            self._expected["longer truncations"] = 7 * 2 * K * product
        if scope.spectrum:
            self._expected["the spectrum"] = 420 * of_operator
        if scope.meta_learning_rate is not None:
            self._expected["the loss along a step"] = len(FRACTIONS) * run
        self._tracker.expect(sum(self._expected.values()))


def _with_samples(settings: GradientSettings) -> GradientSettings:
    """Return the same settings, with enough series to know their spread."""
    averaging = settings.averaging
    series = min(max(averaging.series, NOISE_SERIES), averaging.minibatches)
    return replace(settings, averaging=replace(averaging, series=series))


def _names(at: LastState) -> list[tuple[str, str]]:
    """Return (kind, name) of every parameter, in the order of θ."""
    return [(kind, name) for kind, of in at.problem.by_name(at.theta).items() for name in of]


def _solve(
    at: LastState, settings: GradientSettings, operator: Jacobian, seed: int, all_zero: bool
) -> LinearSolve | None:
    """Measure the method's own z for the mean Jacobian; None for a method that solves nothing."""
    method = chosen_method(settings.method, settings.options)
    if not isinstance(method, ImplicitMethod):
        return None
    source = generator(seed, method.name)
    z = method.solve(operator, at.g, settings.trunc, source).z
    return linear_solve(operator, at.g, z, at.sensitivity, all_zero)


def _findings(x: Examination) -> Iterator[str]:
    steady = x.steady_state
    unfelt = [f"{kind} of {name}" for kind, of in steady.structurally_zero.items() for name in of]
    if unfelt:
        few = unfelt if len(unfelt) <= 24 else [*unfelt[:20], f"and {len(unfelt) - 20:,} more"]
        yield f"structurally zero, which says nothing about them: {', '.join(few)}"
    if x.found.status is Status.GROWING and x.series.growth_rate <= 1:
        yield "the method's own iterates grew, though the series from the loss gradient does not"
    if x.series.growth_rate > 1:
        yield (
            f"the terms of the series grow, ×{x.series.growth_rate:.5g} a product; the smallest is"
            f" term {x.series.smallest_term}"
        )
    if x.smoothness is not None and x.found.gradient.any() and not x.smoothness.falls:
        yield "the loss does not fall along the step that Adam would take: a smaller meta step"
    if x.horizon is not None and x.horizon.bias >= BIASED:
        yield (
            f"short-horizon bias: components with {x.horizon.bias:.0%} of the gradient at"
            f" K = {x.horizon.truncs[-1]} have the other sign at K = {x.horizon.truncs[0]}"
        )
    if x.noise is not None and x.noise.share < 1:
        lost = x.noise.distinguishable.count(False)
        yield f"{lost} of {len(x.found.gradient)} components cannot be told from minibatch noise"
    if x.agreement is not None and x.agreement.norm_ratio and x.found.status is not Status.EXACT:
        ratio = x.agreement.norm_ratio
        if not 0.5 <= ratio <= 2:
            yield (
                f"its length is {ratio:.2g} times the exact one's: Adam is not affected,"
                " plain gradient descent is"
            )
    if x.precision is not None and (x.precision.cosine is None or x.precision.cosine < 0.99):
        yield "float32 is not enough for the exact gradient of this run: dtype: float64"
    if x.differences and x.differences[-1].error > 1e-2:
        refuted = x.verdict is Verdict.NOT_THE_DERIVATIVE
        yield (
            f"finite differences in {x.differences[-1].dtype} are off the exact gradient by"
            f" {x.differences[-1].error:.1g}:"
            f" {'over steps of other lengths, too' if refuted else _ROUGH}"
        )
