"""Table A1: statistics of the citation networks (appendix)."""

from __future__ import annotations

from collections.abc import Mapping

from hyperrbp.data.builtin import data_root
from hyperrbp.data.citation_networks import (
    NETWORKS,
    load_citations,
)
from hyperrbp.exceptions import DataError, MissingDataError
from hyperrbp.paper.artifact import Artifact, Finding
from hyperrbp.paper.figures import Row
from hyperrbp.paper.plan import Plan
from hyperrbp.paper.published import TABLE_A1
from hyperrbp.paper.run_specs import Outcome, RunSpec


class TableA1(Artifact):
    """Statistics of the networks."""

    name = "tableA1"
    title = "Table A1: the citation networks"
    claim = "the sizes of Cora and Pubmed"

    def scale(self, plan: Plan) -> str:
        """Return that nothing is scaled."""
        return "as published: nothing is scaled"

    def run_specs(self, plan: Plan) -> list[RunSpec]:
        """Return none: the files are counted."""
        return []

    def finding(self, plan: Plan, outcomes: Mapping[str, Outcome]) -> Finding:
        """Return the counts of the files."""
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
