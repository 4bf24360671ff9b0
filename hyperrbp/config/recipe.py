"""What a recipe may say, and clear words when it does not.

A recipe is a YAML mapping. Reading one executes nothing, imports no numerics, and touches neither
data nor device.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, ValidationError

from hyperrbp.config import hyperparameters as tuned
from hyperrbp.config import strict_yaml
from hyperrbp.config.equilibrium import SYSTEMS, method_faults
from hyperrbp.config.hyperparameters import HyperparametersSection, unseen
from hyperrbp.config.schema import (
    NAME,
    AnyRecipe,
    KeyFault,
    Section,
    faults,
    not_one_of,
    option_faults,
)
from hyperrbp.config.strict_yaml import KeyPath, dotted, shown
from hyperrbp.data import sources as own_data
from hyperrbp.data.builtin import SOURCES
from hyperrbp.exceptions import Fault, RecipeError
from hyperrbp.hypergradients import METHODS, Averaging, method_class
from hyperrbp.hypergradients.implicit import ImplicitMethod
from hyperrbp.problems.losses import AUTO as AUTO_LOSS
from hyperrbp.problems.losses import LOSSES
from hyperrbp.problems.networks import MODELS, TORCHVISION, wanted_inputs
from hyperrbp.runtime import user_code


class DataSection(Section):
    """The examples."""

    name: str = Field(
        "digits",
        description="data set: "
        + ", ".join(SOURCES)
        + "; or your own, relative to the recipe: file.npz, folder/ of images, torchvision:NAME, or"
        " code that returns ((x, y), (x, y)): file.py:function, package.module:function",
    )
    options: dict[str, Any] = Field(
        default_factory=dict,
        description="its own options; file.npz: heldout, channels; folder/: size, colors, heldout;"
        " torchvision: size, colors, split; for code: keyword arguments",
    )
    shape: Literal["auto", "flat", "image", "own"] = Field(
        "auto",
        description="of an input: flat, (features,) | image, (C, H, W) | own, as the data have it |"
        " auto: what the network wants, flat for code",
    )
    train_examples: int | None = Field(
        None, ge=1, description="use the first so many training examples; all if null"
    )
    validation_examples: int = Field(
        0, ge=0, description="how many of those to hold back for the meta loss"
    )
    label_noise: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of the examples left to train on whose class is replaced by another",
    )
    center: bool = Field(True, description="subtract the mean training example")
    download: bool = Field(False, description="fetch the data set if its files are absent")


class ModelSection(Section):
    """The network that the inner run trains."""

    name: str = Field(
        "mlp",
        description="network: "
        + ", ".join(MODELS)
        + "; torchvision:NAME, untrained; or code of your own that makes one from (features,"
        " classes): file.py:function, relative to the recipe, or package.module:function",
    )
    options: dict[str, Any] = Field(
        default_factory=dict,
        description="its own options; for mlp: hidden, activation; for conv: channels, kernel,"
        " activation, pooling, hidden; for torchvision: normalization, and what it takes itself;"
        " for code: keyword arguments",
    )
    init_std: float | None = Field(
        0.049787068367863944,
        gt=0,
        description="standard deviation of all initial weights; the paper's is exp(-3). null: the"
        " network's own initialization",
    )


class InnerSection(Section):
    """The inner run: SGD with momentum."""

    steps: int = Field(200, ge=1, le=10**9, description="T, training steps of one inner run")
    batch_size: int = Field(200, ge=1, description="examples a step")
    update: Literal["maclaurin", "pytorch"] = Field(
        "maclaurin", description="v'=βv−(1−β)g, w'=w+αv' | torch.optim.SGD's v'=βv+g, w'=w−αv'"
    )
    learning_rate: float = Field(
        0.36787944117144233,
        gt=0,
        description="α of every tensor at the start; the paper's is exp(-1)",
    )
    momentum: float = Field(0.5, gt=0, lt=1, description="β of every tensor at the start")
    weight_decay: float = Field(
        0.0, ge=0, lt=1000, description="λ of every tensor at the start: λ/2 ‖w‖² in the loss"
    )
    loss: str = Field(
        AUTO_LOSS,
        description="auto | "
        + " | ".join(LOSSES)
        + " | code of your own, of (outputs, targets): file.py:function; auto: cross-entropy for"
        " whole targets, mse for others",
    )
    fresh: bool = Field(
        False, description="new initial weights and batches at every meta step; the paper's: false"
    )


class AveragingSection(Section):
    """Over which minibatches the hypergradient is averaged."""

    estimator: Literal["auto", "frozen", "resampled", "mean"] = Field(
        "auto", description="auto | resampled | frozen | mean; auto: the best that the method takes"
    )
    minibatches: int = Field(
        10, ge=1, description="M: minibatches of the last M steps (end points, for tbptt)"
    )
    series: int = Field(2, ge=1, description="how many series 'resampled' averages")


OptimizerName = Literal["adam", "gradient", "surrogate", "both"]
ADAM: OptimizerName = "adam"
"""The paper's meta loop."""
AUTO = "auto"
"""The method that chooses among the others."""


