"""The recipes that come with the tool."""

from __future__ import annotations

import difflib
from pathlib import Path

from hyperrbp.errors import UsageError

_PACKAGE = Path(__file__).resolve().parent


def folder() -> Path:
    """Where the built-in recipes lie: inside an installed package, beside it in a checkout."""
    installed = _PACKAGE / "recipes"
    return installed if installed.is_dir() else _PACKAGE.parent / "recipes"


def names() -> list[str]:
    """The built-in recipes, by name."""
    return sorted(path.stem for path in folder().glob("*.yaml"))


def find(recipe: str) -> Path:
    """The file of a recipe given as a path, a run folder, or a built-in name.

    Raises:
        UsageError: if there is no such recipe, with the nearest name.
    """
    path = Path(recipe)
    if path.is_dir() and (path / "recipe.yaml").is_file():
        return path / "recipe.yaml"
    if path.is_file():
        return path
    if recipe in names():
        return folder() / f"{recipe}.yaml"
    if path.suffix or "/" in recipe:
        raise UsageError(f"{recipe}: no such recipe file")
    near = difflib.get_close_matches(recipe, names(), n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
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
    return " ".join(lines).split(". ")[0].removesuffix(".")
