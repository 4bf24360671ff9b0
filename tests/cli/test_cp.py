"""``hyperrbp cp``."""

from __future__ import annotations

from commands import assert_refused, run

from hyperrbp.config import presets
from hyperrbp.config.loading import read


def test_cp_writes_a_copy_that_runs_as_it_is(elsewhere):
    done = run("cp", "digits")
    assert (done.exit_code, done.stdout) == (0, "")
    assert done.stderr == "wrote digits.yaml; run it with: hyperrbp tune digits.yaml\n"
    assert (elsewhere / "digits.yaml").read_bytes() == presets.built_in("digits").read_bytes()
    assert run("validate", "digits.yaml").stdout == run("validate", "digits").stdout


def test_cp_to_a_name_or_a_folder_of_ones_own(elsewhere):
    (elsewhere / "[red]folder").mkdir()
    for target, file in (("a.yaml", "a.yaml"), ("[red]folder", "[red]folder/mnist.yaml")):
        done = run("cp", "mnist", target)
        assert done.exit_code == 0
        assert done.stderr.startswith(f"wrote {file}; ")
        assert read(elsewhere / file).data.name == "mnist"


def test_cp_overwrites_nothing(elsewhere):
    (elsewhere / "digits.yaml").write_text("mine")
    for words in (["cp", "digits"], ["cp", "mnist", "digits.yaml"]):
        assert_refused(run(*words), 2, "digits.yaml exists already; name another file")
    assert (elsewhere / "digits.yaml").read_text() == "mine"


def test_cp_to_a_place_that_cannot_be_written():
    assert_refused(run("cp", "digits", "no/such/folder.yaml"), 9, "no/such/folder.yaml: No such")
