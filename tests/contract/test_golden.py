"""What commands compute, held against golden values: bit for bit on a machine like theirs.

Float32 sums are rounded otherwise by another processor or another build of torch, and a tuning or a
search adds up what is rounded. There the results are only held to a tolerance, and only those that
do not depend on which of two near-equal points was the better one. The id of each test says which
of the two it is: ``[tune-bptt-bitwise]`` or ``[tune-bptt-approximate]``.
"""

from __future__ import annotations

import golden_runs
import pytest

BITWISE = golden_runs.same_environment()
TOLERANCE = 1e-3
"""Of the largest float in the same list or mapping."""


def runs(size):
    """A parameter for every run of a size, whose id says how it is compared."""
    how = "bitwise" if BITWISE else "approximate"
    return [
        pytest.param(name, command, id=f"{name}-{how}")
        for name, command in golden_runs.commands(size).items()
    ]


def well_conditioned(values):
    """What rounding changes by little only: losses and gradients at the start."""
    first, answer = values.get("first", {}), values["answer"]
    found = {"first": {key: first[key] for key in ("gradient", "gradient_norm") if key in first}}
    loss = answer.get("meta_loss", answer.get("loss"))
    found["loss"] = loss[:1] if isinstance(loss, list) else [loss]
    for key in ("status", "method", "meta_steps", "gradient", "exact", "best_possible"):
        if key in answer:
            found[key] = answer[key]
    return found


def assert_golden(size, name, command, folder):
    """The command computes what it did when the golden values were written."""
    golden = golden_runs.golden(size, name)
    assert golden["command"] == command, "its golden values are of another command"
    found = golden_runs.run(command, folder, golden.get("record_keys"))
    if BITWISE:
        assert list(golden_runs.differences(golden, found)) == []
    else:
        near = golden_runs.differences(well_conditioned(golden), well_conditioned(found), TOLERANCE)
        assert list(near) == []


@pytest.mark.parametrize(("name", "command"), runs("short"))
def test_a_short_run(name, command, tmp_path):
    assert_golden("short", name, command, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "command"), runs("full"))
def test_a_full_run(name, command, tmp_path):
    assert_golden("full", name, command, tmp_path / "run")
