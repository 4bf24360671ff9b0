"""Table 2: test accuracy on citation networks (section 5.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hyperrbp.config.equilibrium import GraphNetRecipe
from hyperrbp.data.builtin import data_root
from hyperrbp.data.citation_networks import (
    load_citations,
    logistic_regression_accuracy,
    principal_components,
    split,
)
from hyperrbp.experiments.results.train import EquilibriumResult
from hyperrbp.paper.artifact import Artifact, Finding, mean_and_deviation, or_nan, plus_minus
from hyperrbp.paper.citation_networks import QUICK, citation_spec
from hyperrbp.paper.figures import Row
from hyperrbp.paper.plan import Plan
from hyperrbp.paper.published import METHODS, TABLE2
from hyperrbp.paper.run_specs import Outcome, RunSpec, recipe_of


def _seeds(plan: Plan) -> range:
    return range(plan.number_of_seeds(3, 10))


class Table2(Artifact):
    """Test accuracy."""

    name = "table2"
    title = "Table 2: test accuracy on citation networks (%)"
    claim = "Neumann-RBP matches TBPTT, and both are above all others"

    def scale(self, plan: Plan) -> str:
        """Return the seeds and epochs: 3 and few, or 10 and 2,000."""
        seeds = len(_seeds(plan))
        if plan.quick:
            return f"quick: {seeds} seeds, {QUICK} (paper: 10 seeds, 2,000 epochs)"
        return f"{seeds} seeds of 2,000 epochs"

    def run_specs(self, plan: Plan) -> list[RunSpec]:
        """Return every network, seed and method; seed by seed, so that a part is of use."""
        return [
            citation_spec(plan, d, m, seed)
            for d in TABLE2
            for seed in _seeds(plan)
            for m in METHODS
        ]

    def finding(self, plan: Plan, outcomes: Mapping[str, Outcome]) -> Finding:
        """Return means and deviations over the seeds."""
        rows: list[Row] = []
        measured: dict[str, dict[str, list[float]]] = {}
        for data, paper in TABLE2.items():
            found: dict[str, list[float]] = {}
            missing = None
            for method in METHODS:
                done = [
                    outcomes[citation_spec(plan, data, method, seed).name] for seed in _seeds(plan)
                ]
                missing = missing or next((o.failure for o in done if o.result is None), None)
                results = [outcome.result_of(EquilibriumResult) for outcome in done]
                found[method] = [100 * or_nan(r.test["accuracy"]) for r in results if r is not None]
            if any(found.values()):
                found["baseline"] = self._baseline(plan, data)
            measured[data] = {name: values for name, values in found.items() if values}
            for name, (mean, deviation) in paper.items():
                values = found.get(name, [])
                row = {
                    "network": data,
                    "method": name,
                    "paper_mean": mean,
                    "paper_deviation": deviation,
                    "seeds": len(values),
                    "mean": None,
                    "deviation": None,
                    "status": "done" if values else missing or "not run",
                }
                if values:
                    row["mean"], row["deviation"] = mean_and_deviation(values)
                    row |= {f"seed_{i}": value for i, value in enumerate(values)}
                rows.append(row)
        columns = ["network", "method", "measured", "paper", "seeds"]
        lines = [
            [
                row["network"],
                row["method"],
                plus_minus(measured[row["network"]][row["method"]])
                if row["seeds"]
                else row["status"],
                f"{row['paper_mean']} ± {row['paper_deviation']}",
                str(row["seeds"]),
            ]
            for row in rows
        ]
        held, verdict = self._verdict(measured)
        return Finding(rows, held, verdict, columns, lines)

    @staticmethod
    def _baseline(plan: Plan, data: str) -> list[float]:
        recipe = recipe_of(data, {})
        assert isinstance(recipe, GraphNetRecipe)
        graph = load_citations(data, data_root(plan.data_root))
        features = principal_components(graph.features, recipe.data.dimensions)
        return [
            100
            * logistic_regression_accuracy(
                features, graph.labels, split(len(graph.labels), seed)
            ).test
            for seed in _seeds(plan)
        ]

    @staticmethod
    def _verdict(measured: Mapping[str, Mapping[str, Sequence[float]]]) -> tuple[bool | None, str]:
        said, held = [], []
        for data, found in measured.items():
            if len(found) < len(METHODS) + 1:
                said.append(f"{data}: not run")
                continue
            means = {name: mean_and_deviation(values)[0] for name, values in found.items()}
            order = sorted(means, key=lambda name: -means[name])
            spread = mean_and_deviation(found["tbptt"])[1] or 0.0
            above = set(order[:2]) == {"neumann", "tbptt"}
            held.append(above and abs(means["neumann"] - means["tbptt"]) <= max(spread, 1.0))
            said.append(f"{data}: {' > '.join(f'{name} {means[name]:.1f}' for name in order)}")
        return (all(held) if held else None), "; ".join(said)
