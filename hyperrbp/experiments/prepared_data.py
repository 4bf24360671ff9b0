"""Reads the data that a recipe names, and prepares them as their kind needs."""

from __future__ import annotations

from pathlib import Path

import torch

from hyperrbp.config.recipe import Recipe
from hyperrbp.data import sources
from hyperrbp.data.builtin import BUILTIN_SETS, load_builtin_set
from hyperrbp.data.data_set import DataSet
from hyperrbp.data.text import Text
from hyperrbp.exceptions import UsageError
from hyperrbp.experiments.array_data import ArrayData
from hyperrbp.experiments.data_module import DataModule
from hyperrbp.experiments.loader_data import LoaderData
from hyperrbp.experiments.text_data import TextData
from hyperrbp.problems.networks import wanted_inputs
from hyperrbp.runtime import user_code


def prepared_data(
    recipe: Recipe, device: torch.device, root: Path, modules: user_code.Modules
) -> DataModule:
    """Read the examples of a recipe, by its code if it says so, and prepare them.

    Args:
        recipe: which data, and how they are split.
        device: where the examples go.
        root: the data root.
        modules: the user's own code, which the recipe may name.

    Raises:
        DataError: if the data are missing, damaged, too few, or do not fit the recipe.
        UsageError: if code that it names fails, or there is no validation part to take a loss on.
    """
    section = recipe.data
    data: DataModule
    if section.name in BUILTIN_SETS:
        read = load_builtin_set(section.name, root, download=section.download)
        data = ArrayData(recipe, device, read, modules)
    else:
        source = sources.source_of(section.name, section.options, modules)
        takes_ids = section.inputs == "auto" and wanted_inputs(recipe.model.name) == "ids"
        found = source.load(
            section.name, root, section.download, takes_ids or section.inputs == "ids"
        )
        if isinstance(found, DataSet):
            data = ArrayData(recipe, device, found, modules)
        elif isinstance(found, Text):
            data = TextData(recipe, device, found, modules)
        else:
            data = LoaderData(recipe, device, found, modules)
    if recipe.meta.loss == "validation" and data.validation is None:
        raise UsageError(
            f"meta.loss is 'validation', and data set '{section.name}' has no such part; expected"
            " data.validation_examples, or code that returns (train, validation, heldout)"
        )
    return data
