"""The results of training runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from hyperrbp.experiments.results.document import Number, Part, Values
from hyperrbp.experiments.results.run import RunResult


class TrainResult(RunResult):
    """``result.json`` of ``hyperrbp train``, whatever was trained."""

    weights: str
    """The file that holds them."""


class BestEpoch(Part):
    """The epoch that validated best."""

    epoch: int
    validation: Mapping[str, Number]


class EquilibriumResult(TrainResult):
    """The result of training a network with a convergent part."""

    kind: Literal["equilibrium"] = "equilibrium"
    system: str
    method: str
    trunc: int
    updates: int
    """Of an inference."""
    epochs: int
    """That were done."""
    best: BestEpoch
    test: Mapping[str, Number]
    """Measures with the weights of the best epoch; empty where these give nothing finite."""


class InnerRunResult(TrainResult):
    """The result of training the network of a tuning recipe once."""

    kind: Literal["inner_run"] = "inner_run"
    train_steps: int
    meta_loss: Number
    """Over all training examples, after the last step."""
    heldout: Mapping[str, Number]
    """Measures on the held-out examples."""
    heldout_accuracy: Number = None
    """The accuracy among them, where there is one."""
    hyperparameters: Mapping[str, Values]
