"""``hyperrbp cat``."""

from __future__ import annotations

import pytest
from commands import assert_refused, run

from hyperrbp.config import presets


@pytest.mark.parametrize("name", presets.names())
def test_cat_prints_the_file_itself(name):
    assert run("cat", name).stdout == presets.built_in(name).read_text(encoding="utf-8")


def test_cat_of_something_else(elsewhere):
    (elsewhere / "a.bin").write_bytes(b"\xff\xfe\x00")
    assert_refused(run("cat", "a.bin"), 2, "a.bin: not a text file in UTF-8")
