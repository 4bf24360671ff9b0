"""Random numbers that depend on nothing but (seed, purpose, step).

No global generator is read or moved, so a checkpoint needs no generator state and the order in
which things are sampled does not matter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from hyperrbp.runtime.process_state import ONE_THREAD


def generator(seed: int, purpose: str, step: int = 0) -> torch.Generator:
    """Return a fresh CPU generator for one purpose at one step of one seed.

    Numbers are sampled on the CPU and then moved, so that every device sees the same ones.
    """
    digest = hashlib.sha256(f"{seed}/{purpose}/{step}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=True))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed PyTorch's own generators for the code inside, and restore them afterwards.

    Those of GPUs are included once CUDA is initialized; before, a seed would wait for it, and stay.
    """
    in_use = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]  # torch's is untyped
    gpus = range(torch.cuda.device_count() if in_use else 0)
    with ONE_THREAD, torch.random.fork_rng(devices=gpus):
        torch.default_generator.manual_seed(seed)
        if gpus:
            torch.cuda.manual_seed_all(seed)
        yield


@contextmanager
def seeded_everywhere(seed: int) -> Iterator[None]:
    """Seed the generators of PyTorch, NumPy and Python for the code inside, and restore them.

    For code of the user's own, which may draw from any of them: a data set and its transforms.
    """
    import random

    import numpy as np

    of_numpy, of_python = np.random.get_state(), random.getstate()
    with seeded(seed):
        np.random.seed(seed % 2**32)
        random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(of_numpy)
            random.setstate(of_python)
