"""Measures what a trained network is worth on examples that it has not seen."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hyperrbp.data.batches import Batch
from hyperrbp.experiments.results.tune import ReplicateComparison, ReplicateMeasures, Spread
from hyperrbp.problems.training.run import TrainingRun
from hyperrbp.runtime.callbacks import Progress, Report, ignore

if TYPE_CHECKING:
    from hyperrbp.experiments.experiment import Experiment

TASK = "test on the held-out examples"

Measures = dict[str, float | None]
"""By name; None stands for a number that was not finite."""


def measures(run: TrainingRun, h: Tensor, examples: Batch, loss: str) -> dict[str, float]:
    """Return the loss; and the accuracy of classes, or else rmse and r2.

    ``rmse`` is the root of the mean squared error over all outputs, ``r2`` the share of the
    targets' variance that is explained: absent where there is none. A loss of the user's own whose
    outputs are not those of a classifier, nor shaped as the targets are, is reported alone.

    Args:
        run: the training run that the state is of.
        h: a state of it.
        examples: what is measured on.
        loss: the name of the loss, as in a recipe.
    """
    total, outputs = 0.0, []
    with torch.no_grad():
        parameters = run.objective.pieces(h.detach()[: run.weights])
        for share, x in examples.chunks():
            outputs.append(run.objective.outputs(parameters, x.inputs))
            total += share * float(run.objective.loss_of(outputs[-1], x[:2]))
        made = torch.cat(outputs)
    targets = examples.targets
    found = {"loss": total}
    if not targets.is_floating_point():
        if targets.dim() == 1 and made.dim() == 2 and made.shape[1] > 1:
            correct = int((made.argmax(1) == targets).sum())
            return found | {"accuracy": correct / len(examples)}
        return found
    if made.numel() != targets.numel():
        return found
    return found | _of_values(made.reshape(targets.shape).double(), targets.double(), loss)


def _of_values(made: Tensor, targets: Tensor, loss: str) -> dict[str, float]:
    """Return the measures of outputs in float64 that are to equal their targets."""
    if loss == "binary-cross-entropy":
        right = (made > 0) == (targets > 0.5)
        return {"accuracy": float(right.double().mean())}
    wrong = float((made - targets).square().mean())
    spread = float((targets - targets.mean(0)).square().mean())
    found = {"rmse": wrong**0.5}
    return found | {"r2": 1 - wrong / spread} if spread > 0 else found


def compare_on_replicates(
    experiment: Experiment, tuned: Tensor, untuned: Tensor, report: Report = ignore
) -> ReplicateComparison | None:
    """Train at the tuned θ and at the start from other seeds, and measure on held-out examples.

    There are ``record.test_seeds`` replicates. Their initial weights and minibatches are the same
    at both θ, and are those of no meta step.

    Args:
        experiment: what was tuned.
        tuned: θ, shape (p,).
        untuned: θ, shape (p,).
        report: receives the progress, in training steps.

    Returns:
        None for no replicates.
    """
    seeds, steps = experiment.recipe.record.test_seeds, experiment.recipe.inner.steps
    if not seeds:
        return None

    def at(done: int) -> Progress:
        return Progress(TASK, done * steps, 2 * seeds * steps, "training steps")

    found: tuple[list[Measures], list[Measures]] = ([], [])
    for number in range(seeds):
        problem = experiment.replicate(number)
        for which, theta in enumerate((tuned, untuned)):
            report(at(2 * number + which))
            found[which].append(_finite_measures(experiment, problem, theta))
    report(at(2 * seeds))
    of_tuned, of_untuned = map(summarize_replicates, found)
    return ReplicateComparison(seeds=seeds, tuned=of_tuned, untuned=of_untuned)


def _finite_measures(experiment: Experiment, problem: TrainingRun, theta: Tensor) -> Measures:
    """Return the held-out measures of one run; all None if anything of it is not finite."""
    h = problem.last_state(theta)
    found = experiment.heldout_measures(problem, h)
    # Outputs that are not finite have a largest one too: an accuracy would be a number.
    finite = bool(h.isfinite().all()) and all(map(math.isfinite, found.values()))
    return {name: value if finite else None for name, value in found.items()}


def summarize_replicates(runs: Sequence[Measures]) -> ReplicateMeasures:
    """Return mean and deviation of each measure of several runs, and how many diverged."""
    by_measure = {name: _spread([run.get(name) for run in runs]) for name in runs[0]}
    return ReplicateMeasures(**by_measure, diverged=sum(None in run.values() for run in runs))


def _spread(values: list[float | None]) -> Spread:
    known = [value for value in values if value is not None]
    return Spread(
        mean=statistics.fmean(known) if known else None,
        deviation=statistics.stdev(known) if len(known) > 1 else None,
        values=values,
    )
