"""The selection of a gradient method: a few are compared with the exact gradient at one state.

What a method costs is counted and not timed, so that a choice comes out the same again: in
gradients of a minibatch, with three for a Jacobian product.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import Tensor

from hyperrbp.exceptions import UsageError
from hyperrbp.hypergradients import Averaging, method_class
from hyperrbp.hypergradients.agreement import Agreement, agreement
from hyperrbp.hypergradients.diagnostics.last_state import EXACT, LastState
from hyperrbp.hypergradients.diagnostics.verdict import Evidence, Verdict, judge
from hyperrbp.hypergradients.implicit import ImplicitMethod
from hyperrbp.hypergradients.settings import GradientSettings

PRODUCT = 3
"""A Jacobian product in gradients of a minibatch: forth and back through the graph of one."""
CHEAPER = 2.0
"""How much cheaper than the exact gradient another one has to be to take its place."""


WORTH = 1.5
"""How much more merit than the first candidate another one has to have to be preferred to it."""


@dataclass(frozen=True)
class Candidate:
    """A gradient method with its settings, and how it did."""

    settings: GradientSettings
    verdict: Verdict
    agreement: Agreement
    """With the exact gradient."""
    work: int
    """Of a meta step, in gradients of a minibatch."""
    seconds: float
    """Of a meta step, as measured."""

    @property
    def label(self) -> str:
        """Return the settings in a few words."""
        return label(self.settings)

    @property
    def merit(self) -> float:
        """Return the share of the steepest decrease kept a unit of work; the cosine breaks ties."""
        return (self.agreement.descent or 0.0) * (self.agreement.cosine or 0.0) / self.work

    def to_json(self) -> dict[str, Any]:
        """Return plain numbers."""
        return {
            "label": self.label,
            **described(self.settings),
            "verdict": str(self.verdict),
            "trusted": self.verdict.trusted,
            **asdict(self.agreement),
            "work": self.work,
            "seconds": self.seconds,
        }


@dataclass(frozen=True)
class Choice:
    """The candidate to use, and why."""

    chosen: Candidate
    why: str


def described(settings: GradientSettings) -> dict[str, Any]:
    """Return the settings as a recipe's section ``gradient`` has them."""
    name = settings.method if isinstance(settings.method, str) else settings.method.name
    return {
        "method": name,
        "trunc": settings.trunc,
        "averaging": asdict(settings.averaging),
        "options": dict(settings.options),
    }


def label(settings: GradientSettings) -> str:
    """Return the settings in a few words."""
    of = described(settings)
    method = method_class(of["method"])
    if not method.uses_trunc:
        return " ".join([of["method"], *(f"{key}={value}" for key, value in of["options"].items())])
    averaging, name = settings.averaging, method.estimator(settings.averaging)
    over = f"{name}, M = {averaging.minibatches}"
    count = min(averaging.series, averaging.minibatches)
    series = f", {count} series" if name == "resampled" else ""
    return f"{of['method']}, K = {settings.trunc}, {over}{series}"


def methods_at(settings: GradientSettings, steps: int) -> list[GradientSettings]:
    """Return the methods worth a try at the truncation of ``settings``, which come first.

    TBPTT is among them only where its window is half of the run, unless it is asked for: on MNIST,
    with a shorter window, it agreed with the exact gradient at the start of a run and had turned
    against it twenty meta steps later.
    """
    K, M = settings.trunc, settings.averaging.minibatches
    few = Averaging("mean", min(M, 10), 1)
    tried = [
        GradientSettings("neumann", K, Averaging("resampled", M, min(2, M))),
        GradientSettings("cg", max(1, K // 4), few),
    ]
    if steps <= 2 * K:
        tried.append(GradientSettings("tbptt", min(K, steps), Averaging()))
    own = [] if label(settings) == label(EXACT) else [settings]
    return _distinct([*own, *tried])


def truncations_at(settings: GradientSettings, steps: int) -> list[GradientSettings]:
    """Return the same with truncations from a fifth to twice as long, as far as they fit."""
    first, *rest = methods_at(settings, steps)
    K = settings.trunc
    other = [replace(first, trunc=trunc) for trunc in (max(1, K // 5), 2 * K) if trunc <= steps]
    return _distinct([first, *other, *rest])


def _distinct(settings: Sequence[GradientSettings]) -> list[GradientSettings]:
    return list({label(each): each for each in settings}.values())


def evaluate(
    at: LastState,
    field: Sequence[GradientSettings],
    exact: Tensor,
    run_seconds: float,
    seed: int = 0,
) -> list[Candidate]:
    """Compare every candidate at the same state with the exact gradient.

    One that does not fit the run is left out.

    Args:
        at: the last state of a run.
        field: the settings to try.
        exact: the exact gradient there, shape (p,).
        run_seconds: of one run, which an implicit method is spared here.
        seed: of what the methods sample.
    """
    found = []
    for settings in field:
        started = time.perf_counter()
        try:
            gradient = at.gradient(settings, seed=seed)
        except UsageError:
            continue
        seconds = time.perf_counter() - started
        held = agreement(gradient.gradient.tolist(), exact.tolist())
        verdict = judge(
            Evidence(
                gradient=gradient.gradient.tolist(),
                structurally_zero=[False] * len(exact),
                status=gradient.status,
                agreement=held,
            )
        )
        method = method_class(described(settings)["method"])
        if issubclass(method, ImplicitMethod):
            seconds += run_seconds
        # A product with a mean Jacobian is one with each of its minibatches.
        mean = method.estimator(settings.averaging) == "mean"
        each = settings.averaging.minibatches if mean else 1
        work = at.problem.steps + PRODUCT * each * gradient.products
        found.append(Candidate(settings, verdict, held, work, seconds))
    return found


def exact_candidate(at: LastState, exact: Tensor, seconds: float) -> Candidate:
    """Return the exact gradient as a candidate: two runs, and a product an update."""
    whole = agreement(exact.tolist(), exact.tolist())
    work = (2 + PRODUCT) * at.problem.steps
    return Candidate(EXACT, Verdict.EXACT, whole, work, seconds)


def choose(field: Sequence[Candidate], exact: Candidate) -> Choice:
    """Choose the candidate of most merit, if trusted and much cheaper than the exact one.

    Args:
        field: from ``evaluate``; the first is kept unless another is worth the change.
        exact: from ``exact_candidate``.
    """
    trusted = [each for each in field if each.verdict.trusted]
    cheap = [each for each in trusted if each.work * CHEAPER <= exact.work]
    if cheap:
        best = max(cheap, key=lambda each: each.merit)
        if field[0] in cheap and best.merit < WORTH * field[0].merit:
            best = field[0]
        kept = best.agreement.descent or 0.0
        times = exact.work / best.work
        why = f"it keeps {kept:.0%} of the steepest decrease, {times:.1f}× cheaper than exact"
        return Choice(best, why)
    if trusted:
        times = exact.work / min(each.work for each in trusted)
        return Choice(exact, f"it costs only {times:.1f}× the cheapest one to be trusted")
    return Choice(exact, "no other can be trusted here")