class GradientSection(Section):
    """How the loss on the last state is differentiated."""

    method: str = Field(
        "neumann",
        description="auto | " + " | ".join(METHODS) + "; auto: what `check` would recommend",
    )
    trunc: int = Field(50, ge=1, description="K, truncation steps")
    averaging: AveragingSection = AveragingSection()
    options: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="options of each method, by its name"
    )
    check_every: int = Field(
        0,
        ge=0,
        description="examine the gradient in full every so many meta steps; 0: never. auto chooses"
        " again then; if 0, every 20",
    )

    @property
    def template(self) -> str:
        """The method whose settings these are: for auto, the one that it tries first."""
        return "neumann" if self.method == AUTO else self.method


class DecaySection(Section):
    """A single drop of the meta learning rate."""

    factor: float = Field(0.1, gt=0, le=1, description="multiply the meta learning rate by this")
    from_step: int = Field(50, ge=1, description="from this meta step on")


class MetaSection(Section):
    """The outer loop: a descent on the logarithms and logits of the hyperparameters."""

    steps: int = Field(30, ge=1, le=10**7, description="meta steps")
    optimizer: OptimizerName = Field(
        ADAM,
        description="adam: from the start, the paper's | or, from the best of a screening in the"
        " box, gradient: steps of adaptive length along the gradient of the log loss | surrogate: a"
        " local model of the loss, no gradient | both: the gradient, and the model where it fails",
    )
    screened: int = Field(
        81, ge=1, le=10**6, description="points that are screened on shortened runs; 1: the start"
    )
    learning_rate: float = Field(0.05, gt=0, le=1000, description="of Adam")
    decay: DecaySection | None = Field(None, description="{factor, from_step}, or null")
    on_divergence: Literal["stop", "rollback"] = Field(
        "stop",
        description="where something turns non-finite: stop | go back to the best with half the"
        " meta step",
    )
    max_rollbacks: int = Field(10, ge=1, le=100, description="how often, before it stops")
    patience: int | None = Field(
        None,
        ge=1,
        le=10**7,
        description="end early once the best meta loss is so many meta steps old; null: never",
    )
    loss: Literal["train", "validation"] = Field(
        "train", description="the loss on all training examples | on the validation split"
    )


class RecordSection(Section):
    """What is written besides one record a meta step."""

    inner_curves: list[int] = Field(
        default_factory=lambda: [0, -1],
        description="meta steps whose inner training curve goes to TensorBoard; -1 is the last",
    )
    test_seeds: int = Field(
        3,
        ge=0,
        le=1000,
        description="at the end, train from so many other initial weights and batches, tuned and"
        " untuned, and test each on the held-out examples",
    )


class Recipe(AnyRecipe):
    """A tuning run from its data to its last meta step."""

    may_change = ("meta.steps",)

    data: DataSection = DataSection()
    model: ModelSection = ModelSection()
    inner: InnerSection = InnerSection()
    hyperparameters: HyperparametersSection = HyperparametersSection()
    gradient: GradientSection = GradientSection()
    meta: MetaSection = MetaSection()
    record: RecordSection = RecordSection()

    def contradictions(self) -> Iterator[KeyFault]:
        """What no single key shows to be wrong: (key, what was expected)."""
        return contradictions(self)

    def code(self) -> Iterator[tuple[str, str]]:
        """The code of the user's own that it would run: (key, what in words)."""
        for key, name in (
            ("data.name", self.data.name),
            ("model.name", self.model.name),
            ("inner.loss", self.inner.loss),
        ):
            if user_code.is_code(name):
                yield key, user_code.described(name)

    def located(self, folder: Callable[[str], Path]) -> Recipe:
        """The same with absolute paths; ``folder`` of a key is what its path was relative to."""
        data, model, inner = self.data, self.model, self.inner
        if data.name not in SOURCES:
            name = own_data.located(data.name, folder("data.name"))
            data = data.model_copy(update={"name": name})
        if user_code.is_code(model.name):
            name = user_code.located(model.name, folder("model.name"))
            model = model.model_copy(update={"name": name})
        if user_code.is_code(inner.loss):
            loss = user_code.located(inner.loss, folder("inner.loss"))
            inner = inner.model_copy(update={"loss": loss})
        return self.model_copy(update={"data": data, "model": model, "inner": inner})


