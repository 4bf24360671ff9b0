"""Random numbers that depend on nothing but (seed, purpose, step).

No global generator is read or moved, so a checkpoint needs no generator state and the order in
which things are drawn does not matter.
"""

from __future__ import annotations

import hashlib

import torch


def generator(seed: int, purpose: str, step: int = 0) -> torch.Generator:
    """A fresh CPU generator for one purpose at one step of one seed.

    Numbers are drawn on the CPU and then moved, so that every device sees the same ones.
    """
    digest = hashlib.sha256(f"{seed}/{purpose}/{step}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=True))
