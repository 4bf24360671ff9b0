"""Batch normalization: statistics of the batch in training, recalibrated ones in evaluation.

In training mode, a loss depends on the statistics of its own minibatch and not on running ones,
which are therefore no part of the state. Where a loss is evaluated, the layers take the mean of
the statistics of a few fixed minibatches at the weights in question, which is a function of the
weights like any other: the gradient of an evaluated loss goes through it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

Statistics = Mapping[str, tuple[Tensor, Tensor]]
"""By the name of a layer, mean and unbiased variance of every channel, shapes (C,)."""

_Norm = nn.modules.batchnorm._NormBase


def normalizing_layers(model: nn.Module) -> dict[str, _Norm]:
    """Return the layers that keep running statistics, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _Norm) and module.track_running_stats
    }


def throwaway_buffers(layers: Mapping[str, _Norm]) -> dict[str, Tensor]:
    """Return copies of the buffers of these layers, which a forward pass may write to."""
    return {
        full: tensor.clone()
        for name, layer in layers.items()
        for full, tensor in layer.named_buffers(prefix=name, recurse=False)
    }


@contextmanager
def recording(layers: Mapping[str, _Norm]) -> Iterator[dict[str, list[tuple[Tensor, Tensor]]]]:
    """Normalize by the batch, and record its statistics at every call of a layer, with graphs."""
    found: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in layers}
    modes = [layer.training for layer in layers.values()]
    with ExitStack() as hooks:
        for name, layer in layers.items():

            def record(module: nn.Module, inputs: tuple[Any, ...], into: str = name) -> None:
                found[into].append(_statistics(module, inputs[0]))

            hooks.callback(layer.register_forward_pre_hook(record).remove)
            layer.training = True
        try:
            yield found
        finally:
            for layer, mode in zip(layers.values(), modes, strict=True):
                layer.training = mode


@contextmanager
def normalizing_by(layers: Mapping[str, _Norm], statistics: Statistics) -> Iterator[None]:
    """Normalize by these statistics, as evaluation mode does, with a gradient to them."""
    with ExitStack() as hooks:
        for name, layer in layers.items():
            mean, variance = statistics[name]

            def normalize(
                module: nn.Module,
                inputs: tuple[Any, ...],
                _: Any,
                mean: Tensor = mean,
                variance: Tensor = variance,
            ) -> Tensor:
                return _normalized(module, inputs[0], mean, variance)

            hooks.callback(layer.register_forward_hook(normalize).remove)
        yield


def mean_of(recorded: Mapping[str, list[tuple[Tensor, Tensor]]]) -> Statistics:
    """Return the mean statistics of each layer that was called, over all of its calls."""
    return {
        name: (
            torch.stack([mean for mean, _ in calls]).mean(0),
            torch.stack([variance for _, variance in calls]).mean(0),
        )
        for name, calls in recorded.items()
        if calls
    }


def buffers_of(statistics: Statistics, minibatches: int) -> dict[str, Tensor]:
    """Return statistics of so many minibatches as the buffers of a module, by their names there."""
    buffers: dict[str, Tensor] = {}
    for name, (mean, variance) in statistics.items():
        prefix = f"{name}." if name else ""
        buffers[f"{prefix}running_mean"], buffers[f"{prefix}running_var"] = mean, variance
        buffers[f"{prefix}num_batches_tracked"] = torch.tensor(minibatches)
    return buffers


def _statistics(layer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return what a layer would add to its running statistics for these inputs, (B, C, …)."""
    if isinstance(layer, nn.modules.instancenorm._InstanceNorm):
        across = tuple(range(2, x.dim()))
        return x.mean(across).mean(0), x.var(across).mean(0)
    across = (0, *range(2, x.dim()))
    return x.mean(across), x.var(across)


def _normalized(layer: nn.Module, x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    assert isinstance(layer, _Norm)
    shape = (1, -1, *[1] * (x.dim() - 2))
    scale = (variance + layer.eps).rsqrt()
    if layer.weight is not None:
        scale = scale * layer.weight
    made = (x - mean.view(shape)) * scale.view(shape)
    return made if layer.bias is None else made + layer.bias.view(shape)
