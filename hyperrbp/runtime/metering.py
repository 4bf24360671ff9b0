"""Meters of seconds and bytes. None of them changes a result."""

from __future__ import annotations

import resource
import sys
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_CGROUP = Path("/sys/fs/cgroup")


class PhaseMeter:
    """Seconds and peak bytes of named phases.

    ``peak_bytes[phase]`` has ``process`` (the resident set, from the operating system) and, on
    CUDA, ``allocator`` (PyTorch's allocated bytes). Where the system cannot reset the process's
    peak, as outside Linux, it is the peak since the process started.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.seconds: dict[str, float] = {}
        self.peak_bytes: dict[str, dict[str, int]] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure what happens inside; repeated phases of one name add up."""
        cuda = self._device.type == "cuda"
        if cuda:
            torch.cuda.synchronize(self._device)
            torch.cuda.reset_peak_memory_stats(self._device)
        _reset_process_peak()
        start = time.perf_counter()
        try:
            yield
        finally:
            if cuda:
                torch.cuda.synchronize(self._device)
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
            peaks = {"process": process_peak_bytes()}
            if cuda:
                peaks["allocator"] = torch.cuda.max_memory_allocated(self._device)
            before = self.peak_bytes.get(name, {})
            self.peak_bytes[name] = {k: max(v, before.get(k, 0)) for k, v in peaks.items()}


def process_peak_bytes() -> int:
    """Return the largest resident set of this process since its peak was last reset."""
    known = _status_bytes("VmHWM")
    if known is not None:
        return known
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _status_bytes(field: str) -> int | None:
    """Return a size that Linux states of this process."""
    try:
        for line in _STATUS.read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def _reset_process_peak() -> None:
    try:
        _CLEAR.write_text("5")
    except OSError:
        return


def available_bytes() -> int:
    """Return how many bytes of main memory this process may still allocate.

    The least of what the machine has free, of the container's own limit (cgroup v2), which psutil
    does not know, and of the limits on this process.
    """
    bounds = [psutil.virtual_memory().available, *_container_bounds(), *_process_bounds()]
    return max(0, min(bounds))


def _container_bounds() -> Iterator[int]:
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        if limit != "max":
            yield int(limit) - int((_CGROUP / "memory.current").read_text())
    except (OSError, ValueError):
        return


def _process_bounds() -> Iterator[int]:
    for kind, used in ((resource.RLIMIT_DATA, "VmData"), (resource.RLIMIT_AS, "VmSize")):
        bound = resource.getrlimit(kind)[0]
        if bound != resource.RLIM_INFINITY:
            yield bound - (_status_bytes(used) or 0)


class _Kept:
    """What autograd holds in place of a saved tensor; its life is the life of the saved tensor."""

    __slots__ = ("__weakref__", "tensor")

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


class SavedBytes:
    """Bytes of the distinct storages that autograd keeps for a backward pass, and their peak.

    A context manager over plain ``torch.autograd`` code (``torch.func`` refuses the hooks).
    ``ignoring`` names tensors, such as a data set, whose storages are not counted.
    """

    def __init__(self, *ignoring: Tensor) -> None:
        self._ignored = {tensor.untyped_storage().data_ptr() for tensor in ignoring}
        self._holders: dict[int, int] = {}
        self.now = 0
        self.peak = 0
        self._hooks = saved_tensors_hooks(self._pack, lambda kept: kept.tensor)

    def __enter__(self) -> SavedBytes:
        self._hooks.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._hooks.__exit__(*exception)

    def _pack(self, tensor: Tensor) -> _Kept:
        storage = tensor.untyped_storage()
        # Detached, since an output that is saved with its own graph would keep itself alive.
        kept = _Kept(tensor.detach())
        if storage.data_ptr() not in self._ignored:
            key, size = storage.data_ptr(), storage.nbytes()
            if key not in self._holders:
                self._holders[key] = 0
                self.now += size
                self.peak = max(self.peak, self.now)
            self._holders[key] += 1
            weakref.finalize(kept, self._release, key, size)
        return kept

    def _release(self, key: int, size: int) -> None:
        self._holders[key] -= 1
        if self._holders[key] == 0:
            del self._holders[key]
            self.now -= size


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's is untyped
    """Bytes of all live tensors that were made inside the context, and their peak.

    It slows small operations by more than half: never take times under it.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's is untyped
        self._known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()
        self.now = 0
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation, and count the storages that it made."""
        made = func(*args, **(kwargs or {}))
        # A view of a tensor from outside makes nothing.
        given = {
            leaf.untyped_storage().data_ptr()
            for leaf in tree_leaves((args, kwargs))
            if isinstance(leaf, Tensor)
        }
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor) and leaf.untyped_storage().data_ptr() not in given:
                storage = leaf.untyped_storage()
                if storage not in self._known and storage.nbytes():
                    self._known.add(storage)
                    self.now += storage.nbytes()
                    self.peak = max(self.peak, self.now)
                    weakref.finalize(storage, self._release, storage.nbytes())
        return made

    def _release(self, size: int) -> None:
        self.now -= size
