"""Reads the YAML of recipes: plain values, numbers as scientists write them, the line of every key.

Tags run or build nothing; duplicate keys, aliases and endless nesting are faults.

This stays a thin layer on PyYAML. yamlcore would replace the rules for numbers and booleans alone,
and read 0x10 and 0o10 as numbers, too; ruamel.yaml finds duplicate keys and keeps line numbers, but
takes aliases and tags; StrictYAML wants a schema of its own beside pydantic's, and ruamel.yaml
inside.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from hyperrbp.config.key_paths import KeyPath, dotted
from hyperrbp.exceptions import Fault, RecipeError

# Both far beyond any use:
_MAX_DEPTH = 20  # levels of nesting
_MAX_DIGITS = 300  # of a whole number; a float can still hold it


class _Loader(yaml.SafeLoader):
    """Reads 1e-3, .5 and 1E5 as numbers, 010 as ten, and yes as text.

    PyYAML itself follows YAML 1.1, in which 1e-3 is text, 010 is eight, and yes is true.
    """

    yaml_implicit_resolvers = {}  # noqa: RUF012  # PyYAML keeps one a class
    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Read the next value and all inside it; an endless nesting is an error."""
        if self._depth > _MAX_DEPTH:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, "nested too deeply", mark)
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


def _plain_int(loader: _Loader, node: yaml.ScalarNode) -> int:
    return int(node.value.replace("_", ""))


def _plain_float(loader: _Loader, node: yaml.ScalarNode) -> float:
    return float(node.value.replace("_", "").lower().replace(".inf", "inf").replace(".nan", "nan"))


class _Dumper(yaml.SafeDumper):
    """Writes what these rules and those of YAML 1.1 both read back as it was meant."""


for _tag, _pattern in {
    "null": r"^(?:~|null|Null|NULL|)$",
    "bool": r"^(?:true|True|TRUE|false|False|FALSE)$",
    "int": r"^[-+]?[0-9][0-9_]*$",
    "float": r"^[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?"
    r"|\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?"
    r"|[0-9][0-9_]*[eE][-+]?[0-9]+|\.(?:inf|Inf|INF))$|^\.(?:nan|NaN|NAN)$",
}.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), None)
_Loader.add_constructor("tag:yaml.org,2002:int", _plain_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _plain_float)


def load(text: str, source: str, at: KeyPath = ()) -> tuple[Any, dict[KeyPath, int]]:
    """Read a YAML text.

    Args:
        text: the YAML.
        source: what a fault calls it.
        at: the key under which the value will stand.

    Returns:
        the value, and the line of every key in it.

    Raises:
        RecipeError: if it is not YAML, or uses more of YAML than a recipe may.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None, {}
        survey = _Survey(loader, source)
        if faults := list(survey.faults(node, at)):
            raise RecipeError(faults)
        return loader.construct_document(node), survey.lines
    except yaml.YAMLError as error:
        line, problem = _line_and_problem(error, text)
        raise RecipeError([Fault(source, line, "", f"not valid YAML: {problem}")]) from None


def _line_and_problem(error: yaml.YAMLError, text: str) -> tuple[int | None, str]:
    """Return where a text is not YAML, and why, in plain words."""
    if isinstance(error, yaml.reader.ReaderError):
        line = text.count("\n", 0, error.position) + 1
        return line, f"the character U+{ord(text[error.position]):04X} is not allowed"
    assert isinstance(error, yaml.MarkedYAMLError)
    mark = error.problem_mark
    return mark.line + 1 if mark else None, _in_plain_words(error)


def _in_plain_words(error: yaml.MarkedYAMLError) -> str:
    problem = error.problem or str(error)
    for jargon, plain in _PLAIN_WORDS.items():
        if jargon in problem:
            return plain
    return problem.replace("'<stream end>'", "the end").replace("'<scalar>'", "more text")


_PLAIN_WORDS = {
    "could not find expected ':'": "expected 'key: value'",
    "mapping values are not allowed here": "a ':' is not allowed here; check the indentation, or"
    " quote the text",
    "found character '\\t'": "a tab is not allowed here; indent with spaces",
    "that cannot start any token": "a value that starts like this one needs quotes",
    "<document start>": "more than one document",
    "found another document": "more than one document",
    "<block": "the indentation does not fit the lines above",
}


@dataclass
class _Survey:
    """Collects the line of every key, and finds what a recipe may not use of YAML."""

    loader: _Loader
    source: str
    lines: dict[KeyPath, int] = field(default_factory=dict)
    _seen: set[int] = field(default_factory=set)

    def faults(self, node: yaml.Node, at: KeyPath) -> Iterator[Fault]:
        """Go through a value, and yield what is wrong with it."""
        line = self.lines.get(at, node.start_mark.line + 1)
        if id(node) in self._seen:
            message = "anchors and aliases are not supported; write the value again"
            yield self._fault(at, line, message)
            return
        self._seen.add(id(node))
        if self._is_tagged(node):
            tag = node.tag.replace("tag:yaml.org,2002:", "!!")
            yield self._fault(at, line, f"the tag {tag} is not supported; write the plain value")
        elif isinstance(node, yaml.SequenceNode):
            for i, item in enumerate(node.value):
                # An alias has the line of what it stands for, which comes before it.
                self.lines[(*at, i)] = max(line, item.start_mark.line + 1)
                yield from self.faults(item, (*at, i))
        elif isinstance(node, yaml.MappingNode):
            yield from self._mapping(node, at)
        elif node.tag == "tag:yaml.org,2002:int" and len(node.value) > _MAX_DIGITS:
            yield self._fault(at, line, f"a number of {len(node.value)} digits is too long")

    def _mapping(self, node: yaml.MappingNode, at: KeyPath) -> Iterator[Fault]:
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode) or key.tag != "tag:yaml.org,2002:str":
                got = key.value if isinstance(key, yaml.ScalarNode) else "a list or mapping"
                yield self._fault(at, line, f"expected text for a key, got {got}")
                continue
            here = (*at, key.value)
            if here in self.lines:
                yield self._fault(here, line, f"duplicate key, first on line {self.lines[here]}")
            self.lines.setdefault(here, line)
            yield from self.faults(value, here)

    def _is_tagged(self, node: yaml.Node) -> bool:
        """Return whether a tag makes a value something else than its text."""
        plain = isinstance(node, yaml.ScalarNode) and node.style is None
        untagged = self.loader.resolve(type(node), node.value, (plain, not plain))  # type: ignore[no-untyped-call]
        return bool(node.tag != untagged)

    def _fault(self, at: KeyPath, line: int, message: str) -> Fault:
        return Fault(self.source, line, dotted(at), message)


def dump(content: Mapping[str, Any]) -> str:
    """Write YAML that reads back to the same content, here and in other readers of YAML."""
    return yaml.dump(dict(content), Dumper=_Dumper, sort_keys=False, allow_unicode=True)
