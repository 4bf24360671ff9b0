"""Shows what a tuning run should cost."""

from __future__ import annotations

from hyperrbp.config.recipe_keys import ADAM
from hyperrbp.experiments.results.dry_run import DryRunReport
from hyperrbp.reporting.formatting import duration, human_bytes


def cost_lines(report: DryRunReport) -> list[str]:
    """Return the sizes and the predicted costs of a run, in three lines."""
    meta = report.recipe.meta
    total = duration((meta.steps + 1) * report.seconds)
    screening = ""
    if meta.optimizer != ADAM:
        screening = " after the screening; those without a gradient cost less"
    return [
        f"{report.weights:,} weights, {report.hyperparameters} hyperparameters",
        f"a meta step: about {duration(report.seconds)}; autograd keeps"
        f" {human_bytes(report.saved_bytes)}, the process peaks near"
        f" {human_bytes(report.peak_bytes)}",
        f"the run: {meta.steps} meta steps, about {total}{screening}",
    ]
