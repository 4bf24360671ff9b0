"""Any module that people train: its gradient is right, or it is refused by name.

A row of the table is right if the run is the one that plain PyTorch makes, and ``bptt`` gives,
whatever it keeps, the float64 finite differences of the loss after the whole run. All other rows
say the words with which they are refused; none is wrong without a word.
"""

from __future__ import annotations

import pytest
import torch
from any_modules import MODULES, assert_as_torch, numbers, whole_numbers
from torch.nn.functional import cross_entropy
from whole_runs import assert_right, by_differences, gradients, refused, run_of_two

from hyperrbp.data.batches import Batch

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(weight_norm|torch.jit|None of the inputs have requires_grad).*"
)

SLOW = {
    "compiled",
    "TransformerEncoder, norm first",
    "LSTM, bidirectional",
    "TransformerDecoderLayer",
}
ROWS = [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in MODULES]


@pytest.mark.parametrize("name", ROWS)
def test_a_module_is_right_or_refused(name):
    row = MODULES[name]
    if row.words is not None:
        refused(row.words, row.problem)
        return
    run, theta = row.problem()
    found = gradients(run, theta)
    assert_right(found, by_differences(run, theta, row.step), row.bound)
    assert_as_torch(row, run, theta)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "shufflenet_v2_x0_5"])
def test_a_network_of_torchvision_is_right(name):
    """As it is: with batch normalization, and thousands of kinks, between which a step fits."""
    torch.manual_seed(0)
    model = getattr(pytest.importorskip("torchvision.models"), name)(num_classes=3).double()
    batches = [
        (numbers(8, 3, 32, 32, seed=seed), whole_numbers(3, 8, seed=seed)) for seed in (1, 2)
    ]
    run, theta = run_of_two(
        model,
        batches,
        steps=2,
        loss=cross_entropy,
        meta_examples=Batch(*batches[1]),
    )
    assert_right(gradients(run, theta), by_differences(run, theta, 1e-9), 1e-3)
