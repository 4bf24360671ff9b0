"""How far each gradient method can be trusted on MNIST, and what `--method auto` makes of it.

The table: cosine and sign agreement with the exact gradient, and how much of the steepest decrease
a step by the signs keeps, for every method, averaging and K, at the untuned start and after twenty
meta steps. The race: the meta loss that each method reaches in the same seconds of one core.

python benchmarks/trust.py table --data-root DATA --out DIR
python benchmarks/trust.py race --data-root DATA --out DIR
python benchmarks/trust.py report --out DIR

`table` and `race` go on where they were stopped; `report` writes benchmarks/results/trust.md.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from in_parts import kept

from hyperrbp.config import presets as presets
from hyperrbp.config.loading import read
from hyperrbp.exceptions import DivergedError, UsageError
from hyperrbp.experiments.experiment import Experiment
from hyperrbp.hypergradients import Averaging
from hyperrbp.hypergradients.agreement import agreement
from hyperrbp.hypergradients.diagnostics.last_state import EXACT, LastState
from hyperrbp.hypergradients.method_selection import (
    choose,
    evaluate,
    exact_candidate,
    label,
    methods_at,
)
from hyperrbp.hypergradients.settings import GradientSettings
from hyperrbp.optimizers.adam import AdamSettings, MethodSelector, descend
from hyperrbp.optimizers.auto_method import AutoMethod
from hyperrbp.runtime.files import write_atomically

LENGTHS = (100, 500, 1000, 1500)
TRUNCS = (10, 50, 100)
STATES = {"untuned": 0, "after 20 meta steps": 20}
BUDGETS = {100: 40.0, 500: 120.0, 1000: 200.0}
"""T: seconds of one core."""
EPOCH, FEW = 50, 10  # minibatches


def experiment(steps: int, data_root: Path) -> Experiment:
    overrides = [("T", "inner.steps", steps), ("threads", "threads", 1)]
    return Experiment(read(presets.built_in("mnist"), overrides), data_root)


def field() -> Iterator[GradientSettings]:
    for trunc in TRUNCS:
        for method in ("neumann", "rbp"):
            yield GradientSettings(method, trunc, Averaging("resampled", EPOCH, 2))
        for method in ("neumann", "rbp", "anderson", "gmres", "cg", "lsqr"):
            yield GradientSettings(method, trunc, Averaging("mean", FEW))
            yield GradientSettings(method, trunc, Averaging("frozen", FEW))
        for end_points in (1, EPOCH):
            yield GradientSettings("tbptt", trunc, Averaging(minibatches=end_points))


def table(out: Path, data_root: Path) -> None:
    for steps in LENGTHS:
        now = experiment(steps, data_root)
        for name, meta_steps in STATES.items():
            folder = out / f"T{steps}-{meta_steps}"
            folder.mkdir(parents=True, exist_ok=True)
            start = kept(folder / "theta.json", lambda: tuned(now, meta_steps))  # noqa: B023
            theta = now.theta.new_tensor(start["theta"])
            at = LastState.of_run(now.problem(), theta)
            exact = kept(
                folder / "exact.json",
                lambda: {"gradient": at.exact_gradient().tolist()},  # noqa: B023
            )["gradient"]
            for settings in field():
                file = folder / f"{label(settings)}.json".replace(" ", "").replace(",", "-")
                kept(file, lambda: measured(at, settings, exact))  # noqa: B023
            kept(folder / "choice.json", lambda: choice(at, exact))  # noqa: B023
            print(f"T = {steps}, {name}: done", flush=True)


def tuned(now: Experiment, meta_steps: int) -> dict:
    """θ after so many meta steps as the recipe takes them."""
    meta = AdamSettings(steps=max(meta_steps, 1), learning_rate=0.05)
    for step in descend(now.problem(), now.theta, now.gradient, meta, seed=now.recipe.seed):
        if step.meta_step == meta_steps:
            return {"theta": step.theta.tolist(), "loss": step.meta_loss}
    raise AssertionError


def measured(at: LastState, settings: GradientSettings, exact: Sequence[float]) -> dict:
    row = {
        "method": settings.method,
        "label": label(settings),
        "estimator": settings.averaging.estimator,
        "minibatches": settings.averaging.minibatches,
        "trunc": settings.trunc,
    }
    clock = time.process_time()
    try:
        found = at.gradient(settings)
    except UsageError as error:
        return row | {"status": str(error)}
    held = agreement(found.gradient.tolist(), exact)
    seconds = time.process_time() - clock
    print(f"  {label(settings)}: {held.cosine}, kept {held.descent}, {seconds:.1f} s", flush=True)
    return row | asdict(held) | {"status": str(found.status), "seconds": seconds}


def choice(at: LastState, exact: Sequence[float]) -> dict:
    truth = at.theta.new_tensor(exact)
    asked = GradientSettings("neumann", 50, Averaging("resampled", EPOCH, 2))
    reference = exact_candidate(at, truth, math.nan)
    found = choose(evaluate(at, methods_at(asked, at.problem.steps), truth, math.nan), reference)
    return {"label": found.chosen.label, "why": found.why}


def optimizer_runs(now: Experiment) -> dict[str, GradientSettings | MethodSelector]:
    averaging = now.gradient.averaging
    return {
        "auto": AutoMethod(now.gradient, seed=now.recipe.seed),
        "neumann": now.gradient,
        "rbp": GradientSettings("rbp", 50, averaging),
        "cg": GradientSettings("cg", 50, Averaging("mean", FEW)),
        "bptt": EXACT,
        "tbptt": GradientSettings("tbptt", 50, Averaging()),
    }


def race(out: Path, data_root: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for steps, budget in BUDGETS.items():
        now = experiment(steps, data_root)
        now.problem().prepare(now.theta)
        for name, gradient in optimizer_runs(now).items():
            found = kept(
                out / f"race-T{steps}-{name}.json",
                lambda: run_for(now, gradient, budget),  # noqa: B023
            )
            print(f"T = {steps}, {name}: {found['best']:.3f} in {found['meta_steps']} meta steps")


def run_for(now: Experiment, gradient: GradientSettings | MethodSelector, budget: float) -> dict:
    """Tune until the seconds of this core are spent."""
    clock, losses, choices = time.process_time(), [], []
    seen = []
    meta = AdamSettings(steps=10_000, learning_rate=now.recipe.meta.learning_rate)
    try:
        for step in descend(now.problem(), now.theta, gradient, meta, seed=now.recipe.seed):
            spent = time.process_time() - clock
            if spent > budget and losses:
                break
            losses.append([spent, math.log10(step.meta_loss)])
            chosen = label(step.settings)
            if chosen not in choices[-1:]:
                choices.append(chosen)
        seen = [value for _, value in losses]
        end = "time"
    except DivergedError as error:
        seen, end = [value for _, value in losses], str(error)
    return {
        "budget": budget,
        "meta_steps": len(losses) - 1,
        "best": min(seen),
        "last": seen[-1],
        "choices": choices,
        "ended": end,
        "losses": losses,
    }


LEGEND = (
    "MNIST in the paper's setting, one thread. Each entry: cosine with the exact gradient, share of"
    " equal signs, and how much of the steepest decrease a step by its signs keeps (100% is the"
    " exact gradient, below 0 goes uphill; **bold**: `check` trusts it)."
)


def report(out: Path, results: Path) -> None:
    """The whole table, and what of it stands in the README."""
    folders = {
        (steps, name): out / f"T{steps}-{meta_steps}"
        for steps in LENGTHS
        for name, meta_steps in STATES.items()
        if (out / f"T{steps}-{meta_steps}" / "choice.json").is_file()
    }
    whole = [LEGEND, ""]
    for (steps, name), folder in folders.items():
        whole += [f"**T = {steps}, {name}**", ""]
        columns = {f"K = {trunc}": (folder, trunc) for trunc in TRUNCS}
        whole += [*columns_of(columns), "", recommended(folder), ""]
    write_atomically(results / "trust-all.md", "\n".join(whole))
    short = [LEGEND, ""]
    for name in STATES:
        columns = {
            f"T = {steps}": (folders[steps, name], 50)
            for steps in LENGTHS
            if (steps, name) in folders
        }
        short += [f"**K = 50, {name}**", "", *columns_of(columns)]
        choices = [choice_of(folder)["label"].split(",")[0] for folder, _ in columns.values()]
        short += [f"| *recommended at K = 50* | {' | '.join(choices)} |", ""]
    short += race_table(out)
    write_atomically(results / "trust.md", "\n".join(short))
    print("\n".join(short))


def columns_of(columns: dict[str, tuple[Path, int]]) -> list[str]:
    """A table with a row for every method and averaging."""
    names = list(dict.fromkeys(name_of(label(settings), settings.trunc) for settings in field()))
    rows = {name: [""] * len(columns) for name in names}
    for place, (folder, trunc) in enumerate(columns.values()):
        for file in folder.glob("*.json"):
            one = json.loads(file.read_text(encoding="utf-8"))
            if one.get("trunc") == trunc:
                rows[name_of(one["label"], trunc)][place] = entry(one)
    return [
        f"| method | {' | '.join(columns)} |",
        f"|---|{'---|' * len(columns)}",
        *(f"| {name} | {' | '.join(row)} |" for name, row in rows.items()),
    ]


def name_of(label: str, trunc: int) -> str:
    return label.replace(f"K = {trunc}, ", "")


def choice_of(folder: Path) -> dict:
    return json.loads((folder / "choice.json").read_text(encoding="utf-8"))


def recommended(folder: Path) -> str:
    found = choice_of(folder)
    return f"Recommended at K = 50: {found['label']}; {found['why']}"


def entry(one: dict) -> str:
    if one.get("descent") is None or one.get("cosine") is None:
        return "non-finite" if one["status"] == "non-finite" else "run too short"
    text = f"{one['cosine']:.2f}, {one['sign_agreement']:.0%}, {one['descent']:.0%}"
    trusted = one["cosine"] > 0 and one["descent"] >= 0.5 and one["status"] != "non-finite"
    return f"**{text}**" if trusted else text


def race_table(out: Path) -> list[str]:
    names = ("auto", "neumann", "rbp", "cg", "bptt", "tbptt")
    lines = [
        "**The same seconds of one core**: the best log10 of the meta loss (meta steps taken)",
        "",
        f"| T (seconds) | {' | '.join(names)} | auto chose |",
        f"|---|{'---:|' * len(names)}---|",
    ]
    for steps, budget in BUDGETS.items():
        files = {name: out / f"race-T{steps}-{name}.json" for name in names}
        if not all(file.is_file() for file in files.values()):
            continue
        found = {n: json.loads(file.read_text(encoding="utf-8")) for n, file in files.items()}
        cells = [f"{found[n]['best']:.2f} ({found[n]['meta_steps']})" for n in names]
        chose = "; then ".join(found["auto"]["choices"])
        lines.append(f"| {steps} ({budget:.0f}) | {' | '.join(cells)} | {chose} |")
    return [*lines, ""]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("table", "race", "report"))
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.what == "table":
        table(given.out, given.data_root)
    elif given.what == "race":
        race(given.out, given.data_root)
    else:
        report(given.out, Path(__file__).parent / "results")


if __name__ == "__main__":
    main()
