"""Optuna's samplers by name: what each is, and what has to be installed for it.

Nothing here imports Optuna or any numerics: a command line is checked before anything is loaded.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hyperrbp.exceptions import UsageError
from hyperrbp.runtime.suggestions import not_one_of


@dataclass(frozen=True)
class Sampler:
    """A sampler of Optuna by the name of its class, and what else it takes."""

    class_name: str
    sentence: str
    options: Mapping[str, Any] = field(default_factory=dict)
    prunes: bool = False
    """Whether Hyperband ends unpromising runs at its rungs."""
    needs: tuple[str, ...] = ("optuna",)


SAMPLERS: dict[str, Sampler] = {
    "random": Sampler("RandomSampler", "uniform in the box"),
    "sobol": Sampler("QMCSampler", "a scrambled Sobol sequence", {"scramble": True}),
    "tpe": Sampler("TPESampler", "tree-structured Parzen estimator"),
    "cmaes": Sampler("CmaEsSampler", "CMA-ES", needs=("optuna", "cmaes")),
    "hyperband": Sampler("TPESampler", "TPE, runs ended early by Hyperband", prunes=True),
}


def sampler(name: str) -> Sampler:
    """Return the sampler of a name.

    Raises:
        UsageError: if there is none.
    """
    if name not in SAMPLERS:
        raise UsageError(f"sampler: {not_one_of(name, SAMPLERS)}")
    return SAMPLERS[name]


def check_installed(name: str) -> None:
    """Check that what a sampler needs is installed, without importing it.

    Raises:
        UsageError: if it is not, with the command that installs it, or if there is no such sampler.
    """
    missing = [module for module in sampler(name).needs if not _is_installed(module)]
    if missing:
        raise UsageError(
            f"{name} needs {' and '.join(missing)}, which {'are' if missing[1:] else 'is'} not"
            " installed: pip install 'hyperrbp[search]'"
        )


def _is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None
