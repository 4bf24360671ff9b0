"""What training the associative memory costs: by images a batch, and by updates an inference.

    python benchmarks/memory.py [--repeats 9] [--threads 2] [--out benchmarks/results]

Random binary images of the paper's size; seconds are medians of repeats taken in turn. Bytes are
those of all live tensors at their peak, in a pass of its own.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path
from statistics import median, quantiles

import torch

from hyperrbp import Hopfield, steady_state
from hyperrbp.reporting.formatting import human_bytes
from hyperrbp.runtime.files import write_atomically
from hyperrbp.runtime.metering import LiveBytes

IMAGES, TRUNC, UPDATES = 10, 20, 50


def training_step(network: Hopfield, optimizer, images: torch.Tensor, method: str, updates: int):
    optimizer.zero_grad()
    h = steady_state(*network.recurrence(images), method, TRUNC, updates=updates)
    (network.output(h) - images).abs().mean().backward()
    optimizer.step()


def memory(images: torch.Tensor):
    network = Hopfield(images.shape[1], generator=torch.Generator().manual_seed(0))
    return network, torch.optim.Adam(network.parameters(), 1e-3, fused=True)


def seconds_per_image(images: torch.Tensor, repeats: int) -> dict[int, list[float]]:
    """Of a training step with neumann, the batch sizes in turn."""
    network, optimizer = memory(images)
    found: dict[int, list[float]] = {1: [], IMAGES: []}
    for repeat in range(repeats + 1):  # the first one warms up
        for size in found:
            start = time.perf_counter()
            training_step(network, optimizer, images[:size], "neumann", UPDATES)
            if repeat:
                found[size].append((time.perf_counter() - start) / size)
    return found


def peak_bytes(images: torch.Tensor, method: str, updates: int) -> int:
    """Of all live tensors in the second of two training steps."""
    network, optimizer = memory(images)
    training_step(network, optimizer, images, method, updates)
    with LiveBytes() as live:
        training_step(network, optimizer, images, method, updates)
    return live.peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    source = torch.Generator().manual_seed(0)
    images = (torch.rand(IMAGES, 784, generator=source) > 0.8).float()
    times = seconds_per_image(images, given.repeats)
    ratio = median(times[1]) / median(times[IMAGES])
    lengths = (50, 500)
    peaks = {
        method: {updates: peak_bytes(images, method, updates) for updates in lengths}
        for method in ("neumann", "bptt")
    }
    rows = [
        f"| {size} | {1e3 * median(found):.1f} ({_ends(found)})"
        f" | {median(times[1]) / median(found):.1f} |"
        for size, found in times.items()
    ]
    growth = [
        f"| `{method}` | " + " | ".join(human_bytes(peaks[method][u]) for u in lengths) + " |"
        for method in peaks
    ]
    text = "\n".join(
        [
            f"Hopfield memory of 2,592 neurons, T = {UPDATES}, K = {TRUNC}, `neumann`,"
            f" {given.threads} threads, torch {torch.__version__}, {platform.machine()};"
            f" medians and quartiles of {given.repeats} repeats in turn.",
            "",
            "| images a training step | milliseconds an image | one at a time over it |",
            "|---|---|---|",
            *rows,
            "",
            f"| live tensors at their peak | T = {lengths[0]} | T = {lengths[1]} |",
            "|---|---|---|",
            *growth,
        ]
    )
    print(text)
    document = {
        "threads": given.threads,
        "torch": torch.__version__,
        "seconds_per_image": times,
        "ratio": ratio,
        "peak_bytes": peaks,
    }
    given.out.mkdir(parents=True, exist_ok=True)
    write_atomically(given.out / "memory.md", text + "\n")
    write_atomically(given.out / "memory.json", json.dumps(document, indent=2) + "\n")


def _ends(values: list[float]) -> str:
    """The quartiles, in milliseconds."""
    quarters = quantiles(values, n=4)
    return f"{1e3 * quarters[0]:.1f} … {1e3 * quarters[2]:.1f}"


if __name__ == "__main__":
    main()
