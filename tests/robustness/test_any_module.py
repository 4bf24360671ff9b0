"""Any module that people train: its gradient is right, or it is refused by name.

A row of the table is right if the run is the one that plain PyTorch makes, and ``bptt`` gives,
whatever it keeps, the float64 finite differences of the loss after the whole run. All other rows
say the words with which they are refused; none is wrong without a word.
"""

from __future__ import annotations

import pytest
from any_modules import MODULES, assert_as_torch
from whole_runs import assert_right, by_differences, gradients, refused

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
