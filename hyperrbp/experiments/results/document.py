"""Base classes of everything that is written as JSON, and the one function that writes it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    SerializerFunctionWrapHandler,
    model_serializer,
)

SCHEMA_VERSION: Final = 1
"""Of all documents together; it rises when one of them changes its shape."""


def _null_unless_finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


Number = Annotated[float | None, BeforeValidator(_null_unless_finite)]
"""A float of a result; None stands for one that is not finite, which JSON cannot say."""
Values = Mapping[str, Number]
"""Numbers by name: one for each parameter tensor, or the summary statistics of very many."""
Environment = dict[str, str | int]
"""What the bits of a result depend on, besides the recipe."""


class Part(BaseModel):
    """A part of a document: no unknown keys, no silent conversions.

    A key with a default of None is absent from the JSON, not null, where it is None.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    @model_serializer(mode="wrap")
    def _without_absent(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields = type(self).model_fields
        values = {
            key: value
            for key, value in serialize(self).items()
            if value is not None or fields[key].is_required()
        }
        return {key: values[key] for key in ("kind", "schema_version") if key in values} | values


class Document(Part):
    """What is read again as a whole. Each subclass states a ``kind`` of its own."""

    schema_version: Literal[1] = SCHEMA_VERSION


class Measured(Part):
    """What the phases of a step took: all in a record that may differ between two runs."""

    seconds: dict[str, float]
    """By phase."""
    peak_bytes: dict[str, dict[str, int]]
    """By phase, of the ``process`` and, on CUDA, of the ``allocator``."""
    time: str
    """When it ended, in UTC."""

    @classmethod
    def until_now(cls, seconds: dict[str, float], peak_bytes: dict[str, dict[str, int]]) -> Self:
        """Return what phases that have just ended took."""
        time = datetime.now(UTC).isoformat(timespec="milliseconds")
        return cls(seconds=seconds, peak_bytes=peak_bytes, time=time)

    @property
    def total_seconds(self) -> float:
        """The seconds of all phases together."""
        return sum(self.seconds.values())

    @property
    def largest_peak(self) -> int:
        """The largest peak of any phase: the allocator's where there is one, in bytes."""
        return max(self.peak_by_phase.values(), default=0)

    @property
    def peak_by_phase(self) -> dict[str, int]:
        """The peak of each phase, of the allocator where there is one, else of the process."""
        return {
            phase: peaks.get("allocator", peaks["process"])
            for phase, peaks in self.peak_bytes.items()
        }


def to_json(document: Part, *, indent: int | None = None) -> str:
    """Return the JSON of a document, on one line unless indented; floats survive to the bit."""
    return json.dumps(document.model_dump(mode="json"), indent=indent, allow_nan=False)
