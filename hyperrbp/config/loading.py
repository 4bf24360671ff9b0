"""Reads recipes: from a file or a text, with the command line's values over it.

Reading one executes nothing, imports no numerics, and touches neither data nor device.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeGuard

from pydantic import ValidationError

from hyperrbp.config import strict_yaml
from hyperrbp.config.cross_checks import cross_check
from hyperrbp.config.equilibrium import SYSTEMS
from hyperrbp.config.key_paths import KeyFault, KeyPath, MootKey, dotted
from hyperrbp.config.recipe import Recipe
from hyperrbp.config.schema import NAME, BaseRecipe
from hyperrbp.config.validation import faults
from hyperrbp.exceptions import Fault, RecipeError
from hyperrbp.runtime.suggestions import not_one_of, shown

log = logging.getLogger(__name__)

Override = tuple[str, str, Any]
"""(what the user typed, dotted key, value): ``("--trunc", "gradient.trunc", 50)``."""


def read(path: Path, overrides: Sequence[Override] = ()) -> Recipe:
    """Read the tuning recipe in a file.

    Args:
        path: of the file.
        overrides: values of the command line, which replace those of the file; later ones win.

    Raises:
        RecipeError: with one fault for everything that is wrong.
    """
    return _tuning(read_any(path, overrides), str(path))


def read_any(path: Path, overrides: Sequence[Override] = ()) -> BaseRecipe:
    """Read the recipe in a file, of whatever kind; see ``read``."""
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
    """Read the tuning recipe in a text; see ``parse_any``."""
    recipe = parse_any(text, source=source, name=name, overrides=overrides)
    return _tuning(recipe, source)


def parse_any(
    text: str,
    *,
    source: str = "recipe",
    name: str = "recipe",
    overrides: Sequence[Override] = (),
    folder: Path | None = None,
) -> BaseRecipe:
    """Read the recipe in a text; its key ``system`` decides of which kind it is.

    Args:
        text: the YAML.
        source: what a fault calls it.
        name: the recipe's name where the text has none.
        overrides: values that replace those of the text. Paths among them are relative to the
            working folder. A key of the text that they leave without a use is dropped; this is
            logged.
        folder: to which paths in the text are relative; the working folder if not given.

    Raises:
        RecipeError: with one fault for everything that is wrong.
    """
    content = _Content(text, source)
    for override in overrides:
        content.override(*override)
    content.values.setdefault("name", name if re.fullmatch(NAME, name) else "recipe")
    kind = _kind(content)
    recipe = _validated(content, kind)
    found = list(cross_check(recipe))
    while moot := [fault for fault in found if content.is_moot(fault)]:
        for fault in moot:
            content.drop(fault)
        recipe = _validated(content, kind)
        found = list(cross_check(recipe))
    if found:
        raise RecipeError([content.fault(*fault) for fault in found])
    return recipe.located(lambda key: (folder or Path()) if content.holds(key) else Path())


def _validated(content: _Content, kind: type[BaseRecipe]) -> BaseRecipe:
    """Return the recipe, each of whose keys is right by itself.

    Raises:
        RecipeError: with one fault for every key that is not.
    """
    try:
        return kind.model_validate(content.values)
    except ValidationError as error:
        raise RecipeError([content.fault(*found) for found in faults(error, kind)]) from None


def scalar(text: str, key: str = "") -> Any:
    """Read a value that was typed on the command line for a key, as a recipe would read it.

    Raises:
        RecipeError: if it is not YAML, or uses more of YAML than a recipe may.
    """
    try:
        return strict_yaml.load(text, "--set", (key,) if key else ())[0]
    except RecipeError as error:
        found = [Fault(f.source, None, f.key or key, f.message) for f in error.faults]
        raise RecipeError(found) from None


def _tuning(recipe: BaseRecipe, source: str) -> Recipe:
    if isinstance(recipe, Recipe):
        return recipe
    message = f"{recipe.name} is a network to train, not a run to tune: hyperrbp train {source}"
    raise RecipeError([Fault(source, None, "system", message)])


def _kind(content: _Content) -> type[BaseRecipe]:
    """Return the class of a recipe.

    Raises:
        RecipeError: if its system is unknown.
    """
    if "system" not in content.values:
        return Recipe
    system = content.values["system"]
    if not isinstance(system, str) or system not in SYSTEMS:
        raise RecipeError([content.fault(("system",), not_one_of(system, SYSTEMS))])
    return SYSTEMS[system]


_INSTEAD: dict[KeyPath, KeyPath] = {
    ("inner", "steps"): ("inner", "epochs"),
    ("inner", "epochs"): ("inner", "steps"),
}
"""A value on the command line for the one takes the place of the other in the text."""


class _Content:
    """The values of a recipe, and for every key the line or the option that it comes from."""

    def __init__(self, text: str, source: str) -> None:
        self._source = source
        self._options: dict[KeyPath, str] = {}
        self._typed: list[KeyPath] = []
        self._dropped: list[KeyPath] = []
        values, self._lines = strict_yaml.load(text, source)
        if values is None:  # an empty recipe is one, too
            values = {}
        if not isinstance(values, dict):
            expected = f"expected a mapping of {', '.join(Recipe.model_fields)}"
            raise RecipeError([Fault(source, 1, "", f"{expected}, got {shown(values)}")])
        self.values: dict[str, Any] = values

    def override(self, option: str, key: str, value: Any) -> None:
        """Put a value under a dotted key; the option is to blame for it from then on.

        Raises:
            RecipeError: if there is no place for it.
        """
        path: KeyPath = tuple(key.split("."))
        if not all(path):
            message = "expected a dotted key, as in inner.steps"
            raise RecipeError([Fault(option, None, key, message)])
        section = self.values
        for depth in range(1, len(path)):
            section = self._section(section, path[:depth], option, key)
        section[str(path[-1])] = value
        if value is not None and (other := _INSTEAD.get(path)):
            section.pop(str(other[-1]), None)
        self._options[path] = option
        self._typed.append(path)
        for replaced in [at for at in self._lines if at[: len(path)] == path]:
            del self._lines[replaced]

    def _section(
        self, parent: dict[str, Any], at: KeyPath, option: str, key: str
    ) -> dict[str, Any]:
        """Return the section at a key of its parent; make it where there is none."""
        name = str(at[-1])
        if parent.get(name) is None:
            parent[name] = {}
            if at not in self._lines:
                self._options[at] = option
        section = parent[name]
        if not isinstance(section, dict):
            raise RecipeError([Fault(option, None, key, f"{dotted(at)} is not a section")])
        return section

    def holds(self, key: str) -> bool:
        """Return whether the text, and no option, gives a dotted key its value."""
        path = tuple(key.split("."))
        return not any(at == path[: len(at)] for at in self._options)

    def is_moot(self, fault: KeyFault) -> TypeGuard[MootKey]:
        """Return whether an option, and not the text by itself, leaves a key without a use.

        A key that an option gave, too, is not moot: two options contradict each other.
        """
        if not isinstance(fault, MootKey) or fault.at in self._dropped:
            return False
        inside = any(option[: len(fault.at)] == fault.at for option in self._typed)
        around = any(fault.at[: len(option)] == option for option in self._typed)
        if inside or (around and self._is_there(fault.at)):
            return False
        return any(_nested(fault.because, option) for option in self._typed)

    def drop(self, fault: MootKey) -> None:
        """Leave out a key that has no use, and log it."""
        section: Any = self.values
        for key in fault.at[:-1]:
            section = section.setdefault(str(key), {})
        section.pop(str(fault.at[-1]), None)
        if fault.null:
            section[str(fault.at[-1])] = None
        self._dropped.append(fault.at)
        log.warning("dropped %s: %s", dotted(fault.at), fault.note)

    def _is_there(self, at: KeyPath) -> bool:
        """Return whether a key has a value, and not only its default."""
        section: Any = self.values
        for key in at:
            if not isinstance(section, dict) or key not in section:
                return False
            section = section[key]
        return True

    def fault(self, at: KeyPath, message: str) -> Fault:
        """Return a fault that names the line or the option where the value comes from."""
        for end in range(len(at), 0, -1):
            if at[:end] in self._options:
                return Fault(self._options[at[:end]], None, dotted(at), message)
            if at[:end] in self._lines:
                default = "" if end == len(at) else ", the default"
                return Fault(self._source, self._lines[at[:end]], dotted(at), message + default)
        return Fault(self._source, None, dotted(at), message + ", the default")


def _nested(one: KeyPath, other: KeyPath) -> bool:
    """Return whether one of two keys is the other, or a section around it."""
    shared = min(len(one), len(other))
    return one[:shared] == other[:shared]
