"""Table 3: what a meta step costs (section 5.3)."""

from __future__ import annotations

from collections.abc import Mapping

from hyperrbp.experiments.results.compare import CompareReport
from hyperrbp.paper.artifact import Artifact, Finding
from hyperrbp.paper.figures import Row
from hyperrbp.paper.plan import Plan
from hyperrbp.paper.published import TABLE3
from hyperrbp.paper.run_specs import CompareSpec, Outcome, RunSpec, tuning_recipe_of


class Table3(Artifact):
    """Cost ratios."""

    name = "table3"
    title = "Table 3: BPTT's cost over Neumann-RBP's, one meta step on MNIST at T = 1000"
    claim = "Neumann-RBP takes about a third of BPTT's time and a quarter of its memory"

    def scale(self, plan: Plan) -> str:
        """Repeats."""
        return (
            f"{'quick: ' if plan.quick else ''}median of {self._repeats(plan)} repeats (paper: 10)"
        )

    @staticmethod
    def _repeats(plan: Plan) -> int:
        return 2 if plan.quick else 10

    def run_specs(self, plan: Plan) -> list[RunSpec]:
        """One comparison."""
        recipe = tuning_recipe_of("mnist", {"device": plan.device, "inner.steps": 1000})
        repeats = self._repeats(plan)
        return [
            CompareSpec(f"mnist-comparison-T1000-repeats{repeats}", recipe, repeats=repeats),
        ]

    def finding(self, plan: Plan, outcomes: Mapping[str, Outcome]) -> Finding:
        """Ratios beside the paper's."""
        (spec,) = self.run_specs(plan)
        outcome = outcomes[spec.name]
        columns = ["K", "run time", "paper", "kept memory", "paper", "process memory"]
        report = outcome.result_of(CompareReport)
        rows: list[Row] = []
        for row in () if report is None else report.rows:
            if row.label != "neumann" or row.trunc is None or row.time_ratio is None:
                continue
            time, memory = TABLE3[row.trunc]
            rows.append(
                {
                    "trunc": row.trunc,
                    "time_ratio": row.time_ratio,
                    "paper_time_ratio": time,
                    "memory_ratio": row.memory_ratio,
                    "paper_memory_ratio": memory,
                    "peak_ratio": row.peak_ratio,
                    "process_ratio": row.process_ratio,
                    "neumann_seconds": row.seconds,
                }
            )
        lines = [
            [
                str(r["trunc"]),
                f"×{r['time_ratio']:.2f}",
                f"×{r['paper_time_ratio']}",
                f"×{r['memory_ratio']:,.0f}",
                f"×{r['paper_memory_ratio']}",
                f"×{r['process_ratio']:.2f}",
            ]
            for r in rows
        ]
        held = all(r["time_ratio"] > 1 and r["memory_ratio"] > 1 for r in rows) if rows else None
        verdict = outcome.failure or (
            "BPTT over Neumann-RBP: time"
            f" {', '.join(line[1] for line in lines)}, kept memory"
            f" {', '.join(line[3] for line in lines)} at K = {', '.join(line[0] for line in lines)}"
        )
        return Finding(rows, held, verdict, columns, lines)
