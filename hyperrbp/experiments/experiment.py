"""From a validated recipe to the problem that it describes."""

from __future__ import annotations

import math
import platform
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from hyperrbp.config.recipe import Recipe
from hyperrbp.config.schema import AnyRecipe
from hyperrbp.data.batches import Batch, ShuffledBatches
from hyperrbp.data.builtin import data_root
from hyperrbp.exceptions import DataError, DeviceError, UsageError
from hyperrbp.experiments import data_module as examples
from hyperrbp.experiments import evaluation as heldout
from hyperrbp.experiments.sanity_check import look
from hyperrbp.hypergradients import Averaging
from hyperrbp.hypergradients.settings import GradientSettings
from hyperrbp.optimizers.adam import AdamSettings
from hyperrbp.problems.networks import MODELS, TORCHVISION
from hyperrbp.problems.training.hidden_state import refuse_hidden_state
from hyperrbp.problems.training.hyperparameters import Grain, Hyperparameters
from hyperrbp.problems.training.run import TrainingRun
from hyperrbp.runtime import user_code
from hyperrbp.runtime.randomness import generator, seeded


class Experiment:
    """A recipe with its device chosen and its data at hand.

    Args:
        recipe: what to build.
        root: the data root; see :func:`hyperrbp.data.builtin.data_root`.

    Raises:
        DeviceError: if the recipe asks for a device that is not there.
        DataError: if its data are missing, damaged or too few.
    """

    def __init__(self, recipe: Recipe, root: Path | None = None) -> None:
        self.device, filled_in = device_and_threads(recipe)
        self.recipe = recipe.model_copy(update=filled_in)
        """The recipe as it is run: the device and the number of threads are filled in."""
        self._dtype = {"float32": torch.float32, "float64": torch.float64}[recipe.dtype]
        if self.device.type == "cuda":
            # Or what ran before would decide whether its generators are seeded for the user's code.
            torch.cuda.init()  # type: ignore[no-untyped-call]  # torch's is untyped
        self._modules = user_code.Modules()
        self._code = dict(self._digests())
        self._examples = examples.read(recipe, data_root(root), self._modules)
        self.train, self.validation = self._split(self._examples.train)
        self.heldout = self._prepared(self._examples.heldout)
        self._models: dict[int, TrainingRun] = {}

    def _digests(self) -> Iterator[tuple[str, str]]:
        """Of the user's own code, as it is now."""
        recipe = self.recipe
        for key, name in (
            ("data code", recipe.data.name),
            ("model code", recipe.model.name),
            ("loss code", recipe.inner.loss),
        ):
            if user_code.is_code(name) and (digest := self._modules.digest(name)):
                yield key, digest

    def _split(self, train: Batch) -> tuple[Batch, Batch | None]:
        section = self.recipe.data
        wanted = section.train_examples or len(train)
        kept = wanted - section.validation_examples
        if wanted > len(train) or self.recipe.inner.batch_size > kept:
            raise DataError(
                f"data set '{section.name}' has {len(train)} training examples; the recipe needs"
                f" {max(wanted, self.recipe.inner.batch_size + section.validation_examples)}"
            )
        numbers = torch.arange(wanted) if train.rows is None else train.rows[:wanted]
        train = Batch(train.inputs[:wanted], train.targets[:wanted])
        self._center = train.inputs.mean(0) if section.center else None
        train = self._prepared(train)
        self.train_rows = numbers
        """Which examples of the data set are trained on, by their numbers there, shape (B,)."""
        if not section.validation_examples:
            return self._noisy(train), None
        # Which examples are held back depends on the seed alone; the rest keep their order.
        order = torch.randperm(wanted, generator=generator(self.recipe.seed, "validation split"))
        back = order[: section.validation_examples].sort().values.to(self.device)
        left = order[section.validation_examples :].sort().values
        self.train_rows, stay = numbers[left], left.to(self.device)
        return (
            self._noisy(Batch(train.inputs[stay], train.targets[stay])),
            Batch(train.inputs[back], train.targets[back]),
        )

    def _noisy(self, train: Batch) -> Batch:
        """With the classes of some examples replaced by others, each other one as likely."""
        draw = generator(self.recipe.seed, "label noise")
        count = round(self.recipe.data.label_noise * len(train))
        self.mislabelled = torch.zeros(len(train), dtype=torch.bool)
        """Which training examples have a wrong class, by ``data.label_noise``; shape (B,)."""
        if not count:
            return train
        if self._examples.loss_name != "cross-entropy":
            raise UsageError("data.label_noise needs classes, for the loss cross-entropy")
        classes = self._examples.outputs
        wrong = torch.randperm(len(train), generator=draw)[:count]
        self.mislabelled[wrong] = True
        shift = torch.randint(1, classes, (count,), generator=draw)
        targets = train.targets.clone()
        wrong = wrong.to(targets.device)
        targets[wrong] = (targets[wrong] + shift.to(targets.device)) % classes
        return Batch(train.inputs, targets)

    def _prepared(self, examples: Batch) -> Batch:
        inputs = examples.inputs if self._center is None else examples.inputs - self._center
        prepared = Batch(
            inputs.to(self.device, self._dtype), examples.targets.to(self.device)
        ).in_precision(self._dtype)
        for what, tensor in zip(("inputs", "targets"), prepared[:2], strict=True):
            if tensor.is_floating_point() and not tensor.isfinite().all():
                name, dtype = self.recipe.data.name, self.recipe.dtype
                raise DataError(f"data set '{name}': {what} too large for {dtype}")
        return prepared

    @property
    def data_tensors(self) -> list[torch.Tensor]:
        """The data set, which a meter of what a gradient keeps leaves out."""
        parts = (self.train, self.validation, self.heldout)
        return [tensor for examples in parts if examples for tensor in examples[:2]]

    def problem(self, meta_step: int = 0) -> TrainingRun:
        """The inner run of a meta step: the same one every time unless ``inner.fresh``."""
        draw = meta_step if self.recipe.inner.fresh else 0
        if draw not in self._models:
            self._models = {draw: self._draw(draw)}
        return self._models[draw]

    def unseen(self, number: int) -> TrainingRun:
        """The inner run from initial weights and with batches that no meta step has."""
        return self._draw(0, generator(self.recipe.seed, "test", number).initial_seed())

    def _draw(self, draw: int, seed: int | None = None) -> TrainingRun:
        recipe, inner = self.recipe, self.recipe.inner
        seed = recipe.seed if seed is None else seed
        # A layer initializes itself from the global generators.
        with seeded(generator(seed, "model", draw).initial_seed()):
            model = self._built()
        refuse_hidden_state(model)
        model.to(self.device, self._dtype).requires_grad_(False)
        weights = None
        if recipe.model.init_std is not None:
            count = sum(tensor.numel() for tensor in model.parameters())
            weights = torch.empty(count, dtype=self._dtype)
            source = generator(seed, "initial weights", draw)
            weights.normal_(0, recipe.model.init_std, generator=source)
            weights = weights.to(self.device)
        # Seeds of two draws never meet: each stands for (seed, draw) in the batches' own purpose.
        batch_seed = generator(seed, "batch order", draw).initial_seed()
        run = TrainingRun(
            model,
            ShuffledBatches(self.train, inner.batch_size, batch_seed),
            steps=inner.steps,
            meta_examples=self.validation if recipe.meta.loss == "validation" else None,
            loss=self._examples.loss,
            update=inner.update,
            initial_weights=weights,
            hyperparameters=self._hyperparameters(),
        )
        look(run, self.train, recipe, self._examples)
        return run

    def _built(self) -> torch.nn.Module:
        section = self.recipe.model
        features, outputs = self._examples.shape, self._examples.outputs
        if section.name in MODELS:
            return MODELS[section.name](**section.options).build(features, outputs)
        if section.name.startswith(TORCHVISION):
            from hyperrbp.problems import torchvision_networks as torchvision_models

            kind = section.name.removeprefix(TORCHVISION)
            assert not isinstance(features, int)
            return torchvision_models.build(kind, features, outputs, section.options)
        built = self._modules.run(section.name, features, outputs, **section.options)
        if not isinstance(built, torch.nn.Module):
            raise UsageError(
                f"{user_code.described(section.name)} made {type(built).__name__}; expected a"
                " torch.nn.Module"
            )
        return built

    def _hyperparameters(self) -> Hyperparameters:
        inner = self.recipe.inner
        return Hyperparameters(
            {
                kind: Grain(by, segments)
                for kind, (by, segments, _) in self.recipe.hyperparameters.tuned().items()
            },
            {
                "learning_rate": inner.learning_rate,
                "momentum": inner.momentum,
                "weight_decay": inner.weight_decay,
            },
        )

    @cached_property
    def theta(self) -> torch.Tensor:
        """θ at the untuned start, shape (p,)."""
        inner = self.recipe.inner
        return self.problem().initial_theta(
            inner.learning_rate, inner.momentum, weight_decay=inner.weight_decay
        )

    @cached_property
    def box(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The lowest and the highest θ that a search draws, shape (p,) each."""
        ranges = {kind: box for kind, (_, _, box) in self.recipe.hyperparameters.tuned().items()}
        layout = self.problem().layout
        low, high = (
            layout.uniform({kind: box[end] for kind, box in ranges.items()}, self.theta)
            for end in (0, 1)
        )
        return low, high

    @property
    def gradient(self) -> GradientSettings:
        """How the recipe wants its loss differentiated."""
        return gradient_settings(self.recipe)

    @property
    def meta(self) -> AdamSettings:
        """How the recipe wants its meta loss descended."""
        section, decay = self.recipe.meta, self.recipe.meta.decay
        return AdamSettings(
            steps=section.steps,
            learning_rate=section.learning_rate,
            decay=1.0 if decay is None else decay.factor,
            decay_from=0 if decay is None else decay.from_step,
            max_rollbacks=section.max_rollbacks if section.on_divergence == "rollback" else 0,
            patience=section.patience,
        )

    def inner_curve(
        self, meta_step: int, theta: torch.Tensor, points: int = 200
    ) -> list[tuple[int, float]]:
        """(training step, loss on its minibatch) along one inner run, evenly spaced."""
        problem = self.problem(meta_step)
        stride = math.ceil(problem.steps / points)
        h, curve = problem.initial_state(theta), []
        for t in range(0, problem.steps, stride):
            curve.append((t, problem.batch_loss(h, t)))
            h = problem.run(theta, t, min(t + stride, problem.steps), h)
        return curve

    def heldout_measures(self, problem: TrainingRun, h: torch.Tensor) -> dict[str, float]:
        """What the weights of a state are worth on the held-out examples."""
        return heldout.measures(problem, h, self.heldout, self._examples.loss_name)

    def environment(self) -> dict[str, str | int]:
        """What the bits of a result depend on, besides the recipe."""
        data = self._examples.digest
        return environment(self.device) | ({} if data is None else {"data": data}) | self._code


def gradient_settings(recipe: Recipe) -> GradientSettings:
    """How a recipe wants its loss differentiated."""
    section = recipe.gradient
    return GradientSettings(
        method=section.template,
        trunc=section.trunc,
        averaging=Averaging(**section.averaging.model_dump()),
        options=section.options.get(section.template, {}),
    )


def environment(device: torch.device) -> dict[str, str | int]:
    """What the bits of a result depend on, besides the recipe."""
    from hyperrbp import __version__

    found: dict[str, str | int] = {
        "hyperrbp": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "device": device.type,
        "threads": torch.get_num_threads(),
    }
    if device.type == "cuda":
        found["cuda_device"] = torch.cuda.get_device_name(device)
    return found


def device_and_threads(recipe: AnyRecipe) -> tuple[torch.device, dict[str, Any]]:
    """The device of a recipe, the number of threads set, and both to be filled into it.

    Raises:
        DeviceError: if the recipe asks for a device that is not there.
    """
    device = choose_device(recipe.device)
    if device == "cuda":
        # Or else a convolution has other bits the next time, and those of a shorter mantissa.
        torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32 = True, False
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    return torch.device(device), {"device": device, "threads": torch.get_num_threads()}


def choose_device(wanted: str) -> str:
    """``cpu`` or ``cuda``.

    Raises:
        DeviceError: if CUDA is asked for and is not there.
    """
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and not torch.cuda.is_available():
        built = torch.version.cuda is not None
        why = "no usable GPU was found" if built else "this build of PyTorch has no CUDA"
        raise DeviceError(f"device cuda was asked for, but {why}; use --device cpu")
    return wanted
