"""What a meta step costs, side by side: seconds, bytes, growth, start-up.

    python benchmarks/speed.py --data-root DATA --out benchmarks/results

MNIST in the paper's setting (T = 1000, K = 50, batch 200) and a network of 5.6 million weights,
against a plain PyTorch training loop on the same minibatches. Everything that is compared is timed
in turn, in one process; bytes are taken in passes of their own. Writes speed.json and speed.md.
About twenty minutes on two CPU cores; --only repeats a part.
"""

from __future__ import annotations

import argparse
import copy
import gc
import itertools
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from torch import nn

from hyperrbp import AdamSettings, Averaging, Experiment, GradientSettings, TrainingRun, descend
from hyperrbp.config.loading import read
from hyperrbp.config.presets import find
from hyperrbp.hypergradients import hypergradient
from hyperrbp.reporting.figures import log_log_exponent
from hyperrbp.reporting.formatting import human_bytes
from hyperrbp.runtime.metering import LiveBytes, PhaseMeter, SavedBytes

RECIPE_AVERAGING = Averaging(minibatches=50, series=2)  # the mnist recipe's
METHODS = {
    "neumann (default: resampled, M = 50, 2 series)": GradientSettings(
        "neumann", 50, RECIPE_AVERAGING
    ),
    "neumann, resampled, M = 50, 1 series": GradientSettings(
        "neumann", 50, Averaging(minibatches=50)
    ),
    "neumann, mean, M = 50": GradientSettings("neumann", 50, Averaging("mean", minibatches=50)),
    "rbp (default: resampled, M = 50, 2 series)": GradientSettings("rbp", 50, RECIPE_AVERAGING),
    "cg, mean, M = 10": GradientSettings("cg", 50, Averaging(minibatches=10)),
    "tbptt, M = 1": GradientSettings("tbptt", 50),
    "bptt, unrolled": GradientSettings("bptt"),
    "bptt, keep = states": GradientSettings("bptt", options={"keep": "states"}),
    "bptt, keep = checkpoints": GradientSettings("bptt", options={"keep": "checkpoints"}),
}
DEFAULT, UNROLLED = next(iter(METHODS)), "bptt, unrolled"


def mnist(arguments: argparse.Namespace, **overrides: Any) -> Experiment:
    settings = {"threads": arguments.threads, "device": arguments.device} | overrides
    recipe = read(find("mnist"), [("", key.replace("__", "."), v) for key, v in settings.items()])
    experiment = Experiment(recipe, arguments.data_root)
    experiment.problem().prepare(experiment.theta)
    return experiment


def plain_loop(experiment: Experiment) -> Callable[[], None]:
    """Training as anyone would write it, on the minibatches of the experiment's inner run."""
    problem, options = experiment.problem(), experiment.recipe.model.options
    widths = [784, *options["hidden"], 10]
    start = problem.initial_state()[: problem.weights].clone()

    def train() -> None:
        layers: list[nn.Module] = []
        for a, b in itertools.pairwise(widths):
            layers += [nn.Linear(a, b), nn.Tanh()]
        model = nn.Sequential(*layers[:-1]).to(experiment.device)
        with torch.no_grad():
            nn.utils.vector_to_parameters(start.clone(), model.parameters())
        # The update of Maclaurin et al. with α = exp(-1), β = 0.5, in the terms of torch.optim.
        sgd = torch.optim.SGD(model.parameters(), lr=0.36787944117144233 * 0.5, momentum=0.5)
        for t in range(problem.steps):
            x = problem.input(t)
            sgd.zero_grad()
            nn.functional.cross_entropy(model(x.inputs), x.targets).backward()
            sgd.step()

    return train


def meta_step(experiment: Experiment, settings: GradientSettings) -> Callable[[], None]:
    """Inner run, meta-gradient, one step of Adam."""

    def once() -> None:
        next(
            descend(experiment.problem(), experiment.theta, settings, AdamSettings(steps=1), seed=1)
        )

    return once


