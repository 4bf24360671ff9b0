"""``hyperrbp show``."""

from __future__ import annotations

import json

import pytest
from commands import assert_refused, run


def test_show_as_json_is_theresult_of(finished):
    out, done = finished
    result = json.loads(done.stdout)
    assert json.loads(run("show", out, "--json").stdout) == result
    assert json.loads(run("show", out, out, "--json").stdout) == [result, result]


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(
    ("ending", "start"), [("png", b"\x89PNG\r\n"), ("svg", b"<?xml"), ("pdf", b"%PDF-")]
)
def test_show_draws(finished, elsewhere, count, ending, start):
    out, _ = finished
    done = run("show", *[out] * count, "--figure", f"figure.{ending}")
    assert (done.exit_code, done.stdout) == (0, "")
    assert done.stderr == f"wrote figure.{ending}\n"
    figure = (elsewhere / f"figure.{ending}").read_bytes()
    assert figure.startswith(start)
    assert len(figure) > 5000


def test_a_figure_that_cannot_be_written(finished):
    out, _ = finished
    assert_refused(run("show", out, "--figure", "a.xyz"), 2, "--figure a.xyz: ", "xyz")
    assert_refused(run("show", out, "--figure", "no/a.png"), 9, "no/a.png: No such file")


def test_show_of_what_is_no_run(elsewhere):
    (elsewhere / "folder").mkdir()
    for name in ("folder", "nowhere", "tiny.yaml"):
        assert_refused(run("show", name), 2, f"{name} is not a run folder")


def test_show_of_an_unfinished_run(elsewhere):
    (elsewhere / "begun").mkdir()
    (elsewhere / "begun" / "recipe.yaml").write_text((elsewhere / "tiny.yaml").read_text())
    assert_refused(run("show", "begun"), 7, "begun holds no result", "tune begun --resume")
