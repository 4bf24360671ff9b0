"""The figure of cost against K and T."""

from __future__ import annotations

import pytest
from comparisons import lost, made, row

from hyperrbp.exceptions import (
    UsageError,
)
from hyperrbp.reporting.comparison import write
from hyperrbp.reporting.figures import draw_costs, log_log_exponent


@pytest.mark.parametrize("exponent", [0, 1, 2, -0.5])
def test_the_exponent_of_a_power_law(exponent):
    points = [(x, 7 * x**exponent) for x in (10, 50, 100, 1000)]
    assert log_log_exponent(points) == pytest.approx(exponent, abs=1e-12)


def test_one_point_has_no_exponent():
    assert log_log_exponent([(10, 3)]) is None
    assert log_log_exponent([(10, 3), (10, 4)]) is None


LINEAR = [
    row("tbptt", trunc, steps, seconds=trunc ** (2 if steps == 100 else 1), saved_bytes=trunc**2)
    for trunc in (10, 100)
    for steps in (100, 1000)
]
LEVEL = [row("bptt", None, steps, seconds=steps / 50, saved_bytes=steps) for steps in (100, 1000)]


def legends_of(rows, file, monkeypatch):
    """The axes of a figure that is saved all the same."""
    from matplotlib.figure import Figure

    figures, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda f, *a, **k: (figures.append(f), save(f, *a, **k)))
    draw_costs(made(rows).rows, file)
    assert file.read_bytes().startswith(b"\x89PNG\r\n")
    (figure,) = figures
    return [
        (axis.get_xlabel(), axis.get_ylabel(), [text.get_text() for text in legend.get_texts()])
        for axis in figure.axes
        if (legend := axis.get_legend())
    ]


def test_costs_are_plotted_against_k(tmp_path, monkeypatch):
    rows = [r for r in LEVEL + LINEAR if r["train_steps"] == 1000]
    rows.append(lost("cg", 10, "failed", "no"))
    assert legends_of(rows, tmp_path / "a.png", monkeypatch) == [
        ("K (T = 1000)", "seconds a meta-gradient", ["bptt", "tbptt: 1.00"]),
        ("K (T = 1000)", "bytes kept", ["bptt", "tbptt: 2.00"]),
    ]


def test_costs_are_plotted_against_k_and_t(tmp_path, monkeypatch):
    assert legends_of(LEVEL + LINEAR, tmp_path / "b.png", monkeypatch) == [
        ("K (T = 1000)", "seconds a meta-gradient", ["bptt", "tbptt: 1.00"]),
        ("T (K = 100)", "seconds a meta-gradient", ["bptt: 1.00", "tbptt: -2.00"]),
        ("K (T = 1000)", "bytes kept", ["bptt", "tbptt: 2.00"]),
        ("T (K = 100)", "bytes kept", ["bptt: 1.00", "tbptt: 0.00"]),
    ]


@pytest.mark.parametrize("rows", [LEVEL[:1], LEVEL])
def test_costs_of_bptt_alone_are_plotted(tmp_path, monkeypatch, rows):
    legends = legends_of(rows, tmp_path / "c.png", monkeypatch)
    assert any(label.startswith("bptt") for _, _, labels in legends for label in labels)


def test_nothing_measured_is_nothing_to_draw(tmp_path):
    with pytest.raises(UsageError, match="no method was measured"):
        draw_costs(made([lost("cg", 10, "failed", "no")]).rows, tmp_path / "a.png")
    write(made([lost("bptt", None, "failed", "no")]), tmp_path / "out")
    assert not (tmp_path / "out" / "cost.png").exists()
    assert "failed: no" in (tmp_path / "out" / "comparison.md").read_text()
