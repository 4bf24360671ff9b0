"""Figure 6: paths of the weights along the meta steps (section 5.3)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from hyperrbp.config.recipe import Recipe
from hyperrbp.experiments.experiment import Experiment
from hyperrbp.experiments.results.records import StepRecord
from hyperrbp.paper.artifact import Artifact, Finding
from hyperrbp.paper.figures import Paths, Row
from hyperrbp.paper.plan import Plan
from hyperrbp.paper.run_specs import Outcome, RunSpec
from hyperrbp.paper.tuning_runs import (
    QUICK_META_STEPS,
    hyperparameters_of,
    tuning_spec,
)


class Figure6(Artifact):
    """Trajectories of the weights."""

    name = "figure6"
    title = "Figure 6: weights during the inner run, by t-SNE"
    claim = "as tuning goes on, the run oscillates under TBPTT and converges under Neumann-RBP"
    methods = ("tbptt", "neumann")
    points = 100

    def scale(self, plan: Plan) -> str:
        """The longest spec with the shorter truncation."""
        steps, trunc = self._at(plan)
        kind = "quick: 8×8 digits" if plan.quick else "MNIST"
        when = " and ".join(map(str, self._meta_steps(plan)))
        return f"{kind}, T = {steps}, K = {trunc}, meta steps {when} (paper: 20 and 40)"

    @staticmethod
    def _at(plan: Plan) -> tuple[int, int]:
        return (400, 10) if plan.quick else (1000, 50)

    @staticmethod
    def _meta_steps(plan: Plan) -> tuple[int, int]:
        return (QUICK_META_STEPS // 2, QUICK_META_STEPS) if plan.quick else (20, 40)

    def run_specs(self, plan: Plan) -> list[RunSpec]:
        """Two of Figure 4's."""
        return [tuning_spec(plan, method, *self._at(plan)) for method in self.methods]

    def finding(self, plan: Plan, outcomes: Mapping[str, Outcome]) -> Finding:
        """A panel a meta step; how far the weights still travel near the end, as a row."""
        panels: dict[str, dict[str, Any]] = {}
        rows: list[Row] = []
        for meta_step in self._meta_steps(plan):
            paths = {}
            for spec, method in zip(self.run_specs(plan), self.methods, strict=True):
                records = outcomes[spec.name].records(StepRecord)
                if len(records) <= meta_step:
                    continue
                assert isinstance(spec.recipe, Recipe)
                problem = Experiment(spec.recipe, plan.data_root).problem(meta_step)
                theta = problem.theta_of(hyperparameters_of(records[meta_step]))
                stride = max(1, problem.steps // self.points)
                kept = [problem.initial_state(theta)[: problem.weights].clone()]
                states = problem.states(theta, 0, problem.steps, problem.initial_state(theta))
                for t, h in enumerate(states, start=1):
                    if t % stride == 0:
                        kept.append(h[: problem.weights].clone())
                path = torch.stack(kept)
                paths[method] = path
                half = len(path) // 2
                late = path[half:]
                travelled = float((late[1:] - late[:-1]).norm(dim=1).sum())
                rows.append(
                    {
                        "meta_step": meta_step,
                        "method": method,
                        "meta_loss": records[meta_step].meta_loss,
                        "late_path_length": travelled,
                        "late_displacement": float((late[-1] - late[0]).norm()),
                        "late_path_over_all": travelled
                        / float((path[1:] - path[:-1]).norm(dim=1).sum()),
                    }
                )
            if len(paths) < len(self.methods):
                continue
            joined = torch.cat(list(paths.values())).to("cpu", torch.float64).numpy()
            reduced = PCA(n_components=min(50, len(joined) - 1), random_state=0).fit_transform(
                joined
            )
            flat = TSNE(random_state=0, init="pca", perplexity=20).fit_transform(reduced)
            panel: dict[str, Any] = {}
            start = 0
            for method, path in paths.items():
                panel[method] = flat[start : start + len(path)]
                start += len(path)
            panels[f"meta step {meta_step}"] = panel
        at_end = {r["method"]: r for r in rows if r["meta_step"] == self._meta_steps(plan)[-1]}
        held = None
        verdict = "not run"
        if len(at_end) == len(self.methods):
            tbptt, neumann = (at_end[m]["late_path_over_all"] for m in self.methods)
            held = neumann < 0.9 * tbptt
            verdict = (
                "in the second half of the run the weights travel"
                f" {tbptt:.0%} of their whole path under TBPTT, {neumann:.0%} under Neumann-RBP;"
                f" the losses are {at_end['tbptt']['meta_loss']:.3g} and"
                f" {at_end['neumann']['meta_loss']:.3g}"
            )
        columns = ["meta step", "method", "meta loss", "late path, of all"]
        lines = [
            [
                str(r["meta_step"]),
                r["method"],
                f"{r['meta_loss']:.4g}",
                f"{r['late_path_over_all']:.0%}",
            ]
            for r in rows
        ]
        return Finding(rows, held, verdict, columns, lines, Paths(panels))