Override = tuple[str, str, Any]
"""(what the user typed it with, dotted key, value): ``("--trunc", "gradient.trunc", 50)``."""


def read(path: Path, overrides: Sequence[Override] = ()) -> Recipe:
    """The tuning recipe in a file, with the command line's values over it.

    Raises:
        RecipeError: with one fault for everything that is wrong.
    """
    recipe = read_any(path, overrides)
    if not isinstance(recipe, Recipe):
        raise RecipeError([_not_to_be_tuned(str(path), recipe)])
    return recipe


def read_any(path: Path, overrides: Sequence[Override] = ()) -> AnyRecipe:
    """The recipe in a file, of whatever kind; see :func:`read`."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise RecipeError([Fault(str(path), None, "", error.strerror or str(error))]) from None
    except UnicodeDecodeError:
        raise RecipeError([Fault(str(path), None, "", "not a text file in UTF-8")]) from None
    return parse_any(
        text, source=str(path), name=path.stem, overrides=overrides, folder=path.parent
    )


def parse(
    text: str, *, source: str = "recipe", name: str = "recipe", overrides: Sequence[Override] = ()
) -> Recipe:
    """The tuning recipe in a text; see :func:`read`. ``name`` is used where the text names none."""
    recipe = parse_any(text, source=source, name=name, overrides=overrides)
    if not isinstance(recipe, Recipe):
        raise RecipeError([_not_to_be_tuned(source, recipe)])
    return recipe


def _not_to_be_tuned(source: str, recipe: AnyRecipe) -> Fault:
    message = f"{recipe.name} is a network to train, not a run to tune: hyperrbp train {source}"
    return Fault(source, None, "system", message)


def parse_any(
    text: str,
    *,
    source: str = "recipe",
    name: str = "recipe",
    overrides: Sequence[Override] = (),
    folder: Path | None = None,
) -> AnyRecipe:
    """The recipe in a text, of whatever kind; its key ``system`` says which.

    Paths in it are relative to ``folder``; those among the overrides, to the working folder.
    """
    content, lines = _mapping(text, source)
    origins: dict[KeyPath, str] = {}
    for origin, key, value in overrides:
        _override(content, lines, origins, origin, key, value)
    content.setdefault("name", name if re.fullmatch(NAME, name) else "recipe")

    def fault(at: KeyPath, message: str) -> Fault:
        for end in range(len(at), 0, -1):
            if at[:end] in origins:
                return Fault(origins[at[:end]], None, dotted(at), message)
            if at[:end] in lines:
                default = "" if end == len(at) else ", the default"
                return Fault(source, lines[at[:end]], dotted(at), message + default)
        return Fault(source, None, dotted(at), message + ", the default")

    kind: type[AnyRecipe] = Recipe
    if "system" in content:
        system = content["system"]
        if not isinstance(system, str) or system not in SYSTEMS:
            raise RecipeError([fault(("system",), not_one_of(system, SYSTEMS))])
        kind = SYSTEMS[system]
    try:
        recipe = kind.model_validate(content)
    except ValidationError as error:
        raise RecipeError([fault(*found) for found in faults(error, kind)]) from None
    if found := [fault(*found) for found in recipe.contradictions()]:
        raise RecipeError(found)

    def relative_to(key: str) -> Path:
        typed = any(at == tuple(key.split("."))[: len(at)] for at in origins)
        return Path() if typed or folder is None else folder

    return recipe.located(relative_to)


def scalar(text: str, key: str = "") -> Any:
    """A value typed on the command line for a key, read as a recipe would read it.

    Raises:
        RecipeError: if it is not YAML, or more of YAML than a recipe takes.
    """
    try:
        return strict_yaml.load(text, "--set", (key,) if key else ())[0]
    except RecipeError as error:
        faults = [Fault(f.source, None, f.key or key, f.message) for f in error.faults]
        raise RecipeError(faults) from None


def _mapping(text: str, source: str) -> tuple[dict[str, Any], dict[KeyPath, int]]:
    """The content of a recipe, and the line of every key; an empty one is a recipe too."""
    content, lines = strict_yaml.load(text, source)
    if content is None:
        return {}, lines
    if not isinstance(content, dict):
        expected = f"expected a mapping of {', '.join(Recipe.model_fields)}"
        raise RecipeError([Fault(source, 1, "", f"{expected}, got {shown(content)}")])
    return content, lines


def how_tuned(optimizer: str, method: str, trunc: int) -> str:
    """By which gradients, if any, and which optimizer."""
    if optimizer == "surrogate":
        return "a surrogate"
    return f"{method} with K = {trunc}" + (
        "" if optimizer == ADAM else f" and optimizer {optimizer}"
    )


def contradictions(recipe: Recipe) -> Iterator[KeyFault]:
    """What no single key shows to be wrong: (key, what was expected)."""
    data, gradient, meta = recipe.data, recipe.gradient, recipe.meta
    yield from _data(data)
    yield from _sizes(recipe)
    if recipe.model.name in MODELS:
        yield from option_faults(
            MODELS[recipe.model.name], recipe.model.options, ("model", "options")
        )
    elif recipe.model.name.startswith(TORCHVISION):
        if not recipe.model.name.removeprefix(TORCHVISION).isidentifier():
            yield (
                ("model", "name"),
                f"expected a name as in torchvision:resnet18, got {shown(recipe.model.name)}",
            )
    elif not user_code.is_code(recipe.model.name):
        yield (
            ("model", "name"),
            f"{not_one_of(recipe.model.name, MODELS)}; or torchvision:NAME, file.py:function",
        )
    wanted = wanted_inputs(recipe.model.name)
    if wanted is not None and data.shape not in ("auto", wanted):
        yield (
            ("data", "shape"),
            f"{recipe.model.name} takes inputs of shape {wanted}; expected auto or {wanted},"
            f" got {shown(data.shape)}",
        )
    if recipe.inner.loss not in (AUTO_LOSS, *LOSSES) and not user_code.is_code(recipe.inner.loss):
        known = (AUTO_LOSS, *LOSSES)
        yield ("inner", "loss"), f"{not_one_of(recipe.inner.loss, known)}; or file.py:function"
    yield from tuned.contradictions(
        recipe.hyperparameters, steps=recipe.inner.steps, weight_decay=recipe.inner.weight_decay
    )
    yield from _walk(recipe)
    yield from method_faults(gradient.method, gradient.options, also=[AUTO])
    if gradient.template in METHODS:
        yield from _gradient(recipe)
    if recipe.hyperparameters.example_weight is not None and meta.loss != "validation":
        yield (
            ("meta", "loss"),
            "hyperparameters.example_weight needs a loss on other examples, since the training"
            f" loss falls as they vanish; expected validation, got {meta.loss}",
        )
    if meta.loss == "validation" and data.validation_examples == 0:
        yield (
            ("data", "validation_examples"),
            "meta.loss is 'validation'; expected at least 1, got 0",
        )
    for i, step in enumerate(recipe.record.inner_curves):
        if not -1 <= step <= meta.steps:
            yield (
                ("record", "inner_curves", i),
                f"expected a meta step from 0 to {meta.steps} (or -1), got {step}",
            )


@dataclass(frozen=True)
class _NoOptions:
    """Of a data set that comes as it is."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}


