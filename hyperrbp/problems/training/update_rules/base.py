"""The base of every update rule: (w, s, g) ↦ (w', s'), one element at a time.

A rule knows neither the network nor the schedule. It is written for one parameter tensor, as
PyTorch operations that work element by element, and its derivatives are those of these operations:

    A = ∂(w', s')/∂(w, s)    B = ∂(w', s')/∂g    C = ∂(w', s')/∂ρ

all of them diagonal. ``hyperrbp.problems.training.products`` makes the products of a training step
of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from hyperrbp.runtime.options import CheckedOptions

if TYPE_CHECKING:
    from torch import Tensor

Rates = Mapping[str, "Tensor"]
"""The hyperparameters of an update of one tensor by kind, of shape () or that of the tensor."""


@dataclass(frozen=True)
class TorchForm:
    """The class of PyTorch that makes the updates of a rule, for code that is exported."""

    optimizer: str
    """The class, as code has it: ``torch.optim.Adam``."""
    note: str = "The run used this very update."
    """How the two correspond, for a comment."""
    source: str = ""
    """Source of the class, where torch.optim has none."""
    decoupled_decay: bool = False
    """Whether weights are shrunk by 1 − α λ before the update, and λ w is not in the gradient."""
    before_change: str = ""
    """Source that runs before a ``group`` of an ``optimizer`` is updated by ``now``, where what is
    kept for the weights goes with the settings."""


@dataclass(frozen=True)
class UpdateRule(CheckedOptions, ABC):
    """How weights and slots change with a gradient; its fields are its options."""

    kind = "optimizer"
    slots: ClassVar[tuple[str, ...]] = ()
    """What is kept for every weight from one step to the next, by the names of torch.optim. All
    slots are zero at the start."""
    kinds: ClassVar[tuple[str, ...]] = ("learning_rate", "weight_decay")
    """The kinds of hyperparameters that it has; see ``hyperparameters.KINDS``."""
    differentiable: ClassVar[bool] = True
    """Whether its derivatives say how a run depends on its hyperparameters."""
    affine: ClassVar[bool] = False
    """Whether (w', s') is affine in g: an update by a mean gradient is then the mean update."""

    learning_rate_range: ClassVar[tuple[float, float]] = (1e-5, 0.1)
    """Where a search for a learning rate looks, unless it is told otherwise."""
    in_torch: ClassVar[TorchForm | None] = None
    """The class of PyTorch that makes the same updates, if there is one. It is not inherited: a
    rule that is derived from another makes updates of its own."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Take the class of PyTorch from the rule that is derived from."""
        super().__init_subclass__(**kwargs)
        if "in_torch" not in vars(cls):
            cls.in_torch = None

    def defaults(self) -> dict[str, float]:
        """Return the values of its kinds where none are given."""
        return {"learning_rate": 1e-3, "weight_decay": 0.0}

    @abstractmethod
    def update(
        self, w: Tensor, slots: Sequence[Tensor], g: Tensor, rates: Rates, t: Tensor
    ) -> tuple[Tensor, Sequence[Tensor]]:
        """Return (w', s') as new tensors.

        Args:
            w: one parameter tensor.
            slots: what is kept for it, of its shape.
            g: the gradient of the loss by it, without any weight decay.
            rates: its hyperparameters.
            t: how many steps were taken before, shape ().
        """

    def torch_settings(self, rates: Mapping[str, float]) -> dict[str, Any]:
        """Return what the class of ``in_torch`` is given for one parameter tensor.

        Args:
            rates: the hyperparameters of the tensor by kind, in natural units.
        """
        return {"lr" if kind == "learning_rate" else kind: rates[kind] for kind in self.kinds}

    def not_differentiable(self, slots: Sequence[Tensor]) -> Tensor | None:
        """Return where the update has no derivative at these slots after the first step.

        That is where the second moment of a weight is zero: booleans of the shape of the tensor;
        None if it has a derivative everywhere.
        """
        return None
