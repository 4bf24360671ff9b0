"""Data cleaning: what the weights of 5,000 examples are worth, against training on the clean ones.

The recipe is `cleaning`, with its linear model and with one hidden layer; three seeds, one thread.
The race against random search and TPE is `hyperrbp compare cleaning --against random,tpe` with
`--out DIR/benchmark-linear` and `DIR/benchmark-one`; what random weights are worth without Optuna's
time for 5,000 of them is measured here.

python benchmarks/cleaning.py measure --data-root DATA --out DIR
python benchmarks/cleaning.py report --out DIR

`measure` goes on where it was stopped; `report` writes benchmarks/results/cleaning.md and
benchmarks/figures/cleaning.png.
"""

from __future__ import annotations

import copy
import json
import time
from pathlib import Path
from statistics import mean, stdev

import torch
from in_parts import kept, measure_or_report

from hyperrbp.config import presets as presets
from hyperrbp.config.loading import read
from hyperrbp.data.batches import ShuffledBatches
from hyperrbp.experiments.experiment import Experiment
from hyperrbp.experiments.meta_optimizer import evaluations, meta_optimizer
from hyperrbp.problems.training.run import TrainingRun

HERE = Path(__file__).parent
MODELS = {
    "linear": {},
    "one hidden layer of 50": {"model.options": {"hidden": [50]}, "model.init_std": 0.05},
}
SEEDS = (1234, 1235, 1236)
ROWS = {
    "noisy": "all 5,000, half of them wrong",
    "clean": "the 2,500 right ones alone",
    "tuned": "all 5,000, weighted by hyperrbp",
    "random": "all 5,000, the best of 40 random weightings",
    "validation": "the 5,000 validation digits themselves",
}
SAMPLES = 40
"""About as many training runs as the tuning takes."""


def accuracy(at: Experiment, problem: TrainingRun, theta: torch.Tensor) -> float:
    return problem.evaluated(problem.last_state(theta)).accuracy(at.data.heldout)


def experiment(data_root: Path, seed: int, settings: dict) -> Experiment:
    overrides = [
        ("", key, value) for key, value in {**settings, "seed": seed, "threads": 1}.items()
    ]
    return Experiment(read(presets.built_in("cleaning"), overrides), data_root)


def random(at: Experiment, seed: int) -> dict:
    """The best validation loss of weights sampled uniformly in the search box, in θ."""
    problem, (low, high) = at.problem(), at.box
    source = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(SAMPLES):
        theta = low + (high - low) * torch.rand(len(low), generator=source)
        h = problem.last_state(theta)
        found.append((float(problem.loss(h)), problem.evaluated(h).accuracy(at.data.heldout)))
    return {"random": min(found)[1], "random_loss": min(found)[0]}


def one(at: Experiment, seed: int) -> dict:
    problem, wrong = at.problem(), at.data.mislabelled
    problem.prepare(at.theta)
    clean = at.theta.clone()
    clean[~wrong], clean[wrong] = 20.0, -20.0  # weights of 2 and 0: the mean over the clean ones
    other = copy.copy(problem)
    other._batches = ShuffledBatches(at.data.validation, at.recipe.inner.batch_size, seed)
    optimizer = meta_optimizer(at)
    state = optimizer.init(at.theta)
    started = time.process_time()
    for _ in evaluations(at, optimizer, state):
        pass
    seconds = time.process_time() - started
    weights = 2 * state.best_theta.sigmoid()
    return {
        "noisy": accuracy(at, problem, at.theta),
        "clean": accuracy(at, problem, clean),
        "tuned": accuracy(at, problem, state.best_theta),
        "validation": accuracy(at, other, at.theta),
        "seconds": seconds,
        "weights": {
            "right": weights[~wrong].tolist(),
            "wrong": weights[wrong].tolist(),
        },
    }


def read_back(out: Path, model: str, seed: int) -> dict:
    files = out.glob(f"*{model.split()[0]}-{seed}.json")
    return {key: value for file in files for key, value in json.loads(file.read_text()).items()}


def measure(out: Path, data_root: Path) -> None:
    for model, settings in MODELS.items():
        for seed in SEEDS:
            at = experiment(data_root, seed, settings)
            name = f"{model.split()[0]}-{seed}.json"
            kept(out / name, lambda: one(at, seed))  # noqa: B023
            kept(out / f"random-{name}", lambda: random(at, seed))  # noqa: B023
            found = read_back(out, model, seed)
            print(
                model, seed, {key: round(found[key], 4) for key in (*ROWS, "seconds")}, flush=True
            )


def report(out: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    found = {model: [read_back(out, model, seed) for seed in SEEDS] for model in MODELS}
    figure, axes = plt.subplots(1, 2, figsize=(9.2, 3.2), layout="constrained", sharey=True)
    for axis, (model, runs) in zip(axes, found.items(), strict=True):
        bins = torch.linspace(0, 2, 41).tolist()
        for which, colour in (("right", "C0"), ("wrong", "C3")):
            axis.hist(runs[0]["weights"][which], bins, alpha=0.7, color=colour, label=which)
        axis.set(title=model, xlabel="weight of a training digit")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("digits")
    axes[0].legend(title="label", frameon=False)
    figure.savefig(HERE / "figures" / "cleaning.png", dpi=144)

    def entry(runs: list[dict], row: str) -> str:
        values = [100 * run[row] for run in runs]
        return f"{mean(values):.2f}% ± {stdev(values):.2f}"

    def raced(name: str) -> list[str]:
        """Of each model: the median of the optimizer's seeds, and the seconds that it had."""
        cells = []
        for model in found:
            file = out / f"benchmark-{model.split()[0]}" / "benchmark.json"
            race = json.loads(file.read_text())
            (row,) = (row for row in race["rows"] if row["optimizer"] == name)
            cells.append(f"{100 * row['heldout_accuracy']:.2f}% ({race['budget_seconds']:g} s)")
        return cells

    above_noise = {
        model: mean(
            (
                sum(w > 1 for w in run["weights"]["right"])
                + sum(w <= 1 for w in run["weights"]["wrong"])
            )
            / 5000
            for run in runs
        )
        for model, runs in found.items()
    }
    seconds = {model: mean(run["seconds"] for run in runs) for model, runs in found.items()}
    lines = [
        "| trained on | " + " | ".join(found) + " |",
        "|---|" + "---|" * len(found),
        *(
            f"| {title} | " + " | ".join(entry(runs, row) for runs in found.values()) + " |"
            for row, title in ROWS.items()
        ),
        *(
            f"| all 5,000, weighted by {title} (median) | {' | '.join(raced(name))} |"
            for name, title in (("tpe", "TPE"), ("random", "random search"))
        ),
    ]
    text = f"""# Data cleaning on MNIST

`hyperrbp tune cleaning`: 5,000 training digits, half of whose labels are wrong, 5,000 validation
digits for the meta loss, accuracy on the 10,000 test digits; {len(SEEDS)} seeds, mean ± standard
deviation. One thread; {" and ".join(f"{s:.0f} s of it ({m})" for m, s in seconds.items())}.

{chr(10).join(lines)}

A weight above 1, where all began, tells a right label from a wrong one in
{" and ".join(f"{100 * share:.1f}% of the digits ({m})" for m, share in above_noise.items())}.

![weights](../figures/cleaning.png)
"""
    (HERE / "results" / "cleaning.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    measure_or_report(__doc__, measure, report)
