"""The gradient method ``auto``: selects the method that suits best, and again every so often."""

from __future__ import annotations

import time
from dataclasses import replace

from hyperrbp.hypergradients import Averaging
from hyperrbp.hypergradients.diagnostics.last_state import LastState
from hyperrbp.hypergradients.method_selection import (
    choose,
    described,
    evaluate,
    exact_candidate,
    methods_at,
)
from hyperrbp.hypergradients.settings import GradientSettings
from hyperrbp.optimizers.adam import AdamState
from hyperrbp.problems.base import Problem

EVERY = 20
"""Meta steps between two choices: what suits a run changes as it is tuned."""


class AutoMethod:
    """Selects a gradient method for ``hyperrbp.optimizers.adam.Adam``.

    It selects by counted work and by agreement, both of which a repeated run finds again, and a
    resumed one reads its last choice from the state.

    Args:
        template: K and the averaging of whatever is chosen.
        every: choose again every so many meta steps.
        seed: of what the methods sample.
    """

    def __init__(self, template: GradientSettings, every: int = EVERY, seed: int = 0) -> None:
        self._template, self._every, self._seed = template, every, seed

    def __call__(self, state: AdamState, problem: Problem) -> GradientSettings:
        """Return the settings for the next gradient."""
        if state.meta_step % self._every == 0 or state.choice is None:
            self._choose(state, problem)
        assert state.choice is not None
        found = state.choice
        return GradientSettings(
            found["method"], found["trunc"], Averaging(**found["averaging"]), found["options"]
        )

    def _choose(self, state: AdamState, problem: Problem) -> None:
        started = time.perf_counter()
        at = LastState.of_run(problem, state.theta)
        ran = time.perf_counter()
        exact = at.exact_gradient()
        reference = exact_candidate(at, exact, time.perf_counter() - ran)
        field = evaluate(
            at, methods_at(self._template, problem.steps), exact, ran - started, self._seed
        )
        choice = choose(field, reference)
        settings = choice.chosen.settings
        if choice.chosen is reference:
            settings = replace(settings, trunc=self._template.trunc)
        state.choice = {
            "meta_step": state.meta_step,
            "label": choice.chosen.label,
            "why": choice.why,
            **described(settings),
        }
