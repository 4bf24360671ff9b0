"""Figures 2 and A1: digits that the memory retrieves (section 5.1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from hyperrbp.config.equilibrium import EquilibriumRecipe
from hyperrbp.experiments.checkpoint import read_tensors
from hyperrbp.experiments.results.train import EquilibriumResult
from hyperrbp.experiments.trainers.equilibrium import EquilibriumTrainer
from hyperrbp.paper.artifact import Finding, or_nan
from hyperrbp.paper.associative_memory import FiveMethods
from hyperrbp.paper.figures import Images, Row
from hyperrbp.paper.plan import Plan
from hyperrbp.paper.published import METHODS
from hyperrbp.paper.run_specs import Outcome


class Figure2(FiveMethods):
    """Retrieved digits."""

    name = "figure2"
    title = "Figure 2: digits retrieved from halves of their ink"
    claim = "every method but original RBP brings the digits back"
    digits: ClassVar[int] = 5

    def finding(self, plan: Plan, outcomes: Mapping[str, Outcome]) -> Finding:
        """Return a row of digits for each method, by the weights of its best epoch."""
        named: dict[str, Tensor] = {}
        rows: list[Row] = []
        for method, spec in self.by_method(plan).items():
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
