"""Checks a recipe for what no single key shows to be wrong."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from functools import singledispatch
from typing import Any

from hyperrbp.config.data_checks import data_faults
from hyperrbp.config.equilibrium import EquilibriumRecipe, GraphNetRecipe, HopfieldRecipe
from hyperrbp.config.hyperparameters import unsupported_kinds
from hyperrbp.config.inner_checks import check_inner_run
from hyperrbp.config.inner_run import STARTS
from hyperrbp.config.key_paths import KeyFault, MootKey
from hyperrbp.config.recipe import Recipe
from hyperrbp.config.recipe_keys import ADAM, AUTO, HypergradientSection, ModelSection
from hyperrbp.config.schema import BaseRecipe
from hyperrbp.config.validation import named_option_faults, option_faults
from hyperrbp.data import sources
from hyperrbp.data.builtin import BUILTIN_SETS
from hyperrbp.data.citation_networks import NETWORKS
from hyperrbp.exceptions import UsageError
from hyperrbp.hypergradients import METHODS, Averaging, method_class
from hyperrbp.hypergradients.implicit import ImplicitMethod
from hyperrbp.problems.networks import MODELS, wanted_inputs
from hyperrbp.problems.penalties import PENALTIES
from hyperrbp.problems.training.update_rules import UPDATE_RULES
from hyperrbp.runtime import user_code
from hyperrbp.runtime.suggestions import not_one_of, shown
from hyperrbp.runtime.user_code import TORCHVISION


@singledispatch
def cross_check(recipe: BaseRecipe) -> Iterator[KeyFault]:
    """Yield what is wrong with a recipe, of whatever kind, each of whose keys is right by itself.

    Returns:
        pairs of a key and of what was expected there.
    """
    raise TypeError(f"no recipe: {type(recipe).__name__}")


@cross_check.register
def _(recipe: Recipe) -> Iterator[KeyFault]:
    yield from data_faults(recipe)
    yield from _model(recipe.model)
    yield from _shape(recipe)
    yield from check_inner_run(recipe)
    yield from _optimizer(recipe)
    yield from _method(recipe.gradient.method, recipe.gradient.options, also=[AUTO])
    if recipe.gradient.template in METHODS:
        yield from _gradient(recipe)
    yield from _meta_loss(recipe)
    yield from _inner_curves(recipe)


@cross_check.register
def _(recipe: EquilibriumRecipe) -> Iterator[KeyFault]:
    gradient, penalty = recipe.gradient, recipe.penalty
    yield from _method(gradient.method, gradient.options)
    if gradient.method in METHODS:
        method = method_class(gradient.method)()
        if method.steps_needed(gradient.trunc, Averaging()) > recipe.inference.updates:
            yield (
                ("gradient", "trunc"),
                f"{gradient.method} goes back over {gradient.trunc} updates; expected at most"
                f" the {recipe.inference.updates} of inference.updates",
            )
    if penalty is not None:
        if penalty.name not in PENALTIES:
            yield ("penalty", "name"), not_one_of(penalty.name, PENALTIES)
        else:
            kind = PENALTIES[penalty.name]
            yield from named_option_faults("penalty", penalty.name, kind, penalty.options)


@cross_check.register
def _(recipe: HopfieldRecipe) -> Iterator[KeyFault]:
    yield from cross_check.dispatch(EquilibriumRecipe)(recipe)
    data = recipe.data
    if data.name not in BUILTIN_SETS:
        yield ("data", "name"), not_one_of(data.name, BUILTIN_SETS)
    elif data.images > BUILTIN_SETS[data.name].classes:
        yield (
            ("data", "images"),
            f"expected at most the {BUILTIN_SETS[data.name].classes} classes of {data.name},"
            f" got {data.images}",
        )
    if recipe.training.batch_size > data.images:
        yield (
            ("training", "batch_size"),
            f"expected at most the {data.images} images, got {recipe.training.batch_size}",
        )


@cross_check.register
def _(recipe: GraphNetRecipe) -> Iterator[KeyFault]:
    yield from cross_check.dispatch(EquilibriumRecipe)(recipe)
    if recipe.data.name not in NETWORKS:
        yield ("data", "name"), not_one_of(recipe.data.name, NETWORKS)


# Network


def _model(model: ModelSection) -> Iterator[KeyFault]:
    at = ("model", "name")
    if model.name in MODELS:
        yield from named_option_faults("model", model.name, MODELS[model.name], model.options)
    elif model.name.startswith(TORCHVISION):
        if not model.name.removeprefix(TORCHVISION).isidentifier():
            yield at, f"expected a name as in torchvision:resnet18, got {shown(model.name)}"
    elif not user_code.is_code(model.name):
        yield at, f"{not_one_of(model.name, MODELS)}; or torchvision:NAME, file.py:function"


def _shape(recipe: Recipe) -> Iterator[KeyFault]:
    wanted, shape = wanted_inputs(recipe.model.name), recipe.data.shape
    if wanted is not None and wanted != "ids" and shape not in ("auto", wanted):
        yield (
            ("data", "shape"),
            f"{recipe.model.name} takes inputs of shape {wanted}; expected auto or {wanted},"
            f" got {shown(shape)}",
        )


def _optimizer(recipe: Recipe) -> Iterator[KeyFault]:
    if recipe.meta.optimizer == ADAM:
        return
    yield from _for_adam_only(recipe)
    yield from _start_outside_box(recipe)
    optimizer = recipe.meta.optimizer
    if optimizer in ("gradient", "both") and recipe.gradient.method == AUTO:
        yield (
            ("gradient", "method"),
            f"{AUTO} goes with meta.optimizer {ADAM}; expected a method by name, since"
            f" meta.optimizer is {optimizer}",
        )
    tuned = recipe.hyperparameters.tuned()
    many = [kind for kind, (by, _, _) in tuned.items() if by in ("weight", "example")]
    if optimizer in ("surrogate", "both") and many:
        yield (
            ("meta", "optimizer"),
            f"a surrogate of the loss cannot be fitted in as many dimensions as {many[0]} has;"
            f" expected adam or gradient, got {optimizer}",
        )


def _for_adam_only(recipe: Recipe) -> Iterator[KeyFault]:
    for key, given in (
        (("gradient", "check_every"), recipe.gradient.check_every),
        (("meta", "on_divergence"), recipe.meta.on_divergence == "rollback"),
        (("meta", "decay"), recipe.meta.decay),
    ):
        if given:
            fits, optimizer = f"meta.optimizer {ADAM}", recipe.meta.optimizer
            message = f"goes with {fits}; {optimizer} does not use it"
            yield MootKey(key, message, ("meta", "optimizer"), f"it goes with {fits}")


def _start_outside_box(recipe: Recipe) -> Iterator[KeyFault]:
    """Check that the recipe's start lies in the box, which all optimizers but Adam stay in."""
    starts = _starts(recipe)
    for kind, (_, _, (low, high)) in recipe.hyperparameters.tuned().items():
        start, where = starts.get(kind, (1.0, "the start"))
        if not low <= start <= high:
            yield (
                ("hyperparameters", kind, "range"),
                f"meta.optimizer {recipe.meta.optimizer} stays in it; expected a range that holds"
                f" {where} = {start:g}, got [{low:.3g}, {high:.3g}]",
            )


