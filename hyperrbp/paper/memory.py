"""Associative memory: Table 1, Figures 1, 2 and A1 (section 5.1)."""

from __future__ import annotations

import math
from abc import ABC
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from hyperrbp.config.equilibrium import EquilibriumRecipe
from hyperrbp.experiments.checkpoint import read_tensors
from hyperrbp.experiments.results.records import EpochRecord
from hyperrbp.experiments.results.train import EquilibriumResult
from hyperrbp.experiments.trainers.equilibrium import EquilibriumTrainer
from hyperrbp.paper.artifact import Artifact, Finding, mean_and_deviation, or_nan, plus_minus
from hyperrbp.paper.figures import Images, Panel, Panels, Row
from hyperrbp.paper.plan import Plan
from hyperrbp.paper.published import METHODS, TABLE1
from hyperrbp.paper.run_specs import Outcome, RunSpec, TrainSpec, recipe_of

SUCCESS = 0.5
"""A run succeeds whose last training loss is under this share of its first."""


def _run_spec(
    plan: Plan,
    method: str,
    trunc: int,
    seed: int,
    epochs: int,
    settings: Mapping[str, Any] | None = None,
) -> RunSpec:
    recipe = recipe_of(
        "hopfield",
        {
            "gradient.method": method,
            "gradient.trunc": trunc,
            "training.epochs": epochs,
            "seed": seed,
            "device": plan.device,
            **(settings or {}),
        },
    )
    kind = "small-hopfield" if settings else "hopfield"
    return TrainSpec(f"{kind}-{method}-K{trunc}-epochs{epochs}-seed{seed}", recipe)


class Table1(Artifact):
    """Success counts by truncation."""

    name = "table1"
    title = "Table 1: share of runs whose training loss falls below half of the first"
    claim = "TBPTT, CG-RBP and Neumann-RBP always succeed; original RBP fails at K = 10 and 20"

    def scale(self, plan: Plan) -> str:
        """20 epochs and 2 seeds, or 1,000 and 100."""
        seeds = plan.number_of_seeds(2, 100)
        if plan.quick:
            return (
                f"quick: {seeds} seeds of 20 epochs, the first loss being that of the first epoch"
                " (paper: 100 runs of up to 1,000 epochs)"
            )
        return f"{seeds} seeds of 1,000 epochs, the first loss being the untrained network's"

    def run_specs(self, plan: Plan) -> list[RunSpec]:
        """Every method, truncation and seed."""
        return [spec for run_specs in self._by_row(plan).values() for spec in run_specs]

    @staticmethod
    def _by_row(plan: Plan) -> dict[tuple[str, int], list[RunSpec]]:
        epochs = 20 if plan.quick else 1000
        seeds = range(plan.number_of_seeds(2, 100))
        return {
            (method, trunc): [_run_spec(plan, method, trunc, seed, epochs) for seed in seeds]
            for method, paper in TABLE1.items()
            for trunc in paper
        }

    def finding(self, plan: Plan, outcomes: Mapping[str, Outcome]) -> Finding:
        """Counts; a run that turned non-finite has failed."""
        rows: list[Row] = []
        for (method, trunc), run_specs in self._by_row(plan).items():
            first_epoch, untrained, last = [], [], []
            succeeded = {"first_epoch": 0, "untrained": 0}
            ran = [o for o in (outcomes[spec.name] for spec in run_specs) if o.result is not None]
            for outcome in ran:
                losses = [
                    math.inf if record.loss is None else record.loss
                    for record in outcome.records(EpochRecord)
                ]
                untrained.append(losses[0])
                first_epoch.append(losses[min(1, len(losses) - 1)])
                last.append(losses[-1])
                if outcome.failure is None:
                    succeeded["first_epoch"] += last[-1] < SUCCESS * first_epoch[-1]
                    succeeded["untrained"] += last[-1] < SUCCESS * untrained[-1]
            if not ran:
                continue
            mean, deviation = mean_and_deviation(last)
            counted = succeeded["first_epoch" if plan.quick else "untrained"]
            rows.append(
                {
                    "method": method,
                    "trunc": trunc,
                    "runs": len(ran),
                    "succeeded": counted,
                    "share": counted / len(ran),
                    "paper_share": TABLE1[method][trunc],
                    "below_half_of_first_epoch": succeeded["first_epoch"],
                    "below_half_of_untrained": succeeded["untrained"],
                    "untrained_loss": sum(untrained) / len(ran),
                    "first_epoch_loss": sum(first_epoch) / len(ran),
                    "last_loss_mean": mean,
                    "last_loss_deviation": deviation,
                    "last_losses": plus_minus(last, 3),
                }
            )
        lines = [
            [
                row["method"],
                str(row["trunc"]),
                f"{row['succeeded']} of {row['runs']}",
                f"{row['paper_share']:.0%}",
                f"{row['first_epoch_loss']:.3f}",
                row["last_losses"],
            ]
            for row in rows
        ]
        columns = ["method", "K", "succeeded", "paper", "first epoch's loss", "last loss"]
        others = [row for row in rows if row["method"] != "rbp"]
        rbp = {row["trunc"]: row["share"] for row in rows if row["method"] == "rbp"}
        held = None
        if len(rows) == sum(map(len, TABLE1.values())):
            held = all(row["share"] == 1 for row in others) and rbp[10] < 0.5 and rbp[20] < 0.5
        least = min((row["share"] for row in others), default=0.0)
        verdict = (
            f"original RBP succeeds in {rbp.get(10, 0):.0%}, {rbp.get(20, 0):.0%} and"
            f" {rbp.get(30, 0):.0%} of its runs at K = 10, 20 and 30;"
            f" the others in {least:.0%}{' or more' if least < 1 else ''}"
        )
        return Finding(rows, held, verdict, columns, lines)


