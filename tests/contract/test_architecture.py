"""The structure that the documentation promises: rooms, names, and what is imported when."""

from __future__ import annotations

import ast
import inspect
import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from commands import run
from factories import memory_text, tuning_text
from processes import PRELOADED
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from typer.main import get_command

import hyperrbp
from hyperrbp.cli import app as cli
from hyperrbp.config.equilibrium import GraphNetRecipe, HopfieldRecipe
from hyperrbp.config.recipe import Recipe
from hyperrbp.hypergradients import METHODS, method_class

PACKAGE = Path(hyperrbp.__file__).parent
ROOT = PACKAGE.parent
FILES = sorted(PACKAGE.rglob("*.py"))
ROOMS = sorted(file.parent for file in PACKAGE.glob("*/__init__.py"))

# --- rooms ----------------------------------------------------------------------------------------


def name(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    """Check the package in a folder by the contracts that stand beside it."""
    script = "from importlinter.cli import lint_imports_command as check; check()"
    return subprocess.run(
        [sys.executable, "-c", script, "--no-cache", "--no-logo"],
        cwd=folder, capture_output=True, text=True,
    )  # fmt: skip


@pytest.fixture
def copied(tmp_path) -> Path:
    """The package and its contracts, to be changed."""
    pytest.importorskip("importlinter")
    ours = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PACKAGE, tmp_path / "hyperrbp", ignore=ours)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_imports_point_one_way(copied):
    done = lint_imports(copied)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        ("hypergradients/neumann.py", "import hyperrbp.experiments.tune", "A room imports only"),
        ("runtime/files.py", "import hyperrbp.data.batches", "A room imports only"),
        ("hypergradients/method.py", "import hyperrbp.hypergradients.bptt", "No cycle"),
        ("experiments/tune.py", "import rich.console", "does not present"),
    ],
)
def test_an_import_that_points_back_up_is_refused(copied, module, line, contract):
    """Also inside a function, where it would escape a reader."""
    with (copied / "hyperrbp" / module).open("a") as file:
        file.write(f"\n\ndef late() -> None:\n    {line}\n")
    done = lint_imports(copied)
    assert done.returncode == 1
    broken = [text for text in done.stdout.splitlines() if text.endswith("BROKEN")]
    assert any(contract in text for text in broken), done.stdout


def test_the_top_is_seen_at_a_glance():
    assert len(ROOMS) <= 10
    beside = {file.name for file in PACKAGE.iterdir() if file.is_file()}
    assert beside <= {"__init__.py", "__init__.pyi", "__main__.py", "exceptions.py", "py.typed"}


def test_every_room_has_its_layer():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    (layers,) = [c["layers"] for c in contracts["contracts"] if c["type"] == "layers"]
    assert {room.name for room in ROOMS} == set(layers) - {"__main__", "exceptions"}


@pytest.mark.parametrize("room", ROOMS, ids=name)
def test_a_room_says_what_lives_there_and_what_it_may_import(room):
    said = ast.get_docstring(ast.parse((room / "__init__.py").read_text())) or ""
    assert len([line for line in said.splitlines() if line]) == 3
    assert "import" in said


def test_every_module_says_what_it_is_for():
    for file in FILES:
        assert ast.get_docstring(ast.parse(file.read_text())), name(file)


def test_modules_are_read_in_one_sitting():
    lengths = {name(file): len(file.read_text().splitlines()) for file in FILES}
    assert {file: length for file, length in lengths.items() if length > 400} == {}


def test_no_module_is_for_whatever_is_left_over():
    left_over = {"util", "utils", "helper", "helpers", "misc", "core", "common", "tools"}
    for file in FILES:
        assert not left_over & {*file.relative_to(PACKAGE).parent.parts, file.stem}, name(file)


@pytest.mark.parametrize("method", METHODS)
def test_a_gradient_method_knows_of_problems_only_what_all_have_in_common(method):
    file = Path(inspect.getfile(method_class(method)))
    assert file.parent == PACKAGE / "hypergradients"
    ours = {module for module in imports(file) if module.startswith("hyperrbp.problems.")}
    assert all(f"{module}.".startswith("hyperrbp.problems.base.") for module in ours)


