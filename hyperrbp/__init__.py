"""hyperrbp: the gradient of a whole training run, what it costs, and a tuner that walks along it.

The names below are the library; importing this package imports no numerics until one is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hyperrbp.descent import GradientSettings as GradientSettings
    from hyperrbp.descent import MetaSettings as MetaSettings
    from hyperrbp.descent import descend as descend
    from hyperrbp.dynamics import Problem as Problem
    from hyperrbp.errors import HyperrbpError as HyperrbpError
    from hyperrbp.experiment import Experiment as Experiment
    from hyperrbp.gradients import Averaging as Averaging
    from hyperrbp.gradients import Hypergradient as Hypergradient
    from hyperrbp.gradients import hypergradient as hypergradient
    from hyperrbp.problems.batches import Batch as Batch
    from hyperrbp.problems.batches import ShuffledBatches as ShuffledBatches
    from hyperrbp.problems.training import TrainingRun as TrainingRun
    from hyperrbp.recipe import Recipe as Recipe
    from hyperrbp.tune import tune_recipe as tune_recipe

__version__ = "0.1.0"

_HOMES = {
    "Averaging": "hyperrbp.gradients",
    "Batch": "hyperrbp.problems.batches",
    "Experiment": "hyperrbp.experiment",
    "GradientSettings": "hyperrbp.descent",
    "Hypergradient": "hyperrbp.gradients",
    "HyperrbpError": "hyperrbp.errors",
    "MetaSettings": "hyperrbp.descent",
    "Problem": "hyperrbp.dynamics",
    "Recipe": "hyperrbp.recipe",
    "ShuffledBatches": "hyperrbp.problems.batches",
    "TrainingRun": "hyperrbp.problems.training",
    "descend": "hyperrbp.descent",
    "hypergradient": "hyperrbp.gradients",
    "tune_recipe": "hyperrbp.tune",
}

__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'hyperrbp' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return list(__all__)
