"""Write the parts of the documentation that are taken from the code, into build/docs/.

    python scripts/generate_docs.py && zensical build --strict

The pages in docs/ include these parts. Figures are copied to docs/figures/, and the drawing of the
architecture is made from the imports and from the contract of import-linter.
"""

from __future__ import annotations

import ast
import csv
import inspect
import json
import re
import shutil
import subprocess
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import architecture
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

ROOT = Path(__file__).resolve().parent.parent
PARTS = ROOT / "build" / "docs"
FIGURES = ROOT / "docs" / "figures"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Make a Markdown table of plain text and of reStructuredText from docstrings."""
    lines = [head, ["---"] * len(head), *rows]
    cells = (
        [" ".join(cell.split()).replace("|", "\\|").replace("``", "`") for cell in line]
        for line in lines
    )
    return "".join(f"| {' | '.join(line)} |\n" for line in cells)


# The command line


def cli() -> str:
    """Describe every command with its options, as typer documents it."""
    typer = [
        sys.executable,
        "-m",
        "typer",
        "hyperrbp.cli.app",
        "utils",
        "docs",
        "--name",
        "hyperrbp",
    ]
    done = subprocess.run(typer, cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    if done.returncode != 0:
        raise RuntimeError(done.stderr)
    text = re.sub(r"\A# `hyperrbp`\n", "", done.stdout).replace("{RECIPE}", "RECIPE")
    text = re.sub(r"\*\*Commands\*\*:\n\n(\* .*\n)+", "", text)  # listed on the right of the page
    text = re.sub(r"Exit codes:\n\n(- .*\n)+", "", text)  # they have a page
    # Examples are paragraphs that begin with the command.
    text = re.sub(r"^hyperrbp (?=\w+ \S)(.*)$", r"    hyperrbp \1", text, flags=re.MULTILINE)
    return re.sub(r"^(    hyperrbp .*\n)\n(?=    hyperrbp )", r"\1", text, flags=re.MULTILINE)


def exit_codes() -> str:
    """List every exit code."""
    from hyperrbp.cli.exit_codes import EXIT_CODES

    return table(["code", "meaning"], ([f"`{code}`", text] for code, text in EXIT_CODES.items()))


# Recipes


def recipe_kinds() -> dict[str, type[BaseModel]]:
    """Name every kind of recipe."""
    from hyperrbp.config.equilibrium import SYSTEMS
    from hyperrbp.config.recipe import Recipe

    return {"Training runs to be tuned": Recipe} | {
        f"`system: {name}`": kind for name, kind in SYSTEMS.items()
    }


def recipes() -> str:
    """List every key of every kind of recipe."""
    parts = []
    for title, kind in recipe_kinds().items():
        parts.append(f"## {title}\n\n{inspect.cleandoc(kind.__doc__ or '')}\n")
        plain = [name for name in kind.model_fields if section_of(kind, name) is None]
        parts.append(_keys_table(row for name in plain for row in keys(kind, name)))
        for name in kind.model_fields:
            section = section_of(kind, name)
            if section is not None:
                about = inspect.cleandoc(section.__doc__ or "")
                parts.append(f"### {name}\n\n{about}\n\n{_keys_table(keys(kind, name))}")
    return "\n".join(parts)


Key = tuple[str, str, str, str]
"""A dotted key, what it may be, its default, and its description."""


def keys(kind: type[BaseModel], name: str, prefix: str = "") -> Iterator[Key]:
    """Describe a key of a section, and the keys below it."""
    about = kind.model_fields[name]
    inner = section_of(kind, name)
    if inner is None or type(None) in get_args(about.annotation):
        yield (
            f"{prefix}{name}",
            described(about.annotation, _bounds(about.metadata)),
            _default(about),
            about.description or "",
        )
    if inner is not None:
        for below in inner.model_fields:
            yield from keys(inner, below, f"{prefix}{name}.")


def section_of(kind: type[BaseModel], name: str) -> type[BaseModel] | None:
    """Find the section under a key, also where it may be null."""
    annotation = kind.model_fields[name].annotation
    options = get_args(annotation) if get_origin(annotation) is not None else (annotation,)
    sections = (o for o in options if isinstance(o, type) and issubclass(o, BaseModel))
    return next(sections, None)


def _keys_table(rows: Iterable[Key]) -> str:
    return table(
        ["key", "value", "default", ""],
        ([f"`{key}`", what, default, about] for key, what, default, about in rows),
    )


def described(annotation: Any, bounds: str = "") -> str:
    """Say in words what a type takes."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in args)
    if origin in (Union, types.UnionType):
        values = [arg for arg in args if arg is not type(None)]
        null = " or `null`" if len(values) < len(args) else ""
        return " or ".join(described(value, bounds) for value in values) + null
    if origin is list:
        return f"list of {described(args[0])}"
    if hasattr(annotation, "__metadata__"):
        return described(args[0])
    if origin is dict or (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        return "mapping"
    words = {int: "whole number", float: "number", str: "text", bool: "`true` or `false`"}
    return words.get(annotation, str(annotation)) + bounds


def _bounds(metadata: Sequence[Any]) -> str:
    signs = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
    found = [
        f"{sign} {getattr(bound, name):g}"
        for bound in metadata
        for name, sign in signs.items()
        if getattr(bound, name, None) is not None
    ]
    return f" {', '.join(found)}" if found else ""


def _default(about: Any) -> str:
    if about.default_factory is not None:
        return f"`{_literal(about.default_factory())}`"
    if about.default is PydanticUndefined:
        return "required"
    return f"`{_literal(about.default)}`"


def _literal(value: Any) -> str:
    if isinstance(value, BaseModel):
        return "…"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return f"[{', '.join(map(_literal, value))}]"
    return value if isinstance(value, str) else json.dumps(value)


# Gradient methods


def methods() -> str:
    """List every registered method."""
    from hyperrbp.hypergradients import METHODS, method_class

    rows = []
    for name in METHODS:
        kind = method_class(name)
        rows.append(
            [
                f"`{name}`",
                _first_sentence(kind),
                _HORIZONS[kind.horizon.name],
                ", ".join(f"`{estimator}`" for estimator in kind.estimators) or "–",
            ]
        )
    return table(["method", "", "differentiates", "averaging, the default first"], rows)


_HORIZONS = {
    "RUN": "the whole run",
    "TANGENTS": "the whole run, forwards",
    "WINDOW": "the last K steps",
    "STATE": "at the last state",
}


def _first_sentence(kind: type) -> str:
    paragraph = inspect.cleandoc(kind.__doc__ or "").partition("\n\n")[0]
    return re.split(r"(?<=\.)\s", " ".join(paragraph.split()))[0]


def method_options() -> str:
    """List the options of every registered method."""
    from hyperrbp.hypergradients import METHODS, method_class

    parts = []
    for name in METHODS:
        kind = method_class(name)
        rows = list(_options(kind))
        if rows:
            parts.append(f"### `{name}`\n\n{table(['option', 'default', ''], rows)}")
    return "\n".join(parts)


def _options(kind: type) -> Iterator[list[str]]:
    assert is_dataclass(kind)
    about = _attribute_docstrings(kind)
    for option in fields(kind):
        default = option.default
        if default is MISSING:
            assert option.default_factory is not MISSING
            default = option.default_factory()
        yield [f"`{option.name}`", f"`{_literal(default)}`", about.get(option.name, "")]


def _attribute_docstrings(kind: type) -> dict[str, str]:
    """Read the texts below the attributes of a class and of those that it inherits from."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__[:-1]):
        if not base.__module__.startswith("hyperrbp."):
            continue
        body = ast.parse(inspect.getsource(base)).body[0]
        assert isinstance(body, ast.ClassDef)
        for above, below in zip(body.body, body.body[1:], strict=False):
            if (
                isinstance(above, ast.AnnAssign)
                and isinstance(above.target, ast.Name)
                and isinstance(below, ast.Expr)
                and isinstance(below.value, ast.Constant)
            ):
                found[above.target.id] = str(below.value.value)
    return found


def optimizers() -> str:
    """List what can move the hyperparameters."""
    from hyperrbp.optimizers import OPTIMIZERS

    return table(["optimizer", ""], ([f"`{name}`", text] for name, text in OPTIMIZERS.items()))


def kinds() -> str:
    """Say which method can differentiate with respect to which kind of hyperparameter."""
    from hyperrbp.config.hyperparameters import HORIZONS
    from hyperrbp.hypergradients.method import Horizon

    rows = []
    for kind, seen in HORIZONS.items():
        tangents = seen.get(Horizon.TANGENTS, seen[Horizon.RUN])
        rows.append(
            [
                kind.replace("_", " "),
                seen[Horizon.RUN],
                tangents,
                seen[Horizon.WINDOW],
                seen[Horizon.STATE],
            ]
        )
    return table(["tuned", "`bptt`", "`forward`", "`tbptt`", "the implicit methods"], rows)


def statuses() -> str:
    """List every status of a gradient."""
    from hyperrbp.hypergradients.method import Status

    return table(["status", "meaning"], ([str(s), s.sentence] for s in Status))


def verdicts() -> str:
    """List every verdict."""
    from hyperrbp.hypergradients.diagnostics.verdict import Verdict

    def trust(verdict: Any) -> str:
        undecided = verdict.usable and not verdict.trusted
        return "only a comparison can tell" if undecided else "yes" if verdict.trusted else "no"

    rows = ([str(v), trust(v), v.sentence, v.advice] for v in Verdict)
    return table(["verdict", "trust it?", "meaning", "what to do"], rows)


def estimators() -> str:
    """Show the measured accuracy of each way of averaging, at K = 50."""
    with (ROOT / "benchmarks" / "results" / "estimators.csv").open(encoding="utf-8") as file:
        measured = [row for row in csv.DictReader(file) if row["K"] == "50"]

    def entry(row: dict[str, str], kind: str) -> str:
        cosine, signs, ratio = (
            float(row[f"{name}_{kind}"]) for name in ("cosine", "signs", "norm_ratio")
        )
        return f"{cosine:+.2f}, {signs:.0%}, ×{ratio:.2g}"

    by_setting: dict[str, dict[str, dict[str, str]]] = {}
    for row in measured:
        series = f", {row['series']} series" if row["estimator"] == "resampled" else ""
        setting = f"`{row['method']}` {row['estimator']}, M = {row['M']}{series}"
        by_setting.setdefault(setting, {})[row["T"]] = row
    rows = (
        [
            setting,
            *(entry(at[steps], "learning_rate") for steps in ("100", "500", "1000")),
            entry(at["1000"], "momentum"),
        ]
        for setting, at in by_setting.items()
    )
    head = [f"learning rates, T = {steps}" for steps in (100, 500, 1000)]
    return table(["at K = 50", *head, "momenta, T = 1000"], rows)


def rooms_table() -> str:
    """List the rooms and what lives in each."""
    rows = ([f"`hyperrbp.{room}`", architecture.about(room)] for room in architecture.rooms())
    return table(["room", "what lives there"], rows)


PARTS_BY_NAME: dict[str, Callable[[], str]] = {
    "cli.md": cli,
    "exit-codes.md": exit_codes,
    "recipes.md": recipes,
    "methods.md": methods,
    "method-options.md": method_options,
    "optimizers.md": optimizers,
    "kinds.md": kinds,
    "statuses.md": statuses,
    "verdicts.md": verdicts,
    "estimators.md": estimators,
    "rooms.md": rooms_table,
}


def main() -> None:
    """Write all parts and figures."""
    PARTS.mkdir(parents=True, exist_ok=True)
    for name, part in PARTS_BY_NAME.items():
        (PARTS / name).write_text(part(), encoding="utf-8")
    shutil.rmtree(FIGURES, ignore_errors=True)
    shutil.copytree(ROOT / "benchmarks" / "figures", FIGURES)
    (FIGURES / "architecture.svg").write_text(architecture.drawing(), encoding="utf-8")
    print(f"wrote {len(PARTS_BY_NAME)} parts to {PARTS} and the figures to {FIGURES}")


if __name__ == "__main__":
    main()
