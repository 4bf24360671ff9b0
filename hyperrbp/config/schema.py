"""The base classes of recipes and of their sections."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from hyperrbp.config import strict_yaml

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"


class Section(BaseModel):
    """A part of a recipe: no unknown keys, no silent conversions, no infinities."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class BaseRecipe(Section):
    """The keys that every kind of recipe has."""

    may_change: ClassVar[tuple[str, ...]] = ()
    """Keys that a resumed run may change: they do not alter the steps already taken."""

    name: str = Field(
        "recipe",
        pattern=NAME,
        description="names the run folder; if not given, the name of the recipe's file",
    )
    seed: int = Field(1234, ge=0, lt=2**63, description="seed of everything random")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: cuda if there is one")
    dtype: Literal["float32", "float64"] = Field(
        "float32", description="precision of all numbers: float32 | float64"
    )
    threads: int | None = Field(
        None, ge=1, le=1024, description="CPU threads; null: PyTorch's own choice"
    )

    def code(self) -> Iterator[tuple[str, str]]:
        """Yield every key that names Python code of the user's own, with that code in words."""
        yield from ()

    def from_data(self) -> tuple[str, ...]:
        """Return the keys of which only the data say what they come to."""
        return ()

    def located(self, folder: Callable[[str], Path]) -> Self:
        """Return the same recipe with absolute paths.

        Args:
            folder: returns the folder to which the path under a dotted key is relative.
        """
        return self

    def to_yaml(self) -> str:
        """Return the recipe, every key spelt out, as YAML that reads back to the same recipe."""
        return strict_yaml.dump(self.model_dump())