def _data(data: DataSection) -> Iterator[KeyFault]:
    at, options = ("data", "options"), dict(data.options)
    if data.name in SOURCES:
        yield from option_faults(_NoOptions, options, at)
        return
    kind = own_data.kind_of(data.name)
    if kind is None:
        yield (
            ("data", "name"),
            f"{not_one_of(data.name, SOURCES)}; or {', '.join(own_data.KINDS)}",
        )
        return
    if kind == "torchvision:NAME":
        name = data.name.removeprefix(own_data.TORCHVISION)
        if name not in own_data.TORCHVISION_SETS:
            yield ("data", "name"), not_one_of(name, own_data.TORCHVISION_SETS)
        elif name not in own_data.SPLITS and (split := options.pop("split", None)) is not None:
            having = ", ".join(own_data.SPLITS)
            yield (*at, "split"), f"only {having} has one, {name} none; got {shown(split)}"
        elif name in own_data.SPLITS and options.get("split") is None:
            splits = ", ".join(own_data.SPLITS[name])
            yield (*at, "split"), f"{name} is several sets; expected one of {splits}"
    if kind != "file.py:function":
        yield from option_faults(own_data.KINDS[kind], options, at)


def _sizes(recipe: Recipe) -> Iterator[KeyFault]:
    """What is too large for a data set of known size; others are measured when they are read."""
    data = recipe.data
    source = SOURCES.get(data.name)
    known = data.train_examples if source is None else source.train_examples
    if known is None:
        return
    if data.train_examples is not None and data.train_examples > known:
        yield (
            ("data", "train_examples"),
            f"expected at most the {known} training examples of {data.name},"
            f" got {data.train_examples}",
        )
        return
    examples = data.train_examples or known
    left = examples - data.validation_examples
    if left < 1:
        yield (
            ("data", "validation_examples"),
            f"expected fewer than the {examples} training examples, got {data.validation_examples}",
        )
    elif recipe.inner.batch_size > left:
        yield (
            ("inner", "batch_size"),
            f"expected at most the {left} training examples, got {recipe.inner.batch_size}",
        )


