"""Prepares a network for training: weights from a file, and the parameters that are held fixed."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from hyperrbp.config.recipe_keys import ModelSection
from hyperrbp.exceptions import DataError, UsageError, is_foreseen
from hyperrbp.runtime.suggestions import did_you_mean

log = logging.getLogger(__name__)


def prepare(model: nn.Module, section: ModelSection, *, again: bool = False) -> Tensor | None:
    """Load the weights that a recipe names, and hold fixed what it says.

    Args:
        model: the network.
        section: what the recipe says of it.
        again: whether a network of the recipe has been prepared before: names that do not fit are
            told once.

    Returns:
        the initial weights, flat, of the parameters that are trained; None if no file is named.

    Raises:
        DataError: if the file cannot be read, or does not fit the network.
        UsageError: if nothing is called as a frozen parameter should be.
    """
    names = [name for name, _ in model.named_parameters()]
    for prefix in section.frozen:
        held = [n for n in names if n == prefix or n.startswith(f"{prefix}.")]
        if not held:
            raise UsageError(
                f"model.frozen: no parameter is called '{prefix}' or begins with it"
                f"{did_you_mean(prefix, names)}; there are {', '.join(names[:10])}"
                + (" …" if len(names) > 10 else "")
            )
        for name in held:
            model.get_parameter(name).requires_grad_(False)
    if section.weights is None:
        return None
    _load(model, Path(section.weights), tell=not again)
    trained = [p.detach().reshape(-1) for p in model.parameters() if p.requires_grad]
    return torch.cat(trained) if trained else None


def _load(model: nn.Module, file: Path, tell: bool) -> None:
    found = _read(file)
    expected = model.state_dict()
    for name, tensor in found.items():
        if name in expected and tensor.shape != expected[name].shape:
            raise DataError(
                f"{file}: '{name}' has shape {tuple(tensor.shape)}; the network's has"
                f" {tuple(expected[name].shape)}"
            )
    missing, unexpected = (
        sorted(set(a) - set(b)) for a, b in ((expected, found), (found, expected))
    )
    if not set(found) & set(expected):
        raise DataError(
            f"{file}: none of its tensors is one of the network; it has {_few(unexpected)}, the"
            f" network {_few(missing)}"
        )
    if missing and tell:
        log.warning("%s: without %s, which keep fresh values", file, _few(missing))
    if unexpected and tell:
        log.warning("%s: %s are not in the network, and are left out", file, _few(unexpected))
    model.load_state_dict(dict(found), strict=False)


def _read(file: Path) -> Mapping[str, Tensor]:
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        # Nothing but tensors and plain containers is unpickled: reading a file runs no code.
        found = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise DataError(f"{file}: no such file") from None
    except Exception as error:  # whatever a damaged file does to its reader
        if is_foreseen(error):
            raise
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{file}: not a file of weights: {reason}") from error
    if isinstance(found, Mapping) and isinstance(found.get("state_dict"), Mapping):
        found = found["state_dict"]  # as training frameworks wrap it
    if not isinstance(found, Mapping) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in found.items()
    ):
        raise DataError(f"{file}: expected tensors by the names of the network's parameters")
    return found


def _few(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" … ({len(names)} in all)" if len(names) > 5 else "")
