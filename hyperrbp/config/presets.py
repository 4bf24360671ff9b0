"""The recipes that come with the tool."""

from __future__ import annotations

import re
from pathlib import Path

from hyperrbp.exceptions import UsageError
from hyperrbp.runtime.suggestions import did_you_mean

_PACKAGE = Path(__file__).resolve().parent.parent


def folder() -> Path:
    """Where the built-in recipes lie: inside an installed package, beside it in a checkout."""
    installed = _PACKAGE / "recipes"
    return installed if installed.is_dir() else _PACKAGE.parent / "recipes"


def names() -> list[str]:
    """The built-in recipes, by name."""
    return sorted(path.stem for path in folder().glob("*.yaml"))


def built_in(name: str) -> Path:
    """The file of a built-in recipe."""
    return folder() / f"{name}.yaml"


def find(recipe: str) -> Path:
    """The file of a recipe given as a path, a run folder, or a built-in name.

    Raises:
        UsageError: if there is no such recipe, with the nearest name.
    """
    path = Path(recipe)
    try:
        if path.is_dir() and (path / "recipe.yaml").is_file():
            return path / "recipe.yaml"
        if path.is_file():
            return path
        is_folder = path.is_dir()
    except OSError as error:
        raise UsageError(f"recipe '{recipe}': {error.strerror or error}") from None
    if recipe in names():
        return built_in(recipe)
    if is_folder:
        raise UsageError(f"{recipe}: a folder, but not of a run: it has no recipe.yaml")
    hint = did_you_mean(path.stem, names())
    if path.suffix or "/" in recipe:
        raise UsageError(f"{recipe}: no such recipe file{hint}")
    raise UsageError(
        f"unknown recipe '{recipe}': neither a file nor one of {', '.join(names())}{hint}"
    )


def summary(path: Path) -> str:
    """The first sentence of the comment that a recipe opens with, after its command."""
    lines: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines()[1:]:
        text = line.removeprefix("#").strip()
        if not line.startswith("#") or (lines and not text):
            break
        if text:
            lines.append(text)
    return re.split(r"\. (?=[A-Z])", " ".join(lines))[0].removesuffix(".")
