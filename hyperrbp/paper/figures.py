"""What the figures of the paper show, as numbers; ``hyperrbp.paper.drawing`` draws it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy import ndarray
    from torch import Tensor

Row = dict[str, Any]
"""A flat row of a CSV file: numbers, texts, and None for what is unknown."""


@dataclass
class Panel:
    """Curves by method."""

    x: str
    """The label of the axis; y likewise."""
    y: str
    log: bool = False
    """Whether y is on a logarithmic scale."""
    title: str = ""
    curves: dict[str, list[tuple[float, float]]] = field(default_factory=dict)

    def add(self, method: str, x: float, y: float | None) -> None:
        """Add a point; a value that was not finite leaves a gap."""
        self.curves.setdefault(method, []).append((x, float("nan") if y is None else y))

    def rows(self, fixed: Row | None = None) -> list[Row]:
        """Return every point as a row that begins with ``fixed``."""
        return [
            {**(fixed or {}), "panel": self.y, "method": method, self.x: x, "value": y}
            for method, points in self.curves.items()
            for x, y in points
        ]


@dataclass(frozen=True)
class Panels:
    """Panels side by side, with one legend."""

    panels: Sequence[Panel]
    columns: int = 4


@dataclass(frozen=True)
class Images:
    """Rows of images, each with its name: of shape (columns, height, width)."""

    rows: Mapping[str, Tensor]


@dataclass(frozen=True)
class Paths:
    """Paths in the plane by panel and method, each of shape (points, 2)."""

    panels: Mapping[str, Mapping[str, ndarray]]


Figure = Panels | Images | Paths
