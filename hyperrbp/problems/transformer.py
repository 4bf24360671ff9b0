"""The transformer of the network ``gpt``: a decoder of token ids, as GPT-2 has it."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional


class Transformer(nn.Module):
    """A decoder-only transformer from token ids to the logits of the token that follows each.

    Learned positions, layer normalization before each part (Radford et al. 2019), GELU, and the
    embedding of the tokens as the output matrix too: it is one parameter, and is listed once. All
    weights begin normal with standard deviation 0.02, those of the projections that are added to
    the residual stream with 0.02/√(2 layers); biases begin at 0.

    Args:
        vocabulary: V, how many tokens there are.
        block: the most tokens of a window.
        layers: transformer blocks.
        heads: attention heads, among which the width is divided.
        width: numbers that stand for a token.
        dropout: the share of activations that is set to zero in training.
    """

    def __init__(
        self, vocabulary: int, block: int, *, layers: int, heads: int, width: int, dropout: float
    ) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(block, width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
        for name, weight in self.named_parameters():
            if name.endswith(("projection.weight", "narrow.weight")):
                nn.init.normal_(weight, std=0.02 / math.sqrt(2 * layers))

    def forward(self, ids: Tensor) -> Tensor:
        """Return logits of shape (B, T, V) for token ids of shape (B, T)."""
        where = torch.arange(ids.shape[1], device=ids.device)
        x = self.dropout(self.tokens(ids) + self.positions(where))
        for block in self.blocks:
            x = block(x)
        return functional.linear(self.norm(x), self.tokens.weight)


class Block(nn.Module):
    """Attention, then two linear maps around a GELU, each added to what it is given.

    Args:
        width: numbers that stand for a token.
        heads: attention heads.
        dropout: the share of activations that is set to zero in training.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = CausalAttention(width, heads, dropout)
        self.norm2 = nn.LayerNorm(width)
        self.widen = nn.Linear(width, 4 * width)
        self.narrow = nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Return activations of the shape of the given ones, (B, T, width)."""
        x = x + self.dropout(self.attention(self.norm1(x)))
        inner = functional.gelu(self.widen(self.norm2(x)))
        return cast(Tensor, x + self.dropout(self.narrow(inner)))


class CausalAttention(nn.Module):
    """Self-attention in which a token sees itself and those before it.

    Args:
        width: numbers that stand for a token.
        heads: attention heads.
        dropout: the share of attention weights that is set to zero in training.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return activations of the shape of the given ones, (B, T, width)."""
        count, length, width = x.shape
        parts = self.queries_keys_values(x).view(count, length, 3, self.heads, width // self.heads)
        queries, keys, values = parts.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(
            queries,
            keys,
            values,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=True,
        )
        joined = mixed.transpose(1, 2).reshape(count, length, width)
        return cast(Tensor, self.projection(joined))
