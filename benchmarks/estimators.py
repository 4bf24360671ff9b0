"""How right each method and averaging estimator is on the paper's MNIST setting, and its price.

    python benchmarks/estimators.py --data-root DATA --out benchmarks/results

Holds the first hypergradient of `hyperrbp tune mnist` against the exact one (BPTT), for
T = 100, 500 and 1000 and K = 10, 50 and 100, and writes estimators.csv and estimators.md. An
interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import csv
import time
from dataclasses import astuple
from pathlib import Path
from statistics import median
from typing import Any

from hyperrbp import Averaging, Experiment, Hypergradient, hypergradient
from hyperrbp.config.loading import read
from hyperrbp.config.presets import find
from hyperrbp.exceptions import HyperrbpError
from hyperrbp.hypergradients.agreement import agreement

# method, estimator, minibatches M, series
SETTINGS = [
    ("neumann", "resampled", 1, 1),
    ("neumann", "resampled", 10, 2),
    ("neumann", "resampled", 50, 1),
    ("neumann", "resampled", 50, 2),
    ("neumann", "resampled", 50, 4),
    ("neumann", "mean", 10, 1),
    ("neumann", "mean", 50, 1),
    ("neumann", "frozen", 1, 1),
    ("neumann", "frozen", 10, 1),
    ("neumann", "frozen", 50, 1),
    ("rbp", "resampled", 50, 2),
    ("cg", "mean", 10, 1),
    ("tbptt", "end-points", 1, 1),
    ("tbptt", "end-points", 10, 1),
    ("tbptt", "end-points", 50, 1),
]
FIELDS = [
    "T", "K", "method", "estimator", "M", "series",
    "cosine", "signs", "norm_ratio",
    "cosine_learning_rate", "signs_learning_rate", "norm_ratio_learning_rate",
    "cosine_momentum", "signs_momentum", "norm_ratio_momentum",
    "meta_gradient_seconds", "products", "residual", "status",
]  # fmt: skip


def timed(experiment: Experiment, repeats: int, **arguments: Any) -> tuple[Hypergradient, float]:
    """The hypergradient, and the median seconds of its meta-gradient phase."""
    seconds: list[float] = []

    class Phase:
        def __init__(self, name: str) -> None:
            self.name = name

        def __enter__(self) -> None:
            self.start = time.perf_counter()

        def __exit__(self, *exception: object) -> None:
            if self.name == "meta-gradient":
                seconds.append(time.perf_counter() - self.start)

    for _ in range(max(1, repeats)):
        found = hypergradient(
            experiment.problem(),
            experiment.theta,
            seed=experiment.recipe.seed,
            phase=Phase,
            **arguments,
        )
    return found, median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--steps", default="100,500,1000")
    parser.add_argument("--trunc", default="10,50,100")
    parser.add_argument("--repeats", type=int, default=3, help="0: leave the seconds out")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    file = arguments.out / "estimators.csv"
    rows = list(csv.DictReader(file.open())) if file.exists() else []
    done = {tuple(row[name] for name in FIELDS[:6]) for row in rows}
    for steps in map(int, arguments.steps.split(",")):
        recipe = read(
            find("mnist"),
            [("", "inner.steps", steps), ("", "threads", arguments.threads)],
        )
        experiment = Experiment(recipe, arguments.data_root)
        exact = None
        for trunc in map(int, arguments.trunc.split(",")):
            for method, estimator, m, series in SETTINGS:
                if (
                    key := (str(steps), str(trunc), method, estimator, str(m), str(series))
                ) in done:
                    continue
                if method == "tbptt" and trunc + m - 1 > steps:
                    continue
                if exact is None:
                    exact = hypergradient(experiment.problem(), experiment.theta, "bptt").gradient
                averaging = Averaging(
                    "auto" if method == "tbptt" else estimator, minibatches=m, series=series
                )
                try:
                    found, seconds = timed(
                        experiment,
                        arguments.repeats,
                        method=method,
                        trunc=trunc,
                        averaging=averaging,
                    )
                except HyperrbpError as error:
                    print(*key, error)
                    continue
                numbers = [
                    number
                    for part in (slice(None), slice(8), slice(8, None))
                    for number in astuple(
                        agreement(found.gradient[part].tolist(), exact[part].tolist())
                    )
                ]
                values = [*key, *(f"{v:.4g}" for v in numbers)]
                values += [f"{seconds:.3g}" if arguments.repeats else "", found.products]
                values += ["" if found.residual is None else f"{found.residual:.3g}", found.status]
                rows.append({k: str(v) for k, v in zip(FIELDS, values, strict=True)})
                print(*values, flush=True)
                with file.open("w", newline="") as out:
                    writer = csv.DictWriter(out, FIELDS)
                    writer.writeheader()
                    writer.writerows(rows)
    (arguments.out / "estimators.md").write_text(markdown(rows))


def markdown(rows: list[dict[str, str]]) -> str:
    """The table, the settings side by side for every T and K."""
    text = [
        "Cosine / equal signs / norm ratio with the exact hypergradient at the untuned start, and"
        " the median seconds of the meta-gradient where it was timed.\n",
        "| T | K | method | averaging | log learning rates | logit momenta | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        averaging = f"{row['estimator']}, M = {row['M']}"
        if row["estimator"] == "resampled":
            averaging += f", {row['series']} series"
        cells = [
            " / ".join(row[f"{what}_{kind}"] for what in ("cosine", "signs", "norm_ratio"))
            for kind in ("learning_rate", "momentum")
        ]
        text.append(
            f"| {row['T']} | {row['K']} | {row['method']} | {averaging} | {cells[0]} | {cells[1]} |"
            f" {row['meta_gradient_seconds']} |"
        )
    return "\n".join(text) + "\n"


if __name__ == "__main__":
    main()
