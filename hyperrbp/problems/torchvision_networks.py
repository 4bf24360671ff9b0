"""torchvision's classifiers by name, untrained, such as a training run can differentiate."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import nn

from hyperrbp.exceptions import UsageError
from hyperrbp.runtime.suggestions import did_you_mean


def build(kind: str, shape: tuple[int, ...], classes: int, options: Mapping[str, Any]) -> nn.Module:
    """Build a model with fresh initial weights.

    Its first convolution takes as many channels as the images have. ``normalization: group`` among
    the options puts GroupNorm in the place of every batch normalization; the others are
    torchvision's own keyword arguments.

    Raises:
        UsageError: if there is no such model, or it does not take the options.
    """
    from torchvision import models

    known = models.list_models(module=models)
    if kind not in known:
        hint = did_you_mean(kind, known) or f"; there are {', '.join(known)}"
        raise UsageError(f"torchvision has no model '{kind}'{hint}")
    own = dict(options)
    normalization = own.pop("normalization", "batch")
    if normalization not in ("batch", "group"):
        raise UsageError(
            f"model.options.normalization: expected group or batch, got {normalization!r}"
        )
    try:
        model: nn.Module = models.get_model(kind, weights=None, num_classes=classes, **own)
    except Exception as error:  # it checks its arguments in any way at all
        reason = " ".join(str(error).split())
        raise UsageError(f"torchvision:{kind}: {type(error).__name__}: {reason}") from error
    if normalization == "group":
        _replace(model, nn.modules.batchnorm._BatchNorm, _grouped)
    _take_channels(model, shape[0])
    return model


def _replace(model: nn.Module, kind: type[nn.Module], by: Any) -> None:
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, kind):
                setattr(module, name, by(child))


def _grouped(batch: nn.Module) -> nn.GroupNorm:
    """Return a group norm of as many groups as divide the channels, at most 32."""
    assert isinstance(batch, nn.modules.batchnorm._BatchNorm)
    return nn.GroupNorm(math.gcd(32, batch.num_features), batch.num_features, eps=batch.eps)


def _take_channels(model: nn.Module, channels: int) -> None:
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.Conv2d):
                if child.in_channels != channels and child.groups == 1:
                    setattr(module, name, _of_channels(child, channels))
                return


def _of_channels(like: nn.Conv2d, channels: int) -> nn.Conv2d:
    kept = ("out_channels", "kernel_size", "stride", "padding", "dilation", "padding_mode")
    settings: dict[str, Any] = {key: getattr(like, key) for key in kept}
    return nn.Conv2d(channels, **settings, bias=like.bias is not None)
