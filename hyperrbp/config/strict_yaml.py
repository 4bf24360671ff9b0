"""YAML as a recipe takes it: plain values, the numbers of a scientist, and the line of every key.

Nothing is executed or built from a tag; duplicate keys, aliases and endless nesting are faults.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from hyperrbp.config.keys import KeyPath, dotted
from hyperrbp.exceptions import Fault, RecipeError

_DEEPEST = 20  # levels of nesting, and
_LONGEST = 300  # digits of a whole number, which a float can hold: both far beyond any use


class _Loader(yaml.SafeLoader):
    """YAML with the numbers of a scientist: 1e-3, .5 and 1E5 are numbers, 010 is ten, yes is text.

    (YAML 1.1, which PyYAML reads otherwise, takes the first for text, the second to last for eight
    and the last for true.)
    """

    yaml_implicit_resolvers = {}  # noqa: RUF012  # PyYAML's own way: a registry a class
    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """The next value and all inside it, unless that never ends."""
        if self._depth > _DEEPEST:
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
    """YAML that both these rules and those of YAML 1.1 read back as it was meant."""


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
    """The value of a YAML text, and the line of every key in it; ``at`` is where it will stand."""
    lines: dict[KeyPath, int] = {}

    def invalid(line: int | None, problem: str) -> RecipeError:
        return RecipeError([Fault(source, line, "", f"not valid YAML: {problem}")])

    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None, lines
        if faults := list(_survey(loader, node, at, lines, set(), source)):
            raise RecipeError(faults)
        return loader.construct_document(node), lines
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        character = f"U+{ord(text[error.position]):04X}"
        raise invalid(line, f"the character {character} is not allowed") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        raise invalid(mark.line + 1 if mark else None, _plainly(error)) from None


def _plainly(error: yaml.MarkedYAMLError) -> str:
    problem = error.problem or str(error)
    for jargon, plain in _PLAINER.items():
        if jargon in problem:
            return plain
    return problem.replace("'<stream end>'", "the end").replace("'<scalar>'", "more text")


_PLAINER = {
    "could not find expected ':'": "expected 'key: value'",
    "mapping values are not allowed here": "a ':' is not allowed here; check the indentation, or"
    " quote the text",
    "found character '\\t'": "a tab is not allowed here; indent with spaces",
    "that cannot start any token": "a value that starts like this one needs quotes",
    "<document start>": "more than one document",
    "found another document": "more than one document",
    "<block": "the indentation does not fit the lines above",
}


def _survey(
    loader: _Loader,
    node: yaml.Node,
    at: KeyPath,
    lines: dict[KeyPath, int],
    seen: set[int],
    source: str,
) -> Iterator[Fault]:
    """Notes the line of every key; finds what of YAML a recipe does not take."""
    line = lines.get(at, node.start_mark.line + 1)

    def fault(message: str, at: KeyPath = at, line: int = line) -> Fault:
        return Fault(source, line, dotted(at), message)

    plain = isinstance(node, yaml.ScalarNode) and node.style is None
    if id(node) in seen:
        yield fault("anchors and aliases are not supported; write the value again")
        return
    seen.add(id(node))
    # With a tag, YAML would make of a value what its text does not say.
    untagged = loader.resolve(type(node), node.value, (plain, not plain))  # type: ignore[no-untyped-call]
    if node.tag != untagged:
        tag = node.tag.replace("tag:yaml.org,2002:", "!!")
        yield fault(f"the tag {tag} is not supported; write the plain value")
    elif isinstance(node, yaml.SequenceNode):
        for i, item in enumerate(node.value):
            lines[(*at, i)] = max(line, item.start_mark.line + 1)  # an alias stands where it points
            yield from _survey(loader, item, (*at, i), lines, seen, source)
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag != "tag:yaml.org,2002:str":
                got = key.value if isinstance(key, yaml.ScalarNode) else "a list or mapping"
                yield fault(f"expected text for a key, got {got}", line=key.start_mark.line + 1)
                continue
            here, line = (*at, key.value), key.start_mark.line + 1
            if here in lines:
                yield fault(f"duplicate key, first on line {lines[here]}", here, line)
            lines.setdefault(here, line)
            yield from _survey(loader, value, here, lines, seen, source)
    elif node.tag == "tag:yaml.org,2002:int" and len(node.value) > _LONGEST:
        yield fault(f"a number of {len(node.value)} digits is too long")


def dump(content: Mapping[str, Any]) -> str:
    """A text that reads back to the same content, here and in other readers of YAML."""
    return yaml.dump(dict(content), Dumper=_Dumper, sort_keys=False, allow_unicode=True)
