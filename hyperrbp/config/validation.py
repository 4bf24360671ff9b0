"""Puts what pydantic finds wrong with a recipe, or with the options of a part, in plain words."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any, get_args, get_origin

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from hyperrbp.config.key_paths import KeyFault, KeyPath, MootKey, dotted
from hyperrbp.runtime.suggestions import did_you_mean, not_one_of, shown


def faults(error: ValidationError, root: type[BaseModel]) -> list[KeyFault]:
    """List everything that pydantic finds wrong with a recipe of the kind ``root``."""
    return [_explain(problem, root) for problem in error.errors()]


def option_faults(target: Any, options: Mapping[str, Any], at: KeyPath) -> Iterator[KeyFault]:
    """Yield what is wrong with options under the key ``at``, for the dataclass that takes them."""
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


def named_option_faults(
    section: str, name: str, target: Any, options: Mapping[str, Any]
) -> Iterator[KeyFault]:
    """Yield what is wrong with the options of what a section names; see ``option_faults``.

    One that is unknown may be of what the section named before an override.
    """
    known = {field.name for field in fields(target)}
    for at, message in option_faults(target, options, (section, "options")):
        if at[2] in known:
            yield at, message
        else:
            because, note = (section, "name"), f"{name} has no such option"
            yield MootKey(at[:3], message, because, note)


def _leaves(value: Any) -> Iterator[tuple[KeyPath, Any]]:
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            for inside, leaf in _leaves(item):
                yield (key, *inside), leaf
    else:
        yield (), value


def _explain(error: ErrorDetails, known: type[BaseModel] | list[str]) -> KeyFault:
    """Put one error of pydantic in plain words.

    Args:
        error: the error.
        known: the recipe's class, or the names of the options there are.
    """
    at, kind, got = tuple(error["loc"]), error["type"], error["input"]
    context = error.get("ctx", {})
    if kind in ("extra_forbidden", "unexpected_keyword_argument"):
        return at, f"unknown key{_hint(at, known)}"
    if kind == "literal_error":
        choices = re.findall(r"'([^']*)'|\b(\d+|True|False)\b", context["expected"])
        return at, not_one_of(got, [text or other.lower() for text, other in choices])
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


_RENAMED = {"inner.update": "it is inner.optimizer now, and pytorch is called sgd"}
"""Keys of earlier versions."""


def _hint(at: KeyPath, known: type[BaseModel] | list[str]) -> str:
    """Return what someone who wrote an unknown key may have meant, after a semicolon."""
    *section, key = map(str, at)
    if renamed := _RENAMED.get(dotted(at)):
        return f"; {renamed}"
    here = known if isinstance(known, list) else _keys(known, at[:-1])
    if not isinstance(known, list):
        everywhere = list(_all_keys(known))
        if dotted((*section, key)) in everywhere:
            parent, _, leaf = key.rpartition(".")
            return f"; in a recipe, write {leaf} inside {parent}"
        if meant := [path for path in everywhere if path.split(".")[-1] == key]:
            places = [path if "." in path else f"{path} at the top level" for path in meant]
            return f"; did you mean {' or '.join(places)}?"
    if not here:
        return "; there are no options here"
    return did_you_mean(key, here, cutoff=0.5) or f"; expected one of {', '.join(here)}"


def _keys(root: type[BaseModel], at: KeyPath) -> list[str]:
    """Return the keys of the section at a key."""
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
    """Return the section under a key, also where it may be null; None for a plain value."""
    annotation = parent.model_fields[key].annotation
    options = get_args(annotation) if get_origin(annotation) is not None else (annotation,)
    sections = (o for o in options if isinstance(o, type) and issubclass(o, BaseModel))
    return next(sections, None)
