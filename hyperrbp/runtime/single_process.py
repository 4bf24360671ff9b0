"""Refuses to be one of several processes that were started to train one model together."""

from __future__ import annotations

import os
import sys

from hyperrbp.exceptions import UsageError


def refuse_several_processes() -> None:
    """Refuse to run as one of the processes that torchrun, or another launcher, has started.

    Each would make the same run, in the same folder.

    Raises:
        UsageError: with the number of this process, and what to do instead.
    """
    launcher = "torchrun" if "TORCHELASTIC_RUN_ID" in os.environ else "a launcher of processes"
    found = _by_environment() or _by_process_group()
    if found is None:
        return
    rank, count = found
    raise UsageError(
        f"started by {launcher} as process {rank + 1} of {count}: hyperrbp runs in one process;"
        f" start it without {'torchrun' if launcher == 'torchrun' else 'it'}"
    )


def _by_environment() -> tuple[int, int] | None:
    """Return (rank, processes) as every launcher of PyTorch's sets them; None for one process."""
    rank, count = os.environ.get("RANK", ""), os.environ.get("WORLD_SIZE", "")
    if not (rank.isdecimal() and count.isdecimal() and int(count) > 1):
        return None
    return int(rank), int(count)


def _by_process_group() -> tuple[int, int] | None:
    """Return the same of processes that were joined without these variables."""
    distributed = sys.modules.get("torch.distributed")  # not imported for this
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return None
    count = distributed.get_world_size()
    return (distributed.get_rank(), count) if count > 1 else None
