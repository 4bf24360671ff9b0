"""A weight decay for every tensor, by its hypergradient, against a grid of one for the whole net.

The recipe is `decay`. The grid has 30 values; the best on the validation loss is tested. Both are
on one thread, in one process, in turn, ten seeds (data split, initial weights, batches).

python benchmarks/weight_decay.py measure --data-root DATA --out DIR
python benchmarks/weight_decay.py report --out DIR

`measure` goes on where it was stopped; `report` writes benchmarks/results/weight-decay.md.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean, median, stdev

import torch
from in_parts import kept, measure_or_report

from hyperrbp.config import presets as presets
from hyperrbp.config.loading import read
from hyperrbp.experiments.experiment import Experiment
from hyperrbp.hypergradients import Averaging
from hyperrbp.hypergradients.agreement import agreement
from hyperrbp.hypergradients.diagnostics.last_state import EXACT
from hyperrbp.hypergradients.settings import GradientSettings
from hyperrbp.optimizers.adam import AdamState, descend

SEEDS = range(10)
GRID = [10 ** (-5 + 4 * i / 29) for i in range(30)]
RESULTS = Path(__file__).parent / "results" / "weight-decay.md"


def experiment(data_root: Path, seed: int, **settings: object) -> Experiment:
    overrides = [("", key, value) for key, value in {"seed": seed, **settings}.items()]
    return Experiment(read(presets.built_in("decay"), overrides), data_root)


def measures(at: Experiment, theta: torch.Tensor) -> dict[str, float]:
    problem = at.problem()
    h = problem.last_state(theta)
    on_test = at.heldout_measures(problem, h)
    return {
        "validation_loss": float(problem.loss(h)),
        "test_loss": on_test["loss"],
        "test_accuracy": on_test["accuracy"],
    }


def timed(work: Callable[[], object]) -> tuple[object, float]:
    started = time.process_time()
    return work(), time.process_time() - started


def validated(at: Experiment, theta: torch.Tensor) -> float:
    problem = at.problem()
    return float(problem.loss(problem.last_state(theta)))


def one_seed(data_root: Path, seed: int) -> dict[str, object]:
    at = experiment(data_root, seed)
    problem = at.problem()
    problem.prepare(at.theta)
    points = [torch.full_like(at.theta, math.log(value)) for value in GRID]
    losses, grid_seconds = timed(lambda: [validated(at, theta) for theta in points])
    best = min(range(len(GRID)), key=losses.__getitem__)
    state = AdamState(at.theta.clone())
    _, tune_seconds = timed(
        lambda: list(descend(problem, state, at.gradient, at.meta, seed=at.recipe.seed))
    )
    exact = EXACT.hypergradient(problem, at.theta, seed=seed).gradient
    implicit = at.gradient.hypergradient(problem, at.theta, seed=seed).gradient
    return {
        "grid": {"weight_decay": GRID[best], "seconds": grid_seconds, **measures(at, points[best])},
        "tuned": {
            "weight_decay": state.best_theta.exp().tolist(),
            "seconds": tune_seconds,
            **measures(at, state.best_theta),
        },
        "cosine": agreement(implicit.tolist(), exact.tolist()).cosine,
    }


def linear(data_root: Path) -> dict[str, object]:
    """The linear model in full batches, trained until it no longer moves."""
    options = {
        "model.options": {"hidden": []},
        "inner.batch_size": 1000,
        "inner.steps": 800,
        "inner.learning_rate": 1.0,
        "inner.weight_decay": 0.03,
        "dtype": "float64",
    }
    at = experiment(data_root, 0, **options)
    problem = at.problem()
    found = {}
    exact = EXACT.hypergradient(problem, at.theta, seed=0)
    for trunc in (10, 100, 400):
        settings = GradientSettings("neumann", trunc, Averaging("mean", 1))
        implicit = settings.hypergradient(problem, at.theta, seed=0).gradient
        found[trunc] = agreement(implicit.tolist(), exact.gradient.tolist()).cosine
    return {"cosine": found, "steady_state_residual": exact.steady_state_residual}


def measure(out: Path, data_root: Path) -> None:
    for seed in SEEDS:
        found = kept(out / f"seed{seed}.json", lambda: one_seed(data_root, seed))  # noqa: B023
        print(seed, json.dumps(found), flush=True)
    print(kept(out / "linear.json", lambda: linear(data_root)))


def report(out: Path) -> None:
    seeds = [json.loads(file.read_text()) for file in sorted(out.glob("seed*.json"))]
    of_linear = json.loads((out / "linear.json").read_text())
    rows = []
    for name, title in (("grid", "one for the net, of a grid of 30"), ("tuned", "one a tensor")):
        cells = []
        for key, scale, unit in (
            ("validation_loss", 1, ""),
            ("test_loss", 1, ""),
            ("test_accuracy", 100, "%"),
        ):
            values = [scale * seed[name][key] for seed in seeds]
            digits = 2 if unit else 4
            cells.append(f"{mean(values):.{digits}f}{unit} ± {stdev(values):.{digits}f}")
        seconds = median(seed[name]["seconds"] for seed in seeds)
        rows.append(f"| {title} | {' | '.join(cells)} | {seconds:.1f} |")
    gain = [100 * (s["tuned"]["test_accuracy"] - s["grid"]["test_accuracy"]) for s in seeds]
    lower = [s["grid"]["test_loss"] - s["tuned"]["test_loss"] for s in seeds]
    cosines = [seed["cosine"] for seed in seeds]
    text = f"""# Weight decay by tensor against a grid

`hyperrbp tune decay`, {len(seeds)} seeds, one thread, process seconds (median); mean ± standard
deviation over the seeds. The test digits (10,000) are used for this table alone.

| weight decay | validation loss | test loss | test accuracy | seconds |
|---|---|---|---|---|
{chr(10).join(rows)}

Of the same seed, one a tensor is ahead by {mean(gain):+.2f} ± {stdev(gain):.2f} points of test
accuracy (in {sum(g > 0 for g in gain)} of {len(gain)} seeds) and by {mean(lower):.4f} ±
{stdev(lower):.4f} of test loss (in {sum(x > 0 for x in lower)}).

The implicit gradient (Neumann) against the exact one at the start: cosine {min(cosines):.4f} to
{max(cosines):.4f} for this net. For the linear model, in full batches, at a distance
‖h − F(h)‖/‖h‖ of {of_linear["steady_state_residual"]:.1e} from its steady state:
{", ".join(f"{value:.6f} with K = {trunc}" for trunc, value in of_linear["cosine"].items())}.
"""
    RESULTS.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    measure_or_report(__doc__, measure, report)
