"""Tuned hyperparameters as code for the next training script."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

_TEMPLATE = '''"""Parameter groups for torch.optim.SGD, tuned by hyperrbp {version}.

{run}

    optimizer = torch.optim.SGD(parameter_groups(model))

{form}
"""

LEARNING_RATE_AND_MOMENTUM = {groups}


def parameter_groups(model):
    """One group a parameter tensor, by the names of ``model.named_parameters()``."""
    parameters = dict(model.named_parameters())
    if parameters.keys() != LEARNING_RATE_AND_MOMENTUM.keys():
        different = sorted(parameters.keys() ^ LEARNING_RATE_AND_MOMENTUM.keys())
        raise ValueError(f"not the network that was tuned; tensors that differ: {{different}}")
    return [
        {{"params": [parameters[name]], "lr": lr, "momentum": momentum, "dampening": 0}}
        for name, (lr, momentum) in LEARNING_RATE_AND_MOMENTUM.items()
    ]
'''

_FORMS = {
    "maclaurin": "The run used v' = βv − (1−β)g, w' = w + αv'; here lr = α(1−β) and momentum = β,\n"
    "which is the same training in exact arithmetic (the buffer is −v/(1−β)).",
    "pytorch": "The run used this very update.",
}


def sgd_settings(
    hyperparameters: Mapping[str, Mapping[str, float]], update: str
) -> dict[str, tuple[float, float]]:
    """``{tensor: (lr, momentum)}`` for ``torch.optim.SGD`` with dampening 0.

    The update of Maclaurin et al. (2015) is that optimizer with lr = α(1 − β) and momentum β.
    """
    from hyperrbp.problems.training import UPDATES

    rates, momenta = hyperparameters["learning_rate"], hyperparameters["momentum"]
    effective = UPDATES[update].effective_rate
    return {name: (effective(rates[name], momenta[name]), momenta[name]) for name in rates}


def parameter_groups(result: Mapping[str, Any], update: str) -> str:
    """The source of a module that builds the parameter groups of a result."""
    settings = sgd_settings(result["hyperparameters"], update)
    rows = "".join(
        f"    {json.dumps(name)}: ({lr!r}, {momentum!r}),\n"
        for name, (lr, momentum) in settings.items()
    )
    best = result["best"]
    return _TEMPLATE.format(
        version=result["environment"]["hyperrbp"],
        run=f"Meta loss {best['meta_loss']:.6g} after {best['meta_step']} meta steps of"
        f" {result['method']}, {result['train_steps']} training steps each.",
        form=_FORMS[update],
        groups="{\n" + rows + "}",
    )
