"""Table 1: how often the memory is trained, by truncation (section 5.1)."""

from __future__ import annotations

import math
from collections.abc import Mapping

from hyperrbp.experiments.results.records import EpochRecord
from hyperrbp.paper.artifact import Artifact, Finding, mean_and_deviation, plus_minus
from hyperrbp.paper.associative_memory import memory_spec
from hyperrbp.paper.figures import Row
from hyperrbp.paper.plan import Plan
from hyperrbp.paper.published import TABLE1
from hyperrbp.paper.run_specs import Outcome, RunSpec

SUCCESS = 0.5
"""A run succeeds whose last training loss is under this share of its first."""


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
            (method, trunc): [memory_spec(plan, method, trunc, seed, epochs) for seed in seeds]
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
