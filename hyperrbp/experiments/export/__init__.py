"""Exports tuned hyperparameters as code for the next training script."""

from __future__ import annotations

from hyperrbp.experiments.export.module import (
    EXAMPLE_WEIGHTS,
    WEIGHT_DECAY,
    Export,
    export_groups,
)

__all__ = ["EXAMPLE_WEIGHTS", "WEIGHT_DECAY", "Export", "export_groups"]
