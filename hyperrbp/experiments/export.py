"""Exports tuned hyperparameters as code for the next training script."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hyperrbp.config.recipe import describe_tuner
from hyperrbp.data.sources import kind_of

if TYPE_CHECKING:
    from torch import Tensor

    from hyperrbp.config.recipe import Recipe
    from hyperrbp.experiments.results.tune import TuneResult
    from hyperrbp.problems.training.hyperparameters import Layout

WEIGHT_DECAY, EXAMPLE_WEIGHTS = "weight_decay.safetensors", "example_weights.safetensors"
"""Files beside the code, for what is too much to be written into it."""

_FORMS = {
    "maclaurin": "The run used v' = βv − (1−β)g, w' = w + αv'; here lr = α(1−β) and momentum = β,\n"
    "which is the same training in exact arithmetic (the buffer is −v/(1−β)).",
    "sgd": "The run used this very update.",
}

_HEADING = '''"""Parameter groups for torch.optim.SGD, tuned by hyperrbp {version}.

{run}

{uses}

{form}
"""
'''

_CONSTANT = '''
SETTINGS = {settings}


def settings(step=0):
    """What ``torch.optim.SGD`` is given for every tensor, by its name."""
    return SETTINGS
'''

_STRETCHES = '''
STEPS = {steps}  # of the run; its stretches are equal parts of it
LEARNING_RATE = {learning_rate}
MOMENTUM = {momentum}
WEIGHT_DECAY = {weight_decay}


def settings(step=0):
    """What ``torch.optim.SGD`` is given for every tensor at a training step, by its name."""
    step = min(step, STEPS - 1)
    rates = LEARNING_RATE[step * len(LEARNING_RATE) // STEPS]
    momenta = MOMENTUM[step * len(MOMENTUM) // STEPS]
    return {{
        name: {{
            "lr": rates[name]{gain},
            "momentum": momenta[name],
            "weight_decay": WEIGHT_DECAY[name],
        }}
        for name in rates
    }}
'''

_GROUPS = '''

def parameter_groups(model):
    """One group a parameter tensor, by the names of ``model.named_parameters()``."""
    parameters = dict(model.named_parameters())
    if parameters.keys() != settings().keys():
        different = sorted(parameters.keys() ^ settings().keys())
        raise ValueError(f"not the network that was tuned; tensors that differ: {different}")
    return [
        {"params": [parameters[name]], "name": name, "dampening": 0, **of}
        for name, of in settings().items()
    ]
'''

_SET_STRETCH = '''

def set_stretch(optimizer, step):
    """Before each ``optimizer.step()``, with the number of those that were taken before."""
    for group in optimizer.param_groups:
        now = settings(step)[group["name"]]
{rescale}        group.update(now)
'''

_RESCALE = """\
        if now["momentum"] != group["momentum"]:
            # The velocity goes on: v = −(1 − momentum) buffer, with another momentum from here on.
            for parameter in group["params"]:
                buffer = optimizer.state[parameter].get("momentum_buffer")
                if buffer is not None:
                    buffer.mul_((1 - group["momentum"]) / (1 - now["momentum"]))
"""

_INIT_SCALE = '''

# Of initial weights as the recipe has them, model.init_std: {init_std}.
INIT_SCALE = {scales}


def scale_initial_weights(model):
    """Once, before the training."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.mul_(INIT_SCALE[name])
'''

_DECAY_BY_WEIGHT = '''

@cache
def weight_decay():
    """One weight decay for every weight, flat, by the name of its tensor."""
    return load_file(Path(__file__).with_name("{file}"))


def add_weight_decay(model):
    """Between ``loss.backward()`` and ``optimizer.step()``: λ∘w is added to the gradient."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            decay = weight_decay()[name].to(parameter).view_as(parameter)
            parameter.grad.addcmul_(decay, parameter)
'''

_EXAMPLES = '''

@cache
def example_weights():
    """(rows, weights): examples of the training data by their number, and the weight of each.

    Numbered from 0, {numbered}.
    The loss of a minibatch is ``(weights * losses).mean()``, with the loss of each example.
    """
    found = load_file(Path(__file__).with_name("{file}"))
    return found["rows"], found["weights"]
'''

_NUMBERED = {
    "file.npz": "as in x_train or inputs",
    "folder/": "as the image files of train/ are sorted",
    "torchvision:NAME": "as torchvision's training part has them",
    "file.py:function": "as in the data to train on that the function returns",
}
"""How examples are numbered, for each kind of data of the user's own."""


