"""One exact meta step of networks as people train them, beside a plain training loop.

    python benchmarks/large_networks.py --data-root DATA --out benchmarks/results

torchvision's resnet18 as it is, BatchNorm and all, on Fashion-MNIST of 32 × 32 pixels from a
DataLoader, by AdamW (T = 100, minibatches of 64); and a GPT of 6 million weights with dropout on
characters (T = 30, minibatches of 8 × 128), by AdamW with warm-up and cosine. The gradient is
exact, from checkpoints. The plain loop is torch.optim.AdamW on the same minibatches. Both are
timed in turn; peaks are those of all live tensors, in passes of their own. Writes
large-networks.json and large-networks.md. About an hour on two CPU cores; --only does a part.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from torchvision import transforms

from hyperrbp import (
    Batch,
    GradientSettings,
    Grain,
    Hyperparameters,
    LoaderBatches,
    LoaderExamples,
    Schedule,
    TrainingRun,
)
from hyperrbp.problems.networks import MODELS
from hyperrbp.reporting.formatting import human_bytes
from hyperrbp.runtime.metering import LiveBytes

EXACT = GradientSettings("bptt", options={"keep": "checkpoints"})
RATE, DECAY = 1e-3, 0.05
SCHEDULE = Schedule("cosine", warmup_share=0.12, end_share=0.1)


@dataclass
class Case:
    """A network with its run, and what it is called."""

    title: str
    run: TrainingRun
    model: Callable[[], nn.Module]
    loss: Callable[[Tensor, Tensor], Tensor]

    @property
    def theta(self) -> Tensor:
        """The start."""
        return self.run.initial_theta(RATE, weight_decay=DECAY)


def tuned() -> Hyperparameters:
    """Peak learning rate and weight decay of every layer, β₁, β₂, and the schedule's two shares."""
    kinds = ("beta1", "beta2", "warmup_share", "end_share")
    return Hyperparameters(
        {"learning_rate": Grain("layer"), "weight_decay": Grain("layer")}
        | {kind: Grain("net") for kind in kinds}
    )


def resnet(arguments: argparse.Namespace) -> Case:
    """Return resnet18 on Fashion-MNIST: grey pixels in all three channels."""
    prepare = transforms.Compose(
        [transforms.Resize(32), transforms.ToTensor(), transforms.Lambda(three_channels)]
    )
    sets = [
        torchvision.datasets.FashionMNIST(str(arguments.data_root), train=part, transform=prepare)
        for part in (True, False)
    ]
    steps = arguments.steps or 100

    def model() -> nn.Module:
        torch.manual_seed(0)
        return torchvision.models.resnet18(num_classes=10)

    held = Subset(sets[0], range(59_000, 60_000))
    run = TrainingRun(
        model(),
        LoaderBatches(DataLoader(Subset(sets[0], range(59_000)), batch_size=64, shuffle=True)),
        steps=steps,
        meta_examples=LoaderExamples(LoaderBatches(DataLoader(held, batch_size=64))),
        optimizer="adamw",
        schedule=SCHEDULE,
        hyperparameters=tuned(),
    )
    return Case(
        f"resnet18, {run.weights / 1e6:.1f} million weights, T = {steps}",
        run,
        model,
        nn.functional.cross_entropy,
    )


def three_channels(image: Tensor) -> Tensor:
    """Return a grey image as a colour one."""
    return image.expand(3, -1, -1)


def gpt(arguments: argparse.Namespace) -> Case:
    """Return a GPT of 6 million weights on random characters: the time does not depend on them."""
    vocabulary, block, steps = 65, 128, arguments.steps or 30
    source = torch.Generator().manual_seed(0)

    def model() -> nn.Module:
        torch.manual_seed(0)
        built = MODELS["gpt"](layers=8, heads=4, width=256, dropout=0.1)
        return built.build((block,), vocabulary)

    def batch() -> tuple[Tensor, Tensor]:
        text = torch.randint(0, vocabulary, (8, block + 1), generator=source)
        return text[:, :-1], text[:, 1:]

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(outputs.flatten(0, 1), targets.flatten())

    run = TrainingRun(
        model(),
        [batch() for _ in range(steps)],
        steps=steps,
        meta_examples=Batch(*batch()),
        loss=loss,
        optimizer="adamw",
        schedule=SCHEDULE,
        clip_norm=1.0,
        hyperparameters=tuned(),
    )
    return Case(f"GPT, {run.weights / 1e6:.1f} million weights, T = {steps}", run, model, loss)


