"""hyperrbp: the gradient of a whole training run, what it costs, and a tuner that walks along it.

The names below are the library; importing this package imports no numerics until one is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hyperrbp.config.recipe import Recipe as Recipe
    from hyperrbp.data.batches import Batch as Batch
    from hyperrbp.data.batches import ShuffledBatches as ShuffledBatches
    from hyperrbp.exceptions import HyperrbpError as HyperrbpError
    from hyperrbp.experiments.experiment import Experiment as Experiment
    from hyperrbp.experiments.train import train_recipe as train_recipe
    from hyperrbp.experiments.tune import tune_recipe as tune_recipe
    from hyperrbp.hypergradients import Averaging as Averaging
    from hyperrbp.hypergradients import Hypergradient as Hypergradient
    from hyperrbp.hypergradients import hypergradient as hypergradient
    from hyperrbp.hypergradients.diagnostics.examination import Examination as Examination
    from hyperrbp.hypergradients.diagnostics.examination import Scope as Scope
    from hyperrbp.hypergradients.diagnostics.examination import examine as examine
    from hyperrbp.hypergradients.diagnostics.verdict import Verdict as Verdict
    from hyperrbp.hypergradients.implicit_layer import Diagnosis as Diagnosis
    from hyperrbp.hypergradients.implicit_layer import steady_state as steady_state
    from hyperrbp.hypergradients.settings import GradientSettings as GradientSettings
    from hyperrbp.optimizers.adam import AdamSettings as AdamSettings
    from hyperrbp.optimizers.adam import descend as descend
    from hyperrbp.problems.base import Problem as Problem
    from hyperrbp.problems.fixed_point import FixedPoint as FixedPoint
    from hyperrbp.problems.graph_net import GraphNet as GraphNet
    from hyperrbp.problems.hopfield import Hopfield as Hopfield
    from hyperrbp.problems.training.run import TrainingRun as TrainingRun

__version__ = "0.1.0"

_HOMES = {
    "Averaging": "hyperrbp.hypergradients",
    "Batch": "hyperrbp.data.batches",
    "Diagnosis": "hyperrbp.hypergradients.implicit_layer",
    "Examination": "hyperrbp.hypergradients.diagnostics.examination",
    "Experiment": "hyperrbp.experiments.experiment",
    "FixedPoint": "hyperrbp.problems.fixed_point",
    "GradientSettings": "hyperrbp.hypergradients.settings",
    "GraphNet": "hyperrbp.problems.graph_net",
    "Hopfield": "hyperrbp.problems.hopfield",
    "Hypergradient": "hyperrbp.hypergradients",
    "HyperrbpError": "hyperrbp.exceptions",
    "AdamSettings": "hyperrbp.optimizers.adam",
    "Problem": "hyperrbp.problems.base",
    "Recipe": "hyperrbp.config.recipe",
    "Scope": "hyperrbp.hypergradients.diagnostics.examination",
    "ShuffledBatches": "hyperrbp.data.batches",
    "TrainingRun": "hyperrbp.problems.training.run",
    "Verdict": "hyperrbp.hypergradients.diagnostics.verdict",
    "descend": "hyperrbp.optimizers.adam",
    "examine": "hyperrbp.hypergradients.diagnostics.examination",
    "hypergradient": "hyperrbp.hypergradients",
    "steady_state": "hyperrbp.hypergradients.implicit_layer",
    "train_recipe": "hyperrbp.experiments.train",
    "tune_recipe": "hyperrbp.experiments.tune",
}

__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'hyperrbp' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return list(__all__)
