"""Training a network with a convergent part by an ordinary loop around the steady-state layer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from hyperrbp.config.equilibrium import EquilibriumRecipe, GraphNetRecipe, HopfieldRecipe
from hyperrbp.exceptions import CheckpointError, DivergedError
from hyperrbp.experiments.device import device_and_threads
from hyperrbp.experiments.results.document import Measured
from hyperrbp.experiments.results.records import EpochGradient, EpochRecord, PenaltyRecord
from hyperrbp.experiments.results.train import BestEpoch, EquilibriumResult, TrainResult
from hyperrbp.experiments.systems.base import Example, System
from hyperrbp.experiments.trainers.base import Trainer
from hyperrbp.hypergradients.implicit_layer import Diagnosis, steady_state
from hyperrbp.hypergradients.method import Status
from hyperrbp.problems.convergent import Recurrence
from hyperrbp.problems.penalties import PENALTIES, Penalty
from hyperrbp.runtime.documents import finite_or_null
from hyperrbp.runtime.metering import PhaseMeter
from hyperrbp.runtime.randomness import generator


def build_system(
    recipe: EquilibriumRecipe, root: Path | None, device: torch.device, dtype: torch.dtype
) -> System:
    """Return the system that a recipe describes.

    Raises:
        DataError: if its data are missing or damaged.
    """
    if isinstance(recipe, HopfieldRecipe):
        from hyperrbp.experiments.systems.associative_memory import AssociativeMemory

        return AssociativeMemory(recipe, root, device, dtype)
    assert isinstance(recipe, GraphNetRecipe)
    from hyperrbp.experiments.systems.document_classification import DocumentClassification

    return DocumentClassification(recipe, root, device, dtype)


@dataclass(frozen=True)
class Best:
    """The epoch that validated best so far."""

    epoch: int = 0
    badness: float = math.inf
    validation: Mapping[str, float] = field(default_factory=dict)


class EquilibriumTrainer(Trainer):
    """Trains a network recipe epoch by epoch; the answer is the epoch that validates best."""

    unit = "epoch"

    def __init__(self, recipe: EquilibriumRecipe, root: Path | None = None) -> None:
        self.device, filled_in = device_and_threads(recipe)
        self.recipe: EquilibriumRecipe = recipe.model_copy(update=filled_in)
        dtype = {"float32": torch.float32, "float64": torch.float64}[recipe.dtype]
        self.system = build_system(self.recipe, root, self.device, dtype)
        self._network, training = self.system.network, recipe.training
        self.position, self.last = 0, training.epochs
        parameters = list(self._network.parameters())
        self._optimizer: torch.optim.Optimizer
        if training.optimizer == "adam":
            self._optimizer = torch.optim.Adam(
                parameters,
                lr=training.learning_rate,
                weight_decay=training.weight_decay,
                fused=True,
            )
        else:
            self._optimizer = torch.optim.SGD(
                parameters,
                lr=training.learning_rate,
                momentum=training.momentum,
                weight_decay=training.weight_decay,
                fused=True,
            )
        self.best = Best()
        self._best_weights = self._copied_weights()

    def headline(self) -> str:
        """Say what is trained, and how, in two lines."""
        recipe, weights = self.recipe, sum(p.numel() for p in self._network.parameters())
        gradient = recipe.gradient
        return (
            f"{recipe.name}: {self.system.size}; {weights:,} weights; {gradient.method} with"
            f" K = {gradient.trunc} on {self.place}\n"
            f"{recipe.training.epochs} epochs of {recipe.inference.updates} updates an inference"
        )

    # --- one epoch --------------------------------------------------------------------------------

    def advance(self) -> EpochRecord:
        """Train an epoch and validate it, if it is one to validate; epoch 0 is not trained."""
        meter, epoch = PhaseMeter(self.device), self.position
        gradient = penalty = validation = None
        curves: Mapping[str, list[float]] = {}
        if epoch == 0:
            with meter.phase("validation"):
                loss = self.system.loss(self.answer)
        else:
            loss, gradient, penalty = self._train(meter)
        if epoch % self.recipe.training.validate_every == 0:
            with meter.phase("validation"):
                validation, curves = self._validate()
        self.position += 1
        return EpochRecord(
            epoch=epoch,
            loss=loss,
            gradient=gradient,
            penalty=None if penalty is None else _penalty_record(penalty),
            validation=validation,
            change_norms=curves.get("change_norms"),
            energy=curves.get("energy"),
            measured=Measured.until_now(meter.seconds, meter.peak_bytes),
        )

    def _train(self, meter: PhaseMeter) -> tuple[float, EpochGradient, Penalty | None]:
        """Train an epoch; return its loss, its gradients, and the last example's penalty."""
        total, statuses, products = 0.0, list[Status](), 0
        penalty: Penalty | None = None
        largest: dict[str, float] = {}
        for number, example in enumerate(self.system.epoch(self.position)):
            self._optimizer.zero_grad()
            found = Diagnosis()
            with meter.phase("inference"):
                loss, penalty = self._loss(example, number, found)
            with meter.phase("gradient"):
                objective = loss if penalty is None else loss + self._weighed(penalty)
                torch.autograd.backward([objective])
                norm = self._gradient_norm()
            value = float(loss.detach())
            self._require_finite(value, "the loss")
            self._require_finite(norm, "the gradient")
            with meter.phase("update"):
                self._optimizer.step()
            total += example.share * value
            products += found.products
            if found.status is not None:
                statuses.append(found.status)
            for key, size in (
                ("norm", norm),
                ("residual", found.residual),
                ("steady_state_residual", found.steady_state_residual),
            ):
                if size is not None and math.isfinite(size):
                    largest[key] = max(size, largest.get(key, 0.0))
        gradient = EpochGradient(
            **largest, status=Status.worst(statuses) if statuses else None, products=products
        )
        return total, gradient, penalty

    def _loss(
        self, example: Example, number: int, found: Diagnosis
    ) -> tuple[Tensor, Penalty | None]:
        inference, gradient = self.recipe.inference, self.recipe.gradient
        recurrence = self._network.recurrence(example.inputs)
        source = generator(self.recipe.seed, f"steady state of epoch {self.position}", number)
        h = steady_state(
            *recurrence,
            gradient.method,
            gradient.trunc,
            updates=inference.updates,
            settled=inference.settled,
            options=gradient.options.get(gradient.method),
            seed=source.initial_seed(),
            diagnosis=found,
        )
        return example.loss(self._network.output(h)), self._penalty(recurrence, h, source)

    def _penalty(
        self, recurrence: Recurrence, h: Tensor, source: torch.Generator
    ) -> Penalty | None:
        """Return the regularizer at the steady state: its gradient also goes by way of h."""
        section = self.recipe.penalty
        if section is None:
            return None
        update, _, parameters, x = recurrence
        regularizer = PENALTIES[section.name](**section.options)
        return regularizer(lambda s: update(s, parameters, x), h, source)

    def _weighed(self, penalty: Penalty) -> Tensor:
        assert self.recipe.penalty is not None
        return self.recipe.penalty.weight * penalty.value

    def _gradient_norm(self) -> float:
        gradients = [p.grad for p in self._network.parameters() if p.grad is not None]
        return float(get_total_norm(gradients))

    def _require_finite(self, value: float, what: str) -> None:
        if not math.isfinite(value):
            raise DivergedError(f"epoch {self.position}: {what} is not finite")

    def _validate(self) -> tuple[dict[str, float], Mapping[str, list[float]]]:
        """Return the measures of this epoch, and curves over the updates of an inference."""
        validation = self.system.validate(self.answer)
        self.best, self._best_weights = self._better(self.position, validation)
        problem = self._network.problem(self.system.inputs, updates=self.recipe.inference.updates)
        return validation, self.system.curves(problem, problem.initial_theta())

    def _better(self, epoch: int, validation: dict[str, float]) -> tuple[Best, dict[str, Tensor]]:
        """Return the best so far, or the weights as they are if these validate better."""
        badness = self.system.badness(validation)
        if badness < self.best.badness:
            return Best(epoch, badness, validation), self._copied_weights()
        return self.best, self._best_weights

    def _best_at_end(self) -> tuple[Best, dict[str, Tensor]]:
        """Return the best of the validated epochs and the last one.

        The latter is left out of the state: a run that goes on from here is as if it had never
        stopped.
        """
        done = self.position - 1
        if done < 0 or done % self.recipe.training.validate_every == 0:
            return self.best, self._best_weights
        try:
            return self._better(done, self.system.validate(self.answer))
        except DivergedError:
            return self.best, self._best_weights

    def answer(self, inputs: Tensor) -> Tensor:
        """Return the network's output at the steady state of these inputs, without a graph.

        Raises:
            DivergedError: if it is not finite.
        """
        inference = self.recipe.inference
        with torch.no_grad():
            h = steady_state(
                *self._network.recurrence(inputs),
                updates=inference.updates,
                steps=1,
                settled=inference.settled,
            )
            output = self._network.output(h)
        if not output.isfinite().all():
            raise DivergedError(f"epoch {self.position}: the network's output is not finite")
        return output

    def pictures(self) -> tuple[list[str], Tensor] | None:
        """Return the images of the weights as they are."""
        return self.system.pictures(self.answer)

    # --- on disk ----------------------------------------------------------------------------------

    def due(self) -> bool:
        """Whether an epoch was validated, or was the last."""
        done = self.position - 1
        return done % self.recipe.training.validate_every == 0 or done == self.last

    def content(self) -> dict[str, Any]:
        """Return the epoch, and which one was best."""
        return {"epoch": self.position, "best": finite_or_null(asdict(self.best))}

    def tensors(self) -> dict[str, Tensor]:
        """Return weights, the optimizer's moments, and the best weights."""
        tensors = {f"weights.{name}": t for name, t in self._network.state_dict().items()}
        tensors |= {f"best.{name}": t for name, t in self._best_weights.items()}
        for name, parameter in self._network.named_parameters():
            for key, value in self._optimizer.state[parameter].items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer.{name}.{key}"] = value
        return tensors

    def restore(self, content: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Go to where these were taken."""
        self.position, best = int(content["epoch"]), dict(content["best"])
        badness = math.inf if best["badness"] is None else best["badness"]
        self.best = Best(best["epoch"], badness, best["validation"])
        if self.position > self.last + 1:
            raise CheckpointError(
                f"{self.position - 1} epochs are done already, more than the {self.last} asked for"
            )
        parts: dict[str, dict[str, Tensor]] = {"weights": {}, "best": {}, "optimizer": {}}
        for name, tensor in tensors.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = tensor.to(self.device)
        self._network.load_state_dict(parts["weights"])
        self._best_weights = parts["best"]
        for name, parameter in self._network.named_parameters():
            held = {
                rest.removeprefix(f"{name}."): tensor
                for rest, tensor in parts["optimizer"].items()
                if rest.startswith(f"{name}.")
            }
            if held:
                self._optimizer.state[parameter] = held

    def _copied_weights(self) -> dict[str, Tensor]:
        return {name: t.detach().clone() for name, t in self._network.state_dict().items()}

    def weights(self) -> dict[str, Tensor]:
        """Return the weights of the best epoch."""
        return self._best_at_end()[1]

    def result(self, common: TrainResult) -> EquilibriumResult:
        """Return the measures of the best epoch."""
        now = self._copied_weights()
        best, weights = self._best_at_end()
        self._network.load_state_dict(weights)
        try:
            test = self.system.test(self.answer)
        except DivergedError:  # from the very start
            test = {}
        self._network.load_state_dict(now)
        recipe = self.recipe
        return EquilibriumResult(
            **dict(common),
            system=recipe.system,
            method=recipe.gradient.method,
            trunc=recipe.gradient.trunc,
            updates=recipe.inference.updates,
            epochs=self.position - 1,
            best=BestEpoch(epoch=best.epoch, validation=dict(best.validation)),
            test=test,
        )


def _penalty_record(penalty: Penalty) -> PenaltyRecord:
    return PenaltyRecord(
        value=float(penalty.value.detach()),
        quantity=penalty.quantity,
        error=penalty.error,
        exact=penalty.exact,
        products=penalty.products,
    )
