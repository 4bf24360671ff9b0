"""What a recipe may say, and clear words when it does not.

A recipe is a YAML mapping. Reading one executes nothing, imports no numerics, and touches neither
data nor device.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from hyperrbp import strict_yaml
from hyperrbp.data import SOURCES
from hyperrbp.errors import Fault, RecipeError
from hyperrbp.gradients import METHODS, Averaging, method_class
from hyperrbp.gradients.implicit import ImplicitMethod
from hyperrbp.models import MODELS
from hyperrbp.strict_yaml import KeyPath, dotted, shown

_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"


class Section(BaseModel):
    """A part of a recipe: no unknown keys, no silent conversions, no infinities."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class DataSection(Section):
    """The examples."""

    name: str = Field("digits", description="data set: " + ", ".join(SOURCES))
    train_examples: int | None = Field(
        None, ge=1, description="use the first so many training examples; all if null"
    )
    validation_examples: int = Field(
        0, ge=0, description="how many of those to hold back for the meta loss"
    )
    center: bool = Field(True, description="subtract the mean training example")
    download: bool = Field(False, description="fetch the data set if its files are absent")


class ModelSection(Section):
    """The network that the inner run trains."""

    name: str = Field("mlp", description="network: " + ", ".join(MODELS))
    options: dict[str, Any] = Field(
        default_factory=dict, description="its own options; for mlp: hidden, activation"
    )
    init_std: float = Field(
        0.049787068367863944,
        gt=0,
        description="standard deviation of all initial weights; the paper's is exp(-3)",
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


class GradientSection(Section):
    """How the loss on the last state is differentiated."""

    method: str = Field("neumann", description=" | ".join(METHODS))
    trunc: int = Field(50, ge=1, description="K, truncation steps")
    averaging: AveragingSection = AveragingSection()
    options: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="options of each method, by its name"
    )


class DecaySection(Section):
    """A single drop of the meta learning rate."""

    factor: float = Field(0.1, gt=0, le=1, description="multiply the meta learning rate by this")
    from_step: int = Field(50, ge=1, description="from this meta step on")


class MetaSection(Section):
    """The outer loop: Adam on the log learning rates and logit momenta."""

    steps: int = Field(30, ge=1, le=10**7, description="meta steps")
    learning_rate: float = Field(0.05, gt=0, le=1000, description="of Adam")
    decay: DecaySection | None = Field(None, description="{factor, from_step}, or null")
    loss: Literal["train", "validation"] = Field(
        "train", description="cross-entropy on all training examples | on the validation split"
    )


class RecordSection(Section):
    """What is written besides one record a meta step."""

    inner_curves: list[int] = Field(
        default_factory=lambda: [0, -1],
        description="meta steps whose inner training curve goes to TensorBoard; -1 is the last",
    )


class Recipe(Section):
    """A tuning run from its data to its last meta step."""

    name: str = Field("recipe", pattern=_NAME)
    seed: int = Field(1234, ge=0, lt=2**63, description="of everything random")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: cuda if there is one")
    dtype: Literal["float32", "float64"] = Field("float32", description="float32 | float64")
    threads: int | None = Field(
        None, ge=1, le=1024, description="CPU threads; null: PyTorch's own choice"
    )
    data: DataSection = DataSection()
    model: ModelSection = ModelSection()
    inner: InnerSection = InnerSection()
    gradient: GradientSection = GradientSection()
    meta: MetaSection = MetaSection()
    record: RecordSection = RecordSection()

    def to_yaml(self) -> str:
        """The whole recipe, every key spelt out, as YAML that reads back to the same recipe."""
        return strict_yaml.dump(self.model_dump())


Override = tuple[str, str, Any]
"""(what the user typed it with, dotted key, value): ``("--trunc", "gradient.trunc", 50)``."""


