"""Options that are checked wherever they are given: in a recipe, and from Python."""

from __future__ import annotations

from dataclasses import fields
from typing import ClassVar, get_type_hints

from pydantic import TypeAdapter, ValidationError

from hyperrbp.exceptions import UsageError


class CheckedOptions:
    """A dataclass whose fields are options, annotated as pydantic understands it.

    Raises:
        UsageError: for a value that its annotation does not allow.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid", "strict": True}

    name: ClassVar[str]
    kind: ClassVar[str]
    """The kind of thing that has these options, for a message: ``gradient method``."""

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self), include_extras=True)
        for field in fields(self):  # type: ignore[arg-type]  # of the dataclasses below
            try:
                TypeAdapter(hints[field.name]).validate_python(
                    getattr(self, field.name), strict=True
                )
            except ValidationError as error:
                message = error.errors()[0]["msg"]
                raise UsageError(f"{self.kind} '{self.name}': {field.name}: {message}") from None
