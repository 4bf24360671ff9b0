"""A graph neural network whose node states come to rest (Scarselli et al. 2009, Li et al. 2016).

Liao et al. 2018, section 5.2: every node sums its neighbours' states and updates its own by a gated
recurrent unit (Cho et al. 2014); what it has come to after T propagations is classified linearly.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hyperrbp.exceptions import UsageError
from hyperrbp.problems.convergent import ConvergentNetwork, Recurrence


class Messages(nn.Module):
    """h ↦ A h for a sparse matrix A, differentiable any number of times.

    Args:
        edges: (source, target) pairs, shape (2, E): A has an entry (target, source) for each. One
            that stands there twice counts twice.
        nodes: N.
        aggregation: ``sum``, or ``mean`` over the incoming edges of a node.
        dtype: of the states.

    Raises:
        UsageError: for an edge of a node that there is not, or an unknown aggregation.
    """

    def __init__(
        self, edges: Tensor, nodes: int, aggregation: str = "sum", dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        if aggregation not in ("sum", "mean"):
            raise UsageError(f"unknown aggregation '{aggregation}'; there are sum, mean")
        if edges.numel() and not 0 <= int(edges.min()) <= int(edges.max()) < nodes:
            raise UsageError(f"an edge of a node that is not one of 0 … {nodes - 1}")
        (source, target), counts = torch.unique(edges, dim=1, return_counts=True)
        weights = counts.to(dtype or torch.get_default_dtype())
        if aggregation == "mean":
            incoming = weights.new_zeros(nodes).index_add_(0, target, weights)
            weights = weights / incoming[target]
        self.register_buffer("forth", _compressed(target, source, weights, nodes), persistent=False)
        self.register_buffer("back", _compressed(source, target, weights, nodes), persistent=False)

    def forward(self, h: Tensor) -> Tensor:
        """Return a h, shape (N, d)."""
        product: Tensor = _Product.apply(h, self.forth, self.back)
        return product


def _compressed(rows: Tensor, columns: Tensor, weights: Tensor, nodes: int) -> Tensor:
    # Rows in order, so that each node's sum is taken in one and the same order.
    order = (rows * nodes + columns).argsort()
    starts = torch.searchsorted(rows[order], torch.arange(nodes + 1, device=rows.device))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta state")
        return torch.sparse_csr_tensor(
            starts, columns[order], weights[order], (nodes, nodes), check_invariants=True
        )


class _Product(torch.autograd.Function):
    """The derivative of A h is Aᵀ, by the same function again."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, forth: Tensor, back: Tensor) -> Tensor:
        ctx.matrices = forth, back
        return forth @ h

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor, None, None]:
        forth, back = ctx.matrices
        return _Product.apply(u, back, forth), None, None


class GraphNet(ConvergentNetwork):
    """A GRU that passes messages along the edges of one graph.

    The state is that of all nodes, shape (N, d), and begins with their features.

    Args:
        edges: (source, target) pairs, both directions of an undirected edge, shape (2, E).
        nodes: N.
        dimensions: d, of features and states.
        classes: of the nodes.
        aggregation: ``sum`` or ``mean`` of the neighbours.
        init: ``normal`` weights of variance 2/d with zero biases, as in the authors' release, or
            all ``uniform`` between ±1/√d, as PyTorch's own GRU cell and linear layer.
        generator: of the initial weights.
        dtype: of weights and states.
    """

    def __init__(
        self,
        edges: Tensor,
        nodes: int,
        dimensions: int,
        classes: int,
        *,
        aggregation: str = "sum",
        init: str = "normal",
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if init not in ("normal", "uniform"):
            raise UsageError(f"unknown init '{init}'; there are normal, uniform")
        # Without their own initialization, which would move PyTorch's global generator.
        self.cell = nn.GRUCell(dimensions, dimensions, device="meta", dtype=dtype)
        self.classifier = nn.Linear(dimensions, classes, device="meta", dtype=dtype)
        self.to_empty(device=edges.device)
        self.messages = Messages(edges, nodes, aggregation, dtype)
        bound = 1 / math.sqrt(dimensions)
        with torch.no_grad():
            for tensor in self.parameters():
                if init == "uniform":
                    tensor.uniform_(-bound, bound, generator=generator)
                elif tensor.ndim == 1:
                    tensor.zero_()
                else:
                    tensor.normal_(0.0, math.sqrt(2) * bound, generator=generator)

    def recurrence(self, inputs: Tensor) -> Recurrence:
        """Return the recurrence that begins with node features (N, d), which get no gradient."""
        if inputs.requires_grad:
            raise UsageError("the features of a graph net get no gradient; pass features.detach()")
        return Recurrence(self._propagate, inputs, dict(self.cell.named_parameters()), None)

    def _propagate(self, h: Tensor, weights: Mapping[str, Tensor], _: None) -> Tensor:
        return torch.gru_cell(
            self.messages(h),
            h,
            weights["weight_ih"],
            weights["weight_hh"],
            weights["bias_ih"],
            weights["bias_hh"],
        )

    def output(self, h: Tensor) -> Tensor:
        """Return the logits of all nodes, shape (N, classes)."""
        logits: Tensor = self.classifier(h)
        return logits