# --- tests ----------------------------------------------------------------------------------------

TESTS = ROOT / "tests"


def test_the_tests_mirror_the_package():
    folders = {file.parent.name for file in TESTS.glob("*/test_*.py")}
    assert {room.name for room in ROOMS} >= folders - {"contract", "docs", "robustness"}


def test_no_test_module_imports_another():
    for file in TESTS.rglob("*.py"):
        assert not {module for module in imports(file) if module.startswith("test_")}, file


def test_what_forks_find_imported_is_there():
    """A module that was renamed would be imported again by every fork."""
    assert all(find_spec(module) for module in PRELOADED)


# --- words ----------------------------------------------------------------------------------------

OURS_ALONE = re.compile(
    r"(?<![a-z])("
    r"walk(s|er|ed|ing)?|contests?|contestants?|contenders?|audiences?|(fore)?told|trainees?"
    r"|first[_ -]?look|straight[_ -]?lines?|cookbooks?|slopes?|sights?|drawn"
    r")(?![a-z])"
)
"""Words that nobody in the field would look for."""


def is_ours_alone(words: str) -> bool:
    """Whether such a word is in a name, written_so, soWritten or so-written."""
    return OURS_ALONE.search(re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", words).lower()) is not None


def defined(file: Path) -> Iterator[str]:
    """What a module names: itself, definitions, arguments, variables, fields and keys."""
    yield str(file.relative_to(PACKAGE).with_suffix(""))
    for node in ast.walk(ast.parse(file.read_text())):
        match node:
            case ast.FunctionDef(name=found) | ast.ClassDef(name=found) | ast.arg(arg=found):
                yield found
            case ast.Name(id=found, ctx=ast.Store()) | ast.Attribute(attr=found, ctx=ast.Store()):
                yield found
            case ast.alias(asname=found) | ast.keyword(arg=found) if found is not None:
                yield found
            case ast.Dict(keys=keys):
                for key in keys:
                    if isinstance(key, ast.Constant) and isinstance(key.value, str):
                        yield key.value


def test_a_word_is_found_wherever_it_stands():
    for text in ("walk", "meta.walk", "WalkSettings", "first_look", "--straight-line", "is_drawn"):
        assert is_ours_alone(text)
    for text in ("insight", "withdrawn", "walkway", "contestation", "look_first", "controller"):
        assert not is_ours_alone(text)


def test_identifiers_are_words_of_the_field():
    found = {name(file): [word for word in defined(file) if is_ours_alone(word)] for file in FILES}
    assert {file: words for file, words in found.items() if words} == {}


@pytest.mark.parametrize("recipe", [Recipe, HopfieldRecipe, GraphNetRecipe])
def test_recipe_keys_are_words_of_the_field(recipe):
    assert [word for word in texts(recipe.model_json_schema()) if is_ours_alone(word)] == []


def test_commands_and_options_are_words_of_the_field():
    commands = get_command(cli.app).commands
    words = set(commands)
    for command in commands.values():
        for option in command.params:
            words |= {*option.opts, *option.secondary_opts}
            words |= {*getattr(getattr(option, "type", None), "choices", ())}
    assert {"tune", "--trunc"} <= words
    assert [word for word in words if is_ours_alone(word)] == []


def texts(content: object) -> Iterator[str]:
    """Every key and every text of a JSON document but what is a sentence."""
    if isinstance(content, dict):
        for key, value in content.items():
            yield key
            if key not in ("description", "title"):
                yield from texts(value)
    elif isinstance(content, list):
        for value in content:
            yield from texts(value)
    elif isinstance(content, str) and " " not in content:
        yield content


@pytest.mark.parametrize("verb", ["tune", "train"])
def test_what_a_run_writes_is_in_words_of_the_field(tmp_path, verb):
    """Keys of records and results, names of files, and the tags of TensorBoard."""
    text = {
        "tune": tuning_text(
            data__validation_examples=20,
            inner__weight_decay=0.01,
            hyperparameters={"weight_decay": {}, "init_scale": {}, "example_weight": {}},
            gradient={"method": "bptt", "check_every": 1},
            meta__loss="validation",
        ),
        "train": memory_text(),
    }[verb]
    (tmp_path / "recipe.yaml").write_text(text)
    folder = tmp_path / "run"
    done = run(verb, tmp_path / "recipe.yaml", "--out", folder, "--json", "--quiet")
    assert done.exit_code == 0, done.output
    words = {str(file.relative_to(folder)) for file in folder.rglob("*")}
    words |= {*texts(json.loads(done.stdout))}
    for line in (folder / "records.jsonl").read_text().splitlines():
        words |= {*texts(json.loads(line))}
    tags = set()
    for events in {file.parent for file in folder.rglob("events.out.tfevents.*")}:
        board = EventAccumulator(str(events))
        board.Reload()
        tags |= {tag for found in board.Tags().values() if isinstance(found, list) for tag in found}
    assert tags
    assert [word for word in words | tags if is_ours_alone(word)] == []


# --- what is imported, and when -------------------------------------------------------------------


def imports(file: Path) -> set[str]:
    """Every module that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return found


def loaded_after(script: str, *modules: str) -> list[str]:
    """Those of the modules that a new process has imported at the end of a script."""
    script += f"\nimport sys\nprint(sorted({set(modules)} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return ast.literal_eval(done.stdout.splitlines()[-1])


NUMERICS = ("torch", "numpy", "scipy", "sklearn", "matplotlib", "tensorboard", "torchvision")


@pytest.mark.parametrize("words", [["--help"], ["tune", "--help"], ["validate", "mnist"]])
def test_help_and_validation_import_no_numerics(words):
    script = (
        "import sys\n"
        "from hyperrbp.__main__ import main\n"
        f"sys.argv = ['hyperrbp', *{words}]\n"
        "try:\n    main()\n"
        "except SystemExit as ended:\n    assert not ended.code"
    )
    assert loaded_after(script, *NUMERICS, "optuna", "cmaes") == []


def test_a_benchmark_is_checked_without_numerics():
    script = """
from hyperrbp.config import presets
from hyperrbp.config.loading import read
from hyperrbp.experiments.benchmark import check_benchmark
from hyperrbp.experiments.optimizer_runs import resolve_names
resolve_names(["tpe", "cmaes", "hyperband", "surrogate"])
check_benchmark(read(presets.find("digits")), ["both"], 1.0, 3)
"""
    assert loaded_after(script, *NUMERICS, "optuna", "cmaes") == []


def test_a_gradient_alone_imports_no_presentation():
    script = """
import torch
from hyperrbp import ShuffledBatches, Batch, TrainingRun, hypergradient
examples = Batch(torch.randn(20, 3), torch.arange(20) % 2)
run = TrainingRun(torch.nn.Linear(3, 2), ShuffledBatches(examples, 5, 0), steps=6)
assert hypergradient(run, run.initial_theta(0.1, 0.5), trunc=3).gradient.isfinite().all()
"""
    presentation = ("tensorboard", "matplotlib", "torchvision", "rich", "typer")
    assert loaded_after(script, *presentation, "sklearn", "optuna") == []


def test_nothing_executes_what_it_reads():
    """No eval, exec, pickle or unsafe load in the package."""
    plain = {"eval", "exec", "compile", "__import__"}
    loads = {"torch.load", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "yaml.load_all"}
    modules = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
    for file in FILES:
        assert not imports(file) & modules, file
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                tensors_alone = "weights_only=True" in map(ast.unparse, node.keywords)
                if not (called == "torch.load" and tensors_alone):
                    assert called not in plain | loads, f"{file}: {called}"
                assert called.split(".")[0] not in modules, f"{file}: {called}"


def test_every_public_name_is_there():
    for public in hyperrbp.__all__:
        assert getattr(hyperrbp, public) is not None
    assert set(hyperrbp.__all__) - {"__version__"} <= set(dir(hyperrbp))
    with pytest.raises(AttributeError, match="nothing"):
        _ = hyperrbp.nothing