CASES = {"resnet18": resnet, "gpt": gpt}


def plain_loop(case: Case, steps: int) -> None:
    """Train as anyone would, on the minibatches of the run."""
    model = case.model()
    adamw = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=DECAY)
    for t in range(steps):
        x = case.run.input(t)
        adamw.zero_grad()
        case.loss(model(x.inputs), x.targets).backward()
        adamw.step()


def live_peak(task: Callable[[], Any]) -> int:
    """Return the peak bytes of all live tensors that a task makes."""
    gc.collect()
    with LiveBytes() as live:
        task()
    return live.peak


def measured(case: Case, repeats: int) -> dict[str, Any]:
    """Return seconds of both, in turn, and the peaks of their live tensors."""
    case.run.examine()
    theta, steps = case.theta, case.run.steps
    seconds: dict[str, list[float]] = {"plain": [], "meta": []}
    gradient: Tensor | None = None
    for _ in range(repeats):
        started = time.perf_counter()
        plain_loop(case, steps)
        seconds["plain"].append(time.perf_counter() - started)
        started = time.perf_counter()
        found = EXACT.hypergradient(case.run, theta, seed=0)
        seconds["meta"].append(time.perf_counter() - started)
        gradient = found.gradient
        print(
            f"  {case.title}: {seconds['plain'][-1]:.0f} s, {seconds['meta'][-1]:.0f} s",
            file=sys.stderr,
        )
    assert gradient is not None
    assert bool(gradient.isfinite().all())
    return {
        "title": case.title,
        "weights": case.run.weights,
        "steps": steps,
        "hyperparameters": len(theta),
        "seconds": seconds,
        "live": {
            "plain": live_peak(lambda: plain_loop(case, 2)),
            "meta": live_peak(lambda: EXACT.hypergradient(case.run, theta, seed=0)),
        },
        "gradient_norm": float(gradient.norm()),
    }


def markdown(found: dict[str, Any]) -> str:
    """Return a table of what was measured."""
    lines = [
        "| | plain loop, s | meta step, s | ratio | plain loop, live | meta step, live |",
        "|---|---|---|---|---|---|",
    ]
    for row in found["cases"].values():
        plain, meta = (median(row["seconds"][name]) for name in ("plain", "meta"))
        live = [human_bytes(row["live"][name]) for name in ("plain", "meta")]
        title = f"{row['title']}, {row['hyperparameters']} hyperparameters"
        cells = [title, f"{plain:.0f}", f"{meta:.0f}", f"{meta / plain:.1f}", *live]
        lines.append(f"| {' | '.join(cells)} |")
    place = found["place"]
    lines += [
        "",
        f"torch {place['torch']}, {place['threads']} threads, {place['processor']}; medians of"
        f" {place['repeats']}, in turn.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, and write both files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-root", type=Path, default=Path("data"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--only", choices=CASES)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, help="fewer training steps, for a trial")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    file = arguments.out / "large-networks.json"
    found = json.loads(file.read_text()) if arguments.only and file.exists() else {"cases": {}}
    found["place"] = {
        "torch": torch.__version__,
        "threads": arguments.threads,
        "processor": platform.machine(),
        "repeats": arguments.repeats,
    }
    for name in [arguments.only] if arguments.only else CASES:
        found["cases"][name] = measured(CASES[name](arguments), arguments.repeats)
    file.write_text(json.dumps(found, indent=1) + "\n")
    (arguments.out / "large-networks.md").write_text(markdown(found))


if __name__ == "__main__":
    main()
