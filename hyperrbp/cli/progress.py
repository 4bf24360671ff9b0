"""Shows how far a comparison, a benchmark or a check has come, and prints what it found."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hyperrbp.cli.output import print_answer, print_json, stderr

if TYPE_CHECKING:
    from rich.console import RenderableType

    from hyperrbp.runtime.callbacks import Audience


def with_progress(work: Callable[[Audience], dict[str, Any]], quiet: bool) -> dict[str, Any]:
    """Do something long, with its progress on stderr unless ``quiet``."""
    from hyperrbp.reporting.comparison import Bar, Lines
    from hyperrbp.runtime.callbacks import Audience

    audience = Audience()
    if not quiet:
        audience = Bar(stderr) if stderr.is_terminal else Lines(stderr)
    try:
        return work(audience)
    finally:
        audience.ended()


def print_found(
    document: dict[str, Any],
    page: Callable[[dict[str, Any]], RenderableType],
    as_json: bool,
) -> None:
    """Print a document as JSON, or as the page that shows it."""
    if as_json:
        print_json(document)
    else:
        print_answer(page(document))
