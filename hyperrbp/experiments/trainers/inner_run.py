"""Trains the network of a tuning recipe once, with given hyperparameters."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hyperrbp.config.recipe import Recipe
from hyperrbp.exceptions import DivergedError, UsageError
from hyperrbp.experiments.experiment import Experiment
from hyperrbp.experiments.results.document import Measured
from hyperrbp.experiments.results.records import TrainingStepRecord
from hyperrbp.experiments.results.train import InnerRunResult, TrainResult
from hyperrbp.experiments.trainers.base import Trainer
from hyperrbp.runtime.metering import PhaseMeter

_RECORDS = 200  # points of the training curve
_SAVED = 10  # of which one in so many is a checkpoint


class InnerRunTrainer(Trainer):
    """Takes the T training steps of an inner run at one θ, in stretches of one record each.

    Args:
        recipe: a tuning recipe.
        root: the data root.
        hyperparameters: ``{kind: {name: value}}``, as ``result.json`` of a tuning run has them; the
            recipe's untuned ones if not given.

    Raises:
        UsageError: if they are not those of this network.
    """

    unit = "step"

    def __init__(
        self,
        recipe: Recipe,
        root: Path | None = None,
        hyperparameters: Mapping[str, Mapping[str, float]] | None = None,
    ) -> None:
        self._experiment = Experiment(recipe, root)
        self.recipe, self.device = self._experiment.recipe, self._experiment.device
        self._problem = self._experiment.problem()
        self._theta = self._experiment.theta
        self._chosen = hyperparameters is not None
        if hyperparameters is not None:
            self._theta = self._problem.theta_of(hyperparameters)
        self._h = self._problem.initial_state(self._theta)
        self.position, self.last = 0, self._problem.steps
        self._stride = math.ceil(self.last / _RECORDS)

    def headline(self) -> str:
        """Say what is trained, and how, in two lines."""
        layout = self._problem.layout
        kind, at = next(iter(layout.slices.items()))
        values = layout.natural(self._theta)[at]
        return (
            f"{self.recipe.name}: {self._problem.weights:,} weights on {self.place}\n"
            f"{self.last} training steps, {kind.replace('_', ' ')}s {float(values.min()):.3g} …"
            f" {float(values.max()):.3g}"
        )

    def environment(self) -> dict[str, str | int]:
        """Return it with the digests of the user's own data and code."""
        return self._experiment.environment()

    def advance(self) -> TrainingStepRecord:
        """Take the loss on the next minibatch, and then a stretch of steps."""
        meter, step = PhaseMeter(self.device), self.position
        problem = self._problem
        with meter.phase("training"):
            at_end = step == self.last
            loss = float(problem.loss_and_gradient(self._h)[0]) if at_end else None
            batch_loss = None if at_end else problem.batch_loss(self._h, step)
            for value in (loss, batch_loss):
                if value is not None and not math.isfinite(value):
                    raise DivergedError(f"training step {step}: the loss is not finite")
            stop = min(step + self._stride, self.last)
            h = problem.run(self._theta, step, stop, self._h).clone()
            if not h.isfinite().all():
                raise DivergedError(f"training step {step}: the weights stop being finite after it")
            self._h = h
        # The run is over with the record of its last state.
        self.position = self.last + 1 if at_end else stop
        return TrainingStepRecord(
            step=step,
            loss=batch_loss,
            meta_loss=loss,
            measured=Measured.until_now(meter.seconds, meter.peak_bytes),
        )

    def due(self) -> bool:
        """Whether a tenth of the run has passed since the last checkpoint, or all of it."""
        return self.position // self._stride % _SAVED == 0 or self.position > self.last

    def content(self) -> dict[str, Any]:
        """Return the step and the hyperparameters."""
        return {"step": self.position, "hyperparameters": self._problem.describe(self._theta)}

    def tensors(self) -> dict[str, Tensor]:
        """Return weights and velocities, and θ to the bit."""
        return {"state": self._h, "theta": self._theta}

    def restore(self, content: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Go to where these were taken, with their hyperparameters.

        Raises:
            UsageError: if others were asked for.
        """
        self.position = int(content["step"])
        theta = tensors["theta"].to(self._theta)
        if self._chosen and not torch.equal(theta, self._theta):
            raise UsageError("--hyperparameters: the run was begun with others")
        self._theta = theta
        self._h = tensors["state"].to(self._h)

    def weights(self) -> dict[str, Tensor]:
        """Return the network after the last step, as its ``load_state_dict`` takes it."""
        return self._problem.evaluated(self._h).state_dict()

    def result(self, common: TrainResult) -> InnerRunResult:
        """Return the loss on all training examples, and the measures on the held-out ones."""
        heldout = self._experiment.heldout_measures(self._problem, self._h)
        return InnerRunResult(
            **(dict(common) | {"population": self._experiment.data.population_note}),
            train_steps=self._problem.steps,
            meta_loss=float(self._problem.loss_and_gradient(self._h)[0]),
            heldout=heldout,
            heldout_accuracy=heldout.get("accuracy"),
            hyperparameters=self._problem.describe(self._theta),
        )
