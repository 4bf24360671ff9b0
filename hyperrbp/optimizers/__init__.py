"""What moves the hyperparameters: Adam, a trust-region search, Optuna's samplers.

An optimizer proposes θ, is given the loss there, with a hypergradient if it asks for one, goes on.
It may import hypergradients, problems, data and runtime; it knows no recipe and no folder.
"""

from __future__ import annotations

from hyperrbp.optimizers.optuna_samplers import SAMPLERS

# Sentences rather than classes: a command line is checked without importing any numerics.
OPTIMIZERS: dict[str, str] = {
    "adam": "Adam on the hypergradient, from the start (the paper's)",
    "gradient": "a screening, then steps of adaptive length along the gradient of the log loss",
    "surrogate": "a screening, then a local model of the loss, without any gradient",
    "both": "a screening, then the gradient, and the local model where it fails",
    **{name: f"{sampler.sentence} (Optuna)" for name, sampler in SAMPLERS.items()},
}
"""Every optimizer by name; what each is, in a few words."""

__all__ = ["OPTIMIZERS", "SAMPLERS"]
