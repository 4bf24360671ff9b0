"""Shows how far a comparison, a benchmark or a check has come, and prints what a verb found."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from hyperrbp.cli.output import print_answer, print_json, stderr

if TYPE_CHECKING:
    from rich.console import RenderableType

    from hyperrbp.experiments.results.document import Document
    from hyperrbp.runtime.callbacks import Callback

D = TypeVar("D", bound="Document")


def progress_callback(quiet: bool) -> Callback[object, object] | None:
    """Return a display of progress on stderr, a bar on a terminal; None if ``quiet``."""
    from hyperrbp.reporting.progress import ProgressBar, ProgressLines

    if quiet:
        return None
    return ProgressBar(stderr) if stderr.is_terminal else ProgressLines(stderr)


def print_report(
    report: D, page: Callable[[D], RenderableType], as_json: bool, quiet: bool = False
) -> None:
    """Print a report as JSON, or as the page that shows it, unless ``quiet``."""
    if as_json:
        print_json(report)
    elif not quiet:
        print_answer(page(report))
