"""Buffers and random numbers in a network, which no training run differentiates."""

from __future__ import annotations

from torch import nn

from hyperrbp.exceptions import UsageError


def refuse_hidden_state(model: nn.Module) -> None:
    """Refuse random numbers and buffers, with what to use in their place.

    Raises:
        UsageError: if there is any.
    """
    for name, module in model.named_modules():
        where = f"the model's '{name}' ({type(module).__name__})"
        if _drop_rate(module) > 0:
            raise UsageError(
                f"{where} draws random numbers; dropout is not supported: build the model with"
                " p = 0"
            )
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise UsageError(
                f"{where} keeps buffers, the running statistics, which are part of no gradient, and"
                " couples the examples of a batch; use GroupNorm or LayerNorm (for torchvision's"
                " models, model.options.normalization: group)"
            )
        if buffers := [buffer for buffer, _ in module.named_buffers(recurse=False)]:
            raise UsageError(
                f"{where} keeps buffers ({', '.join(buffers)}), which are part of no gradient; use"
                " a layer without, and plain attributes for constants"
            )


def _drop_rate(module: nn.Module) -> float:
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return module.p
    if type(module).__name__ == "StochasticDepth":  # of torchvision
        return float(getattr(module, "p", 0.0))
    if isinstance(module, nn.MultiheadAttention | nn.RNNBase):
        return float(module.dropout)
    return 0.0
