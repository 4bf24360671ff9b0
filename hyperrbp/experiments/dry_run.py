"""Prepares a tuning run and predicts its cost, without beginning it."""

from __future__ import annotations

from pathlib import Path

from hyperrbp.config.recipe import Recipe
from hyperrbp.experiments.experiment import Experiment
from hyperrbp.experiments.results.dry_run import DryRunReport
from hyperrbp.hypergradients.cost_model import predicted_cost


def dry_run(recipe: Recipe, *, data_root: Path | None = None) -> DryRunReport:
    """Predict the cost of a meta step of a tuning run from a few short training runs.

    Raises:
        DataError: if the data are missing or too small.
        DeviceError: if the device is not there.
    """
    experiment = Experiment(recipe, data_root)
    problem = experiment.problem()
    cost = predicted_cost(problem, experiment.theta, experiment.gradient)
    return DryRunReport(
        recipe=experiment.recipe,
        weights=problem.weights,
        hyperparameters=len(experiment.theta),
        seconds=cost.seconds,
        saved_bytes=cost.saved_bytes,
        peak_bytes=cost.process_bytes,
    )
