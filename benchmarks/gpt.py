"""The recipe `gpt`, tuned, against settings that people use and against a search.

All train the same network on the same text for the same steps and minibatches. Each of three seeds
(initial weights, batches, dropout) is tuned on its own; what a setting is worth is measured from
other initial weights and batches than those it was tuned on, twice a seed, on text that is held out
and that nothing but this table has seen.

- nanoGPT: ``config/train_shakespeare_char.py`` and the defaults of ``train.py`` of
  github.com/karpathy/nanoGPT: AdamW, learning rate 1e-3 falling to 1e-4 by a cosine, betas 0.9 and
  0.99, weight decay 0.1 of matrices alone, clipping at 1, dropout 0.2, a warm-up of 100 in 5,000
  steps, which is 4 of 200.
- TPE: of Optuna, over the learning rate and the weight decay of the net, for as many process
  seconds as the tuning of the same seed took.

python benchmarks/gpt.py measure --out DIR
python benchmarks/gpt.py report --out DIR

`measure` goes on where it was stopped; `report` writes benchmarks/results/gpt.md.
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from in_parts import kept, measure_or_report

from hyperrbp.config import presets as presets
from hyperrbp.config.loading import read
from hyperrbp.experiments.experiment import Experiment
from hyperrbp.optimizers.adam import AdamState, descend

SEEDS = (1, 2, 3)
FRESH = 2
RESULTS = Path(__file__).parent / "results" / "gpt.md"

NET = {"hyperparameters": {"learning_rate": {"by": "net"}, "weight_decay": {"by": "net"}}}
NANOGPT: dict[str, Any] = {
    "hyperparameters": {"learning_rate": {"by": "net"}, "weight_decay": {"by": "tensor"}},
    "inner.options": {"betas": [0.9, 0.99]},
    "inner.learning_rate": 1e-3,
    "inner.weight_decay": 0.1,
    "inner.schedule": {"shape": "cosine", "warmup_share": 0.02, "end_share": 0.1},
}
FIXED: dict[str, tuple[str, dict[str, Any]]] = {
    "nanogpt": ("nanoGPT's setting", NANOGPT | {"model.options.dropout": 0.2}),
    "nanogpt_dropout": ("the same, with our dropout of 0.1", NANOGPT),
    "nanogpt_width": (
        "the same, and the learning rate times 384/64, for the width",
        NANOGPT | {"inner.learning_rate": 6e-3},
    ),
    "default": (
        "AdamW's defaults (1e-3, decay 0.01) and a cosine to 0",
        NET
        | {
            "inner.options": {"betas": [0.9, 0.999]},
            "inner.learning_rate": 1e-3,
            "inner.weight_decay": 0.01,
            "inner.schedule": {"shape": "cosine"},
        },
    ),
}
TITLES = {
    "start": "the recipe's start, untuned",
    "tuned": "**tuned by hyperrbp**",
    "tpe": "TPE over learning rate and decay, as many seconds",
    **{name: title for name, (title, _) in FIXED.items()},
}
ORDER = ("start", "default", "nanogpt", "nanogpt_dropout", "nanogpt_width", "tpe", "tuned")
NO_DECAY = -60.0
"""The logarithm of a weight decay that is none."""


def experiment(seed: int, settings: dict[str, Any]) -> Experiment:
    overrides = [("", key, value) for key, value in {"seed": seed, **settings}.items()]
    return Experiment(read(presets.built_in("gpt"), overrides))


def worth(at: Experiment, theta: torch.Tensor) -> dict[str, Any]:
    """The validation loss where θ was found, and the held-out losses from other starts."""
    problem = at.problem()
    validation = float(problem.loss(problem.last_state(theta)))
    heldout = []
    for number in range(FRESH):
        fresh = at.replicate(number)
        heldout.append(at.heldout_measures(fresh, fresh.last_state(theta)))
    return {"validation_loss": validation, "heldout": heldout}


def tuned(seed: int) -> dict[str, Any]:
    at = experiment(seed, {})
    state = AdamState(at.theta.clone())
    began, wall = time.process_time(), time.perf_counter()
    steps = list(descend(at.problem(), state, at.gradient, at.meta, seed=at.recipe.seed))
    seconds, wall = time.process_time() - began, time.perf_counter() - wall
    return {
        "seconds": seconds,
        "wall_seconds": wall,
        "runs": len(steps),
        "meta_loss": [step.meta_loss for step in steps],
        "theta": state.best_theta.tolist(),
        **worth(at, state.best_theta),
    }


def fixed(seed: int, settings: dict[str, Any]) -> dict[str, Any]:
    at = experiment(seed, settings)
    theta = at.theta.clone()
    layout = at.problem().layout
    if "hyperparameters" in settings and len(layout.parts["weight_decay"]) > 1:
        named = dict(at.problem().objective.model.named_parameters())
        for place, name in enumerate(layout.parts["weight_decay"]):
            if named[name].dim() < 2:
                theta[layout.slices["weight_decay"].start + place] = NO_DECAY
    return worth(at, theta)


def searched(seed: int, seconds: float) -> dict[str, Any]:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    at = experiment(seed, NET)
    problem, starts = at.problem(), at.recipe.inner.starts()

    def theta_of(values: dict[str, float]) -> torch.Tensor:
        return problem.initial_theta(**(starts | values))

    def objective(trial: Any) -> float:
        theta = theta_of(
            {
                "learning_rate": trial.suggest_float("learning_rate", 1e-4, 3e-2, log=True),
                "weight_decay": trial.suggest_float("weight_decay", 1e-3, 1.0, log=True),
            }
        )
        loss = float(problem.loss(problem.last_state(theta)))
        return loss if math.isfinite(loss) else 1e3

    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
    study.enqueue_trial({name: starts[name] for name in ("learning_rate", "weight_decay")})
    began = time.process_time()
    while time.process_time() - began < seconds:
        study.optimize(objective, n_trials=1)
    return {
        "seconds": time.process_time() - began,
        "runs": len(study.trials),
        "best": study.best_params,
        **worth(at, theta_of(study.best_params)),
    }


def measure(out: Path, data_root: Path | None) -> None:
    for seed in SEEDS:
        found = {"tuned": kept(out / f"tuned-{seed}.json", lambda: tuned(seed))}  # noqa: B023
        found["start"] = kept(out / f"start-{seed}.json", lambda: fixed(seed, {}))  # noqa: B023
        for name, (_, settings) in FIXED.items():
            found[name] = kept(
                out / f"{name}-{seed}.json",
                lambda: fixed(seed, settings),  # noqa: B023
            )
        found["tpe"] = kept(
            out / f"tpe-{seed}.json",
            lambda: searched(seed, found["tuned"]["seconds"]),  # noqa: B023
        )
        print(seed, {name: of["heldout"][0]["loss"] for name, of in found.items()}, flush=True)


def report(out: Path) -> None:
    found = {
        name: [json.loads((out / f"{name}-{seed}.json").read_text()) for seed in SEEDS]
        for name in ORDER
    }
    rows, by_seed = [], {}
    for name in ORDER:
        of = found[name]
        by_seed[name] = [mean(run["loss"] for run in seed["heldout"]) for seed in of]
        accuracy = [mean(run["accuracy"] for run in seed["heldout"]) for seed in of]
        validation = [seed["validation_loss"] for seed in of]
        runs = mean(seed.get("runs", 0) for seed in of)
        seconds = mean(seed.get("seconds", 0) for seed in of)
        rows.append(
            f"| {TITLES[name]} | {mean(validation):.3f} | {mean(by_seed[name]):.3f} ±"
            f" {stdev(by_seed[name]):.3f} | {100 * mean(accuracy):.1f}% |"
            f" {f'{runs:.0f}' if runs else ''} | {f'{seconds:.0f}' if seconds else ''} |"
        )
    best = min((name for name in ORDER if name != "tuned"), key=lambda name: mean(by_seed[name]))
    gaps = {
        name: [rival - ours for rival, ours in zip(by_seed[name], by_seed["tuned"], strict=True)]
        for name in ("start", "nanogpt", best)
    }
    recipe = read(presets.built_in("gpt"), [])
    text = f"""# A character-level GPT

`hyperrbp tune gpt`: {recipe.inner.steps} training steps of {recipe.inner.batch_size} windows for
every row; seeds {", ".join(map(str, SEEDS))}, each measured from {FRESH} other initial weights and
orders of batches; held-out loss in nats a character, mean ± standard deviation over the seeds.
Process seconds of one thread, on a machine that others used too: those of a tuning are
{mean(seed["wall_seconds"] for seed in found["tuned"]):.0f} by the clock there.

| setting | validation loss | held-out loss | held-out accuracy | runs tried | seconds |
|---|---|---|---|---|---|
{chr(10).join(rows)}

The tuned setting is ahead by {mean(gaps["start"]):.3f} of its start, by {mean(gaps["nanogpt"]):.3f}
of nanoGPT's setting and by {mean(gaps[best]):.3f} of the best of the others ({TITLES[best]}), and
is so in {sum(x > 0 for x in gaps["start"])}, {sum(x > 0 for x in gaps["nanogpt"])} and
{sum(x > 0 for x in gaps[best])} of {len(SEEDS)} seeds.
"""
    RESULTS.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    measure_or_report(__doc__, measure, report)
