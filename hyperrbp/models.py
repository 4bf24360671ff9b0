"""The networks that a recipe can name: one function and one registry line each."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Mlp:
    """A fully connected classifier (784-50-50-50-10 with tanh in the paper's section 5.3)."""

    __pydantic_config__: ClassVar = {"extra": "forbid", "strict": True}

    hidden: list[Annotated[int, Field(ge=1, le=10**7)]] = field(
        default_factory=lambda: [50, 50, 50]
    )
    activation: Literal["tanh", "relu", "sigmoid", "gelu", "softplus"] = "tanh"

    def build(self, features: int, classes: int) -> nn.Module:
        """The module, from flattened inputs of ``features`` numbers to ``classes`` logits."""
        from torch import nn

        activations: dict[str, type[nn.Module]] = {
            "tanh": nn.Tanh,
            "relu": nn.ReLU,
            "sigmoid": nn.Sigmoid,
            "gelu": nn.GELU,
            "softplus": nn.Softplus,
        }
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        width = features
        for i, next_width in enumerate(self.hidden, start=1):
            layers[f"hidden{i}"] = nn.Linear(width, next_width)
            layers[f"activation{i}"] = activations[self.activation]()
            width = next_width
        layers["output"] = nn.Linear(width, classes)
        return nn.Sequential(layers)


MODELS: dict[str, Callable[..., Mlp]] = {"mlp": Mlp}
