"""Training a network with a convergent part by an ordinary loop around the steady-state layer."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from hyperrbp.config.equilibrium import GraphNetRecipe, HopfieldRecipe, NetworkRecipe
from hyperrbp.exceptions import CheckpointError, DivergedError
from hyperrbp.experiments.experiment import device_and_threads
from hyperrbp.experiments.systems.base import Example, System
from hyperrbp.experiments.trainers.base import Trainer
from hyperrbp.hypergradients.implicit_layer import Diagnosis, steady_state
from hyperrbp.hypergradients.method import Status
from hyperrbp.problems.convergent import Recurrence
from hyperrbp.problems.penalties import PENALTIES, Penalty
from hyperrbp.runtime.metering import PhaseMeter, measured
from hyperrbp.runtime.randomness import generator


def build_system(
    recipe: NetworkRecipe, root: Path | None, device: torch.device, dtype: torch.dtype
) -> System:
    """The system that a recipe describes.

    Raises:
        DataError: if its data are missing or damaged.
    """
    if isinstance(recipe, HopfieldRecipe):
        from hyperrbp.experiments.systems.associative_memory import AssociativeMemory

        return AssociativeMemory(recipe, root, device, dtype)
    assert isinstance(recipe, GraphNetRecipe)
    from hyperrbp.experiments.systems.document_classification import DocumentClassification

    return DocumentClassification(recipe, root, device, dtype)


class NetworkTraining(Trainer):
    """A network recipe, epoch by epoch; the best epoch is the one that validates best."""

    unit = "epoch"

    def __init__(self, recipe: NetworkRecipe, root: Path | None = None) -> None:
        self.device, filled_in = device_and_threads(recipe)
        self.recipe: NetworkRecipe = recipe.model_copy(update=filled_in)
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
        self.best: dict[str, Any] = {"epoch": 0, "badness": math.inf, "validation": {}}
        self._best_weights = self._copied_weights()

    def headline(self) -> str:
        """What is trained, and how, in two lines."""
        recipe, weights = self.recipe, sum(p.numel() for p in self._network.parameters())
        gradient = recipe.gradient
        return (
            f"{recipe.name}: {self.system.size}; {weights:,} weights; {gradient.method} with"
            f" K = {gradient.trunc} on {self.place}\n"
            f"{recipe.training.epochs} epochs of {recipe.inference.updates} updates an inference"
        )

    # --- one epoch --------------------------------------------------------------------------------

    def advance(self) -> dict[str, Any]:
        """Train an epoch, and look at what came of it; epoch 0 only looks."""
        meter = PhaseMeter(self.device)
        record: dict[str, Any] = {"epoch": self.position}
        if self.position == 0:
            with meter.phase("validation"):
                record["loss"] = self.system.loss(self.answer)
        else:
            record |= self._train(meter)
        if self.position % self.recipe.training.validate_every == 0:
            with meter.phase("validation"):
                record |= self._validate()
        record["measured"] = measured(meter.seconds, meter.peak_bytes)
        self.position += 1
        return record

    def _train(self, meter: PhaseMeter) -> dict[str, Any]:
        total, statuses, products = 0.0, [], 0
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
        record: dict[str, Any] = {"loss": total}
        if penalty is not None:  # of the last example
            record["penalty"] = {
                "value": float(penalty.value.detach()),
                "quantity": penalty.quantity,
                "error": penalty.error,
                "exact": penalty.exact,
                "products": penalty.products,
            }
        record["gradient"] = largest | {
            "status": str(Status.worst(statuses)) if statuses else None,
            "products": products,
        }
        return record

    def _loss(
        self, example: Example, number: int, found: Diagnosis
    ) -> tuple[Tensor, Penalty | None]:
        inference, gradient = self.recipe.inference, self.recipe.gradient
        recurrence = self._network.recurrence(example.inputs)
        draw = generator(self.recipe.seed, f"steady state of epoch {self.position}", number)
        h = steady_state(
            *recurrence,
            gradient.method,
            gradient.trunc,
            updates=inference.updates,
            settled=inference.settled,
            options=gradient.options.get(gradient.method),
            seed=draw.initial_seed(),
            diagnosis=found,
        )
        return example.loss(self._network.output(h)), self._penalty(recurrence, h, draw)

    def _penalty(self, recurrence: Recurrence, h: Tensor, draw: torch.Generator) -> Penalty | None:
        """The regularizer at the steady state: its gradient also goes by way of h."""
        section = self.recipe.penalty
        if section is None:
            return None
        update, _, parameters, x = recurrence
        regularizer = PENALTIES[section.name](**section.options)
        return regularizer(lambda s: update(s, parameters, x), h, draw)

    def _weighed(self, penalty: Penalty) -> Tensor:
        assert self.recipe.penalty is not None
        return self.recipe.penalty.weight * penalty.value

    def _gradient_norm(self) -> float:
        gradients = [p.grad for p in self._network.parameters() if p.grad is not None]
        return float(get_total_norm(gradients))

    def _require_finite(self, value: float, what: str) -> None:
        if not math.isfinite(value):
            raise DivergedError(f"epoch {self.position}: {what} is not finite")

    def _validate(self) -> dict[str, Any]:
        validation = self.system.validate(self.answer)
        self.best, self._best_weights = self._better(self.position, validation)
        problem = self._network.problem(self.system.inputs, updates=self.recipe.inference.updates)
        return {"validation": validation, **self.system.watch(problem, problem.initial_theta())}

    def _better(
        self, epoch: int, validation: dict[str, float]
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The best so far, or the weights as they are if these validate better."""
        badness = self.system.badness(validation)
        if badness < self.best["badness"]:
            best = {"epoch": epoch, "badness": badness, "validation": validation}
            return best, self._copied_weights()
        return self.best, self._best_weights

    def _best_at_end(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The best of the due epochs and the last one.

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
        """The network's output at the steady state of these inputs, without a graph.

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
        """Of the weights as they are."""
        return self.system.pictures(self.answer)

    # --- on disk ----------------------------------------------------------------------------------

    def due(self) -> bool:
        """After every validation, and at the end."""
        done = self.position - 1
        return done % self.recipe.training.validate_every == 0 or done == self.last

    def content(self) -> dict[str, Any]:
        """The epoch, and which one was best."""
        best = dict(self.best)
        if math.isinf(best["badness"]):
            best["badness"] = None
        return {"epoch": self.position, "best": best}

    def tensors(self) -> dict[str, Tensor]:
        """Weights, the optimizer's moments, and the best weights."""
        tensors = {f"weights.{name}": t for name, t in self._network.state_dict().items()}
        tensors |= {f"best.{name}": t for name, t in self._best_weights.items()}
        for name, parameter in self._network.named_parameters():
            for key, value in self._optimizer.state[parameter].items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer.{name}.{key}"] = value
        return tensors

    def restore(self, content: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Stand where these were taken."""
        self.position, self.best = int(content["epoch"]), dict(content["best"])
        if self.best["badness"] is None:
            self.best["badness"] = math.inf
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
        """Those of the best epoch."""
        return self._best_at_end()[1]

    def result(self) -> dict[str, Any]:
        """Measures of the best epoch."""
        now = self._copied_weights()
        best, weights = self._best_at_end()
        self._network.load_state_dict(weights)
        try:
            test = self.system.test(self.answer)
        except DivergedError:  # from the very start
            test = {}
        self._network.load_state_dict(now)
        recipe = self.recipe
        return {
            "system": recipe.system,
            "method": recipe.gradient.method,
            "trunc": recipe.gradient.trunc,
            "updates": recipe.inference.updates,
            "epochs": self.position - 1,
            "best": {key: best[key] for key in ("epoch", "validation")},
            "test": test,
        }
