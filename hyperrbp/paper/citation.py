"""Citation networks: Table 2, Figure 3 and Table A1 (section 5.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hyperrbp.config.equilibrium import GraphNetRecipe
from hyperrbp.data.builtin import data_root
from hyperrbp.data.citation_networks import (
    NETWORKS,
    load_citations,
    logistic_regression_accuracy,
    principal_components,
    split,
)
from hyperrbp.exceptions import DataError, MissingDataError
from hyperrbp.experiments.results.records import EpochRecord
from hyperrbp.experiments.results.train import EquilibriumResult
from hyperrbp.paper.artifact import Artifact, Finding, mean_and_deviation, or_nan, plus_minus
from hyperrbp.paper.figures import Panel, Panels, Row
from hyperrbp.paper.plan import Plan
from hyperrbp.paper.published import METHODS, TABLE2, TABLE_A1
from hyperrbp.paper.run_specs import Outcome, RunSpec, TrainSpec, recipe_of

_QUICK = "150 epochs at ten times the learning rate"


def _run_spec(plan: Plan, data: str, method: str, seed: int) -> RunSpec:
    epochs = 150 if plan.quick else 2000
    settings = {
        "gradient.method": method,
        "training.epochs": epochs,
        "seed": seed,
        "device": plan.device,
    }
    if plan.quick:
        settings |= {"training.learning_rate": 0.01, "training.validate_every": 10}
    name = f"{data}-{method}-K5-epochs{epochs}-seed{seed}"
    return TrainSpec(name, recipe_of(data, settings))


def _seeds(plan: Plan) -> range:
    return range(plan.number_of_seeds(3, 10))


class Table2(Artifact):
    """Test accuracy."""

    name = "table2"
    title = "Table 2: test accuracy on citation networks (%)"
    claim = "Neumann-RBP matches TBPTT, and both are above all others"

    def scale(self, plan: Plan) -> str:
        """3 seeds and few epochs, or 10 and 2,000."""
        seeds = len(_seeds(plan))
        if plan.quick:
            return f"quick: {seeds} seeds, {_QUICK} (paper: 10 seeds, 2,000 epochs)"
        return f"{seeds} seeds of 2,000 epochs"

    def run_specs(self, plan: Plan) -> list[RunSpec]:
        """Every network, seed and method; seed by seed, so that a part of it is of use."""
        return [
            _run_spec(plan, d, m, seed) for d in TABLE2 for seed in _seeds(plan) for m in METHODS
        ]

    def finding(self, plan: Plan, outcomes: Mapping[str, Outcome]) -> Finding:
        """Means and deviations over the seeds."""
        rows: list[Row] = []
        measured: dict[str, dict[str, list[float]]] = {}
        for data, paper in TABLE2.items():
            found: dict[str, list[float]] = {}
            missing = None
            for method in METHODS:
                done = [outcomes[_run_spec(plan, data, method, seed).name] for seed in _seeds(plan)]
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


class Figure3(Artifact):
    """Curves of one seed."""

    name = "figure3"
    title = "Figure 3: the graph net by five methods (Cora)"
    claim = "Neumann-RBP and TBPTT train and validate alike, and states become steady"

    def scale(self, plan: Plan) -> str:
        """One seed of Table 2's runs."""
        return f"quick: seed 0, {_QUICK}" if plan.quick else "seed 0, 2,000 epochs"

    def run_specs(self, plan: Plan) -> list[RunSpec]:
        """Those of Table 2 with seed 0."""
        return [_run_spec(plan, "cora", method, 0) for method in METHODS]

    def finding(self, plan: Plan, outcomes: Mapping[str, Outcome]) -> Finding:
        """Three panels, and every point of them as a row."""
        loss = Panel("epoch", "training loss", log=True)
        accuracy = Panel("epoch", "validation accuracy", log=False)
        steady = Panel("update t", "‖h_t − h_{t−1}‖ / ‖h_1 − h_0‖", log=True)
        best, still = {}, {}
        for method in METHODS:
            outcome = outcomes[_run_spec(plan, "cora", method, 0).name]
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


class TableA1(Artifact):
    """Statistics of the networks."""

    name = "tableA1"
    title = "Table A1: the citation networks"
    claim = "the sizes of Cora and Pubmed"

    def scale(self, plan: Plan) -> str:
        """As they are."""
        return "as published: nothing is scaled"

    def run_specs(self, plan: Plan) -> list[RunSpec]:
        """None: the files are counted."""
        return []

    def finding(self, plan: Plan, outcomes: Mapping[str, Outcome]) -> Finding:
        """Counts of the files."""
        rows: list[Row] = []
        agree = []
        for name in NETWORKS:
            paper = {f"paper_{key}": value for key, value in TABLE_A1[name].items()}
            try:
                graph = load_citations(name, data_root(plan.data_root))
            except DataError as error:
                absent = "files absent" if isinstance(error, MissingDataError) else str(error)
                rows.append({"network": name, "status": f"not run: {absent}"} | paper)
                continue
            found = {
                "nodes": graph.node_count,
                "edges": graph.citation_count,
                "classes": graph.class_count,
                "features": graph.feature_count,
            }
            agree.append(found == TABLE_A1[name])
            rows.append({"network": name, "status": "done"} | found | paper)
            rows[-1]["distinct_edges"] = graph.edge_count
        keys = ["nodes", "edges", "classes", "features"]
        columns = ["network", *(f"{key} (paper)" for key in keys)]
        lines = [
            [
                row["network"],
                *(
                    f"{row[key]:,} ({row[f'paper_{key}']:,})" if key in row else row["status"]
                    for key in keys
                ),
            ]
            for row in rows
        ]
        said = [
            f"{row['network']}: {row['status']}"
            if row["status"] != "done"
            else f"{row['network']}: {row['distinct_edges']:,} of its {row['edges']:,} links are"
            " distinct and between two documents"
            for row in rows
        ]
        return Finding(rows, all(agree) if agree else None, "; ".join(said), columns, lines)
