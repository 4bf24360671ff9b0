"""Tables and files of a comparison."""

from __future__ import annotations

import csv
import io
import re

import pytest
from comparisons import ROWS, made, row
from rich.console import Console

from hyperrbp.exceptions import (
    StorageError,
)
from hyperrbp.reporting.comparison import markdown, tables, write
from hyperrbp.reporting.tables import comma_separated


def cells(text, title):
    """The rows of a Markdown table, the head first."""
    lines = text.split(f"**{title}")[1].split("\n\n")[1].splitlines()
    assert re.fullmatch(r"\|( -+:? \|)+", lines[1])
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in lines if line[2] != "-"
    ]


def test_markdown_has_every_row():
    text = markdown(made(ROWS))
    assert text.startswith("tiny: one meta-gradient at the untuned start, M = 3, 2 series;")
    assert "median of 5 on 2 CPU threads" in text
    assert cells(text, "Time (T = 1000)") == [
        ["method", "K", "seconds", "inner run", "meta-gradient", "time ×", "GFLOP", "products"],
        ["bptt", "–", "0.25 ± 0.05", "0.125", "0.0625", "1", "1.5", "20"],
        ["neumann", "10", "0.25 ± 0.05", "0.125", "0.0625", "4 (3.02)", "1.5", "20"],
        ["neumann", "50", "0.5", "0.125", "0.0625", "4", "1.5", "20"],
        ["tbptt", "2000", "failed", "", "", "", "", ""],
        ["bptt:keep=states", "–", "skipped", "", "", "", "", ""],
    ]
    memory = cells(text, "Memory (T = 1000)")
    assert memory[0][2:] == ["kept", "kept ×", "peak", "peak ×", "process", "process ×"]
    assert memory[1][2:] == ["2.5 kB", "40", "5 MB", "3", "7 GB", "1.5"]
    assert memory[2][2:] == ["2.5 kB", "40 (4.35)", "5 MB", "3", "7 GB", "1.5"]
    assert memory[4][2:] == [""] * 6
    right = cells(text, "How right it is (T = 1000)")
    assert right[0][2:] == [
        "all", "decrease kept", "learning rate", "momentum", "residual", "status", "verdict",
    ]  # fmt: skip
    assert right[1][2:] == [
        "+0.50, 75%, ×2", "25%", "-0.25, 75%, ×2", "+0.50, 75%, ×2", "0.12", "exact", "disagrees",
    ]  # fmt: skip
    assert right[3][2] == "–, 75%, –"
    assert right[4][2:] == ["", "", "", "", "", "failed", ""]
    notes = [line for line in text.splitlines() if line.startswith("* ")]
    assert len(notes) == 4
    assert "Table 3 of Liao et al. 2018" in notes[1]
    assert notes[2] == "* tbptt, K = 2000, T = 1000: failed: too long a truncation"
    assert notes[3] == "* bptt:keep=states, K = –, T = 1000: skipped: would keep too much"


def test_the_paper_is_not_mentioned_where_it_has_no_number():
    text = markdown(made([ROWS[0]]))
    assert "(paper" not in text


def test_several_lengths_of_run_add_a_column():
    text = markdown(made([row("bptt", steps=steps) for steps in (100, 300)]))
    for title in ("Time", "Memory", "How right it is"):
        table = cells(text, title)
        assert table[0][:3] == ["method", "K", "T"]
        assert [line[2] for line in table[1:]] == ["100", "300"]
    assert "(T =" not in text


def test_a_terminal_shows_what_markdown_does():
    text = io.StringIO()
    Console(file=text, width=250).print(tables(made(ROWS)))
    lines = [re.split(r"\s{2,}", line.strip()) for line in text.getvalue().splitlines()]
    markdown_text = markdown(made(ROWS))
    for title in ("Time (T = 1000)", "Memory (T = 1000)", "How right it is (T = 1000)"):
        for expected in cells(markdown_text, title):
            assert [text for text in expected if text] in lines
    assert "failed: too long a truncation" in text.getvalue()


def test_comma_separated_values_read_back():
    document = made(ROWS)
    read_rows = list(csv.DictReader(io.StringIO(comma_separated(document.rows), newline="")))
    assert len(read_rows) == len(ROWS)
    for values, original in zip(read_rows, ROWS, strict=True):
        for key, value in original.items():
            if value is None:
                assert values.get(key, "") == ""
            elif isinstance(value, str):
                assert values[key] == value
            elif not isinstance(value, dict):
                assert float(values[key]) == value
    assert not {"gradient", "by_kind", "seconds_by_phase"} & set(read_rows[0])
    assert float(read_rows[1]["gradient.learning_rate.w"]) == 1e-17
    assert float(read_rows[1]["by_kind.learning_rate.cosine"]) == -0.25
    assert float(read_rows[1]["seconds_by_phase.meta-gradient"]) == 0.0625
    assert read_rows[4]["options.keep"] == "states"
    assert read_rows[3]["gradient.learning_rate.w"] == ""


def test_a_folder_that_cannot_be_made_is_a_storage_fault(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file/below"):
        write(made(ROWS), tmp_path / "file" / "below")
