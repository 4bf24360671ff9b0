"""The keys of a tuning recipe, one class a section; ``hyperparameters`` has its own module."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from hyperrbp.config.schema import Section
from hyperrbp.data.builtin import BUILTIN_SETS
from hyperrbp.hypergradients import METHODS
from hyperrbp.problems.networks import MODELS

OptimizerName = Literal["adam", "gradient", "surrogate", "both"]
ADAM: OptimizerName = "adam"
"""The meta-optimizer of the paper."""
AUTO = "auto"
"""The gradient method that chooses among the others."""


class DataSection(Section):
    """The examples to train, validate and test on."""

    name: str = Field(
        "digits",
        description="data set: "
        + ", ".join(BUILTIN_SETS)
        + ", text; or your own, relative to the recipe: file.npz, folder/ of images,"
        " torchvision:NAME, or code that returns ((x, y), (x, y)), data sets or loaders:"
        " file.py:function, package.module:function",
    )
    options: dict[str, Any] = Field(
        default_factory=dict,
        description="options of the data set; file.npz: heldout, channels; folder/: size, colors,"
        " heldout; torchvision: size, colors, split; text: file, block, tokens, heldout; code: its"
        " keyword arguments",
    )
    inputs: Literal["auto", "floats", "ids"] = Field(
        "auto",
        description="what inputs that are whole numbers stand for: floats | ids, of tokens, which"
        " stay whole | auto: ids if the network takes them, else floats; data sets and loaders keep"
        " what they have",
    )
    outputs: int | None = Field(
        None,
        ge=1,
        description="how many numbers the network makes of an example, or of a token; null: as many"
        " as there are classes or values, by the examples",
    )
    shape: Literal["auto", "flat", "image", "own"] = Field(
        "auto",
        description="shape of an input: flat, (features,) | image, (C, H, W) | own, as the data"
        " have it | auto: what the network takes, flat for code",
    )
    train_examples: int | None = Field(
        None, ge=1, description="use only so many training examples, the first ones; null: all"
    )
    validation_examples: int = Field(
        0, ge=0, description="how many of those to hold back for the meta loss"
    )
    label_noise: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of the remaining training examples whose class is replaced by another",
    )
    center: Literal["auto", True, False] = Field(
        "auto",
        description="subtract the mean training example from all inputs: true | false | auto, from"
        " arrays of floats and images, and not from token ids, data sets or loaders",
    )
    population: int = Field(
        2000,
        ge=1,
        description="examples that stand for all training examples, by a sample, where these are"
        " more and come from a text, a data set or a loader",
    )
    download: bool = Field(False, description="fetch the data set if its files are absent")


class ModelSection(Section):
    """The network that the inner run trains."""

    name: str = Field(
        "mlp",
        description="network: "
        + ", ".join(MODELS)
        + "; torchvision:NAME, untrained; or code of your own that makes one from (features,"
        " classes): file.py:function, relative to the recipe, or package.module:function",
    )
    options: dict[str, Any] = Field(
        default_factory=dict,
        description="options of the network; mlp: hidden, activation; conv: channels, kernel,"
        " activation, pooling, hidden; gpt: layers, heads, width, dropout; torchvision:"
        " normalization, and the arguments of the network itself; code: its keyword arguments",
    )
    weights: str | None = Field(
        None,
        description="initial weights: a .safetensors file, or one of torch.save that holds tensors"
        " alone; relative to the recipe. null: fresh ones",
    )
    frozen: list[str] = Field(
        default_factory=list,
        description="parameters that are held fixed, by their names or the beginnings of these:"
        " [layer1, embedding.weight]",
    )
    init_std: float | None = Field(
        0.049787068367863944,
        gt=0,
        description="standard deviation of all initial weights; the paper's is exp(-3). null: the"
        " network's own initialization",
    )


class AveragingSection(Section):
    """The minibatches over which the hypergradient is averaged."""

    estimator: Literal["auto", "frozen", "resampled", "mean"] = Field(
        "auto",
        description="auto | resampled | frozen | mean; auto: the best that the gradient method"
        " supports",
    )
    minibatches: int = Field(
        10, ge=1, description="M: minibatches of the last M steps (end points, for tbptt)"
    )
    series: int = Field(2, ge=1, description="how many series the estimator 'resampled' averages")


class HypergradientSection(Section):
    """The gradient of the loss on the last state with respect to the hyperparameters."""

    method: str = Field(
        "neumann",
        description="auto | " + " | ".join(METHODS) + "; auto: what `check` would recommend",
    )
    trunc: int = Field(50, ge=1, description="K, truncation steps")
    averaging: AveragingSection = AveragingSection()
    options: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="options of each method, by its name"
    )
    check_every: int = Field(
        0,
        ge=0,
        description="examine the gradient in full every so many meta steps; 0: never. The method"
        " auto then chooses again; with 0, it does so every 20",
    )

    @property
    def template(self) -> str:
        """Return the method whose settings these are: for auto, the one that it tries first."""
        return "neumann" if self.method == AUTO else self.method


class DecaySection(Section):
    """A single drop of the meta learning rate."""

    factor: float = Field(0.1, gt=0, le=1, description="multiply the meta learning rate by this")
    from_step: int = Field(50, ge=1, description="from this meta step on")


class MetaSection(Section):
    """The outer loop, which moves the hyperparameters on a scale of logarithms and logits."""

    steps: int = Field(30, ge=1, le=10**7, description="meta steps")
    optimizer: OptimizerName = Field(
        ADAM,
        description="adam, the paper's, from the recipe's start | gradient: steps of adaptive"
        " length along the gradient of the log loss | surrogate: a local model of the loss, without"
        " gradients | both: the gradient, and the surrogate where it fails. All but adam begin at"
        " the best point of a screening, and stay in the box",
    )
    screened: int = Field(
        81,
        ge=1,
        le=10**6,
        description="how many points to screen on shortened runs; 1: only the recipe's start",
    )
    learning_rate: float = Field(0.05, gt=0, le=1000, description="learning rate of Adam")
    decay: DecaySection | None = Field(
        None, description="{factor, from_step}: lower Adam's learning rate once; null: never"
    )
    on_divergence: Literal["stop", "rollback"] = Field(
        "stop",
        description="where something turns non-finite: stop | rollback, go back to the best"
        " hyperparameters with half the meta step",
    )
    max_rollbacks: int = Field(10, ge=1, le=100, description="how often to go back before stopping")
    patience: int | None = Field(
        None,
        ge=1,
        le=10**7,
        description="end early once the best meta loss is so many meta steps old; null: never",
    )
    loss: Literal["train", "validation"] = Field(
        "train",
        description="the meta loss: train, on all training examples | validation, on the"
        " validation split",
    )


class RecordSection(Section):
    """Records besides the one of each meta step."""

    inner_curves: list[int] = Field(
        default_factory=lambda: [0, -1],
        description="meta steps whose inner training curve goes to TensorBoard; -1 is the last",
    )
    test_seeds: int = Field(
        3,
        ge=0,
        le=1000,
        description="at the end, train from so many other initial weights and batches, tuned and"
        " untuned, and test each on the held-out examples",
    )