def _starts(recipe: Recipe) -> dict[str, tuple[float, str]]:
    """Return where kinds start, and the key that says so."""
    inner = recipe.inner
    found = {
        kind: (value, f"inner.{'schedule.' if kind.endswith('_share') else ''}{kind}")
        for kind, value in inner.starts().items()
    }
    if inner.optimizer in UPDATE_RULES:
        with contextlib.suppress(UsageError):  # options that are not allowed are faults elsewhere
            rule = UPDATE_RULES[inner.optimizer](**inner.options)
            own = {k: (v, "inner.options") for k, v in rule.defaults().items() if k not in STARTS}
            found |= own
    return found


def _method(
    method: str, options: Mapping[str, Mapping[str, Any]], also: Sequence[str] = ()
) -> Iterator[KeyFault]:
    """Check a gradient method, which is registered or in ``also``, and the options of methods."""
    for name, given in options.items():
        if name not in METHODS:
            yield ("gradient", "options", name), not_one_of(name, METHODS)
        else:
            yield from option_faults(method_class(name), given, ("gradient", "options", name))
    if method not in (known := [*also, *METHODS]):
        yield ("gradient", "method"), not_one_of(method, known)


def _gradient(recipe: Recipe) -> Iterator[KeyFault]:
    # Of epochs, any length may come out: the experiment checks it again, by the data.
    gradient = recipe.gradient
    steps = recipe.inner.steps if recipe.inner.epochs is None else 0
    method = method_class(gradient.template)
    yield from _estimator(gradient)
    if gradient.method != AUTO and recipe.meta.optimizer != "surrogate":
        for kind, why in unsupported_kinds(
            recipe.hyperparameters,
            method.horizon,
            trunc=gradient.trunc,
            steps=steps,
            scheduled=recipe.inner.schedule.shape != "constant"
            or recipe.inner.schedule.warmup_share > 0,
        ):
            yield ("gradient", "method"), f"{method.name} cannot see {kind}: {why}"
    if steps:
        yield from _steps_needed(gradient, steps)


