"""What is kept, what it costs, and that looking changes nothing."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields

import psutil
import pytest
import torch
from processes import live
from systems import small_training_run

from hyperrbp import AdamSettings, Averaging, GradientSettings, descend, hypergradient
from hyperrbp.hypergradients import METHODS, method_class
from hyperrbp.hypergradients.implicit import ImplicitMethod
from hyperrbp.runtime import metering
from hyperrbp.runtime.metering import LiveBytes, PhaseMeter, SavedBytes, available_bytes

SOLVERS = sorted(n for n in METHODS if issubclass(method_class(n), ImplicitMethod))


def test_saved_bytes_of_a_known_graph():
    x = torch.randn(100, dtype=torch.float64, requires_grad=True)
    with SavedBytes() as saved:
        y = x.exp()  # keeps its result
        z = y.sin()  # keeps its argument, which is that same storage
        w = z * x  # keeps z and x
        assert saved.now == 3 * 800
        del y, z
        assert saved.now == 3 * 800
        del w
        assert saved.now == 0
    assert saved.peak == 3 * 800
    with SavedBytes(x) as saved:
        x * x.detach()
        assert saved.peak == 0, "an ignored storage was counted"


def test_live_bytes_of_known_tensors():
    with LiveBytes() as live:
        a = torch.zeros(1000, dtype=torch.float64)
        b = a.view(10, 100)  # no storage of its own
        c = a + 1
        assert live.now == 16000
        del a, b
        assert live.now == 8000
        del c
        assert live.now == 0
    assert live.peak == 16000


def test_live_bytes_leave_out_views_of_what_was_there_before():
    outside = torch.zeros(1000, dtype=torch.float64)
    with LiveBytes() as live:
        outside[:500].view(5, 100).add_(1)
        outside.requires_grad_().detach()
    assert live.peak == 0


def field_names(method: str) -> set[str]:
    return {field.name for field in fields(method_class(method))}


def saved_bytes(name: str, trunc: int, steps: int, averaging: Averaging) -> int:
    problem, theta = small_training_run(steps=steps)
    # 5 minibatches an epoch: at T = 50 and 200 the last M are cut from epochs of one shape.
    with SavedBytes() as saved:
        hypergradient(
            problem,
            theta,
            name,
            trunc=trunc,
            averaging=averaging,
            options={"tolerance": 0.0} if "tolerance" in field_names(name) else {},
        )
    return saved.peak


@pytest.mark.parametrize(
    ("name", "estimator"),
    [(name, estimator) for name in SOLVERS for estimator in method_class(name).estimators],
)
def test_memory_of_an_implicit_method_is_constant_in_k_and_t(name, estimator):
    """What autograd keeps is equal to the byte at four times K, and at four times T.

    Catches a run that keeps its graph, and a solver whose products do.
    """
    averaging = Averaging(estimator, minibatches=5, series=2)
    base = saved_bytes(name, 10, 50, averaging)
    assert base > 0
    assert saved_bytes(name, 40, 50, averaging) == base
    assert saved_bytes(name, 10, 200, averaging) == base


def test_memory_of_bptt_is_linear_in_t():
    one, two, four = (saved_bytes("bptt", 1, steps, Averaging()) for steps in (25, 50, 100))
    assert two - one > 25 * 1000
    assert four - two == 2 * (two - one)


def test_memory_of_tbptt_is_linear_in_k_and_free_of_t():
    a, b, c = (saved_bytes_tbptt(trunc, 100) for trunc in (10, 20, 40))
    assert b - a > 10 * 1000
    assert c - b == 2 * (b - a)
    assert saved_bytes_tbptt(10, 300) == a


def saved_bytes_tbptt(trunc: int, steps: int) -> int:
    problem, theta = small_training_run(steps=steps)
    with SavedBytes() as saved:
        hypergradient(problem, theta, "tbptt", trunc=trunc)
    return saved.peak


@pytest.mark.parametrize("name", sorted(METHODS))
def test_meta_steps_leak_nothing(name):
    """The bytes of all tensors alive are equal to the byte 40 meta steps later, for each method.

    Catches a loop that keeps its steps.
    """
    problem, theta = small_training_run(steps=4)
    counts = {}
    settings = GradientSettings(name, trunc=3, averaging=Averaging(minibatches=2))
    for step in descend(problem, theta, settings, AdamSettings(steps=81)):
        if step.meta_step in (40, 80):  # by the first, all that will be traced has been
            counts[step.meta_step] = live()
    assert counts[80] == counts[40] > 0


@pytest.mark.parametrize("name", sorted(METHODS))
def test_metering_changes_no_bit(name):
    """Each method's gradient under each of the three meters, to the bit.

    Catches meters that hand back another tensor than they were given.
    """
    problem, theta = small_training_run(steps=12)

    def gradient() -> torch.Tensor:
        return hypergradient(problem, theta, name, trunc=5).gradient

    bare = gradient()
    with SavedBytes():
        assert torch.equal(gradient(), bare)
    with LiveBytes():
        assert torch.equal(gradient(), bare)
    meter = PhaseMeter(torch.device("cpu"))
    metered = hypergradient(problem, theta, name, trunc=5, phase=meter.phase).gradient
    assert torch.equal(metered, bare)
    assert set(meter.seconds) == {"inner run", "meta-gradient"}
    assert all(seconds > 0 for seconds in meter.seconds.values())
    assert all(peaks["process"] > 10_000_000 for peaks in meter.peak_bytes.values())


def test_available_bytes_are_some_of_all():
    assert 0 < available_bytes() <= psutil.virtual_memory().total


def test_a_container_limits_what_is_available(tmp_path, monkeypatch):
    monkeypatch.setattr(metering, "_CGROUP", tmp_path)
    free = available_bytes()
    assert free > 600_000
    (tmp_path / "memory.current").write_text("400000\n")
    for limit, expected in (("1000000\n", 600_000), ("400000\n", 0), ("300000\n", 0)):
        (tmp_path / "memory.max").write_text(limit)
        assert available_bytes() == expected
    for limit in ("max\n", "what\n", f"{10**18}\n"):
        (tmp_path / "memory.max").write_text(limit)
        assert available_bytes() == pytest.approx(free, rel=0.5)


def test_a_process_may_not_allocate_more_than_its_limit_of_data():
    script = (
        "import resource; from pathlib import Path; from hyperrbp.runtime import metering\n"
        "free = metering.available_bytes()\n"
        "resource.setrlimit(resource.RLIMIT_DATA, (free // 2, free // 2))\n"
        "print(free, metering.available_bytes())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    free, limited = map(int, done.stdout.split())
    assert 0 < limited <= free // 2
