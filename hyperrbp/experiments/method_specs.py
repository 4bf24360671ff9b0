"""Names the gradient methods of a comparison, each with its options, K and T."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hyperrbp.config.loading import scalar
from hyperrbp.config.recipe import Recipe
from hyperrbp.exceptions import RecipeError, UsageError
from hyperrbp.hypergradients import method_class

BASELINE = "bptt"
"""The method to whose costs the ratios are taken: unrolled back-propagation, as in Table 3."""


@dataclass(frozen=True)
class MethodSpec:
    """A gradient method with its options, truncation and length of run."""

    method: str
    options: tuple[tuple[str, Any], ...]
    trunc: int | None
    """K; None where the method has no use for it."""
    train_steps: int

    @property
    def label(self) -> str:
        """Return its name on the command line: ``bptt:keep=states``."""
        return ":".join([self.method, *(f"{key}={value}" for key, value in self.options)])

    def recipe(self, recipe: Recipe) -> Recipe:
        """Return the recipe with this spec's method and T in place of its own."""
        section = recipe.gradient
        averaging = section.averaging
        if averaging.estimator not in ("auto", *method_class(self.method).estimators):
            averaging = averaging.model_copy(update={"estimator": "auto"})
        options = {**section.options.get(self.method, {}), **dict(self.options)}
        if self.label == BASELINE:
            options = {"keep": "graph"}  # whatever the recipe prefers
        gradient = section.model_copy(
            update={
                "method": self.method,
                "trunc": self.trunc or 1,
                "averaging": averaging,
                "options": {self.method: options},
            }
        )
        inner = recipe.inner.model_copy(update={"steps": self.train_steps, "epochs": None})
        return recipe.model_copy(update={"gradient": gradient, "inner": inner})


def method_specs(
    methods: Sequence[str], truncs: Sequence[int], train_steps: Sequence[int]
) -> list[MethodSpec]:
    """Return every method for every K that it has a use for and every T, the baseline first.

    Args:
        methods: names, each with options if need be: ``bptt:keep=states``.
        truncs: K.
        train_steps: T.

    Raises:
        UsageError: for a method or a number that cannot be.
    """
    for name, values in (("--trunc", truncs), ("--train-steps", train_steps)):
        if not values or min(values) < 1:
            raise UsageError(f"{name}: expected whole numbers of at least 1")
    named = [parsed(method) for method in dict.fromkeys([BASELINE, *methods])]
    return [
        MethodSpec(method, options, trunc, steps)
        for steps in dict.fromkeys(train_steps)
        for method, options in named
        for trunc in (dict.fromkeys(truncs) if method_class(method).uses_trunc else [None])
    ]


def parsed(text: str) -> tuple[str, tuple[tuple[str, Any], ...]]:
    """Return the method and the options in ``METHOD:option=value:…``.

    Raises:
        UsageError: for an unknown method, or an option that is not ``option=value``.
    """
    name, *settings = text.split(":")
    method_class(name)
    options: dict[str, Any] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key:
            raise UsageError(f"--methods {text}: expected METHOD:option=value")
        if key in options:
            raise UsageError(f"--methods {text}: {key} is given twice")
        try:
            options[key] = scalar(value, key)
        except RecipeError as error:
            raise UsageError(f"--methods {text}: {key}: {error.faults[0].message}") from None
    return name, tuple(options.items())
