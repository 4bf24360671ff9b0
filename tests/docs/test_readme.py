"""The README does not lie."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from hyperrbp.config.presets import names
from hyperrbp.exceptions import EXIT_CODES
from hyperrbp.hypergradients import METHODS
from hyperrbp.hypergradients.diagnostics.verdict import Verdict
from hyperrbp.problems.penalties import PENALTIES

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_its_python_runs(capsys):
    code, _ = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    exec(compile(code, "README.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith(("agrees: ", "disagrees: ")) for line in lines)
    losses = [float(line.split()[1]) for line in lines if line.split()[0].isdigit()]
    assert len(losses) == 21
    assert losses[-1] < losses[0]
    assert float(lines[0].split("cosine ")[1].split()[0]) > 0.5


def test_its_layer_trains(capsys):
    _, code = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    exec(compile(code, "README.md", "exec"), {})
    said = capsys.readouterr().out
    assert float(said.split("loss ")[1].split(";")[0]) < 0.9
    assert "gradient truncated" in said or "gradient converged" in said


def test_its_walk_through_works(tmp_path, monkeypatch):
    """The files and commands of one's own network, data and loss, in a few meta steps."""
    section = README.split("## Your own network, data and loss")[1].split("\n## ")[0]
    files = dict(re.findall(r"<!-- file: (.+?) -->\n```\w+\n(.*?)```", section, flags=re.DOTALL))
    assert list(files) == ["make_data.py", "net.py", "turned.yaml"]
    assert len(files["turned.yaml"].splitlines()) <= 20
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    commands = re.findall(r"^    (python|hyperrbp) (.+)$", section, flags=re.MULTILINE)
    assert [words.split()[0] for _, words in commands] == ["make_data.py", "tune", "train"]
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for program, words in commands:
        also = ["--meta-steps", "2"] if words.startswith("tune") else []
        module = ["-m", "hyperrbp"] if program == "hyperrbp" else []
        done = subprocess.run(
            [sys.executable, *module, *words.split(), *also],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
    tuned = json.loads((tmp_path / "tuned" / "result.json").read_text())
    assert tuned["meta_loss"][2] < tuned["meta_loss"][0]
    start = re.search(r"^ +([\d.]+) → [\d.]+ \(best", section, flags=re.MULTILINE)
    assert tuned["meta_loss"][0] == pytest.approx(float(start[1]), rel=0.01)
    assert (tmp_path / "trained" / "weights.safetensors").is_file()


def test_its_penalties_exist():
    named = re.findall(r"^\| `([a-z-]+)` \| max", README, flags=re.MULTILINE)
    assert named == list(PENALTIES)


def test_its_exit_codes_are_those_of_the_code():
    rows = re.findall(r"^\| (\d+) \| (.+?) \|$", README, flags=re.MULTILINE)
    assert {int(code): meaning for code, meaning in rows if int(code) in EXIT_CODES} == EXIT_CODES


def test_its_verdicts_are_those_of_the_code():
    page = README.split("## When to trust")[1].split("\n## ")[0]
    rows = re.findall(r"^\| ([a-z -]+) \| (yes|no|only [a-z ]+) \| (.+?) \|$", page, re.MULTILINE)
    words = {True: "yes", False: "no", None: "only a comparison can tell"}
    assert rows == [
        (str(v), words[None if v.usable and not v.trusted else v.trusted], v.sentence)
        for v in Verdict
    ]


def test_its_methods_and_recipes_exist():
    named = set(re.findall(r"^\| `(\w+)` \|", README, flags=re.MULTILINE))
    assert named - set(PENALTIES) == set(METHODS)
    assert set(re.findall(r"hyperrbp tune ([a-z]+)\b(?!/)", README)) - {"runs"} <= set(names())


@pytest.mark.parametrize("path", re.findall(r"\]\(([^)#:]+)\)", README))
def test_its_pictures_and_links_are_there(path):
    assert (ROOT / path).is_file()


@pytest.mark.parametrize("purpose", ["run", "test"])
def test_its_two_commands_are_shell(purpose):
    (command,) = re.findall(rf"<!-- command: {purpose} -->\n```sh\n(.*?)\n```", README)
    subprocess.run(["bash", "-n", "-c", command], check=True)
    assert command.startswith("python3 -m venv")


@pytest.mark.parametrize(
    "result",
    [
        "speed.md",
        "compare-mnist.md",
        "reproduction.md",
        "memory.md",
        "solvers.md",
        "trust.md",
    ],
)
def test_measured_tables_are_those_of_the_benchmarks(result):
    text = (ROOT / "benchmarks" / "results" / result).read_text().strip()
    assert len(text.splitlines()) > 9
    assert text in README
