"""Figure 3: curves of the graph net on Cora (section 5.2)."""

from __future__ import annotations

from collections.abc import Mapping

from hyperrbp.experiments.results.records import EpochRecord
from hyperrbp.experiments.results.train import EquilibriumResult
from hyperrbp.paper.artifact import Artifact, Finding, or_nan
from hyperrbp.paper.citation_networks import QUICK, citation_spec
from hyperrbp.paper.figures import Panel, Panels
from hyperrbp.paper.plan import Plan
from hyperrbp.paper.published import METHODS
from hyperrbp.paper.run_specs import Outcome, RunSpec


class Figure3(Artifact):
    """Curves of one seed."""

    name = "figure3"
    title = "Figure 3: the graph net by five methods (Cora)"
    claim = "Neumann-RBP and TBPTT train and validate alike, and states become steady"

    def scale(self, plan: Plan) -> str:
        """Return the scale of one seed of Table 2's runs."""
        return f"quick: seed 0, {QUICK}" if plan.quick else "seed 0, 2,000 epochs"

    def run_specs(self, plan: Plan) -> list[RunSpec]:
        """Return the runs of Table 2 with seed 0."""
        return [citation_spec(plan, "cora", method, 0) for method in METHODS]

    def finding(self, plan: Plan, outcomes: Mapping[str, Outcome]) -> Finding:
        """Return three panels, and every point of them as a row."""
        loss = Panel("epoch", "training loss", log=True)
        accuracy = Panel("epoch", "validation accuracy", log=False)
        steady = Panel("update t", "‖h_t − h_{t−1}‖ / ‖h_1 − h_0‖", log=True)
        best, still = {}, {}
        for method in METHODS:
            outcome = outcomes[citation_spec(plan, "cora", method, 0).name]
            records = outcome.records(EpochRecord)
            result = outcome.result_of(EquilibriumResult)
            if result is None:
                continue
            for record in records:
                loss.add(method, record.epoch, record.loss)
                if record.validation is not None:
                    accuracy.add(method, record.epoch, record.validation["accuracy"])
            inferences = [r.change_norms for r in records if r.change_norms is not None]
            norms = [or_nan(norm) for norm in inferences[-1]]
            for t, norm in enumerate(norms, start=1):
                steady.add(method, t, norm / norms[0])
            best[method] = or_nan(result.best.validation["accuracy"])
            still[method] = norms[-1] / norms[0]
        panels = [loss, accuracy, steady]
        held = None
        if len(best) == len(METHODS):
            held = abs(best["neumann"] - best["tbptt"]) < 0.05 and still["neumann"] < 0.05
        verdict = (
            f"best validation accuracy: {', '.join(f'{m} {v:.1%}' for m, v in best.items())};"
            f" the last update still moves the state by {still.get('neumann', float('nan')):.0%} of"
            " its first move (Neumann)"
        )
        lines = [[m, f"{best[m]:.1%}", f"{still[m]:.2g}"] for m in best]
        columns = ["method", "best validation accuracy", "last change, of the first"]
        rows = [row for panel in panels for row in panel.rows()]
        return Finding(rows, held, verdict, columns, lines, Panels(panels))
