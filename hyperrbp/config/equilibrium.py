"""Recipes of networks with a convergent part: what ``hyperrbp train`` takes besides tuning recipes.

One class a system, and one line in SYSTEMS.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from hyperrbp.config.schema import AnyRecipe, KeyFault, Section, not_one_of, option_faults
from hyperrbp.data.builtin import SOURCES
from hyperrbp.data.citation_networks import NETWORKS
from hyperrbp.hypergradients import METHODS, method_class
from hyperrbp.hypergradients.method import Averaging
from hyperrbp.problems.penalties import PENALTIES


class InferenceSection(Section):
    """How the steady state is reached."""

    updates: int = Field(100, ge=1, le=10**7, description="T, updates of the state")
    settled: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="relative change at which the remaining updates are taken as done; 0: never",
    )


class GradientSection(Section):
    """How the steady state is differentiated."""

    method: str = Field("neumann", description=" | ".join(METHODS))
    trunc: int = Field(20, ge=1, description="K, truncation steps")
    options: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="options of each method, by its name"
    )


class PenaltySection(Section):
    """A regularizer of appendix A, which keeps I − J invertible at the steady state."""

    name: str = Field(description=" | ".join(PENALTIES))
    weight: float = Field(1.0, gt=0, description="λ, in loss + λ · penalty")
    options: dict[str, Any] = Field(default_factory=dict, description="its own options")


class TrainingSection(Section):
    """How the weights are trained."""

    epochs: int = Field(1000, ge=1, le=10**7, description="passes over the training examples")
    optimizer: Literal["adam", "sgd"] = Field("adam", description="adam | sgd")
    learning_rate: float = Field(1e-3, gt=0, le=1000, description="of the optimizer")
    momentum: float = Field(0.0, ge=0, lt=1, description="of sgd")
    weight_decay: float = Field(0.0, ge=0, description="added to the gradient: weight_decay · w")
    validate_every: int = Field(
        10, ge=1, description="epochs between validations, change norms and checkpoints"
    )


class NetworkRecipe(AnyRecipe):
    """What the recipes of all systems share."""

    may_change = ("training.epochs",)

    system: str
    inference: InferenceSection = InferenceSection()
    gradient: GradientSection = GradientSection()
    penalty: PenaltySection | None = None
    training: TrainingSection = TrainingSection()

    def contradictions(self) -> Iterator[KeyFault]:
        """What no single key shows to be wrong: (key, what was expected)."""
        gradient, penalty = self.gradient, self.penalty
        yield from method_faults(gradient.method, gradient.options)
        if gradient.method in METHODS:
            method = method_class(gradient.method)()
            if method.steps_needed(gradient.trunc, Averaging()) > self.inference.updates:
                yield (
                    ("gradient", "trunc"),
                    f"{gradient.method} walks back over {gradient.trunc} updates; expected at most"
                    f" the {self.inference.updates} of inference.updates",
                )
        if penalty is not None:
            if penalty.name not in PENALTIES:
                yield ("penalty", "name"), not_one_of(penalty.name, PENALTIES)
            else:
                at = ("penalty", "options")
                yield from option_faults(PENALTIES[penalty.name], penalty.options, at)


class MemoryData(Section):
    """The images that are stored."""

    name: str = Field("mnist", description="data set: " + ", ".join(SOURCES))
    images: int = Field(10, ge=1, description="the first so many classes, one image of each")
    downsample: int = Field(
        1, ge=1, le=28, description="average squares of so many pixels a side into one"
    )
    binarize_above: float = Field(0.0, ge=0, lt=1, description="pixels above are 1, others 0")
    corruption: float = Field(
        0.5, ge=0, le=1, description="share of the non-zero pixels that are blanked for retrieval"
    )
    download: bool = Field(False, description="fetch the data set if its files are absent")


class MemoryNetwork(Section):
    """The Hopfield network."""

    hidden: int = Field(1024, ge=1, le=10**6, description="hidden neurons")
    a: float = Field(1.0, gt=0, description="time constant of the leak")
    b: float = Field(0.5, gt=0, description="slope of the sigmoid")
    readout: Literal["state", "activation"] = Field(
        "state", description="state: as the authors' release | activation: φ(b h), as the paper"
    )
    init_std: float = Field(1e-3, gt=0, description="standard deviation of the initial weights")


class MemoryInference(InferenceSection):
    """How the steady state is reached."""

    updates: int = Field(50, ge=1, le=10**7, description="T, updates of the state")


class MemoryTraining(TrainingSection):
    """How the weights are trained."""

    batch_size: int = Field(1, ge=1, description="images an update of the weights")


class HopfieldRecipe(NetworkRecipe):
    """An associative memory (section 5.1)."""

    system: Literal["hopfield"] = "hopfield"
    data: MemoryData = MemoryData()
    network: MemoryNetwork = MemoryNetwork()
    inference: MemoryInference = MemoryInference()
    training: MemoryTraining = MemoryTraining()

    def contradictions(self) -> Iterator[KeyFault]:
        """What no single key shows to be wrong: (key, what was expected)."""
        yield from super().contradictions()
        data = self.data
        if data.name not in SOURCES:
            yield ("data", "name"), not_one_of(data.name, SOURCES)
        elif data.images > SOURCES[data.name].classes:
            yield (
                ("data", "images"),
                f"expected at most the {SOURCES[data.name].classes} classes of {data.name},"
                f" got {data.images}",
            )
        if self.training.batch_size > data.images:
            yield (
                ("training", "batch_size"),
                f"expected at most the {data.images} images, got {self.training.batch_size}",
            )


class CitationData(Section):
    """The citation network."""

    name: str = Field("cora", description=" | ".join(NETWORKS))
    dimensions: int = Field(64, ge=1, description="principal components of a document's words")
    download: bool = Field(False, description="fetch the files if they are absent")


class GraphNetwork(Section):
    """The graph net."""

    aggregation: Literal["sum", "mean"] = Field("sum", description="of the neighbours' states")
    init: Literal["normal", "uniform"] = Field(
        "normal", description="normal: variance 2/d, the authors' | uniform: ±1/√d, PyTorch's"
    )


class CitationGradient(GradientSection):
    """How the steady state is differentiated."""

    trunc: int = Field(5, ge=1, description="K, truncation steps")


class CitationTraining(TrainingSection):
    """How the weights are trained."""

    epochs: int = Field(2000, ge=1, le=10**7, description="passes over the graph")
    optimizer: Literal["adam", "sgd"] = Field("sgd", description="adam | sgd")
    momentum: float = Field(0.9, ge=0, lt=1, description="of sgd")
    weight_decay: float = Field(5e-4, ge=0, description="added to the gradient: weight_decay · w")
    validate_every: int = Field(
        20, ge=1, description="epochs between validations, change norms and checkpoints"
    )


class GraphNetRecipe(NetworkRecipe):
    """Semi-supervised document classification (section 5.2)."""

    system: Literal["graph-net"] = "graph-net"
    data: CitationData = CitationData()
    network: GraphNetwork = GraphNetwork()
    gradient: CitationGradient = CitationGradient()
    training: CitationTraining = CitationTraining()

    def contradictions(self) -> Iterator[KeyFault]:
        """What no single key shows to be wrong: (key, what was expected)."""
        yield from super().contradictions()
        if self.data.name not in NETWORKS:
            yield ("data", "name"), not_one_of(self.data.name, NETWORKS)


SYSTEMS: dict[str, type[NetworkRecipe]] = {
    "hopfield": HopfieldRecipe,
    "graph-net": GraphNetRecipe,
}


def method_faults(
    method: str, options: Mapping[str, Mapping[str, Any]], also: Sequence[str] = ()
) -> Iterator[KeyFault]:
    """What is wrong with a gradient's method, one registered or in ``also``, and with options."""
    for name, given in options.items():
        if name not in METHODS:
            yield ("gradient", "options", name), not_one_of(name, METHODS)
        else:
            yield from option_faults(method_class(name), given, ("gradient", "options", name))
    if method not in (known := [*also, *METHODS]):
        yield ("gradient", "method"), not_one_of(method, known)
