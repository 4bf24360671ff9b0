"""Links, pictures, the README's commands, and what the pages say of the code by hand."""

from __future__ import annotations

import ast
import pkgutil
import re
import shlex
import subprocess

import pytest
import yaml
from run_docs import ROOT, pages

from hyperrbp.cli.reading import tuning_recipe
from hyperrbp.experiments.benchmark import check_benchmark
from hyperrbp.experiments.optimizer_runs import resolve_names
from hyperrbp.hypergradients import METHODS
from hyperrbp.problems.penalties import PENALTIES

README = (ROOT / "README.md").read_text(encoding="utf-8")
SITE = "https://hyperrbp.github.io/hyperrbp/"
BLOB = "https://github.com/hyperrbp/hyperrbp/blob/main/"


def links():
    for page in pages():
        text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            yield page, target


@pytest.mark.parametrize(
    ("page", "target"), [pytest.param(p, t, id=f"{p.name}-{t}") for p, t in links()]
)
def test_links_and_pictures_are_there(page, target):
    path = target.partition("#")[0]
    if path.startswith(SITE):
        inside = path.removeprefix(SITE).strip("/") or "index"
        file = ROOT / "docs" / f"{inside}.md"
        assert file.is_file() or (file.with_suffix("") / "index.md").is_file()
    elif path.startswith(BLOB):
        assert (ROOT / path.removeprefix(BLOB)).is_file()
    elif path and "://" not in path:
        file = (page.parent / path).resolve()
        if file.parent == ROOT / "docs" / "figures":  # copied there when the site is built
            file = ROOT / "benchmarks" / "figures" / file.name
        assert file.name == "architecture.svg" or file.is_file()


def test_every_page_is_in_the_navigation():
    def files(entry):
        if isinstance(entry, str):
            yield entry
        else:
            for part in entry.values() if isinstance(entry, dict) else entry:
                yield from files(part)

    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    listed = set(files(yaml.safe_load(text)["nav"]))
    docs = ROOT / "docs"
    there = {page.relative_to(docs).as_posix() for page in docs.rglob("*.md")}
    decisions = {page for page in there if re.fullmatch(r"development/decisions/\d{4}-.*", page)}
    assert listed == there - decisions
    index = (docs / "development/decisions/index.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\((\d{4}-[\w-]+\.md)\)", index)) == {
        page.rpartition("/")[2] for page in decisions
    }


def test_the_readme_is_short_and_its_tables_name_what_exists():
    assert len(README.splitlines()) <= 250
    named = re.findall(r"^\| `(\w+)` \|", README, flags=re.MULTILINE)
    assert set(named) <= set(METHODS)
    assert {"bptt", "tbptt", "rbp", "cg", "neumann"} <= set(named)


@pytest.mark.parametrize("page", ["README.md", "docs/benchmarks/against-search.md"])
def test_numbers_that_are_picked_from_measured_tables_stand_there(page):
    sources = ("against-search.md", "cleaning.md")
    results = [(ROOT / "benchmarks/results" / name).read_text(encoding="utf-8") for name in sources]
    measured = [float(number) for number in re.findall(r"\d+(?:\.\d+)?", "".join(results))]
    rows = [row for row in (ROOT / page).read_text().splitlines() if row.startswith("|")]
    picked = re.findall(r"\d+\.\d+", "".join(rows))
    assert len(picked) >= 8
    for number in picked:
        digits = len(number.partition(".")[2])
        assert any(round(value, digits) == float(number) for value in measured), number


@pytest.mark.parametrize("purpose", ["run", "test"])
def test_the_two_commands_of_the_readme_are_shell(purpose):
    command = readme_command(purpose)
    subprocess.run(["bash", "-n", "-c", command], check=True)
    assert command.startswith("python3 -m venv")


def test_continuous_integration_runs_the_test_command_of_the_readme():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert script.splitlines()[-1] == readme_command("test")


def readme_command(purpose):
    (command,) = re.findall(rf"<!-- command: {purpose} -->\n```sh\n(.*?)\n```", README)
    return command


def test_the_methods_and_penalties_described_by_hand_exist():
    page = (ROOT / "docs/reference/methods.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(\w+)` \|", page, flags=re.MULTILINE)) <= set(METHODS)
    page = (ROOT / "docs/guides/equilibrium-networks.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `([a-z-]+)` \| max", page, re.MULTILINE) == list(PENALTIES)


def test_the_architecture_page_names_files_that_exist():
    page = (ROOT / "docs/development/architecture.md").read_text(encoding="utf-8")
    named = re.findall(r"`(hyperrbp/[\w/]+\.py)`", page)
    assert len(named) > 5
    assert not [path for path in named if not (ROOT / path).is_file()]


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_the_names_of_the_package_on_a_page_exist(page):
    for dotted in re.findall(r"`(hyperrbp(?:\.\w+)+)`", page.read_text(encoding="utf-8")):
        assert pkgutil.resolve_name(dotted) is not None


def promised_tests():
    page = (ROOT / "docs/development/promises.md").read_text(encoding="utf-8")
    return re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", page)


@pytest.mark.parametrize("file", sorted({file for file, _ in promised_tests()}))
def test_the_tests_that_hold_the_promises_exist(file):
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    there = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    assert {test for named, test in promised_tests() if named == file} <= there


def published():
    """The commands of the results folder that compare ways to tune."""
    for page in sorted((ROOT / "benchmarks" / "results").glob("*.md")):
        for line in page.read_text(encoding="utf-8").splitlines():
            if line.startswith("    hyperrbp compare ") and "--against" in line:
                yield line.strip()


@pytest.mark.parametrize("command", list(published()))
def test_a_published_comparison_is_not_refused(command):
    words = shlex.split(command)
    values = {flag: words[i + 1] for i, flag in enumerate(words) if flag.startswith("--")}
    settings = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
    recipe = tuning_recipe(words[2], settings, [], run_code=False)
    names = resolve_names(values["--against"].split(","))
    check_benchmark(recipe, names, float(values["--budget-seconds"]), int(values["--seeds"]))
