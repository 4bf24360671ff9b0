"""Can the gradient of a recipe be trusted? Everything that is asked of it, and what to use."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hyperrbp.config.recipe import Recipe
from hyperrbp.experiments.experiment import Experiment
from hyperrbp.hypergradients.diagnostics.examination import Examination, Scope, examine
from hyperrbp.hypergradients.diagnostics.verdict import Verdict
from hyperrbp.hypergradients.method_selection import (
    choose,
    described,
    evaluate,
    exact_candidate,
    label,
    truncations_at,
)
from hyperrbp.runtime.callbacks import Audience
from hyperrbp.runtime.documents import finite_or_null


def check_recipe(
    recipe: Recipe,
    *,
    hyperparameters: Mapping[str, Mapping[str, float]] | None = None,
    exact: bool = True,
    data_root: Path | None = None,
    audience: Audience | None = None,
) -> dict[str, Any]:
    """Examine the gradient of a recipe.

    Args:
        recipe: a validated recipe.
        hyperparameters: where to examine it, as ``result.json`` of a tuning run has them; at the
            recipe's start if not given.
        exact: hold it against the exact gradient, and try other methods too.
        data_root: where data sets live.
        audience: told how it goes.

    Returns:
        What ``--json`` prints; ``document["trusted"]`` is the verdict in a word.

    Raises:
        HyperrbpError: if the recipe cannot be run.
    """
    audience = audience or Audience()
    started = time.perf_counter()
    experiment = Experiment(recipe, data_root)
    problem = experiment.problem()
    theta = experiment.theta if hyperparameters is None else problem.theta_of(hyperparameters)
    problem.prepare(theta)
    settings = experiment.gradient
    scope = Scope(exact=exact, meta_learning_rate=recipe.meta.learning_rate)
    found = examine(problem, theta, settings, scope, seed=recipe.seed, audience=audience)
    document: dict[str, Any] = {
        "recipe": experiment.recipe.model_dump(),
        "weights": problem.weights,
        "hyperparameters": problem.describe(theta),
        "asked": {"label": label(settings), **described(settings)},
        **found.to_json(),
        **_recommended(found, recipe, audience),
        "environment": experiment.environment(),
        "seconds": time.perf_counter() - started,
    }
    return dict(finite_or_null(document))


def _recommended(found: Examination, recipe: Recipe, audience: Audience) -> dict[str, Any]:
    """The method to use; without the exact gradient, what the verdict advises."""
    if found.exact is None:
        return {"candidates": [], "recommendation": {"label": None, "why": found.verdict.advice}}
    audience.begins("other methods")
    of_itself = found.verdict is Verdict.EXACT
    took = found.seconds["the gradient in question" if of_itself else "the exact gradient"]
    ran = found.seconds["the run"]
    exact = exact_candidate(found.at, found.exact, took)
    field = evaluate(
        found.at,
        truncations_at(found.settings, recipe.inner.steps),
        found.exact,
        ran,
        recipe.seed,
    )
    choice = choose(field, exact)
    return {
        "candidates": [each.to_json() for each in [*field, exact]],
        "recommendation": {
            **described(choice.chosen.settings),
            "label": choice.chosen.label,
            "why": choice.why,
            "keep": choice.chosen.label == label(found.settings)
            or (found.verdict is Verdict.EXACT and choice.chosen is exact),
        },
    }
