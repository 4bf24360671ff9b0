"""Hyperparameter optimization: Table 3, Figures 4 to 6 (section 5.3)."""

from __future__ import annotations

import math
from abc import ABC
from collections.abc import Mapping
from typing import Any

import torch
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from hyperrbp.config.recipe import Recipe
from hyperrbp.experiments.experiment import Experiment
from hyperrbp.experiments.results.compare import CompareReport
from hyperrbp.experiments.results.records import StepRecord
from hyperrbp.paper.artifact import Artifact, Finding, or_nan
from hyperrbp.paper.figures import Panel, Panels, Paths, Row
from hyperrbp.paper.plan import Plan
from hyperrbp.paper.published import FIGURE4, METHODS, TABLE3
from hyperrbp.paper.run_specs import CompareSpec, Outcome, RunSpec, TuneSpec, tuning_recipe_of

QUICK_SPECS = ((50, 10), (100, 10), (200, 10), (400, 10), (50, 20), (100, 20), (200, 20), (400, 20))
"""(T, K) of the quick version, on the small digits, which are learnt completely by T = 800."""
_QUICK_META_STEPS = 12


def _finite(record: StepRecord) -> dict[str, dict[str, float]]:
    """Return the hyperparameters of a record, NaN for one that was not finite."""
    return {
        kind: {name: or_nan(value) for name, value in values.items()}
        for kind, values in record.hyperparameters.items()
    }


def _run_spec(plan: Plan, method: str, steps: int, trunc: int) -> RunSpec:
    settings: dict[str, Any] = {
        "gradient.method": method,
        "gradient.trunc": trunc,
        "inner.steps": steps,
        "device": plan.device,
        "record.test_seeds": 0,  # no table or figure has it
    }
    base = "mnist"
    if plan.quick:
        base = "digits"
        settings["meta.steps"] = _QUICK_META_STEPS
    if method == "tbptt":  # as in the authors' release: one end point
        settings["gradient.averaging.minibatches"] = 1
    name = f"{base}-{method}-T{steps}-K{trunc}"
    return TuneSpec(name, tuning_recipe_of(base, settings))


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


class _Grid(Artifact, ABC):
    """The eight run_specs (T, K) of Figures 4 and 5."""

    def scale(self, plan: Plan) -> str:
        """The small digits and short runs, or MNIST."""
        if plan.quick:
            longest = max(steps for steps, _ in QUICK_SPECS)
            return (
                f"quick: scikit-learn's 8×8 digits, T up to {longest}, K = 10 and 20,"
                f" {_QUICK_META_STEPS} meta steps (paper: MNIST, T up to 1500, K = 50 and 100)"
            )
        return "MNIST, 60 meta steps; CG-RBP included, which the paper left out"

    @staticmethod
    def grid(plan: Plan) -> tuple[tuple[int, int], ...]:
        """(T, K)."""
        return QUICK_SPECS if plan.quick else FIGURE4

    def run_specs(self, plan: Plan) -> list[RunSpec]:
        """Every (T, K) by every method."""
        return [_run_spec(plan, m, steps, k) for steps, k in self.grid(plan) for m in METHODS]


class Figure4(_Grid):
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
                records = outcomes[_run_spec(plan, method, steps, trunc).name].records(StepRecord)
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


class Figure5(_Grid):
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
                spec = _run_spec(plan, method, steps, trunc)
                records = outcomes[spec.name].records(StepRecord)
                if not records:
                    continue
                assert isinstance(spec.recipe, Recipe)
                experiment = Experiment(spec.recipe, plan.data_root)
                meta_step = records[-1].meta_step
                theta = experiment.problem(meta_step).theta_of(_finite(records[-1]))
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
        return (_QUICK_META_STEPS // 2, _QUICK_META_STEPS) if plan.quick else (20, 40)

    def run_specs(self, plan: Plan) -> list[RunSpec]:
        """Two of Figure 4's."""
        return [_run_spec(plan, method, *self._at(plan)) for method in self.methods]

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
                theta = problem.theta_of(_finite(records[meta_step]))
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
