"""Tuned hyperparameters as code for the next training script."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
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
    "pytorch": "The run used this very update.",
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
"""In which order, for each kind of data of the user's own."""


def exported(
    layout: Layout, theta: Tensor, result: TuneResult, recipe: Recipe, rows: Tensor
) -> tuple[str, dict[str, dict[str, Tensor]]]:
    """The source of a module for ``torch.optim.SGD`` with θ, and the tensors it reads, by file.

    Args:
        layout: where in θ everything stands.
        theta: the hyperparameters, shape (p,).
        result: of the run, for the heading.
        recipe: of the run.
        rows: which examples of the training data it was trained on, by their numbers there.
    """
    theta, update = theta.detach(), recipe.inner.update
    by_weight = "weight_decay" in layout.grains and layout.grains["weight_decay"].by == "weight"
    scaled = "init_scale" in layout.grains
    rates, momenta = (_by_stretch(layout, theta, kind) for kind in ("learning_rate", "momentum"))
    decays = (
        dict.fromkeys(layout.tensors, 0.0)
        if by_weight
        else _by_stretch(layout, theta, "weight_decay")[0]
    )
    tensors: dict[str, dict[str, Tensor]] = {}
    uses = ["optimizer = torch.optim.SGD(parameter_groups(model))"]
    parts = [
        _CONSTANT.format(settings=_literal(sgd_settings(rates[0], momenta[0], decays, update))),
        _GROUPS,
    ]
    loop = []
    if "example_weight" in layout.grains:
        kind = kind_of(recipe.data.name)
        numbered = "as the data set has them" if kind is None else _NUMBERED[kind]
        parts.append(_EXAMPLES.format(file=EXAMPLE_WEIGHTS, numbered=numbered))
        weights = layout.natural(theta)[layout.slices["example_weight"]]
        tensors[EXAMPLE_WEIGHTS] = {"rows": rows, "weights": weights}
        uses.insert(0, "rows, weights = example_weights()")
        loop.append("(weights[minibatch] * losses).mean().backward()")
    if by_weight:
        parts.append(_DECAY_BY_WEIGHT.format(file=WEIGHT_DECAY))
        each = layout.by_tensor(theta, "weight_decay", 0)
        tensors[WEIGHT_DECAY] = dict(zip(layout.tensors, each, strict=True))
        loop.append("add_weight_decay(model)")
    if max(len(rates), len(momenta)) > 1:
        parts[0] = _STRETCHES.format(
            steps=recipe.inner.steps,
            learning_rate=_literal(rates),
            momentum=_literal(momenta),
            weight_decay=_literal(decays),
            gain=" * (1 - momenta[name])" if update == "maclaurin" else "",
        )
        parts.append(_SET_STRETCH.format(rescale=_RESCALE if update == "maclaurin" else ""))
        loop.append("set_stretch(optimizer, step)  # step: how many were taken before")
    if scaled:
        scales = _by_stretch(layout, theta, "init_scale")[0]
        parts.append(_INIT_SCALE.format(init_std=recipe.model.init_std, scales=_literal(scales)))
        uses.insert(0, "scale_initial_weights(model)")
    if loop:
        uses += ["", "# And in each training step:", *loop, "optimizer.step()"]
    best, gradient = result.best, recipe.gradient
    heading = _HEADING.format(
        version=result.environment["hyperrbp"],
        run=f"Meta loss {best.meta_loss:.6g} after {best.meta_step} meta steps of"
        f" {describe_tuner(recipe.meta.optimizer, gradient.method, gradient.trunc)},"
        f" {result.train_steps} training steps each.",
        uses="\n".join(f"    {line}".rstrip() for line in uses),
        form=_FORMS[update],
    )
    imports = [
        *(["from functools import cache", "from pathlib import Path", ""] if tensors else []),
        *(["import torch"] if by_weight or scaled else []),
        *(["from safetensors.torch import load_file"] if tensors else []),
    ]
    lines = "".join(f"{line}\n" for line in ["", *imports] if imports)
    return heading + lines + "".join(parts), tensors


def sgd_settings(
    rates: Mapping[str, float],
    momenta: Mapping[str, float],
    decays: Mapping[str, float],
    update: str,
) -> dict[str, dict[str, float]]:
    """By tensor, what ``torch.optim.SGD`` with dampening 0 is given for α, β and λ.

    The update of Maclaurin et al. (2015) is that optimizer with lr = α(1 − β) and momentum β.
    """
    from hyperrbp.problems.training.update_rules import UPDATE_RULES

    effective = UPDATE_RULES[update].effective_rate
    return {
        name: {
            "lr": effective(rate, momenta[name]),
            "momentum": momenta[name],
            "weight_decay": decays[name],
        }
        for name, rate in rates.items()
    }


def _by_stretch(layout: Layout, theta: Tensor, kind: str) -> list[dict[str, float]]:
    """The natural values of a kind by tensor, for each of its own stretches of the run."""
    if kind not in layout.grains:
        return [dict.fromkeys(layout.tensors, layout.fixed[kind])]
    count = layout.grains[kind].segments
    return [
        dict(zip(layout.tensors, map(float, layout.by_tensor(theta, kind, segment)), strict=True))
        for segment in range(0, layout.segments, layout.segments // count)
    ]


def _literal(value: Any, indent: int = 0) -> str:
    """Python source of numbers in mappings and lists, an entry a line but for a tensor's own."""
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
