"""Tables of rows that are all alike: for a terminal, as Markdown and as CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from rich.box import SIMPLE_HEAD
from rich.table import Table

from hyperrbp.experiments.results.document import Environment, Part

R = TypeVar("R", contravariant=True)


@dataclass(frozen=True)
class Column(Generic[R]):
    """A column of a table of rows of one type."""

    title: str
    show: Callable[[R], str]
    """Returns the text of a row's cell."""
    left: bool = False
    """Whether to align it on the left."""
    whole: bool = False
    """Whether not to wrap it in a terminal."""


def terminal_table(columns: Sequence[Column[R]], rows: Sequence[R], title: str = "") -> Table:
    """Return a table for the terminal."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, title=title or None, title_justify="left")
    for column in columns:
        table.add_column(
            column.title, justify="left" if column.left else "right", no_wrap=column.whole
        )
    for row in rows:
        table.add_row(*(column.show(row) for column in columns))
    return table


def markdown_table(columns: Sequence[Column[R]], rows: Sequence[R]) -> list[str]:
    """Return the lines of a Markdown table."""
    lines = [
        [column.title for column in columns],
        ["---" if column.left else "---:" for column in columns],
        *([column.show(row) for column in columns] for row in rows),
    ]
    return [f"| {' | '.join(line)} |" for line in lines]


def comma_separated(rows: Sequence[Part]) -> str:
    """Return every number of every row as CSV, nested ones as ``a.b``; what is None is empty."""
    flat = [dict(_flattened(row.model_dump(mode="json"))) for row in rows]
    names = list(dict.fromkeys(name for row in flat for name in row))
    # A failed row has nothing in place of what is nested in the others.
    names = [name for name in names if not any(other.startswith(f"{name}.") for other in names)]
    text = io.StringIO()
    writer = csv.DictWriter(text, names, restval="", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue()


def _flattened(row: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in row.items():
        if isinstance(value, Mapping):
            yield from _flattened(value, f"{prefix}{key}.")
        else:
            yield prefix + key, json.dumps(value) if isinstance(value, list) else value


def machine(environment: Environment) -> str:
    """Return in a few words where something was measured."""
    threads = environment["threads"]
    cores = f"{threads} CPU thread{'' if threads == 1 else 's'}"
    place = environment.get("cuda_device", cores)
    return f"{place}, {environment['machine']}, torch {environment['torch']}"
