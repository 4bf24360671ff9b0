"""The runs on citation networks (section 5.2): of Table 2 and Figure 3."""

from __future__ import annotations

from hyperrbp.paper.plan import Plan
from hyperrbp.paper.run_specs import RunSpec, TrainSpec, recipe_of

QUICK = "150 epochs at ten times the learning rate"


def citation_spec(plan: Plan, data: str, method: str, seed: int) -> RunSpec:
    """Return the run of a network by one method and seed."""
    epochs = 150 if plan.quick else 2000
    settings = {
        "gradient.method": method,
        "training.epochs": epochs,
        "seed": seed,
        "device": plan.device,
    }
    if plan.quick:
        settings |= {"training.learning_rate": 0.01, "training.validate_every": 10}
    name = f"{data}-{method}-K5-epochs{epochs}-seed{seed}"
    return TrainSpec(name, recipe_of(data, settings))
