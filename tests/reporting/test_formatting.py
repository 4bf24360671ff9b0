"""Numbers as text."""

from __future__ import annotations

import pytest

from hyperrbp.reporting.formatting import (
    duration,
    human_bytes,
    number,
    sparkline,
    value_range,
    words,
)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (59.94, "59.9 s"), (60, "1:00 min"), (3599.6, "1:00:00"), (3725, "1:02:05")],
)
def test_a_duration(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (823e6, "823 MB"), (2.5e12, "2.5 TB")],
)
def test_bytes(count, text):
    assert human_bytes(count) == text


def test_a_number_that_is_not_known():
    assert (number(None), number(0.12345), number(0.12345, 4)) == ("unknown", "0.123", "0.1235")
    assert words("learning_rate") == "learning rate"


def test_a_range_of_values_or_of_their_summary():
    assert value_range({"a": 2.0, "b": None, "c": 0.5}) == "0.5 … 2"
    summary = {"min": 1.0, "q25": 1.5, "median": 2.0, "q75": 2.5, "max": 3.0}
    assert value_range(summary) == "1 … 3"
    assert value_range({"a": None}) == "unknown … unknown"


def test_a_sparkline_is_logarithmic_where_it_can_be():
    assert sparkline([1.0, 10.0, 100.0]) == "▁▅█"
    assert sparkline([-1.0, 0.0, 1.0]) == "▁▅█"
    assert sparkline([1.0, 1.0]) == "▁▁"
    assert len(sparkline(list(range(1, 500)))) == 48
