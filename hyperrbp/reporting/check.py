"""Shows what ``hyperrbp check`` found: as a page, and as a figure."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from hyperrbp.exceptions import StorageError
from hyperrbp.experiments.results.check import CheckReport
from hyperrbp.experiments.results.document import to_json
from hyperrbp.experiments.results.examination import (
    AgreementReport,
    HorizonReport,
    SmoothnessReport,
    SpectrumReport,
    SteadyStateReport,
)
from hyperrbp.reporting.formatting import ROWS, duration, number, words
from hyperrbp.runtime.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def page(report: CheckReport) -> RenderableType:
    """Return every answer, the verdict last."""
    recipe = report.recipe
    heading = (
        f"{recipe.name}: the gradient by {report.asked.label} of"
        f" {recipe.inner.steps} training steps"
    )
    facts = Table.grid(padding=(0, 2))
    facts.add_column(no_wrap=True)
    facts.add_column()
    for title, lines in _sections(report):
        for i, line in enumerate(lines):
            facts.add_row(Text(title if i == 0 else "", style="bold"), Text(line))
    parts: list[RenderableType] = [Text(heading, style="bold"), facts, _components(report)]
    if report.candidates:
        parts.append(_candidates(report))
    parts += [Text(f"• {finding}") for finding in report.findings]
    trusted = report.trusted
    verdict = Text("trust it" if trusted else "do not trust it", style=_colour(trusted))
    verdict.append(f" ({report.verdict}): {report.why}", style="default")
    parts += [Text(), verdict]
    if advice := _advice(report):
        parts.append(Text(advice))
    return Group(*parts)


def _colour(trusted: bool) -> str:
    return "bold green" if trusted else "bold red"


def _advice(report: CheckReport) -> str:
    found = report.recommendation
    if found.label is None:
        return f"What to do: {found.why}" if found.why else ""
    if found.keep:
        return f"Recommended: keep it; {found.why}"
    if found.method == "bptt":
        return f"Recommended: the exact gradient ({found.label}); {found.why}"
    return f"Recommended: {found.label}; {found.why}"


def _sections(report: CheckReport) -> Iterator[tuple[str, list[str]]]:
    yield "steady state", list(_steady_state(report.steady_state))
    yield "series", list(_series(report))
    if report.solve is not None:
        solve = report.solve
        yield (
            "linear solve",
            [
                f"{solve.outcome}: {solve.sentence}",
                f"‖(I−Jᵀ)z − g‖/‖g‖ {number(solve.residual)}; in the gradient"
                f" {number(solve.objective_residual)}",
            ],
        )
    if report.spectrum is not None:
        yield "spectrum", list(_spectrum(report.spectrum))
    if report.noise is not None:
        noise = report.noise
        count = sum(map(len, noise.standard_error.values()))
        yield (
            "minibatch noise",
            [
                f"{noise.distinguishable} of {count} components are two standard errors away"
                f" from zero, over {noise.samples} gradients"
            ],
        )
    if report.horizon is not None:
        yield "horizon", [_horizon(report.horizon)]
    if report.agreement is not None:
        yield "exact gradient", list(_exact(report, report.agreement))
    if report.smoothness is not None:
        yield "along Adam's step", [_smoothness(report.smoothness)]


def _steady_state(found: SteadyStateReport) -> Iterator[str]:
    norms = ", ".join(f"‖{name}‖ {number(value)}" for name, value in found.norms.items())
    yield (
        f"‖h−F(h)‖/‖h‖ {number(found.residual)} over all inputs,"
        f" {number(found.minibatch_residual)} on the last; {norms}"
    )
    same: dict[str, list[str]] = {}
    for kind, meaning in found.meaning.items():
        same.setdefault(meaning, []).append(words(kind))
    for meaning, kinds in same.items():
        yield f"an implicit gradient of {' and '.join(kinds)}: {meaning}"


def _series(report: CheckReport) -> Iterator[str]:
    found = report.series
    rate = found.growth_rate
    last = len(found.norms) - 1
    word = "grow" if rate is None or rate > 1 else "fall"
    yield (
        f"terms {word} by ×{number(rate, 5)} a product; term {last} is"
        f" {number(found.last_share)} of the sum, the smallest is term"
        f" {found.smallest_term}"
    )


def _spectrum(found: SpectrumReport) -> Iterator[str]:
    yield (
        f"spectral radius of J {number(found.radius)}, ‖J‖ {number(found.norm)}; singular"
        f" values of I − J up to {number(found.largest_singular_value)}"
    )
    yield (
        f"on the Krylov space of the loss gradient (dimension {found.krylov_dimension}):"
        f" smallest {number(found.krylov_smallest)},"
        f" condition {number(found.krylov_condition)},"
        f" for CG its square {number(found.cg_condition)}"
    )
    if found.bound is None:
        why = "I − J is singular" if found.singular else "‖J‖ ≥ 1"
        if found.norm is None:
            why = "‖J‖ was not found"
        yield f"Proposition 2: no bound ({why}), which by itself speaks against nothing"
    else:
        yield f"Proposition 2 bounds the truncation error by {number(found.bound)} ‖g‖"


def _horizon(found: HorizonReport) -> str:
    longer = list(zip(found.truncs, found.cosines, found.flipped, strict=True))[1:]
    return (
        ", ".join(
            f"K = {trunc}: cosine {number(cosine)}, signs that differ: {len(flips)}"
            for trunc, cosine, flips in longer
        )
        or "the run is too short for a longer truncation"
    )


def _exact(report: CheckReport, found: AgreementReport) -> Iterator[str]:
    kept = "unknown" if found.descent is None else f"{found.descent:.0%}"
    yield (
        f"cosine {number(found.cosine)}, {found.sign_agreement:.0%} of the signs, length"
        f" ×{number(found.norm_ratio)}; a step by its signs keeps {kept} of the steepest"
        " decrease"
    )
    checks = [f"{one.dtype} off by {number(one.error)}" for one in report.differences]
    if checks:
        yield f"the exact gradient against finite differences of the loss: {', '.join(checks)}"
    if report.precision is not None:
        off = 1 - (report.precision.cosine or 0.0)
        yield f"float32 against float64: 1 − cosine {number(max(off, 0.0))}"


def _smoothness(found: SmoothnessReport) -> str:
    points = ", ".join(
        f"{fraction:g}×: {number(loss)} ({number(predicted)})"
        for fraction, loss, predicted in zip(
            found.fractions, found.losses, found.predicted, strict=True
        )
    )
    return f"loss {number(found.start)} → {points}; in brackets what the gradient predicts"


def _components(report: CheckReport) -> Table:
    """Return every component: standard error, signs at longer truncations, exact value."""
    noise, horizon, exact = report.noise, report.horizon, report.exact
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("hyperparameter", no_wrap=True)
    table.add_column("gradient" if noise is None else "gradient ± error", justify="right")
    if horizon is not None:
        table.add_column("signs, K = " + ", ".join(map(str, horizon.truncs)))
    if exact is not None:
        table.add_column("exact", justify="right")
    for kind, of in report.gradient.items():
        largest = set(sorted(of, key=lambda name: -abs(of[name] or 0.0))[:ROWS])
        for name, value in of.items():
            if name not in largest:
                continue
            error = None if noise is None else noise.standard_error[kind][name]
            cells = [f"{kind.replace('_', ' ')} {name}"]
            cells.append(number(value) + ("" if error is None else f" ± {error:.1g}"))
            if horizon is not None:
                flips = [f"{kind}/{name}" in flipped for flipped in horizon.flipped]
                cells.append(" ".join(_sign(value, flip) for flip in flips))
            if exact is not None:
                cells.append(number(exact[kind][name]))
            table.add_row(*cells)
        if len(of) > ROWS:
            table.add_row(f"{kind.replace('_', ' ')}: {len(of) - ROWS:,} smaller ones")
    return table


def _sign(value: float | None, flipped: bool) -> str:
    if not value:
        return "0" if value == 0 else "?"
    return "−" if (value < 0) != flipped else "+"


def _candidates(report: CheckReport) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("method")
    for title in ("cosine", "signs", "kept", "cost", "seconds"):
        table.add_column(title, justify="right")
    table.add_column("verdict")
    exact = report.candidates[-1].work
    for row in report.candidates:
        kept = "" if row.descent is None else f"{row.descent:.0%}"
        table.add_row(
            row.label,
            number(row.cosine),
            f"{row.sign_agreement:.0%}",
            kept,
            f"{row.work / exact:.2f}",
            duration(row.seconds),
            Text(row.verdict, style="green" if row.trusted else "red"),
        )
    return table


def write_check(report: CheckReport, out: Path) -> None:
    """Write ``check.json`` and ``check.png`` into a folder.

    Raises:
        StorageError: if they cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{out}: {error.strerror or error}") from error
    write_atomically(out / "check.json", to_json(report, indent=1) + "\n")
    draw_check(report, out / "check.png")