_SMALL = {
    "data.downsample": 2,
    "data.binarize_above": 0.3,
    "network.hidden": 256,
    "training.batch_size": 10,
    "training.validate_every": 100,
}
"""A memory small enough to learn its digits in minutes; it contracts faster, so K is 4, not 20."""


class _FiveMethods(Artifact, ABC):
    """One run of every method at K = 20."""

    def scale(self, plan: Plan) -> str:
        """A small memory, or the paper's."""
        if plan.quick:
            return (
                "quick: 14×14 pixels, 256 hidden neurons, one batch of ten, 2,000 epochs, K = 4"
                " (paper: 28×28, 1,024, one image a step, up to 1,000 epochs, K = 20)"
            )
        return "one seed, 1,000 epochs, K = 20"

    def run_specs(self, plan: Plan) -> list[RunSpec]:
        """One a method."""
        return list(self._by_method(plan).values())

    def _by_method(self, plan: Plan) -> dict[str, RunSpec]:
        if plan.quick:
            return {m: _run_spec(plan, m, 4, 0, 2000, _SMALL) for m in METHODS}
        return {m: _run_spec(plan, m, 20, 0, 1000) for m in METHODS}


class Figure1(_FiveMethods):
    """Training, validation and change norms."""

    name = "figure1"
    title = "Figure 1: the Hopfield memory by five methods"
    claim = "all but original RBP train alike; the state is steady within about ten updates"

    def finding(self, plan: Plan, outcomes: Mapping[str, Outcome]) -> Finding:
        """Three panels, and every point of them as a row."""
        loss = Panel("epoch", "training loss (L1)", log=True)
        wrong = Panel("epoch", "wrong pixels of retrieved digits", log=False)
        steady = Panel("update t", "‖h_t − h_{t−1}‖", log=True)
        energy = Panel("update t", "energy (mean of the images)", log=False)
        rows: list[Row] = []
        last, tenth = {}, {}
        for method, spec in self._by_method(plan).items():
            records = outcomes[spec.name].records(EpochRecord)
            if not records:
                continue
            for record in records:
                loss.add(method, record.epoch, record.loss)
                if record.validation is not None:
                    wrong.add(method, record.epoch, record.validation["pixel_error"])
            inferred = [record for record in records if record.change_norms is not None][-1]
            norms = [or_nan(norm) for norm in inferred.change_norms or []]
            for t, norm in enumerate(norms, start=1):
                steady.add(method, t, norm)
            for t, value in enumerate(inferred.energy or [], start=1):
                energy.add(method, t, value)
            tenth[method] = norms[min(9, len(norms) - 1)] / norms[0]
            last[method] = or_nan(records[-1].loss)
        panels = [loss, wrong, steady, energy]
        for panel in panels:
            rows += panel.rows()
        held = None
        if len(last) == len(METHODS):
            good = [last[m] for m in METHODS if m != "rbp"]
            held = last["rbp"] > 1.5 * max(good) and tenth["neumann"] < 0.05
        lines = [[m, f"{last[m]:.4f}", f"{tenth[m]:.2g}"] for m in last]
        verdict = (
            f"last losses: {', '.join(f'{m} {v:.3f}' for m, v in last.items())}; after ten updates"
            f" the state changes by {tenth.get('neumann', float('nan')):.1%} of its first change"
            " (Neumann)"
        )
        columns = ["method", "last loss", "change at t = 10, of that at t = 1"]
        return Finding(rows, held, verdict, columns, lines, Panels(panels))


