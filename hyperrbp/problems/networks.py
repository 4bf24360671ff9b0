"""The networks that a recipe can name: one function and one registry line each."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from hyperrbp.exceptions import UsageError
from hyperrbp.runtime.user_code import TORCHVISION

if TYPE_CHECKING:
    from torch import nn


Shape = tuple[int, ...]
"""The shape of one input. Where inputs are flat, a plain number counts their features."""

Activation = Literal["tanh", "relu", "sigmoid", "gelu", "softplus"]


@dataclass(frozen=True)
class Mlp:
    """A fully connected classifier (784-50-50-50-10 with tanh in the paper's section 5.3)."""

    __pydantic_config__: ClassVar = {"extra": "forbid", "strict": True}
    inputs: ClassVar[Literal["flat", "image"]] = "flat"

    hidden: list[Annotated[int, Field(ge=1, le=10**7)]] = field(
        default_factory=lambda: [50, 50, 50]
    )
    activation: Activation = "tanh"

    def build(self, features: int | Shape, outputs: int) -> nn.Module:
        """Return the module, from flat inputs of ``features`` numbers to ``outputs`` logits."""
        from torch import nn

        assert isinstance(features, int)
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        width = features
        for i, next_width in enumerate(self.hidden, start=1):
            layers[f"hidden{i}"] = nn.Linear(width, next_width)
            layers[f"activation{i}"] = _activation(self.activation)
            width = next_width
        layers["output"] = nn.Linear(width, outputs)
        return nn.Sequential(layers)


@dataclass(frozen=True)
class Conv:
    """A small convolutional network: convolutions that keep the size, each before a pooling.

    Averages are pooled, not maxima: the loss stays as smooth as the activation is.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid", "strict": True}
    inputs: ClassVar[Literal["flat", "image"]] = "image"

    channels: Annotated[list[Annotated[int, Field(ge=1, le=10**4)]], Field(min_length=1)] = field(
        default_factory=lambda: [8, 16]
    )
    kernel: Literal[1, 3, 5, 7] = 3
    activation: Activation = "tanh"
    pooling: Literal["average", "none"] = "average"
    hidden: list[Annotated[int, Field(ge=1, le=10**7)]] = field(default_factory=list)

    def build(self, features: int | Shape, outputs: int) -> nn.Module:
        """Return the module, from images (C, H, W) to ``outputs`` logits.

        Raises:
            UsageError: if nothing is left of the images after so many poolings.
        """
        from torch import nn

        assert not isinstance(features, int)
        depth, height, width = features
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for i, next_depth in enumerate(self.channels, start=1):
            layers[f"conv{i}"] = nn.Conv2d(depth, next_depth, self.kernel, padding=self.kernel // 2)
            layers[f"activation{i}"] = _activation(self.activation)
            depth = next_depth
            if self.pooling == "average":
                if min(height, width) < 2:
                    raise UsageError(
                        f"model conv: nothing is left of images of {features[1]}×{features[2]}"
                        f" after {i} poolings; expected at most {i - 1} channels, or pooling: none"
                    )
                layers[f"pool{i}"] = nn.AvgPool2d(2)
                height, width = height // 2, width // 2
        layers["flatten"] = nn.Flatten()
        at = depth * height * width
        for i, next_at in enumerate(self.hidden, start=1):
            layers[f"hidden{i}"] = nn.Linear(at, next_at)
            layers[f"hidden_activation{i}"] = _activation(self.activation)
            at = next_at
        layers["output"] = nn.Linear(at, outputs)
        return nn.Sequential(layers)


@dataclass(frozen=True)
class Gpt:
    """A decoder-only transformer on token ids, with the output matrix tied to the embedding."""

    __pydantic_config__: ClassVar = {"extra": "forbid", "strict": True}
    inputs: ClassVar[Literal["flat", "image", "ids"]] = "ids"

    layers: Annotated[int, Field(ge=1, le=1000)] = 2
    heads: Annotated[int, Field(ge=1, le=1000)] = 2
    width: Annotated[int, Field(ge=1, le=10**5)] = 64
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1

    def build(self, features: int | Shape, outputs: int) -> nn.Module:
        """Return the module, from windows of T ids to logits of shape (T, outputs).

        Raises:
            UsageError: if the heads do not divide the width, or an input is no row of ids.
        """
        from hyperrbp.problems.transformer import Transformer

        if self.width % self.heads:
            raise UsageError(
                f"model gpt: {self.heads} heads do not divide a width of {self.width}; expected"
                " model.options.width to be a multiple of heads"
            )
        shape = (features,) if isinstance(features, int) else features
        if len(shape) != 1:
            raise UsageError(f"model gpt takes windows of token ids; these have shape {shape}")
        return Transformer(
            outputs,
            shape[0],
            layers=self.layers,
            heads=self.heads,
            width=self.width,
            dropout=self.dropout,
        )


MODELS: dict[str, type[Mlp] | type[Conv] | type[Gpt]] = {"mlp": Mlp, "conv": Conv, "gpt": Gpt}


def wanted_inputs(name: str) -> Literal["flat", "image", "ids"] | None:
    """Return what inputs the network of a name takes; None for code, which can take any."""
    if name.startswith(TORCHVISION):
        return "image"
    return MODELS[name].inputs if name in MODELS else None


def _activation(name: Activation) -> nn.Module:
    from torch import nn

    kinds: dict[str, type[nn.Module]] = {
        "tanh": nn.Tanh,
        "relu": nn.ReLU,
        "sigmoid": nn.Sigmoid,
        "gelu": nn.GELU,
        "softplus": nn.Softplus,
    }
    return kinds[name]()
