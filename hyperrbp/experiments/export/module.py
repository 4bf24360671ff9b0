"""Puts the module together that sets up the optimizer of PyTorch as a run was tuned."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hyperrbp.config.recipe import describe_tuner
from hyperrbp.data.sources import kind_of
from hyperrbp.experiments.export import templates
from hyperrbp.experiments.export.literals import literal
from hyperrbp.experiments.export.settings import Settings
from hyperrbp.experiments.export.training_loop import training_step
from hyperrbp.problems.training.schedules import IN_PYTHON
from hyperrbp.runtime import user_code

if TYPE_CHECKING:
    from torch import Tensor

    from hyperrbp.config.recipe import Recipe
    from hyperrbp.experiments.results.tune import TuneResult
    from hyperrbp.problems.training.run import TrainingRun

WEIGHT_DECAY, EXAMPLE_WEIGHTS = "weight_decay.safetensors", "example_weights.safetensors"
"""Files beside the code, for what is too much to be written into it."""


@dataclass(frozen=True)
class Export:
    """A module that sets up an optimizer of PyTorch, and the tensors that it reads."""

    code: str
    """Its source."""
    tensors: Mapping[str, Mapping[str, Tensor]]
    """By the name of the file beside it."""


def export_groups(
    run: TrainingRun, theta: Tensor, result: TuneResult, recipe: Recipe, rows: Tensor
) -> Export:
    """Write θ as the source of a module for ``torch.optim``.

    Args:
        run: the inner run that was tuned.
        theta: the hyperparameters, shape (p,).
        result: of the tuning, for the heading.
        recipe: of the tuning.
        rows: which examples of the training data it was trained on, by their numbers there.
    """
    module = _Module(run, theta.detach(), recipe)
    module.add_optimizer()
    if "example_weight" in run.layout.grains:
        module.add_example_weights(rows)
    if module.settings.decays_by_weight:
        module.add_decay_by_weight()
    if module.scheduled:
        module.add_schedule()
    if "init_scale" in run.layout.grains:
        module.add_init_scale()
    return Export(module.source(result), module.tensors)


class _Module:
    """The parts of the module, as they are put together."""

    def __init__(self, run: TrainingRun, theta: Tensor, recipe: Recipe) -> None:
        self._run, self._layout, self._theta, self._recipe = run, run.layout, theta, recipe
        self._form = run.rule.in_torch
        self.settings = Settings(run, theta)
        self.tensors: dict[str, dict[str, Tensor]] = {}
        self._constants: list[str] = []
        self._functions: list[str] = []
        self._before: list[str] = []
        self._before_step: list[str] = []
        self._modules: set[str] = set()
        self._follows_shape = not run.schedule.constant or bool(
            set(run.layout.grains) & set(run.schedule.kinds)
        )

    @property
    def scheduled(self) -> bool:
        """Whether something changes during the run."""
        return bool(self.settings.changing) or self._follows_shape

    @property
    def _optimizer(self) -> str:
        """The class of the optimizer; one that only the user can have has a name to fill in."""
        return "YourOptimizer" if self._form is None else self._form.optimizer

    def add_optimizer(self) -> None:
        """Add the settings of every tensor, and the groups of parameters."""
        when = "\n# What changes on the way is that of the first step." * bool(
            self.settings.changing
        )
        if self._follows_shape:
            when += "\n# Learning rates are those at the peak of the schedule."
        self._constants.append(
            templates.SETTINGS.format(
                steps=self._run.steps,
                optimizer=self._optimizer,
                when=when,
                settings=literal(self.settings.first, 1),
            )
        )
        if self._form is not None and self._form.source:
            self._modules.add("torch")
            self._functions.append(f"\n\n{self._form.source}")
        self._functions.append(templates.GROUPS)
        self._before.append(f"optimizer = {self._optimizer}(parameter_groups(model))")

    def add_example_weights(self, rows: Tensor) -> None:
        """Add the weights of the examples, which the training loop applies."""
        kind = kind_of(self._recipe.data.name)
        numbered = "as the data set has them" if kind is None else templates.NUMBERED[kind]
        self._functions.append(templates.EXAMPLES.format(file=EXAMPLE_WEIGHTS, numbered=numbered))
        weights = self._layout.natural(self._theta)[self._layout.slices["example_weight"]]
        self.tensors[EXAMPLE_WEIGHTS] = {"rows": rows, "weights": weights}
        self._before.insert(0, "rows, weights = example_weights()")

    def add_decay_by_weight(self) -> None:
        """Add the weight decay of each weight, and what applies it as the update rule does."""
        each = self._layout.by_tensor(self._theta, "weight_decay", 0)
        self.tensors[WEIGHT_DECAY] = dict(zip(self._layout.tensors, each, strict=True))
        self._functions.append(templates.DECAY_BY_WEIGHT.format(file=WEIGHT_DECAY))
        if self._form is None:
            return
        self._modules.add("torch")
        if self._form.decoupled_decay:
            self._functions.append(templates.SHRINK)
            self._before_step.append("shrink_weights(optimizer)")
        else:
            self._functions.append(templates.ADD_DECAY)
            self._before_step.append("add_weight_decay(model)")

    def add_schedule(self) -> None:
        """Add what sets learning rates, and other settings, during the run."""
        self._modules.add("torch")
        changing = self.settings.changing
        if changing:
            values = {key: list(each) for key, each in changing.items()}
            self._constants.append(templates.STRETCHES.format(values=literal(values, 3)))
            self._functions.append(templates.IN_STRETCH)
        if self._follows_shape:
            self._add_factor()
        scheduler = "torch.optim.lr_scheduler.LambdaLR"
        if set(changing) - {"lr"}:
            scheduler = "Scheduler"
            source = "" if self._form is None else self._form.before_change
            self._functions.append(
                templates.SCHEDULER.format(before_change=textwrap.indent(source, " " * 12))
            )
        self._functions.append(templates.SCHEDULE.format(body=self._schedule(scheduler)))
        self._before.append("scheduler = schedule(optimizer)")

    def _schedule(self, scheduler: str) -> str:
        """Return the body of the function ``schedule``."""
        if "lr" not in self.settings.changing:
            factor = "factor" if self._follows_shape else "lambda step: 1.0"
            return f"    return {scheduler}(optimizer, {factor})"
        shape = "factor(step) * " if self._follows_shape else ""
        return (
            "\n    def of(name):\n"
            '        first = SETTINGS[name]["lr"]\n'
            f'        return lambda step: {shape}in_stretch("lr", step)[name] / first\n'
            "\n"
            f"    return {scheduler}(\n"
            '        optimizer, [of(group["name"]) for group in optimizer.param_groups]\n'
            "    )"
        )

    def _add_factor(self) -> None:
        """Add the shape of the schedule, and its hyperparameters."""
        schedule = self._run.schedule
        (warmup,) = self.settings.of_net("warmup_share")
        constants = [f"WARMUP_SHARE = {warmup!r}  # of the steps"]
        if "end_share" in schedule.kinds:
            (end,) = self.settings.of_net("end_share")
            constants.append(f"END_SHARE = {end!r}  # of the peak")
        if "knots" in schedule.kinds:
            tuned = "knots" in self._layout.grains
            knots = self.settings.of_net("knots") if tuned else list(map(float, schedule.knots))
            constants.append(f"KNOTS = {literal(knots, 0)}  # evenly spaced, factors of the peak")
        self._constants.append("\n" + "".join(f"{line}\n" for line in constants))
        shape = IN_PYTHON.get(schedule.shape)
        lines = templates.WARMING
        if shape is None:
            lines += "    return warming"
        else:
            if "math." in shape:
                self._modules.add("math")
            lines += f"{templates.AFTER_WARMUP}    shape = {shape}\n    return warming * shape"
        self._functions.append(templates.FACTOR.format(lines=lines))

    def add_init_scale(self) -> None:
        """Add what scales the initial weights."""
        self._modules.add("torch")
        scales = literal(self.settings.by_tensor("init_scale"), 1)
        std = self._recipe.model.init_std
        self._functions.append(templates.INIT_SCALE.format(init_std=std, scales=scales))
        self._before.insert(0, "scale_initial_weights(model)")

    def source(self, result: TuneResult) -> str:
        """Return the source of the module."""
        body = "".join([*self._constants, *self._functions])
        imports = self._imports()
        lines = "".join(f"{line}\n" for line in ["", *imports] if imports)
        return self._heading(result) + lines + body

    def _heading(self, result: TuneResult) -> str:
        best, gradient = result.best, self._recipe.gradient
        step = training_step(
            self._recipe.inner,
            weighted="example_weight" in self._layout.grains,
            before_step=self._before_step,
            scheduled=self.scheduled,
        )
        uses = [*self._before, "", "# And in each training step:", *step]
        how = describe_tuner(self._recipe.meta.optimizer, gradient.method, gradient.trunc)
        return templates.HEADING.format(
            title=f"Parameter groups for {self._optimizer}"
            if self._form is not None
            else "Parameter groups",
            version=result.environment["hyperrbp"],
            run=f"Meta loss {best.meta_loss:.6g} after {best.meta_step} meta steps of"
            f" {how}, {result.train_steps} training steps each.",
            uses="\n".join(f"    {line}".rstrip() for line in uses),
            notes="\n".join(self._notes()),
        )

    def _notes(self) -> list[str]:
        if self._form is not None:
            notes = [self._form.note]
        else:
            name = self._recipe.inner.optimizer
            rule = user_code.described(name) if user_code.is_code(name) else self._run.rule.name
            notes = [
                f"The update rule of the run is that of {rule}: YourOptimizer is a",
                "torch.optim.Optimizer that makes its updates.",
            ]
            if self.settings.decays_by_weight:
                notes.append("weight_decay() has the weight decay of every weight.")
        if self.scheduled:
            notes += [
                "",
                "To go on with a training that was interrupted, make optimizer and scheduler as",
                "above, and then call load_state_dict of both.",
            ]
        return notes

    def _imports(self) -> list[str]:
        files = bool(self.tensors)
        standard = [
            *(["import math"] if "math" in self._modules else []),
            *(["from functools import cache", "from pathlib import Path"] if files else []),
        ]
        others = [
            *(["import torch"] if "torch" in self._modules else []),
            *(["from safetensors.torch import load_file"] if files else []),
        ]
        return [*standard, *([""] if standard and others else []), *others]
