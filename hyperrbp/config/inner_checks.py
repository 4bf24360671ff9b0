"""Checks the inner run of a tuning recipe: optimizer, schedule, and what of them is tuned."""

from __future__ import annotations

import math
from collections.abc import Iterator

from hyperrbp.config.inner_run import STARTS, InnerSection
from hyperrbp.config.key_paths import KeyFault, MootKey
from hyperrbp.config.recipe import Recipe
from hyperrbp.config.recipe_keys import AUTO
from hyperrbp.config.validation import option_faults
from hyperrbp.hypergradients import METHODS
from hyperrbp.problems.losses import AUTO as AUTO_LOSS
from hyperrbp.problems.losses import LOSSES
from hyperrbp.problems.training.schedules import KINDS_OF, SHAPES
from hyperrbp.problems.training.update_rules import UPDATE_RULES
from hyperrbp.runtime import user_code
from hyperrbp.runtime.suggestions import not_one_of

_LIMITS = {
    "momentum": 1.0,
    "beta1": 1.0,
    "beta2": 1.0,
    "alpha": 1.0,
    "warmup_share": 1.0,
    "end_share": 1.0,
    "example_weight": 2.0,
}
_ALWAYS = ("init_scale", "example_weight")


def check_inner_run(recipe: Recipe) -> Iterator[KeyFault]:
    """Yield what is wrong with the inner run, and with what of it is tuned."""
    yield from _loss(recipe.inner)
    yield from _optimizer(recipe.inner)
    yield from _schedule(recipe)
    yield from _kinds(recipe)
    yield from _ranges(recipe)
    yield from _starts(recipe)
    yield from _differentiable(recipe)


def _loss(inner: InnerSection) -> Iterator[KeyFault]:
    known = (AUTO_LOSS, *LOSSES)
    if inner.loss not in known and not user_code.is_code(inner.loss):
        yield ("inner", "loss"), f"{not_one_of(inner.loss, known)}; or file.py:function"
    elif inner.label_smoothing and inner.loss not in (AUTO_LOSS, "cross-entropy"):
        yield (
            ("inner", "label_smoothing"),
            f"goes with inner.loss cross-entropy; expected 0, got {inner.label_smoothing:g}",
        )


def _optimizer(inner: InnerSection) -> Iterator[KeyFault]:
    name = inner.optimizer
    if name in UPDATE_RULES:
        rule = UPDATE_RULES[name]
        yield from option_faults(rule, inner.options, ("inner", "options"))
        for kind in STARTS:
            if getattr(inner, kind) is not None and kind not in rule.kinds:
                having = [other for other, of in UPDATE_RULES.items() if kind in of.kinds]
                plain = kind.replace("_", " ")
                yield MootKey(
                    ("inner", kind),
                    f"{name} has no {plain}; {', '.join(having)} have one",
                    ("inner", "optimizer"),
                    f"{name} has no {plain}",
                    null=True,
                )
    elif not user_code.is_code(name):
        yield ("inner", "optimizer"), f"{not_one_of(name, UPDATE_RULES)}; or file.py:function"
    if inner.batch_size % inner.accumulate:
        yield (
            ("inner", "accumulate"),
            f"expected a divisor of inner.batch_size = {inner.batch_size}, got {inner.accumulate}",
        )


def _schedule(recipe: Recipe) -> Iterator[KeyFault]:
    schedule, tuned = recipe.inner.schedule, recipe.hyperparameters
    if schedule.shape not in SHAPES:
        yield ("inner", "schedule", "shape"), not_one_of(schedule.shape, SHAPES)
        return
    has = KINDS_OF.get(schedule.shape, ())
    if schedule.end_share and "end_share" not in has:
        yield (
            ("inner", "schedule", "end_share"),
            f"goes with linear and cosine; expected 0 with {schedule.shape},"
            f" got {schedule.end_share:g}",
        )
    if schedule.knots != [1.0] and "knots" not in has:
        yield ("inner", "schedule", "knots"), f"goes with knots, not with {schedule.shape}"
    for kind, section in (
        ("warmup_share", tuned.warmup_share),
        ("end_share", tuned.end_share),
    ):
        start = getattr(schedule, kind)
        if section is not None and not 0 < start < 1 and kind in ("warmup_share", *has):
            yield (
                ("inner", "schedule", kind),
                f"hyperparameters.{kind} starts here; expected a number between 0 and 1,"
                f" got {start:g}",
            )


def _kinds(recipe: Recipe) -> Iterator[KeyFault]:
    """Check that the optimizer or the schedule has what is tuned."""
    tuned, name = recipe.hyperparameters.tuned(), recipe.inner.optimizer
    if not tuned:
        yield ("hyperparameters",), "expected at least one kind that is tuned; all are null"
    if name not in UPDATE_RULES or recipe.inner.schedule.shape not in SHAPES:
        return
    shape = recipe.inner.schedule.shape
    known = (
        *UPDATE_RULES[name].kinds,
        "warmup_share",
        *KINDS_OF.get(shape, ()),
        *_ALWAYS,
    )
    for kind in tuned:
        if kind not in known:
            of_schedule = kind in ("end_share", "knots")
            yield MootKey(
                ("hyperparameters", kind),
                f"neither the optimizer {name} nor the schedule {shape} has it; they have"
                f" {', '.join(known)}",
                ("inner", "schedule", "shape") if of_schedule else ("inner", "optimizer"),
                f"{shape if of_schedule else name} has none",
                null=True,
            )


def _ranges(recipe: Recipe) -> Iterator[KeyFault]:
    steps = recipe.inner.steps
    for kind, (_, segments, (low, high)) in recipe.hyperparameters.tuned().items():
        most = _LIMITS.get(kind, math.inf)
        if not 0 < low < high < most:
            below = f", below {most:g}" if math.isfinite(most) else ""
            yield (
                ("hyperparameters", kind, "range"),
                f"expected 0 < low < high{below}, got [{low:g}, {high:g}]",
            )
        if segments > steps and recipe.inner.epochs is None:
            yield (
                ("hyperparameters", kind, "segments"),
                f"expected at most the {steps} steps of inner.steps, got {segments}",
            )


def _starts(recipe: Recipe) -> Iterator[KeyFault]:
    for kind in ("weight_decay", "momentum"):
        if kind in recipe.hyperparameters.tuned() and getattr(recipe.inner, kind) == 0:
            yield (
                ("inner", kind),
                f"hyperparameters.{kind} starts here; expected a number above 0, got 0",
            )


def _differentiable(recipe: Recipe) -> Iterator[KeyFault]:
    rule, method = UPDATE_RULES.get(recipe.inner.optimizer), recipe.gradient.method
    if rule is None or rule.differentiable or recipe.meta.optimizer == "surrogate":
        return
    if method in (AUTO, *METHODS):
        yield (
            ("inner", "optimizer"),
            f"{rule.name} takes the sign of a mean gradient, whose derivative is zero almost"
            " everywhere: no gradient method can tell how a run depends on its hyperparameters;"
            " expected meta.optimizer: surrogate, or another optimizer",
        )
