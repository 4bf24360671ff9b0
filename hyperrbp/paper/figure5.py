"""Figure 5: training loss at the tuned hyperparameters (section 5.3)."""

from __future__ import annotations

import math
from collections.abc import Mapping

from hyperrbp.config.recipe import Recipe
from hyperrbp.experiments.experiment import Experiment
from hyperrbp.experiments.results.records import StepRecord
from hyperrbp.paper.artifact import Finding
from hyperrbp.paper.figures import Panel, Panels, Row
from hyperrbp.paper.plan import Plan
from hyperrbp.paper.published import METHODS
from hyperrbp.paper.run_specs import Outcome
from hyperrbp.paper.tuning_runs import (
    Grid,
    hyperparameters_of,
    tuning_spec,
)


class Figure5(Grid):
    """The inner run at the last meta step."""

    name = "figure5"
    title = "Figure 5: training loss of the inner run at the last meta step"
    claim = "after tuning, Neumann-RBP's training loss matches BPTT's"

    def finding(self, plan: Plan, outcomes: Mapping[str, Outcome]) -> Finding:
        """A panel a spec: the inner run is run again at the last hyperparameters."""
        panels: list[Panel] = []
        rows: list[Row] = []
        last: dict[tuple[int, int, str], float] = {}
        for letter, (steps, trunc) in zip("abcdefgh", self.grid(plan), strict=True):
            title = f"({letter}) T = {steps}, K = {trunc}"
            panel = Panel("training step", "log₁₀ minibatch loss", title=title)
            panels.append(panel)
            for method in METHODS:
                spec = tuning_spec(plan, method, steps, trunc)
                records = outcomes[spec.name].records(StepRecord)
                if not records:
                    continue
                assert isinstance(spec.recipe, Recipe)
                experiment = Experiment(spec.recipe, plan.data_root)
                meta_step = records[-1].meta_step
                theta = experiment.problem(meta_step).theta_of(hyperparameters_of(records[-1]))
                for t, loss in experiment.inner_curve(meta_step, theta, points=100):
                    if loss > 0:
                        panel.add(method, t, math.log10(loss))
                last[steps, trunc, method] = math.log10(records[-1].meta_loss)
            rows += panel.rows({"T": steps, "K": trunc})
        gaps = [
            loss - last[steps, trunc, "bptt"]
            for (steps, trunc, method), loss in last.items()
            if method == "neumann" and (steps, trunc, "bptt") in last
        ]
        verdict = "not run"
        held = None
        if gaps:
            held = max(gaps) < 0.2
            verdict = (
                f"Neumann-RBP ends {min(gaps):+.2f} to {max(gaps):+.2f} from BPTT in log₁₀ of the"
                f" training loss, over {len(gaps)} run_specs"
            )
        columns = ["T", "K", *METHODS]
        lines = [
            [
                str(steps),
                str(trunc),
                *(
                    f"{last[steps, trunc, m]:.2f}" if (steps, trunc, m) in last else ""
                    for m in METHODS
                ),
            ]
            for steps, trunc in self.grid(plan)
        ]
        return Finding(rows, held, verdict, columns, lines, Panels(panels))
