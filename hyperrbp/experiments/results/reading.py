"""Reads records and results by their kind."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from hyperrbp.exceptions import CheckpointError
from hyperrbp.experiments.results.document import Document
from hyperrbp.experiments.results.records import (
    EpochRecord,
    EvaluationRecord,
    GradientRecord,
    Record,
    TrainingStepRecord,
)
from hyperrbp.experiments.results.train import EquilibriumResult, InnerRunResult
from hyperrbp.experiments.results.tune import TuneResult

R = TypeVar("R", bound=Record)
D = TypeVar("D", bound=Document)

_RECORDS: TypeAdapter[Record] = TypeAdapter(
    Annotated[
        EvaluationRecord | GradientRecord | EpochRecord | TrainingStepRecord,
        Field(discriminator="kind"),
    ]
)
_RESULTS: TypeAdapter[Document] = TypeAdapter(
    Annotated[TuneResult | EquilibriumResult | InnerRunResult, Field(discriminator="kind")]
)


def read_record(line: str, expected: type[R], place: str) -> R:
    """Read a line of ``records.jsonl``.

    Args:
        line: the JSON of one record.
        expected: its class, or one that several records derive from.
        place: of the line, for a fault.

    Raises:
        CheckpointError: if it is not such a record.
    """
    return _read(_RECORDS, line, expected, f"{place}: not a record of this version")


def read_result(text: str, expected: type[D], place: str) -> D:
    """Read a ``result.json``; see ``read_record``.

    Raises:
        CheckpointError: if it is not such a result.
    """
    return _read(_RESULTS, text, expected, f"{place}: not a result of this version")


def _read(adapter: TypeAdapter[Any], text: str, expected: type[D], fault: str) -> D:
    try:
        found = adapter.validate_json(text)
    except ValidationError as error:
        raise CheckpointError(f"{fault} ({_in_one_line(error)})") from None
    if "schema_version" not in found.model_fields_set:
        raise CheckpointError(f"{fault} (schema_version: Field required)")
    if not isinstance(found, expected):
        raise CheckpointError(f"{fault} (it is of the kind {found.kind})")
    return found


def _in_one_line(error: ValidationError) -> str:
    """Return the first places at which a document differs from its model, and how."""
    faults = error.errors(include_url=False, include_input=False)
    listed = [".".join(map(str, fault["loc"])) + f": {fault['msg']}" for fault in faults[:3]]
    return "; ".join(text.removeprefix(": ") for text in listed)
