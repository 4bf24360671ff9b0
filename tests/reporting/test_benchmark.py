"""Tables, curves and files of a benchmark."""

from __future__ import annotations

import csv
import io
import math

import pytest
from factories import tuning_text
from rich.console import Console

from benchmarks import FIELD, TINY, pretend
from hyperrbp.config.loading import parse
from hyperrbp.exceptions import MemoryExhaustedError
from hyperrbp.experiments.benchmark import (
    benchmark,
)
from hyperrbp.experiments.optimizer_runs import (
    OURS,
)
from hyperrbp.experiments.results.benchmark import BenchmarkReport, CurvePoint
from hyperrbp.reporting.benchmark import curves, draw_curves, markdown, tables, write

pytest.importorskip("optuna")


@pytest.fixture
def machine(monkeypatch):
    return lambda **options: pretend(monkeypatch, **options)


@pytest.fixture(scope="module")
def tiny():
    return parse(TINY)


@pytest.fixture
def report(machine, tiny):
    machine(finals={OURS: 0.5, "tpe": 0.75}, fails={"cmaes": MemoryExhaustedError("out of it")})
    return benchmark(tiny, [OURS, "random", "tpe", "cmaes"], 8.0, seeds=2)


def test_markdown_has_every_row_and_the_verdict(report):
    text = markdown(report)
    assert "tiny: 8 s for each optimizer and seed (7, 8); loss on the training examples" in text
    assert "2 hyperparameters; 1 CPU thread, m, torch t" in text
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("|")
    ]
    assert len({len(row) for row in rows}) == 1
    named = [dict(zip(rows[0], row, strict=True)) for row in rows[2:]]
    assert [row["optimizer"] for row in named] == [OURS, "random", "tpe", "cmaes"]
    ours, random, tpe, cmaes = named
    assert (ours["final loss"], ours["range"], ours["tried"]) == ("0.5", "0.5 … 0.5", "2")
    assert (ours["ours ≤ it"], random["ours ≤ it"]) == ("", "2 of 2")
    assert (tpe["s to random's"], tpe["× ours"]) == ("4", "1")
    assert (tpe["ours to its, s"], tpe["it to ours, s"]) == ("4", "never")
    assert (tpe["held-out"], cmaes["held-out"]) == ("90.0%", "–")
    assert cmaes["status"] == "out of memory"
    assert "* cmaes, seed 8: out of memory: out of it" in text
    assert f"**{report.verdict}**" in text


def test_columns_that_have_nothing_to_say_are_left_out(machine, tiny):
    machine()
    text = markdown(benchmark(tiny, [OURS, "tpe"], 8.0, seeds=1))
    assert "random" not in text
    assert "× ours" not in text
    assert "cut short" not in text


def test_a_validation_loss_is_named(machine):
    machine()
    data = {"name": "digits", "train_examples": 200, "validation_examples": 50}
    validated = parse(tuning_text(name="tiny", data=data, meta__loss="validation"))
    assert "loss on the validation split" in markdown(benchmark(validated, FIELD, 8.0, seeds=1))


def test_a_terminal_of_80_columns_shows_what_markdown_does(report):
    text = io.StringIO()
    Console(file=text, width=80, markup=False).print(tables(report))
    said = " ".join(text.getvalue().split())
    for name in ("hyperrbp", "random", "tpe", "cmaes"):
        assert f" {name} " in said
    assert "0.75 … 0.75" in said
    assert report.verdict in said
    assert "evaluati…" not in said


def test_curves_read_back(report):
    read = list(csv.DictReader(io.StringIO(curves(report))))
    assert {row["optimizer"] for row in read} == set(report.curves)
    for name, points in report.curves.items():
        found = [row for row in read if row["optimizer"] == name]
        assert [float(row["median"]) for row in found] == [p.median for p in points]
        assert list(found[0]) == ["optimizer", "seconds", "median", "least", "largest"]


def test_a_figure_has_a_line_and_a_band_for_everyone(report, tmp_path, monkeypatch):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    unknown = {"median": None, "largest": None}
    found = dict(report.curves)
    found["tpe"] = [found["tpe"][0].model_copy(update=unknown), *found["tpe"][1:]]
    found["cmaes"] = [CurvePoint(seconds=8.0, least=None, **unknown)]
    report = report.model_copy(update={"curves": found})
    figures = []
    monkeypatch.setattr(plt, "close", figures.append)
    draw_curves(report, tmp_path / "benchmark.png")
    monkeypatch.undo()
    ((axis,),) = [figure.axes for figure in figures]
    lines = {line.get_label(): line.get_xydata().tolist() for line in axis.get_lines()}
    assert lines["hyperrbp"] == [[2, math.log10(2)], [4, math.log10(0.5)], [8, math.log10(0.5)]]
    assert lines["tpe"] == [[4, math.log10(0.75)], [8, math.log10(0.75)]]
    assert lines["cmaes"] == []
    assert len(axis.collections) == 4
    assert axis.get_xlim() == (0, 8)
    plt.close(figures[0])
    assert (tmp_path / "benchmark.png").stat().st_size > 1000


def test_a_folder_holds_it_all(report, tmp_path):
    write(report, tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {
        "recipe.yaml", "curves.csv",
        "benchmark.json", "benchmark.md", "benchmark.csv", "benchmark.png",
    }  # fmt: skip
    assert BenchmarkReport.model_validate_json((tmp_path / "benchmark.json").read_text()) == report
    rows = list(csv.DictReader(io.StringIO((tmp_path / "benchmark.csv").read_text())))
    assert [row["optimizer"] for row in rows] == [OURS, "random", "tpe", "cmaes"]
    assert parse((tmp_path / "recipe.yaml").read_text()) == report.recipe
