"""The recipe of a tuning run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

from pydantic import model_validator

from hyperrbp.config.hyperparameters import HyperparametersSection, with_tuned_kinds
from hyperrbp.config.inner_run import InnerSection
from hyperrbp.config.recipe_keys import (
    ADAM,
    DataSection,
    HypergradientSection,
    MetaSection,
    ModelSection,
    RecordSection,
)
from hyperrbp.config.schema import BaseRecipe
from hyperrbp.data import sources
from hyperrbp.data.builtin import BUILTIN_SETS
from hyperrbp.runtime import user_code


class Recipe(BaseRecipe):
    """A tuning run from its data to its last meta step."""

    may_change = ("meta.steps",)

    data: DataSection = DataSection()
    model: ModelSection = ModelSection()
    inner: InnerSection = InnerSection()
    hyperparameters: HyperparametersSection = HyperparametersSection()
    gradient: HypergradientSection = HypergradientSection()
    meta: MetaSection = MetaSection()
    record: RecordSection = RecordSection()

    @model_validator(mode="before")
    @classmethod
    def _with_tuned_kinds(cls, given: Any) -> Any:
        """Fill in what is tuned where nothing is said of it: it depends on the optimizer."""
        if not isinstance(given, dict):
            return given
        tuned, inner = given.get("hyperparameters", {}), given.get("inner", {})
        if not isinstance(tuned, dict) or not isinstance(inner, dict):
            return given
        return given | {"hyperparameters": with_tuned_kinds(tuned, inner)}

    def code(self) -> Iterator[tuple[str, str]]:
        """Yield every key that names Python code of the user's own, with that code in words."""
        for key, name in (
            ("data.name", self.data.name),
            ("model.name", self.model.name),
            ("inner.loss", self.inner.loss),
            ("inner.optimizer", self.inner.optimizer),
        ):
            if user_code.is_code(name):
                yield key, user_code.described(name)

    def from_data(self) -> tuple[str, ...]:
        """Return the keys of which only the data say what they come to."""
        length = () if self.inner.epochs is None else ("inner.steps", "inner.epochs")
        size = () if "batch_size" in self.inner.model_fields_set else ("inner.batch_size",)
        return (*length, *size)

    def located(self, folder: Callable[[str], Path]) -> Self:
        """Return the same recipe with absolute paths; see ``BaseRecipe.located``."""
        data, model, inner = self.data, self.model, self.inner
        if data.name not in BUILTIN_SETS:
            name = sources.located(data.name, folder("data.name"))
            data = data.model_copy(update={"name": name})
        if data.name == sources.TEXT and data.options.get("file") is not None:
            file = str(user_code.absolute(data.options["file"], folder("data.options.file")))
            data = data.model_copy(update={"options": {**data.options, "file": file}})
        if user_code.is_code(model.name):
            name = user_code.located(model.name, folder("model.name"))
            model = model.model_copy(update={"name": name})
        if model.weights is not None:
            weights = str(user_code.absolute(model.weights, folder("model.weights")))
            model = model.model_copy(update={"weights": weights})
        for key in ("loss", "optimizer"):
            if user_code.is_code(name := getattr(inner, key)):
                name = user_code.located(name, folder(f"inner.{key}"))
                inner = inner.model_copy(update={key: name})
        return self.model_copy(update={"data": data, "model": model, "inner": inner})


def describe_tuner(optimizer: str, method: str, trunc: int) -> str:
    """Return in a few words what tunes: a gradient method, the meta-optimizer, or both."""
    if optimizer == "surrogate":
        return "a surrogate"
    suffix = "" if optimizer == ADAM else f" and optimizer {optimizer}"
    return f"{method} with K = {trunc}{suffix}"
