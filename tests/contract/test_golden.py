"""What commands compute, held against golden values: bit for bit on a machine like theirs.

Another processor or another build of torch rounds float32 sums otherwise. There, results are held
to a tolerance: of a short run the whole answer; of a full one, and of those that choose between
near-equal points or have overshot, the first loss and gradient, if not of a solver that amplifies
rounding. The id of each test says which it
is: ``[tune-bptt-bitwise]`` or ``[tune-bptt-approximate]``.
"""

from __future__ import annotations

import golden_runs
import pytest

BITWISE = golden_runs.same_environment()
TOLERANCE = 1e-3
"""Of the largest float in the same list or mapping. With torch and MKL restricted to AVX2, or to no
vector instructions beyond SSE, what is compared was off by 1e-5 at most."""
SENSITIVE = {
    *("tune-optimizer-gradient", "tune-optimizer-surrogate", "tune-optimizer-both"),
    *("tune-rollback", "tune-example-weights", "check", "compare"),
}
"""Short runs that amplify rounding: searches, a diverging run, spectra, digests."""
SOLVERS = {"cg", "lsqr", "anderson"}
"""Methods that lose orthogonality: their gradients, after 50 steps, are off by up to 10%."""


def runs(size):
    """A parameter for every run of a size, whose id says how it is compared."""
    how = "bitwise" if BITWISE else "approximate"
    return [
        pytest.param(name, command, id=f"{name}-{how}")
        for name, command in golden_runs.commands(size).items()
    ]


def at_the_start(values):
    """The first loss and gradient, and what is asked for: what rounding changes by little."""
    answer, first = values["answer"], values.get("first", {})
    loss = answer.get("meta_loss", answer.get("loss"))
    found = {"loss": loss[:1] if isinstance(loss, list) else [loss]}
    found["first"] = reliable({"method": answer.get("method")} | first, "gradient", "gradient_norm")
    found["rows"] = [
        reliable(row, "method", "trunc", "products", "gradient") for row in answer.get("rows", [])
    ]
    return found | golden_runs.only(answer, ("status", "gradient", "exact", "products"))


def reliable(row, *keys):
    """What these keys hold, without a gradient that rounding changes by much."""
    if row["method"] in SOLVERS:
        keys = [key for key in keys if not key.startswith("gradient")]
    return golden_runs.only(row, keys)


def without_counts(values):
    """The answer without held-out accuracies, which one example more or less changes by 0.2%."""
    return {key: item for key, item in values["answer"].items() if key != "test"}


def assert_golden(size, name, command, folder):
    """The command computes what it did when the golden values were written."""
    golden = golden_runs.golden(size, name)
    assert golden["command"] == command, "its golden values are of another command"
    found = golden_runs.run(command, folder, golden.get("record_keys"))
    if BITWISE:
        compared = golden_runs.differences(golden, found)
    else:
        part = at_the_start if size == "full" or name in SENSITIVE else without_counts
        compared = golden_runs.differences(part(golden), part(found), TOLERANCE)
    assert list(compared) == []


@pytest.mark.parametrize(("name", "command"), runs("short"))
def test_a_short_run(name, command, tmp_path):
    assert_golden("short", name, command, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "command"), runs("full"))
def test_a_full_run(name, command, tmp_path):
    assert_golden("full", name, command, tmp_path / "run")