def _estimator(gradient: HypergradientSection) -> Iterator[KeyFault]:
    """Check the estimator, which decides how implicit methods average, and they alone."""
    method, estimator = method_class(gradient.template), gradient.averaging.estimator
    if issubclass(method, ImplicitMethod) and estimator not in ("auto", *method.estimators):
        why = " needs one fixed Jacobian and" if method.fixed_operator else ""
        cannot = f"{gradient.template}{why} cannot take '{estimator}'"
        expected = f"{cannot}; expected auto or {' or '.join(method.estimators)}"
        at = ("gradient", "averaging", "estimator")
        yield MootKey(at, expected, ("gradient", "method"), cannot)


def _steps_needed(gradient: HypergradientSection, steps: int) -> Iterator[KeyFault]:
    method, section = method_class(gradient.template)(), gradient.averaging
    averaging = Averaging(section.estimator, section.minibatches, section.series)
    needed = method.steps_needed(gradient.trunc, averaging)
    if needed > steps:
        # The truncation is to blame if a shorter one would do, the averaging otherwise.
        blamed, got = "trunc", gradient.trunc
        if method.steps_needed(1, averaging) > steps:
            blamed, got = "averaging.minibatches", section.minibatches
        yield (
            ("gradient", *blamed.split(".")),
            f"{gradient.template} with trunc {gradient.trunc} over {section.minibatches}"
            f" minibatches needs {needed} training steps, more than the {steps} of inner.steps;"
            f" expected at most {max(1, got - (needed - steps))}, got {got}",
        )


def _meta_loss(recipe: Recipe) -> Iterator[KeyFault]:
    loss = recipe.meta.loss
    if recipe.hyperparameters.example_weight is not None and loss != "validation":
        yield (
            ("meta", "loss"),
            "hyperparameters.example_weight needs a loss on other examples, since the training"
            f" loss falls as they vanish; expected validation, got {loss}",
        )
    # Code may return a validation part of its own.
    if (
        loss == "validation"
        and recipe.data.validation_examples == 0
        and sources.kind_of(recipe.data.name) != "file.py:function"
    ):
        yield (
            ("data", "validation_examples"),
            "meta.loss is 'validation'; expected at least 1, got 0",
        )


def _inner_curves(recipe: Recipe) -> Iterator[KeyFault]:
    steps = recipe.meta.steps
    for i, step in enumerate(recipe.record.inner_curves):
        if not -1 <= step <= steps:
            yield (
                ("record", "inner_curves", i),
                f"expected a meta step from 0 to {steps} (or -1), got {step}",
            )
