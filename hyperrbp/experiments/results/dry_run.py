"""The report of ``hyperrbp tune --dry-run``."""

from __future__ import annotations

from typing import Literal

from hyperrbp.config.recipe import Recipe
from hyperrbp.experiments.results.document import Document


class DryRunReport(Document):
    """What a tuning run would be, and the cost that is predicted for each of its meta steps."""

    kind: Literal["dry-run"] = "dry-run"
    recipe: Recipe
    weights: int
    """Of the network."""
    hyperparameters: int
    seconds: float
    saved_bytes: int
    """Peak bytes that autograd and the gradient method keep."""
    peak_bytes: int
    """Peak bytes of the process."""
