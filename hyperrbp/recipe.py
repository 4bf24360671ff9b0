"""What a recipe may say, and clear words when it does not.

A recipe is a YAML mapping. Reading one executes nothing, imports no numerics, and touches neither
data nor device.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from hyperrbp.data import SOURCES
from hyperrbp.errors import Fault, RecipeError
from hyperrbp.gradients import METHODS, method_class
from hyperrbp.models import MODELS

Path_ = tuple[str | int, ...]
"""Where a value stands in a recipe, as keys from the top."""


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
    learning_rate: float = Field(0.05, gt=0, description="of Adam")
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

    name: str = Field("recipe", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
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
        return yaml.safe_dump(self.model_dump(), sort_keys=False, allow_unicode=True)


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
    content, lines = _load_yaml(text, source)
    origins: dict[Path_, str] = {}
    for origin, key, value in overrides:
        _override(content, origin, key, value)
        origins[tuple(key.split("."))] = origin
    content.setdefault(
        "name", name if re.match(r"^[A-Za-z0-9][A-Za-z0-9._-]*$", name) else "recipe"
    )

    def fault(at: Path_, message: str) -> Fault:
        key = ".".join(map(str, at))
        for end in range(len(at), 0, -1):
            if at[:end] in origins:
                return Fault(origins[at[:end]], None, key, message)
            if at[:end] in lines:
                return Fault(source, lines[at[:end]], key, message)
        return Fault(source, None, key, message)

    try:
        recipe = Recipe.model_validate(content)
    except ValidationError as error:
        raise RecipeError(
            [fault(at, message) for at, message in map(_explain, error.errors())]
        ) from None
    if faults := [fault(at, message) for at, message in contradictions(recipe)]:
        raise RecipeError(faults)
    return recipe


def contradictions(recipe: Recipe) -> Iterator[tuple[Path_, str]]:
    """What no single key shows to be wrong: (key, what was expected)."""
    data, inner, gradient, meta = recipe.data, recipe.inner, recipe.gradient, recipe.meta
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
            "expected at least 1, since meta.loss is 'validation'",
        )
    for i, step in enumerate(recipe.record.inner_curves):
        if not -1 <= step <= meta.steps:
            yield (
                ("record", "inner_curves", i),
                f"expected a meta step from 0 to {meta.steps} (or -1), got {step}",
            )
    del inner


def _sizes(recipe: Recipe) -> Iterator[tuple[Path_, str]]:
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


def _gradient(recipe: Recipe) -> Iterator[tuple[Path_, str]]:
    gradient, averaging, steps = recipe.gradient, recipe.gradient.averaging, recipe.inner.steps
    method = method_class(gradient.method)
    implicit = "resampled" in method.estimators or method.fixed_operator
    if implicit and averaging.estimator not in ("auto", *method.estimators):
        yield (
            ("gradient", "averaging", "estimator"),
            f"{gradient.method} needs one fixed Jacobian and cannot take '{averaging.estimator}';"
            f" expected auto or {' or '.join(method.estimators)}",
        )
    if implicit and averaging.minibatches > steps:
        yield (
            ("gradient", "averaging", "minibatches"),
            f"expected at most the {steps} steps of inner.steps, got {averaging.minibatches}",
        )
    window = gradient.trunc + averaging.minibatches - 1
    if gradient.method == "tbptt" and window > steps:
        key: Path_ = ("gradient", "trunc")
        most = steps - averaging.minibatches + 1
        if most < 1:
            key, most = ("gradient", "averaging", "minibatches"), steps - gradient.trunc + 1
        got = gradient.trunc if key[-1] == "trunc" else averaging.minibatches
        yield (
            key,
            f"tbptt differentiates trunc {gradient.trunc} steps before each of"
            f" {averaging.minibatches} end points, {window} in all, of the {steps} of inner.steps;"
            f" expected at most {max(most, 1)}, got {got}",
        )


def _options(target: Any, options: Mapping[str, Any], at: Path_) -> Iterator[tuple[Path_, str]]:
    """What is wrong with the options of a registered dataclass."""
    adapter = TypeAdapter(target)
    try:
        # As JSON, since a strict dataclass takes a mapping from nowhere else.
        adapter.validate_json(json.dumps(options, default=str))
    except ValidationError as error:
        for problem in error.errors():
            inside, message = _explain(problem, known=list(target.__dataclass_fields__))
            yield (*at, *inside), message


# --- words ---------------------------------------------------------------------------------------


def _explain(error: ErrorDetails, known: list[str] | None = None) -> tuple[Path_, str]:
    at, kind, got = tuple(error["loc"]), error["type"], error["input"]
    if kind in ("extra_forbidden", "unexpected_keyword_argument"):
        keys = known if known is not None else _keys(at[:-1])
        near = difflib.get_close_matches(str(at[-1]), keys, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(keys)}"
        return at, f"unknown key; {hint}"
    if kind == "literal_error":
        choices = re.findall(r"'([^']*)'", error.get("ctx", {}).get("expected", ""))
        return at, _not_one_of(got, choices)
    expected = error["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    for long, short in _SHORTER.items():
        expected = expected.replace(long, short)
    if kind == "string_pattern_mismatch":
        expected = "letters, digits, '.', '_' and '-', at most 64"
    return at, f"expected {expected}, got {_shown(got)}"


_SHORTER = {
    "a valid integer": "a whole number",
    "a valid number": "a number",
    "a valid boolean": "true or false",
    "a valid string": "text",
    "a valid list": "a list",
    "a valid dictionary or instance of": "a mapping for",
    "a valid dictionary": "a mapping",
    "greater than or equal to": "at least",
    "less than or equal to": "at most",
    "greater than": "a number above",
    "less than": "a number below",
    "a finite number": "a finite number",
}


def _keys(at: Path_) -> list[str]:
    section: type[BaseModel] = Recipe
    for key in at:
        annotation = section.model_fields[str(key)].annotation
        options = get_args(annotation) if get_origin(annotation) is not None else (annotation,)
        section = next(o for o in options if isinstance(o, type) and issubclass(o, BaseModel))
    return list(section.model_fields)


def _not_one_of(got: Any, choices: Mapping[str, Any] | Sequence[str]) -> str:
    near = difflib.get_close_matches(str(got), list(choices), n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"expected one of {', '.join(choices)}, got {_shown(got)}{hint}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


# --- YAML ----------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """YAML with the numbers of a scientist: 1e-3, .5 and 1E5 are numbers, 010 is ten, yes is text.

    (YAML 1.1, which PyYAML reads otherwise, takes the first for text, the second to last for eight
    and the last for true.)
    """

    yaml_implicit_resolvers = {}  # noqa: RUF012  # PyYAML's own way: a registry a class


def _plain_int(loader: _Loader, node: yaml.ScalarNode) -> int:
    return int(node.value.replace("_", ""))


def _plain_float(loader: _Loader, node: yaml.ScalarNode) -> float:
    return float(node.value.replace("_", "").lower().replace(".inf", "inf").replace(".nan", "nan"))


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:null", re.compile(r"^(?:~|null|Null|NULL|)$"), None
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), None
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?[0-9][0-9_]*$"), None)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?"
        r"|[0-9][0-9_]*[eE][-+]?[0-9]+|\.(?:inf|Inf|INF))$|^\.(?:nan|NaN|NAN)$"
    ),
    None,
)
_Loader.add_constructor("tag:yaml.org,2002:int", _plain_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _plain_float)


def scalar(text: str) -> Any:
    """A value typed on the command line, read as a recipe would read it.

    Raises:
        RecipeError: if it is not YAML.
    """
    try:
        return yaml.load(text, _Loader)  # a SafeLoader
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RecipeError([Fault("--set", None, text, _first_line(error))]) from None


def _load_yaml(text: str, source: str) -> tuple[dict[str, Any], dict[Path_, int]]:
    """The content of a recipe, and the line of every key."""
    lines: dict[Path_, int] = {}
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return {}, lines
        faults = list(_survey(node, (), lines, set(), source))
        if faults:
            raise RecipeError(faults)
        content = loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else None
        message = f"not valid YAML: {error.problem or error}"
        raise RecipeError([Fault(source, line, "", message)]) from None
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        message = f"not valid YAML: {_first_line(error)}"
        raise RecipeError([Fault(source, None, "", message)]) from None
    if not isinstance(content, dict):
        expected = f"expected a mapping of {', '.join(Recipe.model_fields)}"
        raise RecipeError([Fault(source, 1, "", expected)])
    return content, lines


def _survey(
    node: yaml.Node, at: Path_, lines: dict[Path_, int], seen: set[int], source: str
) -> Iterator[Fault]:
    """Notes the line of every key; finds duplicate keys, aliases and keys that are not text."""
    line = node.start_mark.line + 1
    if isinstance(node, yaml.ScalarNode):
        return
    if id(node) in seen:
        yield Fault(source, line, ".".join(map(str, at)), "anchors and aliases are not supported")
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for i, item in enumerate(node.value):
            lines[(*at, i)] = item.start_mark.line + 1
            yield from _survey(item, (*at, i), lines, seen, source)
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode) or key.tag != "tag:yaml.org,2002:str":
                name = getattr(key, "value", key)
                yield Fault(
                    source, line, ".".join(map(str, at)), f"a key is text, not {_shown(name)}"
                )
                continue
            here = (*at, key.value)
            if here in lines:
                yield Fault(
                    source,
                    line,
                    ".".join(map(str, here)),
                    f"duplicate key, first on line {lines[here]}",
                )
            lines.setdefault(here, line)
            yield from _survey(value, here, lines, seen, source)


def _override(content: dict[str, Any], origin: str, key: str, value: Any) -> None:
    *sections, last = key.split(".")
    place = content
    for section in sections:
        inner = place.get(section)
        if inner is None:
            inner = place[section] = {}
        if not isinstance(inner, dict):
            raise RecipeError([Fault(origin, None, key, f"'{section}' is not a section")])
        place = inner
    if not last:
        raise RecipeError([Fault(origin, None, key, "expected key=value")])
    place[last] = value


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
