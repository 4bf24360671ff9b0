"""Where a recipe runs: its device, its threads, and the environment that its bits depend on."""

from __future__ import annotations

import platform
from typing import Any

import torch

from hyperrbp.config.schema import BaseRecipe
from hyperrbp.exceptions import DeviceError


def environment(device: torch.device) -> dict[str, str | int]:
    """Return what the bits of a result depend on, besides the recipe."""
    from hyperrbp import __version__

    found: dict[str, str | int] = {
        "hyperrbp": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "device": device.type,
        "threads": torch.get_num_threads(),
    }
    if device.type == "cuda":
        found["cuda_device"] = torch.cuda.get_device_name(device)
    return found


def device_and_threads(recipe: BaseRecipe) -> tuple[torch.device, dict[str, Any]]:
    """Set the threads of a recipe; return its device, and both as keys to fill into it.

    Raises:
        DeviceError: if the recipe asks for a device that is not there.
    """
    device = choose_device(recipe.device)
    if device == "cuda":
        # Or else a convolution has other bits the next time, and those of a shorter mantissa.
        torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32 = True, False
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    return torch.device(device), {"device": device, "threads": torch.get_num_threads()}


def choose_device(wanted: str) -> str:
    """Return ``cpu`` or ``cuda``.

    Raises:
        DeviceError: if CUDA is asked for and is not there.
    """
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and not torch.cuda.is_available():
        built = torch.version.cuda is not None
        why = "no usable GPU was found" if built else "this build of PyTorch has no CUDA"
        raise DeviceError(f"device cuda was asked for, but {why}; use --device cpu")
    return wanted
