"""The tasks of development: ``nox --list`` names them, ``nox -s NAME`` runs one.

They run in the environment in which nox is installed (see CONTRIBUTING.md), since a copy of torch
for every task would take gigabytes. Only ``lowest`` makes an environment of its own.
"""

from __future__ import annotations

import os
import shutil
import sysconfig
from pathlib import Path

import nox

nox.needs_version = ">=2025.5"
nox.options.default_venv_backend = "none"

ROOT = Path(__file__).parent

# The tools are those beside this Python, also where the environment is not activated.
os.environ["PATH"] = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])


@nox.session(tags=["checks"])
def lint(session: nox.Session) -> None:
    """Check rules and format with ruff; ``-- --fix`` mends what it can."""
    if "--fix" in session.posargs:
        session.run("ruff", "check", "--fix", ".")
        session.run("ruff", "format", ".")
        return
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session(tags=["checks"])
def spelling(session: nox.Session) -> None:
    """Look for misspelt words with typos."""
    session.run("typos", *session.posargs)


@nox.session(tags=["checks"])
def types(session: nox.Session) -> None:
    """Check types with mypy, strictly."""
    session.run("mypy", *session.posargs)


@nox.session(tags=["checks"])
def imports(session: nox.Session) -> None:
    """Check with import-linter that rooms import only from rooms below them."""
    session.run("lint-imports", "--no-logo", "--no-cache", *session.posargs)


@nox.session(tags=["checks"])
def docs(session: nox.Session) -> None:
    """Build the documentation; a warning is an error. ``-- serve`` serves it while you write."""
    session.run("python", "scripts/generate_docs.py")
    if session.posargs == ["serve"]:
        session.run("zensical", "serve")
    else:
        session.run("zensical", "build", "--strict", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """Run the default tests; arguments after ``--`` go to pytest."""
    session.run("pytest", *session.posargs)


@nox.session(default=False)
def slow(session: nox.Session) -> None:
    """Run the tests that take minutes each; needs HYPERRBP_DATA for those that read MNIST."""
    session.run("pytest", "-m", "slow", *session.posargs)


@nox.session(default=False)
def golden(session: nox.Session) -> None:
    """Compare results with the golden values, bit for bit; ``-- --regenerate`` writes them anew."""
    if "--regenerate" in session.posargs:
        names = [word for word in session.posargs if word != "--regenerate"]
        session.run("python", "tests/contract/regenerate_golden.py", *names)
    else:
        session.run(
            "pytest", "tests/contract/test_golden.py", "-m", "slow or not slow", *session.posargs
        )


@nox.session(default=False)
def coverage(session: nox.Session) -> None:
    """Measure which lines the default tests run, in subprocesses too; fail below the floor."""
    session.run("coverage", "erase")
    session.run("coverage", "run", "-m", "pytest", *session.posargs)
    session.run("coverage", "combine", "--quiet")
    session.run("coverage", "report")


@nox.session(default=False, venv_backend="virtualenv")
def lowest(session: nox.Session) -> None:
    """Run the default tests with the lowest versions that pyproject.toml allows."""
    session.install("uv")
    session.run("uv", "pip", "install", "--resolution=lowest-direct", "--editable", ".[test]")
    session.run("pytest", *session.posargs)


@nox.session(default=False)
def mutation(session: nox.Session) -> None:
    """Change the gradient core and the checkpoints line by line, and list what no test notices.

    All of it takes hours; ``-- 'hyperrbp.hypergradients.neumann*'`` tries one module.
    """
    session.run("mutmut", "run", *session.posargs, env={"OMP_NUM_THREADS": "1"})
    session.run("mutmut", "results")


@nox.session(default=False)
def lock(session: nox.Session) -> None:
    """Bring uv.lock up to date with pyproject.toml; ``-- --upgrade`` takes newer versions."""
    session.run("uv", "lock", "--default-index=https://pypi.org/simple", *session.posargs)


@nox.session(default=False)
def build(session: nox.Session) -> None:
    """Build the source distribution and the wheel into ``dist/``."""
    shutil.rmtree(ROOT / "dist", ignore_errors=True)
    session.run("python", "-m", "build", *session.posargs)
