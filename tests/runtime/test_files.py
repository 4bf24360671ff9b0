"""tests/robustness/test_checkpoint.py holds what is promised of kills at any moment."""

from __future__ import annotations

import pytest

from hyperrbp.exceptions import StorageError
from hyperrbp.runtime.files import leftovers, write_atomically


@pytest.mark.parametrize("content", ["é\n", b"\x00\xff"])
def test_a_file_is_replaced_and_the_old_one_kept_if_asked(tmp_path, content):
    file, before = tmp_path / "file", tmp_path / "before"
    write_atomically(file, "old")
    write_atomically(file, content, keep=before)
    assert file.read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert before.read_text() == "old"
    assert {path.name for path in tmp_path.iterdir()} == {"file", "before"}


def test_what_cannot_be_written_is_said_and_leaves_nothing(tmp_path):
    (tmp_path / "file").mkdir()
    (tmp_path / "file" / "in the way").touch()
    with pytest.raises(StorageError, match="file could not be written"):
        write_atomically(tmp_path / "file", "new")
    assert leftovers(tmp_path) == []


def test_leftovers_are_the_temporary_files_of_killed_writers(tmp_path):
    for name in (".file.123.tmp", "file", ".hidden"):
        (tmp_path / name).touch()
    assert leftovers(tmp_path) == [tmp_path / ".file.123.tmp"]
