"""The structure that the code promises."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import hyperrbp

PACKAGE = Path(hyperrbp.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))


def imports(file: Path) -> set[str]:
    """Every module that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return found


@pytest.mark.parametrize("file", sorted((PACKAGE / "gradients").glob("*.py")), ids=lambda f: f.name)
def test_a_gradient_method_knows_no_problem(file):
    below = (
        *("problems", "implicit_layer", "models", "data", "memory", "classification", "system"),
        *("recipe", "network_recipe", "experiment", "descent", "tune", "train", "network_training"),
        *("inner_training", "compare", "search", "contest", "reproduce", "report", "cli"),
    )
    assert not {m for m in imports(file) if m.startswith(tuple(f"hyperrbp.{b}" for b in below))}


@pytest.mark.parametrize("file", sorted((PACKAGE / "problems").glob("*.py")), ids=lambda f: f.name)
def test_a_problem_knows_no_gradient_method(file):
    assert not {m for m in imports(file) if m.startswith("hyperrbp.hypergradients")}


def test_the_command_line_is_a_leaf():
    importers = [f for f in FILES if "hyperrbp.cli.app" in imports(f)]
    assert [f.name for f in importers] == ["__main__.py"]


def test_nothing_executes_what_it_reads():
    """No eval, exec, pickle or unsafe load in the package; catches one slipped into a reader."""
    plain = {"eval", "exec", "compile", "__import__"}
    loads = {"torch.load", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "yaml.load_all"}
    modules = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
    for file in FILES:
        assert not imports(file) & modules, file
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                assert name not in plain | loads, f"{file}: {name}"
                assert name.split(".")[0] not in modules, f"{file}: {name}"


def test_help_and_validation_import_no_numerics():
    script = (
        "import sys, hyperrbp, hyperrbp.cli.app, hyperrbp.config.loading, hyperrbp.config.presets as c\n"
        "hyperrbp.config.loading.read(c.find('mnist'))\n"
        "heavy = {'torch', 'numpy', 'sklearn', 'matplotlib', 'tensorboard', 'torchvision'}\n"
        "heavy |= {'optuna', 'cmaes'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_a_contest_is_checked_without_numerics():
    script = (
        "import sys, hyperrbp.experiments.benchmark, hyperrbp.config.presets as c, hyperrbp.config.loading\n"
        "from hyperrbp.experiments.optimizer_runs import optimizer_runs\n"
        "optimizer_runs(['tpe', 'cmaes', 'hyperband', 'surrogate'])\n"
        "hyperrbp.experiments.benchmark.check_benchmark(hyperrbp.config.loading.read(c.find('digits')), ['both'], 1.0, 3)\n"
        "print(sorted({'torch', 'numpy', 'matplotlib', 'optuna', 'cmaes'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_every_public_name_is_there():
    for name in hyperrbp.__all__:
        assert getattr(hyperrbp, name) is not None
    assert set(hyperrbp.__all__) <= set(dir(hyperrbp))
    with pytest.raises(AttributeError, match="nothing"):
        _ = hyperrbp.nothing


def test_the_meta_loop_is_read_in_one_sitting():
    assert len((PACKAGE / "descent.py").read_text().splitlines()) < 270
    assert len((PACKAGE / "tune.py").read_text().splitlines()) < 260
