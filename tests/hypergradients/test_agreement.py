"""How far one gradient agrees with another."""

from __future__ import annotations

import math

import pytest

from hyperrbp.hypergradients.agreement import agreement, by_kind, overall


def test_agreement_by_hand():
    found = agreement([3.0, 4.0], [8.0, 6.0])
    assert found.cosine == pytest.approx(48 / 50, abs=1e-15)
    assert found.sign_agreement == 1
    assert found.norm_ratio == 0.5
    opposite = agreement([-8.0, -6.0], [4.0, 3.0])
    assert opposite.cosine == pytest.approx(-1, abs=1e-15)
    assert opposite.sign_agreement == 0
    assert opposite.norm_ratio == 2


def test_a_zero_has_a_sign_of_its_own():
    found = agreement([1.0, -2.0, 0.0, 0.0], [2.0, 1.0, 0.0, 3.0])
    assert found.cosine == pytest.approx(0, abs=1e-15)
    assert found.sign_agreement == 0.5


def test_agreement_with_a_zero_vector():
    assert agreement([0.0, 0.0], [0.0, -1.0]) == agreement([0.0, -0.0], [0.0, -1.0])
    found = agreement([0.0, 0.0], [0.0, -1.0])
    assert (found.cosine, found.sign_agreement, found.norm_ratio) == (None, 0.5, 0)
    found = agreement([0.0, -1.0], [0.0, 0.0])
    assert (found.cosine, found.sign_agreement, found.norm_ratio) == (None, 0.5, None)


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_agreement_of_what_is_not_finite(bad):
    for found in (agreement([bad, 1.0], [-1.0, 1.0]), agreement([-1.0, 1.0], [bad, 1.0])):
        assert (found.cosine, found.norm_ratio) == (None, None)
        assert found.sign_agreement == (1.0 if bad == -math.inf else 0.5)


@pytest.mark.parametrize("scale", [1e200, 1e-200])
def test_agreement_neither_overflows_nor_vanishes(scale):
    found = agreement([scale, scale], [0.0, 3 * scale])
    assert found.cosine == pytest.approx(math.sqrt(0.5), rel=1e-14)
    assert found.norm_ratio == pytest.approx(math.sqrt(2) / 3, rel=1e-14)
    assert found.sign_agreement == 0.5


@pytest.mark.parametrize(
    ("found", "exact", "descent"),
    [
        ([3.0, 4.0], [1.0, 2.0], 1.0),
        ([-3.0, 4.0], [1.0, 3.0], 0.5),
        ([-3.0, 4.0], [1e-200, 3e-200], 0.5),
        ([-1.0, -1e-300], [1.0, 2.0], -1.0),
        ([0.0, 5.0], [1.0, -3.0], -0.75),
        ([0.0, 0.0], [1.0, -3.0], 0.0),
        ([1.0, 1.0], [0.0, 0.0], None),
        ([math.nan, 1.0], [1.0, 1.0], None),
        ([1.0, 1.0], [math.nan, 1.0], None),
        ([math.inf, 1.0], [1.0, 1.0], None),
        ([1.0, 1.0], [1.0, -math.inf], None),
        ([1.0, -1.0], [1.5e308, 0.5e308], 0.5),
        ([1.0, 1.0], [1.7e308, 1.7e308], None),
    ],
)
def test_the_share_of_the_steepest_decrease_that_is_kept(found, exact, descent):
    kept = agreement(found, exact).descent
    assert kept is descent or kept == pytest.approx(descent, rel=1e-12)


def test_what_is_not_a_number_has_no_sign():
    assert agreement([math.nan, 1.0], [0.0, 1.0]).sign_agreement == 0.5


@pytest.mark.parametrize("value", [1.0, 0.0])
def test_gradients_of_different_lengths_are_not_compared(value):
    with pytest.raises(ValueError, match="longer"):
        agreement([value], [value, value])


def test_agreement_by_kind_and_overall():
    exact = {"rate": {"a": 3.0, "b": 4.0}, "momentum": {"a": 0.0, "b": -12.0}}
    found = {"momentum": {"a": 0.0, "b": 6.0}, "rate": {"a": 6.0, "b": 8.0}}
    parts = by_kind(found, exact)
    assert list(parts) == ["rate", "momentum"]
    assert parts["rate"].cosine == pytest.approx(1)
    assert parts["rate"].norm_ratio == 2
    assert parts["momentum"].cosine == pytest.approx(-1)
    assert parts["momentum"].norm_ratio == 0.5
    assert parts["momentum"].sign_agreement == 0.5
    whole = overall(found, exact)
    assert whole.cosine == pytest.approx((50 - 72) / math.sqrt(136) / 13)
    assert whole.norm_ratio == pytest.approx(math.sqrt(136) / 13)
    assert whole.sign_agreement == 0.75
