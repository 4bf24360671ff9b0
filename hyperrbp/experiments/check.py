"""Checks whether the gradient of a recipe can be trusted, and recommends a method."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from hyperrbp.config.recipe import Recipe
from hyperrbp.config.recipe_keys import AUTO
from hyperrbp.exceptions import UsageError
from hyperrbp.experiments.experiment import Experiment
from hyperrbp.experiments.results.check import (
    CandidateReport,
    CheckReport,
    Recommendation,
    SettingsReport,
)
from hyperrbp.hypergradients.diagnostics.examination import Examination, Scope, examine
from hyperrbp.hypergradients.diagnostics.last_state import EXACT
from hyperrbp.hypergradients.diagnostics.verdict import Verdict
from hyperrbp.hypergradients.method_selection import (
    Candidate,
    choose,
    described,
    evaluate,
    exact_candidate,
    label,
    truncations_at,
)
from hyperrbp.hypergradients.settings import GradientSettings
from hyperrbp.runtime.callbacks import Callback, ProgressTracker
from hyperrbp.runtime.documents import finite_or_null

CheckCallback = Callback[Recipe, CheckReport]


def check_recipe(
    recipe: Recipe,
    *,
    hyperparameters: Mapping[str, Mapping[str, float]] | None = None,
    exact: bool = True,
    data_root: Path | None = None,
    callback: CheckCallback | None = None,
) -> CheckReport:
    """Examine the gradient of a recipe.

    Args:
        recipe: a validated recipe.
        hyperparameters: where to examine it, as ``result.json`` of a tuning run has them; at the
            recipe's start if not given.
        exact: compare it with the exact gradient, and try other methods too.
        data_root: where data sets live.
        callback: receives the progress, in seconds of the expected ones, and the report.

    Raises:
        HyperrbpError: if the recipe cannot be run.
    """
    callback = callback or CheckCallback()
    tracker = ProgressTracker(callback.on_progress)
    started = time.perf_counter()
    try:
        callback.on_start(recipe)
        experiment = Experiment(recipe, data_root)
        problem = experiment.problem()
        theta = experiment.theta if hyperparameters is None else problem.theta_of(hyperparameters)
        problem.prepare(theta)
        settings = experiment.gradient
        scope = Scope(exact=exact, meta_learning_rate=recipe.meta.learning_rate)
        try:
            found = examine(problem, theta, settings, scope, seed=recipe.seed, tracker=tracker)
        except UsageError:
            if recipe.gradient.method != AUTO:
                raise
            # What it would try first is refused here; it would come down to the exact one.
            settings = replace(EXACT, trunc=settings.trunc)
            found = examine(problem, theta, settings, scope, seed=recipe.seed, tracker=tracker)
        candidates, recommendation = _recommend(found, experiment.recipe, tracker)
        report = CheckReport(
            recipe=experiment.recipe,
            weights=problem.weights,
            hyperparameters=finite_or_null(problem.describe(theta)),
            asked=_settings(settings),
            **finite_or_null(found.to_json()),
            candidates=candidates,
            recommendation=recommendation,
            environment=experiment.environment(),
            seconds=time.perf_counter() - started,
        )
        callback.on_record(report)
        return report
    finally:
        callback.on_end()


def _settings(settings: GradientSettings) -> SettingsReport:
    return SettingsReport(label=label(settings), **described(settings))


def _recommend(
    found: Examination, recipe: Recipe, tracker: ProgressTracker
) -> tuple[list[CandidateReport], Recommendation]:
    """Try other methods, and recommend one; without an exact gradient, what the verdict says."""
    if found.exact is None or found.verdict is Verdict.NOT_THE_DERIVATIVE:
        return [], Recommendation(label=None, why=found.verdict.advice)
    tracker.begin("other methods")
    of_itself = found.verdict is Verdict.EXACT
    took = found.seconds["the gradient in question" if of_itself else "the exact gradient"]
    ran = found.seconds["the run"]
    exact = exact_candidate(found.at, found.exact, took)
    others = evaluate(
        found.at,
        truncations_at(found.settings, recipe.inner.steps),
        found.exact,
        ran,
        recipe.seed,
    )
    choice = choose(others, exact)
    keep = choice.chosen.label == label(found.settings) or (
        found.verdict is Verdict.EXACT and choice.chosen is exact
    )
    recommendation = Recommendation(
        **described(choice.chosen.settings), label=choice.chosen.label, why=choice.why, keep=keep
    )
    return [_candidate(each) for each in (*others, exact)], recommendation


def _candidate(candidate: Candidate) -> CandidateReport:
    return CandidateReport(**finite_or_null(candidate.to_json()))