def interleaved(
    tasks: Mapping[str, Callable[[], None]], repeats: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of each task, the tasks in turn, after one warm-up each."""
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for repeat in range(-1, repeats):
        for name, task in tasks.items():
            gc.collect()
            meter = PhaseMeter(device)
            with meter.phase("all"):
                task()
            if repeat >= 0:
                seconds[name].append(meter.seconds["all"])
            print(f"  {repeat + 1}/{repeats} {name}: {meter.seconds['all']:.3g} s", file=sys.stderr)
    return seconds


def kept_and_live(
    problem: TrainingRun, theta: torch.Tensor, settings: GradientSettings, data: Sequence[Any]
) -> tuple[int, int]:
    """Bytes kept for a backward pass (by autograd and the method), and of all live tensors."""

    def once() -> int:
        return settings.hypergradient(problem, theta, seed=0).trajectory_bytes

    with SavedBytes(*data) as saved:
        trajectory = once()
    with LiveBytes() as live:
        once()
    return saved.peak + trajectory, live.peak


def paper_setting(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    experiment = mnist(arguments)
    tasks = {"plain PyTorch training loop": plain_loop(experiment)}
    tasks |= {name: meta_step(experiment, settings) for name, settings in METHODS.items()}
    seconds = interleaved(tasks, arguments.repeats, experiment.device)
    rows = []
    for name, taken in seconds.items():
        row = {"name": name, "seconds": taken, "kept": None, "live": None}
        if name in METHODS:
            row["kept"], row["live"] = kept_and_live(
                experiment.problem(), experiment.theta, METHODS[name], experiment.data.train
            )
        rows.append(row)
    return rows


def larger_network(arguments: argparse.Namespace) -> dict[str, Any]:
    experiment = mnist(
        arguments, model__options={"hidden": [2000, 2000]}, inner__steps=50, gradient__trunc=10
    )
    problem, theta = experiment.problem(), experiment.theta
    settings = GradientSettings("neumann", 10, RECIPE_AVERAGING)
    plain = plain_loop(experiment)

    def own() -> None:
        problem.last_state(theta)

    seconds = interleaved(
        {"plain": plain, "own": own, "neumann": meta_step(experiment, settings)},
        arguments.repeats,
        experiment.device,
    )
    live = {}
    for name, task in (("plain", plain), ("own", own)):
        with LiveBytes() as meter:
            task()
        live[name] = meter.peak
    kept, live["neumann"] = kept_and_live(problem, theta, settings, experiment.data.train)
    return {"weights": problem.weights, "seconds": seconds, "live": live, "kept": kept}


def growth(arguments: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    """Seconds and kept bytes of a Neumann meta-gradient against one size at a time."""
    base = mnist(arguments)

    def shortened(steps: int) -> TrainingRun:
        problem = copy.copy(base.problem())
        problem.steps = steps
        return problem

    def of(hidden: list[int]) -> TrainingRun:
        experiment = mnist(arguments, model__options={"hidden": hidden}, inner__steps=200)
        experiments.append(experiment)
        return experiment.problem()

    experiments = [base]

    sizes: dict[str, list[tuple[float, TrainingRun, int]]] = {
        "T": [(steps, shortened(steps), 50) for steps in (300, 1000, 3000)],
        "K": [(trunc, shortened(300), trunc) for trunc in (30, 100, 300)],
        "weights": [
            (problem.weights, problem, 50)
            for problem in (of([width] * 3) for width in (50, 200, 800))
        ],
        "hyperparameters": [
            (4 * (depth + 1), of([50] * depth), 50) for depth in (3, 7, 15)
        ],
    }  # fmt: skip
    found: dict[str, list[dict[str, float]]] = {}
    for name, cases in sizes.items():
        found[name] = []
        tasks = {}
        for size, problem, trunc in cases:
            theta = problem.initial_theta(0.36787944117144233, 0.5)
            settings = GradientSettings("neumann", trunc, RECIPE_AVERAGING)

            def once(
                problem: TrainingRun = problem,
                theta: torch.Tensor = theta,
                settings: GradientSettings = settings,
            ) -> None:
                next(descend(problem, theta, settings, AdamSettings(steps=1)))

            tasks[str(size)] = once
        seconds = interleaved(tasks, 3, base.device)
        for size, problem, trunc in cases:
            theta = problem.initial_theta(0.36787944117144233, 0.5)
            settings = GradientSettings("neumann", trunc, RECIPE_AVERAGING)
            data = [tensor for experiment in experiments for tensor in experiment.data.train]
            kept, live = kept_and_live(problem, theta, settings, data)
            found[name].append(
                {"size": size, "seconds": median(seconds[str(size)]), "kept": kept, "live": live}
            )
    return found


def long_run(arguments: argparse.Namespace) -> dict[str, dict[str, int]]:
    """Kept bytes, and the peak of the process, at T = 1,000 and 100,000."""
    experiment = mnist(arguments)
    problem = copy.copy(experiment.problem())
    found = {}
    for steps in (1_000, 100_000):
        problem.steps = steps
        meter = PhaseMeter(experiment.device)
        with SavedBytes(*experiment.data.train) as saved, meter.phase("all"):
            hypergradient(problem, experiment.theta, "neumann", averaging=RECIPE_AVERAGING)
        found[str(steps)] = {"kept": saved.peak, "process": meter.peak_bytes["all"]["process"]}
    return found


def start_up() -> list[float]:
    """Seconds from the shell to the answer of ``hyperrbp --help``."""
    command = [str(Path(sys.executable).with_name("hyperrbp")), "--help"]
    taken = []
    for repeat in range(6):
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        if repeat:
            taken.append(time.perf_counter() - start)
    return taken


def machine(arguments: argparse.Namespace) -> str:
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].split(":", 1)[1].strip() if names else cpu
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return (
        f"{cpu}, {arguments.threads} threads, {gpu}; {platform.system()}, Python"
        f" {platform.python_version()}, torch {torch.__version__}"
    )


def spread(seconds: Sequence[float]) -> str:
    quarters = quantiles(seconds, n=4)
    return f"{median(seconds):.3g} ({quarters[0]:.3g} … {quarters[2]:.3g})"


def markdown(document: Mapping[str, Any]) -> str:
    lines = [f"{document['machine']}. Made by `{document['command']}`.", ""]
    if rows := document.get("paper_setting"):
        taken = {row["name"]: median(row["seconds"]) for row in rows}
        kept = {row["name"]: row["kept"] for row in rows}
        plain = taken["plain PyTorch training loop"]
        lines += [
            "MNIST, T = 1000, K = 50, batch 200, one meta step (inner run, meta-gradient, Adam):"
            f" median and quartiles of {len(rows[0]['seconds'])} repeats in turn.",
            "",
            "| | seconds | over plain training | unrolled BPTT over it | kept | unrolled BPTT's"
            " over its | live tensors |",
            "|---|---|---|---|---|---|---|",
        ]
        for row in rows:
            name = row["name"]
            cells = [name, spread(row["seconds"]), f"{taken[name] / plain:.2f}"]
            if row["kept"] is None:
                cells += [""] * 4
            else:
                cells += [
                    f"{taken[UNROLLED] / taken[name]:.2f}",
                    human_bytes(row["kept"]),
                    f"{kept[UNROLLED] / row['kept']:.4g}",
                    human_bytes(row["live"]),
                ]
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    if large := document.get("larger_network"):
        live = large["live"]
        lines += [
            f"A network of {large['weights']:,} weights (784-2000-2000-10), T = 50, K = 10, M = 50,"
            " 2 series:",
            "",
            "| | seconds | live tensors | over plain training | over its own inner run |",
            "|---|---|---|---|---|",
        ]
        names = {
            "plain": "plain PyTorch training loop",
            "own": "inner run",
            "neumann": "Neumann meta step",
        }
        lines += [
            f"| {title} | {spread(large['seconds'][name])} | {human_bytes(live[name])} |"
            f" {live[name] / live['plain']:.2f} | {live[name] / live['own']:.2f} |"
            for name, title in names.items()
        ]
        lines.append("")
    if found := document.get("growth"):
        lines += [
            "A Neumann meta step as one size grows, and the exponent of a power law (0: it does not"
            " grow; 1: linear):",
            "",
            "| against | sizes | seconds | exponent | kept | exponent |",
            "|---|---|---|---|---|---|",
        ]
        for name, points in found.items():
            cells = [name, ", ".join(f"{point['size']:,}" for point in points)]
            for key, show in (("seconds", lambda v: f"{v:.3g}"), ("kept", human_bytes)):
                cells.append(", ".join(show(point[key]) for point in points))
                exponent = log_log_exponent([(point["size"], point[key]) for point in points])
                cells.append(f"{exponent:.2f}")
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    if long := document.get("long_run"):
        lines += [
            "; ".join(
                f"T = {int(steps):,}: {costs['kept']:,} bytes kept, process"
                f" {human_bytes(costs['process'])}"
                for steps, costs in long.items()
            )
            + ".",
            "",
        ]
    if taken := document.get("start_up"):
        lines += [f"`hyperrbp --help`: {spread(taken)} s.", ""]
    return "\n".join(lines)


PARTS: dict[str, Callable[[argparse.Namespace], Any]] = {
    "paper_setting": paper_setting,
    "larger_network": larger_network,
    "growth": growth,
    "long_run": long_run,
    "start_up": lambda _: start_up(),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", choices=PARTS, nargs="*", help="other parts are kept as they are")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("no usable GPU was found; leave --device out to measure on the CPU")
    arguments.out.mkdir(parents=True, exist_ok=True)
    name = "speed" if arguments.device == "cpu" else f"speed-{arguments.device}"
    file = arguments.out / f"{name}.json"
    document = json.loads(file.read_text()) if file.exists() and arguments.only else {}
    document["machine"] = machine(arguments)
    document["command"] = (
        f"python benchmarks/speed.py --data-root DATA --threads {arguments.threads}"
        f" --repeats {arguments.repeats}"
        + ("" if arguments.device == "cpu" else f" --device {arguments.device}")
    )
    for part in arguments.only or PARTS:
        print(part, file=sys.stderr)
        document[part] = PARTS[part](arguments)
        file.write_text(json.dumps(document, indent=1) + "\n")
        (arguments.out / f"{name}.md").write_text(markdown(document))
    print(markdown(document))


if __name__ == "__main__":
    main()
