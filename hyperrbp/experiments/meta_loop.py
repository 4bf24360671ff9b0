"""Which meta loop a recipe asks for: the paper's descent by Adam, or the trust region."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from hyperrbp.config.recipe import ADAM, AUTO
from hyperrbp.experiments.experiment import Experiment
from hyperrbp.hypergradients.settings import GradientSettings
from hyperrbp.optimizers.adam import Chooser, MetaState, MetaStep, descend
from hyperrbp.optimizers.trust_region import TrustRegionSettings, TrustRegionState, minimize
from hyperrbp.runtime.callbacks import Told

State = MetaState | TrustRegionState
"""Where either of them stands."""


def begin(experiment: Experiment) -> State:
    """At the untuned start."""
    kind = MetaState if experiment.recipe.meta.optimizer == ADAM else TrustRegionState
    return kind(experiment.theta.clone())


def restored(experiment: Experiment, content: Mapping[str, Any]) -> State:
    """Where a run of the same recipe stood.

    Raises:
        KeyError, TypeError, ValueError: if the content is not of this version.
    """
    kind = MetaState if experiment.recipe.meta.optimizer == ADAM else TrustRegionState
    return kind.from_json(content, like=experiment.theta)


def taken(state: State) -> int:
    """How many meta steps it has taken; the evaluation at the start is none."""
    return state.meta_step if isinstance(state, MetaState) else max(0, state.meta_step - 1)


def given_up(state: State) -> int:
    """How many runs were not taken to their end."""
    return state.given_up if isinstance(state, TrustRegionState) else 0


def gradient_information(state: State) -> Mapping[str, Any] | None:
    """How the trust region found the gradient that it last went along."""
    return state.gradient_information if isinstance(state, TrustRegionState) else None


def meta_steps(
    experiment: Experiment,
    state: State,
    steps: int | None = None,
    told: Told = lambda *_: None,
) -> Iterator[MetaStep]:
    """Its evaluations, one after the other; the state goes along.

    Args:
        experiment: what is tuned.
        state: from :func:`begin` or :func:`restored`.
        steps: how many, in place of the recipe's ``meta.steps``.
        told: told how a screening goes.
    """
    recipe, meta = experiment.recipe, experiment.meta
    if steps is not None:
        meta = replace(meta, steps=steps)
    if isinstance(state, MetaState):
        how = _differentiator(experiment)
        return descend(experiment.problem, state, how, meta, seed=recipe.seed)
    section = recipe.meta
    settings = TrustRegionSettings(
        steps=meta.steps,
        screened=section.screened,
        gradient=section.optimizer in ("gradient", "both"),
        surrogate=section.optimizer in ("surrogate", "both"),
        patience=section.patience,
    )
    return minimize(
        experiment.problem,
        state,
        experiment.box,
        experiment.gradient,
        settings,
        tied=experiment.problem().layout.across_segments(),
        seed=recipe.seed,
        told=told,
    )


def _differentiator(experiment: Experiment) -> GradientSettings | Chooser:
    section, settings = experiment.recipe.gradient, experiment.gradient
    if section.method != AUTO:
        return settings
    from hyperrbp.optimizers.auto_method import EVERY, Auto

    return Auto(settings, section.check_every or EVERY, experiment.recipe.seed)