def _walk(recipe: Recipe) -> Iterator[KeyFault]:
    optimizer, inner = recipe.meta.optimizer, recipe.inner
    if optimizer == ADAM:
        return
    for key, given in (
        (("gradient", "check_every"), recipe.gradient.check_every),
        (("meta", "on_divergence"), recipe.meta.on_divergence == "rollback"),
        (("meta", "decay"), recipe.meta.decay),
    ):
        if given:
            yield key, f"goes with meta.optimizer adam; the optimizer {optimizer} has no use for it"
    starts = {
        "learning_rate": (inner.learning_rate, "inner.learning_rate"),
        "momentum": (inner.momentum, "inner.momentum"),
        "weight_decay": (inner.weight_decay, "inner.weight_decay"),
    }
    for kind, (_, _, (low, high)) in recipe.hyperparameters.tuned().items():
        start, where = starts.get(kind, (1.0, "the start"))
        if not low <= start <= high:
            yield (
                ("hyperparameters", kind, "range"),
                f"the optimizer {optimizer} stays in it; expected a range with {where} = {start:g} in it,"
                f" got [{low:.3g}, {high:.3g}]",
            )
    if optimizer in ("gradient", "both") and recipe.gradient.method == AUTO:
        yield (
            ("gradient", "method"),
            f"meta.optimizer is {optimizer}; expected a method by name, got auto, which goes with adam",
        )
    many = [kind for kind, (by, _, _) in recipe.hyperparameters.tuned().items() if by in _MANY]
    if optimizer in ("surrogate", "both") and many:
        yield (
            ("meta", "optimizer"),
            f"a model of the loss is of no use in as many dimensions as {many[0]} has; expected"
            f" adam or gradient, got {optimizer}",
        )


_MANY = ("weight", "example")


def _gradient(recipe: Recipe) -> Iterator[KeyFault]:
    gradient, steps = recipe.gradient, recipe.inner.steps
    method, section = method_class(gradient.template), gradient.averaging
    averaging = Averaging(section.estimator, section.minibatches, section.series)
    # An estimator says how an implicit method averages; the others have their own way.
    if issubclass(method, ImplicitMethod) and section.estimator not in ("auto", *method.estimators):
        why = " needs one fixed Jacobian and" if method.fixed_operator else ""
        yield (
            ("gradient", "averaging", "estimator"),
            f"{gradient.template}{why} cannot take '{section.estimator}';"
            f" expected auto or {' or '.join(method.estimators)}",
        )
    if gradient.method != AUTO and recipe.meta.optimizer != "surrogate":
        for kind, why in unseen(
            recipe.hyperparameters, method.horizon, trunc=gradient.trunc, steps=steps
        ):
            yield ("gradient", "method"), f"{method.name} cannot see {kind}: {why}"
    needed = method().steps_needed(gradient.trunc, averaging)
    if needed > steps:
        # The truncation is to blame if a shorter one would do, the averaging otherwise.
        blamed = "trunc"
        got = gradient.trunc
        if method().steps_needed(1, averaging) > steps:
            blamed, got = "averaging.minibatches", section.minibatches
        yield (
            ("gradient", *blamed.split(".")),
            f"{gradient.template} with trunc {gradient.trunc} over {section.minibatches}"
            f" minibatches needs {needed} training steps, more than the {steps} of inner.steps;"
            f" expected at most {max(1, got - (needed - steps))}, got {got}",
        )


def _override(
    content: dict[str, Any],
    lines: dict[KeyPath, int],
    origins: dict[KeyPath, str],
    origin: str,
    key: str,
    value: Any,
) -> None:
    """Puts a value where a dotted key says; from then on it stems from there, not from the file."""
    path: KeyPath = tuple(key.split("."))
    if not all(path):
        raise RecipeError([Fault(origin, None, key, "expected a dotted key, as in inner.steps")])
    place = content
    for depth in range(1, len(path)):
        here = path[:depth]
        if place.get(str(here[-1])) is None:
            place[str(here[-1])] = {}
            if here not in lines:
                origins[here] = origin
        place = place[str(here[-1])]
        if not isinstance(place, dict):
            raise RecipeError([Fault(origin, None, key, f"{dotted(here)} is not a section")])
    place[str(path[-1])] = value
    origins[path] = origin
    for replaced in [at for at in lines if at[: len(path)] == path]:
        del lines[replaced]
