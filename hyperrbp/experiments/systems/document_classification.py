"""Semi-supervised classification of documents by their citations (Liao et al. 2018, §5.2)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

from hyperrbp.config.equilibrium import GraphNetRecipe
from hyperrbp.data.builtin import data_root
from hyperrbp.data.citation_networks import load_citations, principal_components, split
from hyperrbp.experiments.systems.base import Answer, Example, System, share_right
from hyperrbp.problems.graph_net import GraphNet
from hyperrbp.runtime.randomness import generator


class DocumentClassification(System):
    """Predicts the subject of every document, where those of one in a hundred are known."""

    def __init__(
        self, recipe: GraphNetRecipe, root: Path | None, device: torch.device, dtype: torch.dtype
    ) -> None:
        data = recipe.data
        graph = load_citations(data.name, data_root(root), download=data.download)
        features = principal_components(graph.features, data.dimensions)
        self.inputs = features.to(device, dtype)
        self._labels = graph.labels.to(device)
        parts = split(len(graph.labels), recipe.seed)
        self._train = parts.train.to(device)
        self._validation = parts.validation.to(device)
        self._test = parts.test.to(device)
        self.network = GraphNet(
            graph.edges.to(device),
            graph.node_count,
            data.dimensions,
            graph.class_count,
            aggregation=recipe.network.aggregation,
            init=recipe.network.init,
            generator=generator(recipe.seed, "initial weights"),
            dtype=dtype,
        ).to(device)
        self.size = (
            f"{graph.node_count:,} documents, {graph.edge_count:,} links, {len(parts.train)} labels"
        )

    def epoch(self, n: int) -> Iterator[Example]:
        """Yield the whole graph."""

        def loss(logits: torch.Tensor) -> torch.Tensor:
            return cross_entropy(logits[self._train], self._labels[self._train])

        yield Example(1.0, self.inputs, loss)

    def loss(self, answer: Answer) -> float:
        """Return the cross-entropy on the labelled documents."""
        (example,) = self.epoch(0)
        return float(example.loss(answer(self.inputs)))

    def validate(self, answer: Answer) -> dict[str, float]:
        """Return the cross-entropy and the accuracy on the validation documents."""
        logits = answer(self.inputs)
        wrong = cross_entropy(logits[self._validation], self._labels[self._validation])
        right = share_right(logits, self._labels, self._validation)
        return {"loss": float(wrong), "accuracy": right}

    def badness(self, validation: Mapping[str, float]) -> float:
        """Return the share of documents whose predicted subject is wrong."""
        return 1 - validation["accuracy"]

    def test(self, answer: Answer) -> dict[str, float]:
        """Return the accuracy on the test documents."""
        return {"accuracy": share_right(answer(self.inputs), self._labels, self._test)}
