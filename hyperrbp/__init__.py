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
    from hyperrbp.diagnostics.examination import Examination as Examination
    from hyperrbp.diagnostics.examination import Scope as Scope
    from hyperrbp.diagnostics.examination import examine as examine
    from hyperrbp.diagnostics.verdict import Verdict as Verdict
    from hyperrbp.dynamics import Problem as Problem
    from hyperrbp.errors import HyperrbpError as HyperrbpError
    from hyperrbp.experiment import Experiment as Experiment
    from hyperrbp.gradients import Averaging as Averaging
    from hyperrbp.gradients import Hypergradient as Hypergradient
    from hyperrbp.gradients import hypergradient as hypergradient
    from hyperrbp.implicit_layer import Diagnosis as Diagnosis
    from hyperrbp.implicit_layer import steady_state as steady_state
    from hyperrbp.problems.batches import Batch as Batch
    from hyperrbp.problems.batches import ShuffledBatches as ShuffledBatches
    from hyperrbp.problems.fixed_point import FixedPoint as FixedPoint
    from hyperrbp.problems.graph_net import GraphNet as GraphNet
    from hyperrbp.problems.hopfield import Hopfield as Hopfield
    from hyperrbp.problems.training import TrainingRun as TrainingRun
    from hyperrbp.recipe import Recipe as Recipe
    from hyperrbp.train import train_recipe as train_recipe
    from hyperrbp.tune import tune_recipe as tune_recipe

__version__ = "0.1.0"

_HOMES = {
    "Averaging": "hyperrbp.gradients",
    "Batch": "hyperrbp.problems.batches",
    "Diagnosis": "hyperrbp.implicit_layer",
    "Examination": "hyperrbp.diagnostics.examination",
    "Experiment": "hyperrbp.experiment",
    "FixedPoint": "hyperrbp.problems.fixed_point",
    "GradientSettings": "hyperrbp.descent",
    "GraphNet": "hyperrbp.problems.graph_net",
    "Hopfield": "hyperrbp.problems.hopfield",
    "Hypergradient": "hyperrbp.gradients",
    "HyperrbpError": "hyperrbp.errors",
    "MetaSettings": "hyperrbp.descent",
    "Problem": "hyperrbp.dynamics",
    "Recipe": "hyperrbp.recipe",
    "Scope": "hyperrbp.diagnostics.examination",
    "ShuffledBatches": "hyperrbp.problems.batches",
    "TrainingRun": "hyperrbp.problems.training",
    "Verdict": "hyperrbp.diagnostics.verdict",
    "descend": "hyperrbp.descent",
    "examine": "hyperrbp.diagnostics.examination",
    "hypergradient": "hyperrbp.gradients",
    "steady_state": "hyperrbp.implicit_layer",
    "train_recipe": "hyperrbp.train",
    "tune_recipe": "hyperrbp.tune",
}

__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'hyperrbp' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return list(__all__)
