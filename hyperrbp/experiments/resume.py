"""What ``--resume`` refuses: another recipe, and another environment unless told to accept it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyperrbp.config.schema import BaseRecipe
from hyperrbp.exceptions import CheckpointError

if TYPE_CHECKING:
    from hyperrbp.experiments.results.run import InexactResume

log = logging.getLogger(__name__)

_MACHINE = ("device", "threads")
"""Keys of a recipe that say where it runs: they are compared with the environment."""


def check_same_recipe(folder: Path, began: BaseRecipe, recipe: BaseRecipe) -> None:
    """Refuse to go on with another recipe than the one that the run began with.

    Args:
        folder: the run folder, for the message.
        began: the recipe in it.
        recipe: the one to go on with; its ``may_change`` names what does not alter past steps.

    Raises:
        CheckpointError: naming each key that differs.
    """
    changes = [
        f"{key}: {old!r} → {new!r}"
        for key, (old, new) in differences(began.model_dump(), recipe.model_dump()).items()
        if key not in (*recipe.may_change, *recipe.from_data(), *_MACHINE)
    ]
    if changes:
        raise CheckpointError(
            f"{folder} was begun with another recipe ({'; '.join(changes)}); only"
            f" {', '.join(recipe.may_change)} may change on --resume"
        )


def accept_environment(folder: Path, changed: InexactResume, inexact: bool) -> None:
    """Log that the environment has changed, or refuse to go on in it.

    The environment holds what the bits of a run depend on besides its recipe: versions, threads,
    the device, and the digests of the user's own data and code.

    Args:
        folder: the run folder, for the message.
        changed: what has changed, ``{key: [old, new]}``.
        inexact: whether to go on all the same.

    Raises:
        CheckpointError: without ``inexact``.
    """
    listed = "; ".join(f"{key}: {old!r} → {new!r}" for key, (old, new) in changed.items())
    if not inexact:
        raise CheckpointError(
            f"{folder} was begun in another environment ({listed}), and steps taken in this"
            " one may differ in their last bits. Resume it in its own environment, or go on"
            " with --inexact-resume: its recipe then no longer repeats the run bit for bit"
        )
    log.warning(
        "resuming in another environment (%s): the recipe no longer repeats this run bit for bit",
        listed,
    )


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return what differs between two mappings, ``{dotted key: [old, new]}``."""
    return {key: [before, after] for key, before, after in _differences(old, new, "")}


def _differences(
    old: Mapping[str, Any], new: Mapping[str, Any], prefix: str
) -> Iterator[tuple[str, Any, Any]]:
    for key in {**old, **new}:
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            yield from _differences(before, after, f"{prefix}{key}.")
        elif before != after:
            yield f"{prefix}{key}", before, after
