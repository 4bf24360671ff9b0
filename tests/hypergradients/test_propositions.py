"""The paper's three propositions (appendix B), over random contractions in float64."""

from __future__ import annotations

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from systems import random_linear

from hyperrbp import hypergradient

contractions = st.builds(
    lambda n, p, norm, seed: random_linear(n, p, norm, steps=1, seed=seed),
    st.integers(2, 10),
    st.integers(1, 4),
    st.floats(0.05, 0.9),
    st.integers(0, 2**31),
)
few = settings(  # the same ones every time, so that they can be counted
    max_examples=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def at_fixed_point(problem, theta, steps: int):
    """The problem started at its fixed point, where every state of a run is h*."""
    problem.h0, problem.steps = problem.fixed_point(theta), steps
    return problem


@few
@given(contractions, st.integers(1, 20))
def test_proposition_1_truncated(drawn, trunc):
    """K terms after the first are K + 1 differentiated updates at h* (eq. 6 and 18).

    Catches a series with a term too few.
    """
    problem, theta = drawn
    at_fixed_point(problem, theta, steps=trunc + 1)
    series = hypergradient(problem, theta, "neumann", trunc=trunc, options={"tolerance": 0.0})
    updates = hypergradient(problem, theta, "tbptt", trunc=trunc + 1)
    scale = float(updates.gradient.norm())
    assert float((series.gradient - updates.gradient).norm()) <= 1e-10 * scale
    # One update fewer is another gradient: the count matters.
    fewer = hypergradient(problem, theta, "tbptt", trunc=trunc).gradient
    power = torch.linalg.matrix_power(problem.A, trunc).T
    last = problem.B.T @ power @ (problem.h0 + problem.q)
    torch.testing.assert_close(updates.gradient - fewer, last, rtol=1e-6, atol=1e-9 * scale)


@few
@given(contractions, st.integers(1, 60))
def test_proposition_1_full(drawn, steps):
    """The full series is BPTT, within the tail ‖J‖^T / (1 − ‖J‖) that T updates leave out.

    Catches a run that is one update too short.
    """
    problem, theta = drawn
    at_fixed_point(problem, theta, steps)
    g = problem.h0 + problem.q
    norm = float(torch.linalg.matrix_norm(problem.A, 2))
    bound = float(g.norm() * torch.linalg.matrix_norm(problem.B, 2)) * norm**steps / (1 - norm)
    difference = hypergradient(problem, theta, "bptt").gradient - problem.closed_form(theta)
    assert float(difference.norm()) <= bound * (1 + 1e-9) + 1e-10


@few
@given(contractions, st.integers(1, 30))
def test_proposition_2(drawn, trunc):
    """‖Σ_{t≤K} Jᵗ − (I − J)⁻¹‖ ≤ ‖(I − J)⁻¹‖ ‖J‖^(K+1), for the series that neumann sums.

    Catches a sum that leaves out its last term.
    """
    problem, theta = drawn
    at_fixed_point(problem, theta, steps=1)
    n = len(problem.c)
    inverse = torch.linalg.inv(torch.eye(n, dtype=torch.float64) - problem.A)
    summed = []
    for i in range(n):
        problem.q = torch.eye(n, dtype=torch.float64)[i] - problem.h0  # so that ∂L/∂h is e_i
        problem.B = torch.eye(n, dtype=torch.float64)
        problem.c = problem.h0 - problem.A @ problem.h0
        found = hypergradient(
            problem,
            torch.zeros(n, dtype=torch.float64),
            "neumann",
            trunc=trunc,
            options={"tolerance": 0.0},
        )
        summed.append(found.gradient)
    error = torch.linalg.matrix_norm(torch.stack(summed) - inverse, 2)
    bound = torch.linalg.matrix_norm(inverse, 2) * torch.linalg.matrix_norm(problem.A, 2) ** (
        trunc + 1
    )
    assert float(error) <= float(bound) * (1 + 1e-9) + 1e-12


@few
@given(contractions, st.integers(1, 40))
def test_proposition_3(drawn, trunc):
    """rbp with K + 1 iterations from zero is neumann with K.

    Catches a first guess that is another, and a series with a term too few.
    """
    problem, theta = drawn
    problem.steps = 3
    series = hypergradient(problem, theta, "neumann", trunc=trunc, options={"tolerance": 0.0})
    iterated = hypergradient(
        problem, theta, "rbp", trunc=trunc + 1, options={"z0": "zero", "tolerance": 0.0}
    )
    assert series.products == trunc
    # It may stop early, once adding a term changes no bit.
    assert iterated.products <= trunc + 1
    torch.testing.assert_close(series.gradient, iterated.gradient, rtol=1e-11, atol=1e-12)
