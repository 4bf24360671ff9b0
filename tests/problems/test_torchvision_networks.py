"""torchvision's classifiers by name."""

from __future__ import annotations

import numpy as np
import pytest
from own_parts import images, npz, short

from hyperrbp import hypergradient
from hyperrbp.exceptions import UsageError
from hyperrbp.experiments.experiment import Experiment

pytestmark = pytest.mark.usefixtures("elsewhere")


@pytest.mark.parametrize("normalization", ["batch", "group"])
def test_torchvisions_network_is_trained_as_it_is_or_with_group_norm(normalization):
    npz(inputs=images(12, (32, 32))[0], targets=np.arange(12) % 3)
    section = {
        "data__name": "mine.npz", "model__name": "torchvision:resnet18", "model__init_std": None,
        "inner__steps": 3, "inner__batch_size": 4,
    }  # fmt: skip
    options = {} if normalization == "batch" else {"normalization": "group"}
    experiment = Experiment(short(**section, model__options=options))
    problem = experiment.problem()
    assert experiment.data.train.inputs.shape[1:] == (1, 32, 32)
    assert problem.objective.shapes[0] == (64, 1, 7, 7), "as many channels as the images have"
    assert problem.objective.shapes[-1] == (3,)
    found = hypergradient(problem, experiment.theta, "neumann", trunc=1)
    assert found.gradient.isfinite().all()
    assert found.gradient.norm() > 0


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("resnet81", {}, "torchvision has no model 'resnet81'; did you mean resnet18?"),
        ("alexnet", {"dropuot": 0}, "torchvision:alexnet: TypeError: "),
        ("resnet18", {"normalization": "layer"}, "expected group or batch, got 'layer'"),
    ],
)
def test_torchvisions_network_is_refused_in_words(name, options, words):
    npz(inputs=images(12, (32, 32))[0], targets=np.arange(12) % 3)
    with pytest.raises(UsageError) as refused:
        Experiment(short(data__name="mine.npz", model__name=f"torchvision:{name}",
                         model__options=options)).problem()  # fmt: skip
    assert words in str(refused.value)
