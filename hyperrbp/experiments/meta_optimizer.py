"""Makes the optimizer that a recipe asks for, or another one for the same experiment."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from hyperrbp.config.recipe_keys import ADAM, AUTO
from hyperrbp.experiments.experiment import Experiment
from hyperrbp.hypergradients.settings import GradientSettings
from hyperrbp.optimizers.adam import Adam, MethodSelector
from hyperrbp.optimizers.base import Evaluation, Optimizer, OptimizerState, minimize
from hyperrbp.optimizers.optuna_samplers import SAMPLERS
from hyperrbp.optimizers.optuna_search import OptunaSearch
from hyperrbp.optimizers.trust_region import TrustRegion
from hyperrbp.optimizers.trust_region_state import TrustRegionSettings
from hyperrbp.runtime.callbacks import Report, ignore

ENDLESS = sys.maxsize
"""So many meta steps that something else ends the run."""


def meta_optimizer(
    experiment: Experiment,
    name: str | None = None,
    *,
    steps: int | None = None,
    report: Report = ignore,
) -> Optimizer[Any]:
    """Return the optimizer of the hyperparameters of an experiment.

    Args:
        experiment: what is tuned.
        name: a key of ``hyperrbp.optimizers.OPTIMIZERS``; the recipe's own if not given.
        steps: meta steps, in place of the recipe's ``meta.steps``; Optuna's searches have no end.
        report: receives the progress of a screening.
    """
    recipe = experiment.recipe
    name = recipe.meta.optimizer if name is None else name
    if name in SAMPLERS:
        return OptunaSearch(experiment.box, name, seed=recipe.seed)
    steps = recipe.meta.steps if steps is None else steps
    if name == ADAM:
        settings = replace(experiment.meta, steps=steps)
        return Adam(_gradient(experiment), settings, seed=recipe.seed)
    return TrustRegion(
        experiment.box,
        experiment.gradient,
        TrustRegionSettings(
            steps=steps,
            screened=recipe.meta.screened,
            gradient=name in ("gradient", "both"),
            surrogate=name in ("surrogate", "both"),
            patience=recipe.meta.patience,
        ),
        tied=experiment.problem().layout.across_segments(),
        seed=recipe.seed,
        report=report,
    )


def evaluations(
    experiment: Experiment,
    optimizer: Optimizer[Any],
    state: OptimizerState,
) -> Iterator[Evaluation]:
    """Yield the runs that came to their end, one meta step each; the state goes along."""
    return (found for found in minimize(optimizer, experiment.problem, state) if found.complete)


def _gradient(experiment: Experiment) -> GradientSettings | MethodSelector:
    section, settings = experiment.recipe.gradient, experiment.gradient
    if section.method != AUTO:
        return settings
    from hyperrbp.optimizers.auto_method import EVERY, AutoMethod

    return AutoMethod(settings, section.check_every or EVERY, experiment.recipe.seed)
