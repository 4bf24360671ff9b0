"""A run on TensorBoard: a reader of records, and nothing else."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.tensorboard import SummaryWriter

from hyperrbp.experiments.summary_statistics import is_summary
from hyperrbp.reporting.terminal import words

if TYPE_CHECKING:
    from hyperrbp.experiments.experiment import Experiment
    from hyperrbp.experiments.run_folder import RunFolder
    from hyperrbp.experiments.tune import Record


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


class TensorBoard:
    """Writes ``events/``: each meta step once, also after a resume."""

    def started(self, experiment: Experiment, folder: RunFolder, earlier: Sequence[Record]) -> None:
        """Open the event files; what a resumed run wrote after its last checkpoint is purged."""
        self._experiment, self._folder = experiment, folder
        last = experiment.meta.steps
        self._curves = {
            last if step == -1 else step for step in experiment.recipe.record.inner_curves
        }
        self._writer = event_writer(folder.events, len(earlier))
        if not earlier:
            text = experiment.recipe.to_yaml()
            self._writer.add_text("recipe", "\n".join(f"    {row}" for row in text.splitlines()))
            self._writer.add_custom_scalars(overview(experiment.problem().layout.grains))

    def stepped(self, record: Record, theta: torch.Tensor) -> None:
        """One point on every curve."""
        n = record["meta_step"]
        for tag, value in scalars(record).items():
            self._writer.add_scalar(tag, value, n)
        layout = self._experiment.problem(n).layout
        natural = layout.natural(theta)
        for kind, at in layout.slices.items():
            if is_summary(record["hyperparameters"][kind]):
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

    def stopped(self) -> None:
        """Close the files."""
        if hasattr(self, "_writer"):
            self._writer.close()


def overview(kinds: Iterable[str]) -> dict[str, Any]:
    """The Custom Scalars page: all hyperparameters of a kind in one chart."""
    charts = {words(kind): ["Multiline", [f"^{kind}/"]] for kind in kinds}
    tuning = {"meta loss (log10)": ["Multiline", ["^meta/loss_log10$"]], **charts}
    return {"tuning": tuning, **_OVERVIEW}


def event_writer(events: Path, step: int) -> SummaryWriter:
    """A writer that begins at a step: what is there of it and of later ones is purged."""
    files = list(events.glob("events.out.tfevents.*"))
    # Readers order the files by the second in their names.
    newest = max((int(file.name.split(".")[3]) for file in files), default=0)
    deadline = time.monotonic() + 2  # should the clock have gone back
    while int(time.time()) <= newest and time.monotonic() < deadline:
        time.sleep(0.02)
    return SummaryWriter(str(events), purge_step=step if files else None)


def scalars(record: Record) -> dict[str, float]:
    """Every number of a record that makes a curve, by its tag."""
    loss = record["meta_loss"]
    tags: dict[str, Any] = {"meta/loss": loss}
    if loss > 0:
        tags["meta/loss_log10"] = math.log10(loss)
    for kind, values in record["hyperparameters"].items():
        tags |= _named(kind, values)
    if "gradient" in record:
        tags["gradient/norm"] = record["gradient_norm"]
        tags["gradient/residual"] = record["residual"]
        tags["gradient/steady_state_residual"] = record["steady_state_residual"]
        for kind, values in record["gradient"].items():
            tags[f"gradient/norm_{kind}"] = record["gradient_norms"][kind]
            tags |= _named(f"gradient_{kind}", values)
        for kind, values in (record["standard_error"] or {}).items():
            tags |= _named(f"standard_error_{kind}", values)
    if "diagnostics" in record:
        known = record["diagnostics"]
        tags["gradient/growth_rate"] = known["growth_rate"]
        tags["gradient/share_above_noise"] = known["above_noise"]
        tags |= {f"last_state/{_slug(name)}": value for name, value in known["norms"].items()}
    if "rollbacks" in record:
        tags["meta/rollbacks"] = len(record["rollbacks"])
    if "check" in record:
        tags |= _examination(record["check"])
    for phase, seconds in record["measured"]["seconds"].items():
        tags[f"seconds/{_slug(phase)}"] = seconds
    for phase, peaks in record["measured"]["peak_bytes"].items():
        tags |= _named(f"peak_bytes_{_slug(phase)}", peaks)
    return {tag: value for tag, value in tags.items() if value is not None}


def _examination(found: Mapping[str, Any]) -> dict[str, Any]:
    held, spectrum, horizon = found["agreement"], found["spectrum"], found["horizon"]
    tags = {
        "check/trusted": float(found["trusted"]),
        "check/cosine_with_exact": held["cosine"],
        "check/steepest_decrease_kept": held["descent"],
        "check/norm_over_exact": held["norm_ratio"],
        "check/spectral_radius": spectrum["radius"],
        "check/norm_of_jacobian": spectrum["norm"],
        "check/condition_on_krylov_space": spectrum["krylov_condition"],
        "check/step_change_over_predicted": found["smoothness"]["ratio"],
    }
    if horizon is not None:
        tags["check/short_horizon_bias"] = horizon["bias"]
    return tags


def _named(group: str, values: Mapping[str, float]) -> dict[str, float]:
    return {f"{group}/{name}": value for name, value in values.items()}


def _slug(phase: str) -> str:
    return phase.replace(" ", "_").replace("-", "_")


def write_comparison(document: Mapping[str, Any], events: Path) -> None:
    """Cost and rightness against K, and against T if there are several: one run a method.

    So that the methods stand in one chart.
    """
    rows = [row for row in document["rows"] if row["seconds"] is not None]
    several = len({row["train_steps"] for row in rows}) > 1
    truncs = sorted({row["trunc"] for row in rows if row["trunc"] is not None})
    curves: dict[str, dict[tuple[str, int], float]] = {}
    for row in rows:
        # What has no use for K is a level line over all of them.
        levels = truncs if row["trunc"] is None else [row["trunc"]]
        points = [("K", trunc, "T", row["train_steps"]) for trunc in levels]
        if several:
            points.append(("T", row["train_steps"], "K", row["trunc"]))
        for axis, step, other, value in points:
            fixed = "" if value is None else f"_{other}_{value}"
            curve = curves.setdefault(row["label"].replace(":", "_") + fixed, {})
            for key in _AGAINST:
                if row[key] is not None:
                    curve[f"{key}/against_{axis}", step] = row[key]
    for name, curve in curves.items():
        with SummaryWriter(str(events / name)) as writer:
            for (tag, step), value in curve.items():
                writer.add_scalar(tag, value, step)


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