class Figure2(_FiveMethods):
    """Retrieved digits."""

    name = "figure2"
    title = "Figure 2: digits retrieved from halves of their ink"
    claim = "every method but original RBP brings the digits back"
    digits: ClassVar[int] = 5

    def finding(self, plan: Plan, outcomes: Mapping[str, Outcome]) -> Finding:
        """One row of digits a method, by the weights of its best epoch."""
        named: dict[str, Tensor] = {}
        rows: list[Row] = []
        for method, spec in self._by_method(plan).items():
            outcome = outcomes[spec.name]
            result = outcome.result_of(EquilibriumResult)
            if result is None:
                continue
            assert isinstance(spec.recipe, EquilibriumRecipe)
            training = EquilibriumTrainer(spec.recipe, plan.data_root)
            training.system.network.load_state_dict(read_tensors(outcome.folder.weights_file))
            pictures = training.pictures()
            assert pictures is not None
            names, images = pictures
            for label, row in zip(names[:2], images[:2], strict=True):
                named.setdefault(label, row[: self.digits])
            named[method] = images[2][: self.digits]
            rows.append(
                {
                    "method": method,
                    "best_epoch": result.best.epoch,
                    "pixel_error": or_nan(result.test["pixel_error"]),
                    "corrupted_pixel_error": or_nan(result.test["corrupted_pixel_error"]),
                }
            )
        wrong = {row["method"]: row["pixel_error"] for row in rows}
        held = None
        if len(rows) == len(METHODS):
            held = all(
                row["pixel_error"] < row["corrupted_pixel_error"]
                for row in rows
                if row["method"] != "rbp"
            )
        lines = [
            [row["method"], str(row["best_epoch"]), f"{row['pixel_error']:.2%}"] for row in rows
        ]
        given = rows[0]["corrupted_pixel_error"] if rows else float("nan")
        verdict = (
            f"wrong pixels, of {given:.1%} in what was given:"
            f" {', '.join(f'{m} {v:.1%}' for m, v in wrong.items())}"
        )
        columns = ["method", "best epoch", "wrong pixels"]
        return Finding(rows, held, verdict, columns, lines, Images(named))


class FigureA1(Figure2):
    """All ten digits."""

    name = "figureA1"
    title = "Figure A1: all ten digits, retrieved from halves of their ink"
    digits = 10
