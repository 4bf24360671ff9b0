from __future__ import annotations

import pytest

from hyperrbp.runtime.suggestions import did_you_mean, nearest, not_one_of, shown

CHOICES = ["neumann", "cg-rbp", "bptt"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "nothing"),
        (True, "true"),
        ("a\nb", r"'a\nb'"),
        (1.5, "1.5"),
        ("x" * 80, "'" + "x" * 56 + "…"),
    ],
)
def test_a_value_is_shown_on_one_short_line(value, text):
    assert shown(value) == text


@pytest.mark.parametrize(
    ("got", "expected"), [("neuman", "neumann"), ("cgrbp", "cg-rbp"), ("adam", None), (7, None)]
)
def test_the_nearest_choice_is_suggested_or_none(got, expected):
    assert nearest(got, CHOICES) == expected
    assert did_you_mean(got, CHOICES) == (f"; did you mean {expected}?" if expected else "")


def test_an_unknown_name_is_answered_with_the_choices():
    assert not_one_of("bptp", CHOICES) == (
        "expected one of neumann, cg-rbp, bptt, got 'bptp'; did you mean bptt?"
    )
    assert not_one_of(None, CHOICES) == "expected one of neumann, cg-rbp, bptt, got nothing"
