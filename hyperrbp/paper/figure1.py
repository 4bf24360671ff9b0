"""Figure 1: training, validation and change norms of the memory (section 5.1)."""

from __future__ import annotations

from collections.abc import Mapping

from hyperrbp.experiments.results.records import EpochRecord
from hyperrbp.paper.artifact import Finding, or_nan
from hyperrbp.paper.associative_memory import FiveMethods
from hyperrbp.paper.figures import Panel, Panels, Row
from hyperrbp.paper.plan import Plan
from hyperrbp.paper.published import METHODS
from hyperrbp.paper.run_specs import Outcome


class Figure1(FiveMethods):
    """Training, validation and change norms."""

    name = "figure1"
    title = "Figure 1: the Hopfield memory by five methods"
    claim = "all but original RBP train alike; the state is steady within about ten updates"

    def finding(self, plan: Plan, outcomes: Mapping[str, Outcome]) -> Finding:
        """Return four panels, and every point of them as a row."""
        loss = Panel("epoch", "training loss (L1)", log=True)
        wrong = Panel("epoch", "wrong pixels of retrieved digits", log=False)
        steady = Panel("update t", "‖h_t − h_{t−1}‖", log=True)
        energy = Panel("update t", "energy (mean of the images)", log=False)
        rows: list[Row] = []
        last, tenth = {}, {}
        for method, spec in self.by_method(plan).items():
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
