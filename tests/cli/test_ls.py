"""``hyperrbp ls``."""

from __future__ import annotations

import json

from commands import run

from hyperrbp.config import presets


def test_ls():
    done = run("ls")
    assert done.exit_code == 0
    assert [line.split()[0] for line in done.stdout.splitlines() if line[0] != " "] == [
        "cleaning",
        "conv",
        "cora",
        "decay",
        "digits",
        "gpt",
        "hopfield",
        "mnist",
        "pubmed",
        "template",
    ]


def test_ls_as_json():
    rows = json.loads(run("ls", "--json").stdout)
    assert list(rows) == presets.names()
    assert rows["digits"].startswith("Tunes one learning rate and one momentum for each")


def test_ls_lists_the_built_in_recipes_whatever_lies_around(elsewhere):
    before = run("ls", "--json").stdout
    (elsewhere / "digits").write_text("# mine\n#\n# Another recipe.\n")
    assert run("ls", "--json").stdout == before