def read(path: Path, overrides: Sequence[Override] = ()) -> Recipe:
    """The recipe in a file, with the command line's values over it.

    Raises:
        RecipeError: with one fault for everything that is wrong.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise RecipeError([Fault(str(path), None, "", error.strerror or str(error))]) from None
    except UnicodeDecodeError:
        raise RecipeError([Fault(str(path), None, "", "not a text file in UTF-8")]) from None
    return parse(text, source=str(path), name=path.stem, overrides=overrides)


def parse(
    text: str, *, source: str = "recipe", name: str = "recipe", overrides: Sequence[Override] = ()
) -> Recipe:
    """The recipe in a text; see :func:`read`. ``name`` is used where the text names none."""
    content, lines = _mapping(text, source)
    origins: dict[KeyPath, str] = {}
    for origin, key, value in overrides:
        _override(content, lines, origins, origin, key, value)
    content.setdefault("name", name if re.fullmatch(_NAME, name) else "recipe")

    def fault(at: KeyPath, message: str) -> Fault:
        for end in range(len(at), 0, -1):
            if at[:end] in origins:
                return Fault(origins[at[:end]], None, dotted(at), message)
            if at[:end] in lines:
                default = "" if end == len(at) else ", the default"
                return Fault(source, lines[at[:end]], dotted(at), message + default)
        return Fault(source, None, dotted(at), message + ", the default")

    try:
        recipe = Recipe.model_validate(content)
    except ValidationError as error:
        raise RecipeError(
            [fault(at, message) for at, message in map(_explain, error.errors())]
        ) from None
    if faults := [fault(at, message) for at, message in contradictions(recipe)]:
        raise RecipeError(faults)
    return recipe


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


def contradictions(recipe: Recipe) -> Iterator[tuple[KeyPath, str]]:
    """What no single key shows to be wrong: (key, what was expected)."""
    data, gradient, meta = recipe.data, recipe.gradient, recipe.meta
    if data.name not in SOURCES:
        yield ("data", "name"), _not_one_of(data.name, SOURCES)
    else:
        yield from _sizes(recipe)
    if recipe.model.name not in MODELS:
        yield ("model", "name"), _not_one_of(recipe.model.name, MODELS)
    else:
        yield from _options(MODELS[recipe.model.name], recipe.model.options, ("model", "options"))
    for name, options in gradient.options.items():
        if name not in METHODS:
            yield ("gradient", "options", name), _not_one_of(name, METHODS)
        else:
            yield from _options(method_class(name), options, ("gradient", "options", name))
    if gradient.method not in METHODS:
        yield ("gradient", "method"), _not_one_of(gradient.method, METHODS)
    else:
        yield from _gradient(recipe)
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


def _sizes(recipe: Recipe) -> Iterator[tuple[KeyPath, str]]:
    data = recipe.data
    known = SOURCES[data.name].train_examples
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


def _gradient(recipe: Recipe) -> Iterator[tuple[KeyPath, str]]:
    gradient, steps = recipe.gradient, recipe.inner.steps
    method, section = method_class(gradient.method), gradient.averaging
    averaging = Averaging(section.estimator, section.minibatches, section.series)
    # An estimator says how an implicit method averages; the others have their own way.
    if issubclass(method, ImplicitMethod) and section.estimator not in ("auto", *method.estimators):
        why = " needs one fixed Jacobian and" if method.fixed_operator else ""
        yield (
            ("gradient", "averaging", "estimator"),
            f"{gradient.method}{why} cannot take '{section.estimator}';"
            f" expected auto or {' or '.join(method.estimators)}",
        )
    needed = method().steps_needed(gradient.trunc, averaging)
    if needed > steps:
        # The truncation is to blame if a shorter one would do, the averaging otherwise.
        blamed = "trunc"
        got = gradient.trunc
        if method().steps_needed(1, averaging) > steps:
            blamed, got = "averaging.minibatches", section.minibatches
        yield (
            ("gradient", *blamed.split(".")),
            f"{gradient.method} with trunc {gradient.trunc} over {section.minibatches} minibatches"
            f" needs {needed} training steps, more than the {steps} of inner.steps; expected at"
            f" most {max(1, got - (needed - steps))}, got {got}",
        )


def _options(target: Any, options: Mapping[str, Any], at: KeyPath) -> Iterator[tuple[KeyPath, str]]:
    """What is wrong with the options of a registered dataclass."""
    finite = True
    for inside, value in _leaves(options):
        if isinstance(value, float) and not math.isfinite(value):
            finite = False
            yield (*at, *inside), f"expected a finite number, got {shown(value)}"
    if not finite:
        return
    try:
        # As JSON, since a strict dataclass takes a mapping from nowhere else.
        TypeAdapter(target).validate_json(json.dumps(options))
    except ValidationError as error:
        for problem in error.errors():
            inside, message = _explain(problem, known=[field.name for field in fields(target)])
            yield (*at, *inside), message


def _leaves(value: Any) -> Iterator[tuple[KeyPath, Any]]:
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            for inside, leaf in _leaves(item):
                yield (key, *inside), leaf
    else:
        yield (), value


# --- words ---------------------------------------------------------------------------------------


def _explain(error: ErrorDetails, known: list[str] | None = None) -> tuple[KeyPath, str]:
    """Where an error of pydantic stands, and what it says in plain words."""
    at, kind, got = tuple(error["loc"]), error["type"], error["input"]
    context = error.get("ctx", {})
    if kind in ("extra_forbidden", "unexpected_keyword_argument"):
        return at, f"unknown key; {_nearest(at, known)}"
    if kind == "literal_error":
        return at, _not_one_of(got, re.findall(r"'([^']*)'", context["expected"]))
    if kind == "value_error":
        return at, f"{context['error']}, got {shown(got)}"
    if kind == "model_type":
        expected = f"a mapping of {', '.join(_keys(at))}"
    elif kind in _EXPECTED:
        bounds = {k: f"{v:g}" if isinstance(v, float) else v for k, v in context.items()}
        expected = _EXPECTED[kind].format(**bounds)
    else:
        expected = error["msg"]
    return at, f"expected {expected}, got {shown(got)}"


_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing_size": "a smaller number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "dict_type": "a mapping",
    "greater_than": "a number above {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "a number below {lt}",
    "less_than_equal": "at most {le}",
    "string_pattern_mismatch": "letters, digits, '.', '_' and '-', a letter or digit first,"
    " at most 64",
}


def _nearest(at: KeyPath, known: list[str] | None) -> str:
    """What someone who wrote an unknown key may have meant."""
    *section, key = map(str, at)
    here = known if known is not None else _keys(at[:-1])
    if known is None:
        everywhere = list(_all_keys(Recipe))
        if dotted((*section, key)) in everywhere:
            parent, _, leaf = key.rpartition(".")
            return f"in a recipe, write {leaf} inside {parent}"
        if meant := [path for path in everywhere if path.split(".")[-1] == key]:
            places = [path if "." in path else f"{path} at the top level" for path in meant]
            return f"did you mean {' or '.join(places)}?"
    if near := difflib.get_close_matches(key, here, n=1, cutoff=0.5):
        return f"did you mean {near[0]}?"
    return f"expected one of {', '.join(here)}" if here else "there are no options here"


def _keys(at: KeyPath) -> list[str]:
    """The keys of a section."""
    section: type[BaseModel] | None = Recipe
    for key in at:
        assert section is not None
        section = _section(section, str(key))
    assert section is not None
    return list(section.model_fields)


def _all_keys(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for key in section.model_fields:
        yield prefix + key
        if inner := _section(section, key):
            yield from _all_keys(inner, f"{prefix}{key}.")


def _section(parent: type[BaseModel], key: str) -> type[BaseModel] | None:
    """The section under a key, also where it may be null; None if there is a plain value."""
    annotation = parent.model_fields[key].annotation
    options = get_args(annotation) if get_origin(annotation) is not None else (annotation,)
    sections = (o for o in options if isinstance(o, type) and issubclass(o, BaseModel))
    return next(sections, None)


def _not_one_of(got: Any, choices: Mapping[str, Any] | Sequence[str]) -> str:
    near = difflib.get_close_matches(str(got), list(choices), n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"expected one of {', '.join(choices)}, got {shown(got)}{hint}"


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
