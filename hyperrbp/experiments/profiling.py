"""Profiles one meta step, beside a run."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from hyperrbp.exceptions import StorageError
from hyperrbp.experiments.experiment import Experiment
from hyperrbp.experiments.tune import TuneCallback, TuneContext
from hyperrbp.runtime.files import write_atomically
from hyperrbp.runtime.metering import LiveBytes, SavedBytes


class ProfileFirst(TuneCallback):
    """Profiles one meta step before a run begins."""

    def on_start(self, context: TuneContext) -> None:
        """Write ``profile/`` into the run folder."""
        profile_meta_step(context.experiment, context.folder.path / "profile")


def profile_meta_step(experiment: Experiment, folder: Path) -> dict[str, int]:
    """Write a profiler trace and the tensor bytes of one meta step at the untuned start.

    ``trace.json`` opens in chrome://tracing or https://ui.perfetto.dev; ``bytes.json`` has the
    peak bytes of live tensors and of those that autograd keeps. The trace and the bytes come from
    separate passes, and neither is timed.
    """

    def meta_step() -> None:
        experiment.gradient.hypergradient(
            experiment.problem(),
            experiment.theta,
            seed=experiment.recipe.seed,
            phase=torch.profiler.record_function,
        )

    try:
        folder.mkdir(parents=True, exist_ok=True)
        activities = [ProfilerActivity.CPU]
        if experiment.device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        with profile(activities=activities) as trace:
            meta_step()
        trace.export_chrome_trace(str(folder / "trace.json"))
    except OSError as error:
        raise StorageError(f"{folder}: {error.strerror or error}") from error
    with SavedBytes(*experiment.data.tensors) as saved, LiveBytes() as live:
        meta_step()
    counts = {"live_tensor_bytes": live.peak, "saved_bytes": saved.peak}
    write_atomically(folder / "bytes.json", json.dumps(counts, indent=2) + "\n")
    return counts