@dataclass(frozen=True)
class Export:
    """A module for ``torch.optim.SGD``, and the tensors that it reads."""

    code: str
    """Its source."""
    tensors: Mapping[str, Mapping[str, Tensor]]
    """By the name of the file beside it."""


def export_sgd(
    layout: Layout, theta: Tensor, result: TuneResult, recipe: Recipe, rows: Tensor
) -> Export:
    """Write θ as the source of a module for ``torch.optim.SGD``.

    Args:
        layout: where in θ everything stands.
        theta: the hyperparameters, shape (p,).
        result: of the run, for the heading.
        recipe: of the run.
        rows: which examples of the training data it was trained on, by their numbers there.
    """
    module = _Module(layout, theta.detach(), recipe)
    if "example_weight" in layout.grains:
        module.add_example_weights(rows)
    if module.decays_by_weight:
        module.add_decay_by_weight()
    if module.scheduled:
        module.add_schedule()
    if "init_scale" in layout.grains:
        module.add_init_scale()
    return Export(module.source(result), module.tensors)


class _Module:
    """The parts of the module, as they are put together."""

    def __init__(self, layout: Layout, theta: Tensor, recipe: Recipe) -> None:
        self._layout, self._theta, self._recipe = layout, theta, recipe
        self.tensors: dict[str, dict[str, Tensor]] = {}
        self._functions: list[str] = []
        self._before = ["optimizer = torch.optim.SGD(parameter_groups(model))"]
        self._in_each_step: list[str] = []
        self._rates, self._momenta = map(self._by_stretch, ("learning_rate", "momentum"))
        self._decays = (
            dict.fromkeys(layout.tensors, 0.0)
            if self.decays_by_weight
            else self._by_stretch("weight_decay")[0]
        )

    @property
    def decays_by_weight(self) -> bool:
        """Whether every weight has a weight decay of its own."""
        grain = self._layout.grains.get("weight_decay")
        return grain is not None and grain.by == "weight"

    @property
    def scheduled(self) -> bool:
        """Whether something changes during the run."""
        return max(len(self._rates), len(self._momenta)) > 1

    def add_example_weights(self, rows: Tensor) -> None:
        """Add the weights of the examples, which the training loop applies."""
        kind = kind_of(self._recipe.data.name)
        numbered = "as the data set has them" if kind is None else _NUMBERED[kind]
        self._functions.append(_EXAMPLES.format(file=EXAMPLE_WEIGHTS, numbered=numbered))
        weights = self._layout.natural(self._theta)[self._layout.slices["example_weight"]]
        self.tensors[EXAMPLE_WEIGHTS] = {"rows": rows, "weights": weights}
        self._before.insert(0, "rows, weights = example_weights()")
        self._in_each_step.append("(weights[minibatch] * losses).mean().backward()")

    def add_decay_by_weight(self) -> None:
        """Add the weight decay of each weight, which is added to the gradient."""
        self._functions.append(_DECAY_BY_WEIGHT.format(file=WEIGHT_DECAY))
        each = self._layout.by_tensor(self._theta, "weight_decay", 0)
        self.tensors[WEIGHT_DECAY] = dict(zip(self._layout.tensors, each, strict=True))
        self._in_each_step.append("add_weight_decay(model)")

    def add_schedule(self) -> None:
        """Add what sets learning rates and momenta during the run."""
        rescale = _RESCALE if self._recipe.inner.optimizer == "maclaurin" else ""
        self._functions.append(_SET_STRETCH.format(rescale=rescale))
        self._in_each_step.append(
            "set_stretch(optimizer, step)  # step: how many were taken before"
        )

    def add_init_scale(self) -> None:
        """Add what scales the initial weights."""
        scales = _literal(self._by_stretch("init_scale")[0])
        std = self._recipe.model.init_std
        self._functions.append(_INIT_SCALE.format(init_std=std, scales=scales))
        self._before.insert(0, "scale_initial_weights(model)")

    def source(self, result: TuneResult) -> str:
        """Return the source of the module."""
        lines = "".join(f"{line}\n" for line in ["", *self._imports()] if self._imports())
        functions = "".join([self._settings(), _GROUPS, *self._functions])
        return self._heading(result) + lines + functions

    def _heading(self, result: TuneResult) -> str:
        uses, best, gradient = list(self._before), result.best, self._recipe.gradient
        if self._in_each_step:
            uses += ["", "# And in each training step:", *self._in_each_step, "optimizer.step()"]
        how = describe_tuner(self._recipe.meta.optimizer, gradient.method, gradient.trunc)
        return _HEADING.format(
            version=result.environment["hyperrbp"],
            run=f"Meta loss {best.meta_loss:.6g} after {best.meta_step} meta steps of"
            f" {how}, {result.train_steps} training steps each.",
            uses="\n".join(f"    {line}".rstrip() for line in uses),
            form=_FORMS[self._recipe.inner.optimizer],
        )

    def _imports(self) -> list[str]:
        files = bool(self.tensors)
        torch = self.decays_by_weight or "init_scale" in self._layout.grains
        return [
            *(["from functools import cache", "from pathlib import Path", ""] if files else []),
            *(["import torch"] if torch else []),
            *(["from safetensors.torch import load_file"] if files else []),
        ]

    def _settings(self) -> str:
        """Return the function ``settings`` of the module, and its constants."""
        update = self._recipe.inner.optimizer
        if not self.scheduled:
            constant = sgd_settings(self._rates[0], self._momenta[0], self._decays, update)
            return _CONSTANT.format(settings=_literal(constant))
        return _STRETCHES.format(
            steps=self._recipe.inner.steps,
            learning_rate=_literal(self._rates),
            momentum=_literal(self._momenta),
            weight_decay=_literal(self._decays),
            gain=" * (1 - momenta[name])" if update == "maclaurin" else "",
        )

    def _by_stretch(self, kind: str) -> list[dict[str, float]]:
        """Return the natural values of a kind by tensor, for each of its stretches of the run."""
        layout, theta = self._layout, self._theta
        if kind not in layout.grains:
            return [dict.fromkeys(layout.tensors, layout.fixed[kind])]
        count = layout.grains[kind].segments
        return [
            dict(
                zip(layout.tensors, map(float, layout.by_tensor(theta, kind, segment)), strict=True)
            )
            for segment in range(0, layout.segments, layout.segments // count)
        ]


def sgd_settings(
    rates: Mapping[str, float],
    momenta: Mapping[str, float],
    decays: Mapping[str, float],
    update: str,
) -> dict[str, dict[str, float]]:
    """Return by tensor what ``torch.optim.SGD`` with dampening 0 is given for α, β and λ.

    The update of Maclaurin et al. (2015) is that optimizer with lr = α(1 − β) and momentum β.
    """
    return {
        name: {
            "lr": rate * (1 - momenta[name]) if update == "maclaurin" else rate,
            "momentum": momenta[name],
            "weight_decay": decays[name],
        }
        for name, rate in rates.items()
    }


def _literal(value: Any, indent: int = 0) -> str:
    """Return Python source of nested numbers: a line an entry, but one for a tensor's settings."""
    inner, end = " " * (indent + 4), " " * indent
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else f'float("{value}")'
    if isinstance(value, list):
        rows = "".join(f"{inner}{_literal(each, indent + 4)},\n" for each in value)
        return f"[\n{rows}{end}]"
    if "lr" in value and indent:
        return "{" + ", ".join(f"{json.dumps(k)}: {_literal(v)}" for k, v in value.items()) + "}"
    rows = "".join(
        f"{inner}{json.dumps(name)}: {_literal(each, indent + 4)},\n"
        for name, each in value.items()
    )
    return f"{{\n{rows}{end}}}"
