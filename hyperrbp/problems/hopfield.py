"""The continuous Hopfield network as an associative memory (Hopfield 1984).

Liao et al. 2018, section 5.1: observed, hidden and output neurons with symmetric weights,

    dh_i/dt = −h_i / a + Σ_j w_ij φ(b h_j),   φ(y) = 1 / (1 + exp(−y)),

integrated by Euler steps of length 1. The observed neurons are clamped to an image, and what the
output neurons come to rest at is the retrieved one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hyperrbp.exceptions import UsageError
from hyperrbp.problems.convergent import ConvergentNetwork, Recurrence


class Hopfield(ConvergentNetwork):
    """An associative memory for images of ``observed`` pixels.

    The weights are one square matrix W, of which W + Wᵀ without its diagonal is used. The state is
    that of the free neurons, hidden before output, shape (hidden + observed, B): what the clamped
    ones send is the same at every update, and computed once. Images of a batch do not see each
    other, so that the Jacobian is block diagonal and a batch trains as its images would one by one.
    (A column an image: that is how a wide matrix meets a narrow one fastest.)

    Args:
        observed: pixels, and output neurons.
        hidden: hidden neurons.
        a: time constant of the leak; at 1 an Euler step forgets the state that it began with.
        b: the steepness of φ.
        readout: ``state``, what the authors' release reads off, or ``activation``, the paper's
            φ(b h).
        init_std: of the normal initial weights.
        generator: of the initial weights.
    """

    def __init__(
        self,
        observed: int = 784,
        hidden: int = 1024,
        *,
        a: float = 1.0,
        b: float = 0.5,
        readout: str = "state",
        init_std: float = 1e-3,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if not (a > 0 and b > 0):
            raise UsageError(f"a and b are above 0, not {a:g} and {b:g}")
        if readout not in ("state", "activation"):
            raise UsageError(f"unknown readout '{readout}'; there are state, activation")
        self.observed, self.hidden, self.a, self.b, self.readout = observed, hidden, a, b, readout
        neurons = observed + hidden + observed
        weights = torch.randn(neurons, neurons, generator=generator) * init_std
        self.weight = nn.Parameter(weights)

    def recurrence(self, inputs: Tensor) -> Recurrence:
        """Return the recurrence for images, shape (B, observed), to which neurons are clamped."""
        among_free, drive = self._parameters_for(inputs)
        at_rest = torch.zeros_like(drive).detach()
        return Recurrence(self._euler_step, at_rest, [among_free, drive], None)

    def _parameters_for(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weights among the free neurons, and what the clamped ones send them."""
        among_free, from_clamped = _Couplings.apply(self.weight, self.observed)
        return among_free, from_clamped @ torch.sigmoid(self.b * inputs).T

    def _euler_step(self, h: Tensor, parameters: Sequence[Tensor], _: None) -> Tensor:
        among_free, drive = parameters
        product: Tensor = _SymmetricProduct.apply(among_free, torch.sigmoid(self.b * h))
        new = drive + product
        return new if self.a == 1 else new + (1 - 1 / self.a) * h

    def output(self, h: Tensor) -> Tensor:
        """Return what the output neurons show, shape (B, observed)."""
        shown = h[self.hidden :].T
        return shown if self.readout == "state" else torch.sigmoid(self.b * shown)

    def energy(self, h: Tensor, inputs: Tensor) -> Tensor:
        """Return the Lyapunov function of each image's state, shape (B,), without a graph.

        E = −½ xᵀSx − xᵀd + Σ_i (1/a) ∫_0^{x_i} φ⁻¹(ξ)/b dξ with x = φ(b h), up to a constant of
        the clamped neurons (Hopfield 1984, eq. 7). It falls along the differential equation; under
        synchronous Euler steps of length 1 it need not.
        """
        (energy,) = self.energies([h], inputs)
        return energy

    def energies(self, states: Iterable[Tensor], inputs: Tensor) -> Iterator[Tensor]:
        """Yield the ``energy`` of one state after the other."""
        with torch.no_grad():
            among_free, drive = self._parameters_for(inputs)
        for h in states:
            with torch.no_grad():
                x = torch.sigmoid(self.b * h)
                entropy = torch.special.xlogy(x, x) + torch.special.xlogy(1 - x, 1 - x)
                inside = entropy / (self.a * self.b) - 0.5 * x * (among_free @ x) - x * drive
                energy = inside.sum(0)
            yield energy


class _SymmetricProduct(torch.autograd.Function):
    """S x with S = Sᵀ: its derivative is S again, which is read faster than its transpose."""

    @staticmethod
    def forward(ctx: Any, symmetric: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(symmetric, x)
        return symmetric @ x

    @staticmethod
    def backward(ctx: Any, *along: Tensor) -> tuple[Tensor | None, Tensor | None]:
        (u,) = along
        symmetric, x = ctx.saved_tensors
        wanted, through = ctx.needs_input_grad
        along_symmetric = u @ x.T if wanted else None
        return along_symmetric, _SymmetricProduct.apply(symmetric, u) if through else None


class _Couplings(torch.autograd.Function):
    """W + Wᵀ without its diagonal: (free × free, free × clamped).

    By slices and sums, autograd would fill a whole matrix with zeros for each of four gradients.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, clamped: int) -> tuple[Tensor, Tensor]:
        ctx.clamped = clamped
        free = weight[clamped:, clamped:]
        among_free = (free + free.T).fill_diagonal_(0.0)
        return among_free, weight[clamped:, :clamped] + weight[:clamped, clamped:].T

    @staticmethod
    def backward(ctx: Any, *along: Tensor) -> tuple[Tensor, None]:
        among_free, from_clamped = along
        clamped, neurons = ctx.clamped, ctx.clamped + len(among_free)
        gradient = among_free.new_empty(neurons, neurons)
        gradient[:clamped, :clamped] = 0.0
        gradient[clamped:, :clamped] = from_clamped
        gradient[:clamped, clamped:] = from_clamped.T
        torch.add(among_free, among_free.T, out=gradient[clamped:, clamped:])
        gradient.diagonal()[clamped:] = 0.0
        return gradient, None
