"""Writes a tuning run for TensorBoard, from its records alone."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter

from hyperrbp.experiments.results.compare import CompareReport
from hyperrbp.experiments.results.document import Measured
from hyperrbp.experiments.results.examination import ExaminationReport
from hyperrbp.experiments.results.records import GradientRecord, StepRecord
from hyperrbp.experiments.summary_statistics import is_summary
from hyperrbp.experiments.tune import TuneCallback, TuneContext, TuneStep
from hyperrbp.reporting.formatting import words

_OVERVIEW = {
    "gradient": {
        "norm": ["Multiline", ["^gradient/norm"]],
        "distance from a steady state, and last residual": [
            "Multiline",
            ["^gradient/steady_state_residual$", "^gradient/residual$"],
        ],
        "against the exact gradient": [
            "Multiline",
            ["^check/cosine_with_exact$", "^check/steepest_decrease_kept$"],
        ],
    },
    "cost of a meta step": {"seconds by phase": ["Multiline", ["^seconds/"]]},
}
"""The Custom Scalars page, after its charts of the meta loss and the hyperparameters."""


class TensorBoard(TuneCallback):
    """Writes ``events/``: each meta step once, also after a resume."""

    def on_start(self, context: TuneContext) -> None:
        """Open the event files; what a resumed run wrote after its last checkpoint is purged."""
        self._experiment = experiment = context.experiment
        self._folder = context.folder
        last = experiment.meta.steps
        self._curves = {
            last if step == -1 else step for step in experiment.recipe.record.inner_curves
        }
        self._writer = event_writer(context.folder.events, len(context.earlier))
        if not context.earlier:
            text = experiment.recipe.to_yaml()
            self._writer.add_text("recipe", "\n".join(f"    {row}" for row in text.splitlines()))
            self._writer.add_custom_scalars(overview(experiment.problem().layout.grains))

    def on_record(self, record: TuneStep) -> None:
        """Add a point to every curve."""
        step, theta = record.record, record.theta
        n = step.meta_step
        for tag, value in scalars(step).items():
            self._writer.add_scalar(tag, value, n)
        layout = self._experiment.problem(n).layout
        natural = layout.natural(theta)
        for kind, at in layout.slices.items():
            if is_summary(step.hyperparameters[kind]):
                self._writer.add_histogram(kind, natural[at].cpu(), n)
        self._writer.flush()
        if n in self._curves:
            self._inner_curve(n, theta)

    def _inner_curve(self, meta_step: int, theta: torch.Tensor) -> None:
        # A run of its own beside the others: its axis counts training steps, not meta steps.
        place = self._folder.events / f"inner_run_at_meta_step_{meta_step}"
        shutil.rmtree(place, ignore_errors=True)
        with SummaryWriter(str(place)) as writer:
            for t, loss in self._experiment.inner_curve(meta_step, theta):
                writer.add_scalar("inner_run/minibatch_loss", loss, t)

    def on_end(self) -> None:
        """Close the files."""
        if hasattr(self, "_writer"):
            self._writer.close()


def overview(kinds: Iterable[str]) -> dict[str, Any]:
    """Return the Custom Scalars page: all hyperparameters of a kind in one chart."""
    charts = {words(kind): ["Multiline", [f"^{kind}/"]] for kind in kinds}
    tuning = {"meta loss (log10)": ["Multiline", ["^meta/loss_log10$"]], **charts}
    return {"tuning": tuning, **_OVERVIEW}


def event_writer(events: Path, step: int) -> SummaryWriter:
    """Return a writer from a step on: what is there of it and of later ones is purged."""
    files = list(events.glob("events.out.tfevents.*"))
    # Readers order the files by the second in their names.
    newest = max((int(file.name.split(".")[3]) for file in files), default=0)
    deadline = time.monotonic() + 2  # should the clock have gone back
    while int(time.time()) <= newest and time.monotonic() < deadline:
        time.sleep(0.02)
    return SummaryWriter(str(events), purge_step=step if files else None)


def scalars(record: StepRecord) -> dict[str, float]:
    """Return every number of a record that makes a curve, by its tag."""
    loss = record.meta_loss
    tags: dict[str, float | None] = {"meta/loss": loss}
    if loss > 0:
        tags["meta/loss_log10"] = math.log10(loss)
    for kind, values in record.hyperparameters.items():
        tags |= _named(kind, values)
    if isinstance(record, GradientRecord):
        tags |= _gradient(record)
    if record.rollbacks is not None:
        tags["meta/rollbacks"] = len(record.rollbacks)
    tags |= _costs(record.measured)
    return {tag: value for tag, value in tags.items() if value is not None}


def _gradient(record: GradientRecord) -> dict[str, float | None]:
    known = record.diagnostics
    tags: dict[str, float | None] = {
        "gradient/norm": record.gradient_norm,
        "gradient/residual": record.residual,
        "gradient/steady_state_residual": record.steady_state_residual,
        "gradient/growth_rate": known.growth_rate,
        "gradient/share_above_noise": known.above_noise,
    }
    for kind, values in record.gradient.items():
        tags[f"gradient/norm_{kind}"] = record.gradient_norms[kind]
        tags |= _named(f"gradient_{kind}", values)
    for kind, values in (record.standard_error or {}).items():
        tags |= _named(f"standard_error_{kind}", values)
    tags |= {f"last_state/{_slug(name)}": value for name, value in known.norms.items()}
    return tags if record.check is None else tags | _examination(record.check)


def _examination(found: ExaminationReport) -> dict[str, float | None]:
    agreement, spectrum = found.agreement, found.spectrum
    tags: dict[str, float | None] = {"check/trusted": float(found.trusted)}
    if agreement is not None:
        tags |= {
            "check/cosine_with_exact": agreement.cosine,
            "check/steepest_decrease_kept": agreement.descent,
            "check/norm_over_exact": agreement.norm_ratio,
        }
    if spectrum is not None:
        tags |= {
            "check/spectral_radius": spectrum.radius,
            "check/norm_of_jacobian": spectrum.norm,
            "check/condition_on_krylov_space": spectrum.krylov_condition,
        }
    if found.smoothness is not None:
        tags["check/step_change_over_predicted"] = found.smoothness.ratio
    if found.horizon is not None:
        tags["check/short_horizon_bias"] = found.horizon.bias
    return tags


def _costs(measured: Measured) -> dict[str, float | None]:
    tags: dict[str, float | None] = {
        f"seconds/{_slug(phase)}": seconds for phase, seconds in measured.seconds.items()
    }
    for phase, peaks in measured.peak_bytes.items():
        tags |= _named(f"peak_bytes_{_slug(phase)}", peaks)
    return tags


def _named(group: str, values: Mapping[str, float | None]) -> dict[str, float | None]:
    return {f"{group}/{name}": value for name, value in values.items()}


def _slug(phase: str) -> str:
    return phase.replace(" ", "_").replace("-", "_")


def write_comparison(report: CompareReport, events: Path) -> None:
    """Write cost and rightness against K, and against T if there are several.

    There is one run for each method, so that all methods are in one chart.
    """
    rows = [row for row in report.rows if row.measured]
    several = len({row.train_steps for row in rows}) > 1
    truncs = sorted({row.trunc for row in rows if row.trunc is not None})
    curves: dict[str, dict[tuple[str, int], float]] = {}
    for row in rows:
        # What has no use for K is a level line over all of them.
        levels = truncs if row.trunc is None else [row.trunc]
        points: list[tuple[str, int, str, int | None]]
        points = [("K", trunc, "T", row.train_steps) for trunc in levels]
        if several:
            points.append(("T", row.train_steps, "K", row.trunc))
        for axis, step, other, value in points:
            fixed = "" if value is None else f"_{other}_{value}"
            curve = curves.setdefault(row.label.replace(":", "_") + fixed, {})
            for key in _AGAINST:
                if (found := getattr(row, key)) is not None:
                    curve[f"{key}/against_{axis}", step] = found
    for name, curve in curves.items():
        with SummaryWriter(str(events / name)) as writer:
            for (tag, step), height in curve.items():
                writer.add_scalar(tag, height, step)


_AGAINST = (
    "seconds",
    "saved_bytes",
    "peak_bytes",
    "flops",
    "time_ratio",
    "memory_ratio",
    "cosine",
    "sign_agreement",
    "descent",
    "norm_ratio",
)
