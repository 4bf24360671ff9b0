"""Presets: the recipes that come with the tool."""

from __future__ import annotations

import re
from pathlib import Path

from hyperrbp.exceptions import UsageError
from hyperrbp.runtime.suggestions import did_you_mean

_PACKAGE = Path(__file__).resolve().parent.parent


def folder() -> Path:
    """Return the folder of the presets: in an installed package, or at the top of a checkout."""
    installed = _PACKAGE / "recipes"
    return installed if installed.is_dir() else _PACKAGE.parent / "recipes"


def names() -> list[str]:
    """List the names of the presets."""
    return sorted(path.stem for path in folder().glob("*.yaml"))


def built_in(name: str) -> Path:
    """Return the file of a preset."""
    return folder() / f"{name}.yaml"


def find(recipe: str) -> Path:
    """Return the file of a recipe that is given as a path, a run folder, or a preset's name.

    Raises:
        UsageError: if there is no such recipe; it names the nearest one.
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
    """Return the first sentence of the comment at the top of a recipe, after its command."""
    lines: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines()[1:]:
        text = line.removeprefix("#").strip()
        if not line.startswith("#") or (lines and not text):
            break
        if text:
            lines.append(text)
    return re.split(r"\. (?=[A-Z])", " ".join(lines))[0].removesuffix(".")
