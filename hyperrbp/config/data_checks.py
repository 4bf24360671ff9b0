"""Checks the data section of a recipe: its source, its options, its sizes, and its network."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from hyperrbp.config.key_paths import KeyFault
from hyperrbp.config.recipe import Recipe
from hyperrbp.config.recipe_keys import DataSection
from hyperrbp.config.validation import named_option_faults
from hyperrbp.data import sources
from hyperrbp.data.builtin import BUILTIN_SETS
from hyperrbp.data.torchvision_catalog import SPLITS, TORCHVISION_SETS
from hyperrbp.problems.networks import wanted_inputs
from hyperrbp.runtime.suggestions import not_one_of, shown
from hyperrbp.runtime.user_code import TORCHVISION


def data_faults(recipe: Recipe) -> Iterator[KeyFault]:
    """Yield what is wrong with the data of a recipe, as far as it shows before they are read."""
    yield from _data(recipe.data)
    yield from _inputs(recipe)
    yield from _sizes(recipe)


@dataclass(frozen=True)
class _NoOptions:
    """The options of a built-in data set."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}


def _data(data: DataSection) -> Iterator[KeyFault]:
    if data.name in BUILTIN_SETS:
        yield from named_option_faults("data", data.name, _NoOptions, data.options)
        return
    kind = sources.kind_of(data.name)
    if kind is None:
        kinds = ", ".join(kind for kind in sources.SOURCE_KINDS if kind != sources.TEXT)
        named = not_one_of(data.name, [*BUILTIN_SETS, sources.TEXT])
        yield ("data", "name"), f"{named}; or {kinds}"
        return
    options = dict(data.options)
    if kind == "torchvision:NAME":
        yield from _torchvision(data.name.removeprefix(TORCHVISION), options)
    if kind != "file.py:function":
        yield from named_option_faults("data", data.name, sources.SOURCE_KINDS[kind], options)


def _inputs(recipe: Recipe) -> Iterator[KeyFault]:
    """Check that token ids meet a network that may take them, and floats one that does not."""
    data, wanted = recipe.data, wanted_inputs(recipe.model.name)
    kind = sources.kind_of(data.name)
    text = kind == sources.TEXT
    ids = data.inputs == "ids" or text
    at = ("data", "name") if text else ("data", "inputs")
    if ids and wanted not in (None, "ids"):
        what = "a text gives token ids" if text else "ids are whole numbers"
        yield at, f"{what}, and {recipe.model.name} takes floats; expected a network that embeds"
    if data.inputs == "floats" and (text or wanted == "ids"):
        yield ("data", "inputs"), "these are token ids; expected auto or ids, got 'floats'"
    if wanted == "ids" and not text and kind not in ("file.npz", "file.py:function"):
        yield (
            ("data", "name"),
            f"{recipe.model.name} takes token ids; expected text, file.npz or code,"
            f" got {shown(data.name)}",
        )
    elif data.inputs == "ids" and kind in (None, "folder/", "torchvision:NAME"):
        yield ("data", "inputs"), f"{data.name} holds images; expected auto or floats, got 'ids'"
    if ids and data.center is True:
        yield ("data", "center"), "token ids have no mean; expected auto or false, got true"
    if text and data.label_noise:
        yield ("data", "label_noise"), f"a text has no labels; expected 0, got {data.label_noise:g}"
    if text and data.shape not in ("auto", "own"):
        yield ("data", "shape"), f"of a text, expected auto or own, got {shown(data.shape)}"


def _torchvision(name: str, options: dict[str, Any]) -> Iterator[KeyFault]:
    """Check a data set of torchvision; a split that it does not have leaves ``options``."""
    at = ("data", "options", "split")
    if name not in TORCHVISION_SETS:
        yield ("data", "name"), not_one_of(name, TORCHVISION_SETS)
    elif name not in SPLITS and (split := options.pop("split", None)) is not None:
        having = ", ".join(SPLITS)
        yield at, f"only {having} has one, {name} none; got {shown(split)}"
    elif name in SPLITS and options.get("split") is None:
        splits = ", ".join(SPLITS[name])
        yield at, f"{name} is several sets; expected one of {splits}"


def _sizes(recipe: Recipe) -> Iterator[KeyFault]:
    """Check the sizes for a data set of known size; others are measured when they are read."""
    data = recipe.data
    source = BUILTIN_SETS.get(data.name)
    if data.name == sources.TEXT:  # whose windows overlap: it is measured when it is read
        return
    known = data.train_examples if source is None else source.train_examples
    if known is None:
        return
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
