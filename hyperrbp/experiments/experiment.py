"""Makes the problem that a validated recipe describes."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import torch

from hyperrbp.config.cross_checks import cross_check
from hyperrbp.config.key_paths import dotted
from hyperrbp.config.recipe import Recipe
from hyperrbp.config.recipe_keys import MetaSection
from hyperrbp.data.builtin import data_root
from hyperrbp.exceptions import DataError, Fault, RecipeError, UsageError
from hyperrbp.experiments import evaluation, initial_weights
from hyperrbp.experiments.device import device_and_threads, environment
from hyperrbp.experiments.prepared_data import prepared_data
from hyperrbp.experiments.sanity_check import check_network_and_loss
from hyperrbp.hypergradients import Averaging
from hyperrbp.hypergradients.settings import GradientSettings
from hyperrbp.optimizers.adam import AdamSettings
from hyperrbp.problems.losses import smoothed_cross_entropy
from hyperrbp.problems.networks import MODELS
from hyperrbp.problems.training.hyperparameters import Grain, Hyperparameters
from hyperrbp.problems.training.run import TrainingRun
from hyperrbp.problems.training.schedules import Schedule
from hyperrbp.problems.training.update_rules import UPDATE_RULES, UpdateRule
from hyperrbp.runtime import user_code
from hyperrbp.runtime.randomness import generator, seeded
from hyperrbp.runtime.single_process import refuse_several_processes
from hyperrbp.runtime.user_code import TORCHVISION


class Experiment:
    """A recipe with its device chosen and its data at hand.

    Args:
        recipe: what to build.
        root: the data root; see ``hyperrbp.data.builtin.data_root``.

    Raises:
        UsageError: in one of several processes that a launcher has started together.
        DeviceError: if the recipe asks for a device that is not there.
        DataError: if its data are missing, damaged or too few.
    """

    def __init__(self, recipe: Recipe, root: Path | None = None) -> None:
        refuse_several_processes()
        self.device, filled_in = device_and_threads(recipe)
        self.recipe = recipe.model_copy(update=filled_in)
        """The recipe as it is run: the device and the number of threads are filled in."""
        if self.device.type == "cuda":
            # Or what ran before would decide whether its generators are seeded for the user's code.
            torch.cuda.init()  # type: ignore[no-untyped-call]  # torch's is untyped
        self._modules = user_code.Modules()
        self._code = dict(self._digests())
        self.data = prepared_data(recipe, self.device, data_root(root), self._modules)
        self.recipe = self._with_sizes(self.recipe)
        self._models: dict[int, TrainingRun] = {}
        self._examined: TrainingRun | None = None  # the first: all others are of its network

    def _with_sizes(self, recipe: Recipe) -> Recipe:
        """Return the recipe with the steps and the minibatch that the data come to.

        Raises:
            DataError: if nobody knows how long an epoch is.
            RecipeError: if so many steps do not go with the rest of the recipe.
        """
        inner = recipe.inner
        sizes: dict[str, int | None] = {"batch_size": self.data.batch_size}
        if inner.epochs is not None:
            if self.data.steps_per_epoch is None:
                raise DataError(
                    f"data set '{recipe.data.name}' does not know its length, and inner.epochs"
                    " needs it; expected inner.steps"
                )
            steps = inner.epochs * self.data.steps_per_epoch
            sizes |= {"steps": steps, "epochs": None}
        resolved = recipe.model_copy(update={"inner": inner.model_copy(update=sizes)})
        if inner.epochs is not None and (found := list(cross_check(resolved))):
            where = f"inner.epochs: {inner.epochs} are {resolved.inner.steps} steps"
            raise RecipeError([Fault(where, None, dotted(at), text) for at, text in found])
        return resolved

    def with_meta(self, meta: MetaSection) -> Experiment:
        """Return the same experiment, its data and its inner runs, under another meta section."""
        other = copy.copy(self)
        other.recipe = self.recipe.model_copy(update={"meta": meta})
        return other

    def _digests(self) -> Iterator[tuple[str, str]]:
        """Yield the digests of the user's own code, as it is now."""
        recipe = self.recipe
        for key, name in (
            ("data code", recipe.data.name),
            ("model code", recipe.model.name),
            ("loss code", recipe.inner.loss),
            ("optimizer code", recipe.inner.optimizer),
        ):
            if user_code.is_code(name) and (digest := self._modules.digest(name)):
                yield key, digest

    def problem(self, meta_step: int = 0) -> TrainingRun:
        """Return the inner run of a meta step: the same one every time unless ``inner.fresh``."""
        sample = meta_step if self.recipe.inner.fresh else 0
        if sample not in self._models:
            self._models = {sample: self._sample_run(sample)}
        return self._models[sample]

    def replicate(self, number: int) -> TrainingRun:
        """Return the inner run with initial weights and batches that no meta step has."""
        return self._sample_run(0, generator(self.recipe.seed, "test", number).initial_seed())

    def draw(self, number: int) -> TrainingRun:
        """Return one to choose the best θ on: none of a meta step, and no replicate."""
        return self._sample_run(0, generator(self.recipe.seed, "choice", number).initial_seed())

    def _sample_run(self, sample: int, seed: int | None = None) -> TrainingRun:
        recipe, inner = self.recipe, self.recipe.inner
        seed = recipe.seed if seed is None else seed
        # A layer initializes itself from the global generators.
        with seeded(generator(seed, "model", sample).initial_seed()):
            model = self._network()
        model.to(self.device, self.data.dtype)
        again = self._examined is not None
        start = initial_weights.prepare(model, recipe.model, again=again)
        # Seeds of two samples never meet: each stands for (seed, sample) in the batches' own
        # purpose.
        batch_seed = generator(seed, "batch order", sample).initial_seed()
        run = TrainingRun(
            model,
            self.data.batches(batch_seed),
            steps=inner.steps,
            meta_examples=self.data.validation if recipe.meta.loss == "validation" else None,
            loss=smoothed_cross_entropy(inner.label_smoothing)
            if inner.label_smoothing
            else self.data.loss,
            meta_loss=self.data.loss if inner.label_smoothing else None,
            optimizer=self.rule,
            schedule=Schedule(**inner.schedule.model_dump()),
            clip_norm=inner.clip_norm,
            accumulate=inner.accumulate,
            autocast=torch.bfloat16 if inner.precision == "bf16" else None,
            recalibration=inner.recalibration,
            initial_weights=start
            if start is not None
            else self._initial_weights(model, sample, seed),
            hyperparameters=self._hyperparameters(),
            seed=batch_seed,
        )
        if self._examined is None:
            check_network_and_loss(run, self.data, recipe)
        run.examine(like=self._examined)
        self._examined = self._examined or run
        return run

    @cached_property
    def rule(self) -> UpdateRule:
        """The update rule of the inner run.

        Raises:
            UsageError: if the user's own code makes something else.
        """
        name, options = self.recipe.inner.optimizer, self.recipe.inner.options
        if name in UPDATE_RULES:
            return UPDATE_RULES[name](**options)
        made = self._modules.run(name, **options)
        if not isinstance(made, UpdateRule):
            raise UsageError(
                f"{user_code.described(name)} made {type(made).__name__}; expected a"
                " hyperrbp.UpdateRule"
            )
        return made

    def _initial_weights(
        self, model: torch.nn.Module, sample: int, seed: int
    ) -> torch.Tensor | None:
        """Return normal weights of ``model.init_std``, flat; None for those of the layers."""
        std = self.recipe.model.init_std
        if std is None:
            return None
        count = sum(p.numel() for p in model.parameters() if p.requires_grad)
        weights = torch.empty(count, dtype=self.data.dtype)
        weights.normal_(0, std, generator=generator(seed, "initial weights", sample))
        return weights.to(self.device)

    def _network(self) -> torch.nn.Module:
        section = self.recipe.model
        features, outputs = self.data.shape, self.data.outputs
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
                kind: Grain(by, len(inner.schedule.knots) if kind == "knots" else segments)
                for kind, (by, segments, _) in self.recipe.hyperparameters.tuned().items()
            },
            inner.starts(),
        )

    @cached_property
    def theta(self) -> torch.Tensor:
        """θ at the untuned start, shape (p,)."""
        return self.problem().initial_theta(**self.recipe.inner.starts())

    @cached_property
    def box(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The lowest and the highest θ that a search samples, shape (p,) each."""
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
        """Return (training step, loss on its minibatch) along one inner run, evenly spaced."""
        problem = self.problem(meta_step)
        stride = math.ceil(problem.steps / points)
        h, curve = problem.initial_state(theta), []
        for t in range(0, problem.steps, stride):
            curve.append((t, problem.batch_loss(h, t)))
            h = problem.run(theta, t, min(t + stride, problem.steps), h)
        return curve

    def heldout_measures(self, problem: TrainingRun, h: torch.Tensor) -> dict[str, float]:
        """Return what the weights of a state are worth on the held-out examples."""
        return evaluation.measures(problem, h, self.data.heldout, self.data.loss_name)

    def environment(self) -> dict[str, str | int]:
        """Return what the bits of a result depend on, besides the recipe."""
        data = self.data.digest
        return environment(self.device) | ({} if data is None else {"data": data}) | self._code


def gradient_settings(recipe: Recipe) -> GradientSettings:
    """Return how a recipe wants its loss differentiated."""
    section = recipe.gradient
    return GradientSettings(
        method=section.template,
        trunc=section.trunc,
        averaging=Averaging(**section.averaging.model_dump()),
        options=section.options.get(section.template, {}),
    )
