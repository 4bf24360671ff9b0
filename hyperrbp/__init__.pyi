"""The public names of hyperrbp, and where they are defined."""

from .config.recipe import Recipe as Recipe
from .data.batches import Batch as Batch
from .data.batches import Batches as Batches
from .data.batches import Examples as Examples
from .data.batches import ShuffledBatches as ShuffledBatches
from .data.loader_batches import LoaderBatches as LoaderBatches
from .data.loader_batches import LoaderExamples as LoaderExamples
from .exceptions import HyperrbpError as HyperrbpError
from .experiments.experiment import Experiment as Experiment
from .experiments.train import train_recipe as train_recipe
from .experiments.tune import tune_recipe as tune_recipe
from .hypergradients import Averaging as Averaging
from .hypergradients import Hypergradient as Hypergradient
from .hypergradients import hypergradient as hypergradient
from .hypergradients.diagnostics.examination import Examination as Examination
from .hypergradients.diagnostics.examination import Scope as Scope
from .hypergradients.diagnostics.examination import examine as examine
from .hypergradients.diagnostics.verdict import Verdict as Verdict
from .hypergradients.implicit_layer import Diagnosis as Diagnosis
from .hypergradients.implicit_layer import steady_state as steady_state
from .hypergradients.settings import GradientSettings as GradientSettings
from .optimizers.adam import AdamSettings as AdamSettings
from .optimizers.adam import descend as descend
from .problems.base import Problem as Problem
from .problems.fixed_point import FixedPoint as FixedPoint
from .problems.graph_net import GraphNet as GraphNet
from .problems.hopfield import Hopfield as Hopfield
from .problems.training.hyperparameters import Grain as Grain
from .problems.training.hyperparameters import Hyperparameters as Hyperparameters
from .problems.training.run import TrainingRun as TrainingRun
from .problems.training.schedules import Schedule as Schedule
from .problems.training.update_rules.base import UpdateRule as UpdateRule

__version__: str
__all__: list[str]
