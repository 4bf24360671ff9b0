"""What any part of a recipe may say, and plain words where it says something else."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from hyperrbp.config import strict_yaml
from hyperrbp.config.strict_yaml import KeyPath, dotted
from hyperrbp.runtime.suggestions import nearest, shown
from hyperrbp.runtime.suggestions import not_one_of as not_one_of

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"

KeyFault = tuple[KeyPath, str]
"""A key, and what was expected there."""


class Section(BaseModel):
    """A part of a recipe: no unknown keys, no silent conversions, no infinities."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class AnyRecipe(Section):
    """What every kind of recipe says."""

    may_change: ClassVar[tuple[str, ...]] = ()
    """What a resumed run may say otherwise: it does not alter the steps already taken."""

    name: str = Field("recipe", pattern=NAME)
    seed: int = Field(1234, ge=0, lt=2**63, description="of everything random")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: cuda if there is one")
    dtype: Literal["float32", "float64"] = Field("float32", description="float32 | float64")
    threads: int | None = Field(
        None, ge=1, le=1024, description="CPU threads; null: PyTorch's own choice"
    )

    def contradictions(self) -> Iterator[KeyFault]:
        """What no single key shows to be wrong: (key, what was expected)."""
        yield from ()

    def code(self) -> Iterator[tuple[str, str]]:
        """The code of the user's own that it would run: (key, what in words)."""
        yield from ()

    def located(self, folder: Callable[[str], Path]) -> AnyRecipe:
        """The same with absolute paths; ``folder`` of a key is what its path was relative to."""
        return self

    def to_yaml(self) -> str:
        """The whole recipe, every key spelt out, as YAML that reads back to the same recipe."""
        return strict_yaml.dump(self.model_dump())


def faults(error: ValidationError, root: type[BaseModel]) -> list[KeyFault]:
    """Every error of pydantic on a recipe of the kind ``root``, in plain words."""
    return [_explain(problem, root) for problem in error.errors()]


def option_faults(target: Any, options: Mapping[str, Any], at: KeyPath) -> Iterator[KeyFault]:
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
            inside, message = _explain(problem, [field.name for field in fields(target)])
            yield (*at, *inside), message


def _leaves(value: Any) -> Iterator[tuple[KeyPath, Any]]:
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            for inside, leaf in _leaves(item):
                yield (key, *inside), leaf
    else:
        yield (), value


def _explain(error: ErrorDetails, known: type[BaseModel] | list[str]) -> KeyFault:
    """Where an error of pydantic stands, and what it says in plain words.

    ``known`` is the recipe, or the names of options.
    """
    at, kind, got = tuple(error["loc"]), error["type"], error["input"]
    context = error.get("ctx", {})
    if kind in ("extra_forbidden", "unexpected_keyword_argument"):
        return at, f"unknown key; {_nearest(at, known)}"
    if kind == "literal_error":
        choices = re.findall(r"'([^']*)'|\b(\d+)\b", context["expected"])
        return at, not_one_of(got, [text or number for text, number in choices])
    if kind == "value_error":
        return at, f"{context['error']}, got {shown(got)}"
    if kind == "model_type":
        assert not isinstance(known, list)
        expected = f"a mapping of {', '.join(_keys(known, at))}"
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


def _nearest(at: KeyPath, known: type[BaseModel] | list[str]) -> str:
    """What someone who wrote an unknown key may have meant."""
    *section, key = map(str, at)
    here = known if isinstance(known, list) else _keys(known, at[:-1])
    if not isinstance(known, list):
        everywhere = list(_all_keys(known))
        if dotted((*section, key)) in everywhere:
            parent, _, leaf = key.rpartition(".")
            return f"in a recipe, write {leaf} inside {parent}"
        if meant := [path for path in everywhere if path.split(".")[-1] == key]:
            places = [path if "." in path else f"{path} at the top level" for path in meant]
            return f"did you mean {' or '.join(places)}?"
    if near := nearest(key, here, cutoff=0.5):
        return f"did you mean {near}?"
    return f"expected one of {', '.join(here)}" if here else "there are no options here"


def _keys(root: type[BaseModel], at: KeyPath) -> list[str]:
    """The keys of a section."""
    section: type[BaseModel] | None = root
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
