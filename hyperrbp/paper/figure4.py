"""Figure 4: the meta loss, by method, T and K (section 5.3)."""

from __future__ import annotations

import math
from collections.abc import Mapping

from hyperrbp.experiments.results.records import StepRecord
from hyperrbp.paper.artifact import Finding
from hyperrbp.paper.figures import Panel, Panels, Row
from hyperrbp.paper.plan import Plan
from hyperrbp.paper.published import METHODS
from hyperrbp.paper.run_specs import Outcome
from hyperrbp.paper.tuning_runs import (
    Grid,
    tuning_spec,
)


class Figure4(Grid):
    """The meta loss."""

    name = "figure4"
    title = "Figure 4: meta training loss"
    claim = "Neumann-RBP's meta loss matches BPTT's; TBPTT's gets worse as T grows"

    def finding(self, plan: Plan, outcomes: Mapping[str, Outcome]) -> Finding:
        """A panel a spec, and every method's best and last loss as a row."""
        panels: list[Panel] = []
        rows: list[Row] = []
        for letter, (steps, trunc) in zip("abcdefgh", self.grid(plan), strict=True):
            panel = Panel(
                "meta step", "log₁₀ meta loss", title=f"({letter}) T = {steps}, K = {trunc}"
            )
            panels.append(panel)
            for method in METHODS:
                records = outcomes[tuning_spec(plan, method, steps, trunc).name].records(StepRecord)
                losses = [math.log10(r.meta_loss) for r in records if r.meta_loss > 0]
                if not losses:
                    continue
                for n, loss in enumerate(losses):
                    panel.add(method, n, loss)
                rows.append(
                    {
                        "T": steps,
                        "K": trunc,
                        "method": method,
                        "untuned": losses[0],
                        "best": min(losses),
                        "last": losses[-1],
                        "gain": losses[0] - losses[-1],
                    }
                )
        columns = ["T", "K", "method", "untuned", "best", "last"]
        lines = [
            [
                str(r["T"]),
                str(r["K"]),
                r["method"],
                *(f"{r[key]:.2f}" for key in ("untuned", "best", "last")),
            ]
            for r in rows
        ]
        held, verdict = self._verdict(rows)
        return Finding(rows, held, verdict, columns, lines, Panels(panels))

    @staticmethod
    def _verdict(rows: list[Row]) -> tuple[bool | None, str]:
        by = {(r["T"], r["K"], r["method"]): r for r in rows}
        run_specs = sorted({(r["T"], r["K"]) for r in rows})
        complete = [
            c for c in run_specs if all((*c, m) in by for m in ("bptt", "tbptt", "neumann"))
        ]
        if not complete:
            return None, "not run"
        lengths = sorted({steps for steps, _ in complete})

        def behind(method: str, steps: int) -> float:
            """By how much a method's last loss is above BPTT's, over the K of this T."""
            gaps: list[float] = [
                by[c, k, method]["last"] - by[c, k, "bptt"]["last"]
                for c, k in complete
                if c == steps
            ]
            return sum(gaps) / len(gaps)

        neumann = {steps: behind("neumann", steps) for steps in lengths}
        tbptt = {steps: behind("tbptt", steps) for steps in lengths}
        longest = lengths[-1]
        held = (
            tbptt[longest] > tbptt[lengths[0]]
            and neumann[longest] < 0.25 * max(tbptt[longest], 1e-9)
            and tbptt[longest] > 0
        )
        said = "; ".join(
            f"T = {steps}: Neumann {neumann[steps]:+.2f}, TBPTT {tbptt[steps]:+.2f}"
            for steps in lengths
        )
        return held, f"last log₁₀ meta loss against BPTT's (0 is level, + is worse): {said}"
