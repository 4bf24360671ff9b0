"""A working folder to every command, and one finished run."""

from __future__ import annotations

import pytest
from commands import run
from factories import tuning_text

TINY = tuning_text(data={"name": "digits"})


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Every test has a working folder of its own, and no data of the user's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYPERRBP_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "tiny.yaml").write_text(TINY)
    return tmp_path


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A tiny run with --profile --json: its folder, and what it printed."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "tiny.yaml").write_text(TINY)
    out = folder / "run"
    return out, run("tune", folder / "tiny.yaml", "--out", out, "--json", "--profile")