def draw_check(report: CheckReport, file: Path) -> None:
    """Draw the series, the gradient that it adds up to, and the spectrum.

    Raises:
        UsageError: for an ending that is no image format.
        StorageError: if the file cannot be written.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    from hyperrbp.reporting.figures import save

    figure, axes = plt.subplots(1, 3, figsize=(13.8, 4.0), layout="constrained")
    _draw_terms(axes[0], report)
    _draw_gradient(axes[1], report)
    _draw_spectrum(axes[2], report)
    figure.suptitle(
        f"{report.recipe.name}, {report.asked.label}:"
        f" {'trust it' if report.trusted else 'do not trust it'} ({report.verdict})"
    )
    save(figure, file)


def _draw_terms(axis: Axes, report: CheckReport) -> None:
    norms = [value or math.nan for value in report.series.norms]
    axis.plot(range(len(norms)), norms, color="C0")
    axis.axvline(report.asked.trunc, color="0.6", ls=":", label="K")
    axis.set(xlabel="term k", ylabel="‖(Jᵀ)ᵏ g‖ / ‖g‖", yscale="log", title="terms of the series")
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)


def _draw_gradient(axis: Axes, report: CheckReport) -> None:
    names = [f"{kind} {name}" for kind, of in report.gradient.items() for name in of]
    columns = list(zip(*(report.series.gradients or []), strict=True))
    largest = sorted(range(len(names)), key=lambda i: -abs(columns[i][-1] or 0.0))[:6]
    for i in sorted(largest):
        axis.plot(columns[i], label=words(names[i]))
    axis.axhline(0, color="0.6", lw=0.8)
    axis.axvline(report.asked.trunc, color="0.6", ls=":")
    axis.set(xlabel="terms added", ylabel="gradient", title="the gradient as terms are added")
    axis.grid(alpha=0.3)
    axis.legend(frameon=False, fontsize="x-small")


def _draw_spectrum(axis: Axes, report: CheckReport) -> None:
    found = report.spectrum
    turn = [2 * math.pi * i / 256 for i in range(257)]
    axis.plot([math.cos(a) for a in turn], [math.sin(a) for a in turn], color="0.6", lw=0.8)
    if found is not None:
        for values, label, marker in (
            (found.ritz_values, "Ritz values on the Krylov space of g", "."),
            (found.eigenvalues, "largest eigenvalues", "x"),
        ):
            if values:
                axis.plot(*zip(*values, strict=True), marker, label=label)
        axis.legend(frameon=False, fontsize="x-small", loc=(0.1, 0.45))
    axis.set(xlabel="real", ylabel="imaginary", title="spectrum of J", aspect="equal")
    axis.grid(alpha=0.3)
