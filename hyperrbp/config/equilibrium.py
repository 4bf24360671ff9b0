"""Recipes of networks with a convergent part, which ``hyperrbp train`` takes.

Each system has one class, and one line in SYSTEMS.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from hyperrbp.config.schema import BaseRecipe, Section
from hyperrbp.data.builtin import BUILTIN_SETS
from hyperrbp.data.citation_networks import NETWORKS
from hyperrbp.hypergradients import METHODS
from hyperrbp.problems.penalties import PENALTIES


class InferenceSection(Section):
    """The updates that bring the network to its steady state."""

    updates: int = Field(100, ge=1, le=10**7, description="T, updates of the state")
    settled: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="stop at this relative change of the state in one update; 0: never",
    )


class EquilibriumGradientSection(Section):
    """The gradient of the steady state with respect to the weights."""

    method: str = Field("neumann", description=" | ".join(METHODS))
    trunc: int = Field(20, ge=1, description="K, truncation steps")
    options: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="options of each method, by its name"
    )


class PenaltySection(Section):
    """A regularizer of appendix A, which keeps I − J invertible at the steady state."""

    name: str = Field(description=" | ".join(PENALTIES))
    weight: float = Field(1.0, gt=0, description="λ, in loss + λ · penalty")
    options: dict[str, Any] = Field(default_factory=dict, description="options of the penalty")


class TrainingSection(Section):
    """The training of the weights."""

    epochs: int = Field(1000, ge=1, le=10**7, description="passes over the training examples")
    optimizer: Literal["adam", "sgd"] = Field("adam", description="adam | sgd")
    learning_rate: float = Field(1e-3, gt=0, le=1000, description="learning rate of the optimizer")
    momentum: float = Field(0.0, ge=0, lt=1, description="momentum of sgd")
    weight_decay: float = Field(0.0, ge=0, description="added to the gradient: weight_decay · w")
    validate_every: int = Field(
        10, ge=1, description="epochs between validations, measured change norms, and checkpoints"
    )


class EquilibriumRecipe(BaseRecipe):
    """The keys that the recipes of all systems share."""

    may_change = ("training.epochs",)

    system: str
    inference: InferenceSection = InferenceSection()
    gradient: EquilibriumGradientSection = EquilibriumGradientSection()
    penalty: PenaltySection | None = None
    training: TrainingSection = TrainingSection()


class MemoryData(Section):
    """The images that the memory stores."""

    name: str = Field("mnist", description="data set: " + ", ".join(BUILTIN_SETS))
    images: int = Field(
        10,
        ge=1,
        description="how many images to store: one of each class, in the order of the classes",
    )
    downsample: int = Field(
        1, ge=1, le=28, description="average each square of so many by so many pixels into one"
    )
    binarize_above: float = Field(
        0.0, ge=0, lt=1, description="pixels above this become 1, others 0"
    )
    corruption: float = Field(
        0.5, ge=0, le=1, description="share of the non-zero pixels that are blanked for retrieval"
    )
    download: bool = Field(False, description="fetch the data set if its files are absent")


class MemoryNetwork(Section):
    """The Hopfield network that is the memory."""

    hidden: int = Field(1024, ge=1, le=10**6, description="hidden neurons")
    a: float = Field(1.0, gt=0, description="time constant of the leak")
    b: float = Field(0.5, gt=0, description="gain of the sigmoid φ")
    readout: Literal["state", "activation"] = Field(
        "state",
        description="what is compared with the image: state, as in the authors' code | activation,"
        " φ(b h), as in the paper",
    )
    init_std: float = Field(1e-3, gt=0, description="standard deviation of the initial weights")


class MemoryInference(InferenceSection):
    """The updates that bring the network to its steady state."""

    updates: int = Field(50, ge=1, le=10**7, description="T, updates of the state")


class MemoryTraining(TrainingSection):
    """The training of the weights."""

    batch_size: int = Field(1, ge=1, description="images an update of the weights")


class HopfieldRecipe(EquilibriumRecipe):
    """An associative memory (section 5.1 of the paper)."""

    system: Literal["hopfield"] = "hopfield"
    data: MemoryData = MemoryData()
    network: MemoryNetwork = MemoryNetwork()
    inference: MemoryInference = MemoryInference()
    training: MemoryTraining = MemoryTraining()


class CitationData(Section):
    """The citation network whose documents are classified."""

    name: str = Field("cora", description=" | ".join(NETWORKS))
    dimensions: int = Field(64, ge=1, description="principal components of a document's words")
    download: bool = Field(False, description="fetch the files if they are absent")


class GraphNetwork(Section):
    """The graph network that classifies."""

    aggregation: Literal["sum", "mean"] = Field(
        "sum", description="how the states of the neighbours are put together: sum | mean"
    )
    init: Literal["normal", "uniform"] = Field(
        "normal",
        description="initial weights of d inputs: normal, of variance 2/d, the authors' | uniform,"
        " in ±1/√d, PyTorch's",
    )


class CitationGradient(EquilibriumGradientSection):
    """The gradient of the steady state with respect to the weights."""

    trunc: int = Field(5, ge=1, description="K, truncation steps")


class CitationTraining(TrainingSection):
    """The training of the weights."""

    epochs: int = Field(2000, ge=1, le=10**7, description="passes over the graph")
    optimizer: Literal["adam", "sgd"] = Field("sgd", description="adam | sgd")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of sgd")
    weight_decay: float = Field(5e-4, ge=0, description="added to the gradient: weight_decay · w")
    validate_every: int = Field(
        20, ge=1, description="epochs between validations, measured change norms, and checkpoints"
    )


class GraphNetRecipe(EquilibriumRecipe):
    """Semi-supervised document classification (section 5.2 of the paper)."""

    system: Literal["graph-net"] = "graph-net"
    data: CitationData = CitationData()
    network: GraphNetwork = GraphNetwork()
    gradient: CitationGradient = CitationGradient()
    training: CitationTraining = CitationTraining()


SYSTEMS: dict[str, type[EquilibriumRecipe]] = {
    "hopfield": HopfieldRecipe,
    "graph-net": GraphNetRecipe,
}
