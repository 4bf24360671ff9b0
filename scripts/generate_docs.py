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
import tomllib
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import MISSING, fields, is_dataclass
from html import escape
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

ROOT = Path(__file__).resolve().parent.parent
PARTS = ROOT / "build" / "docs"
FIGURES = ROOT / "docs" / "figures"
PACKAGE = ROOT / "hyperrbp"


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


# The rooms


def rooms() -> list[str]:
    """Read the packages from top to bottom out of the contract of import-linter."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = settings["tool"]["importlinter"]["contracts"]
    layers = next(c["layers"] for c in contracts if c["type"] == "layers")
    return [name for name in layers if (PACKAGE / name).is_dir()]


def imports() -> dict[str, set[str]]:
    """Find which rooms each room imports.

    Raises:
        ValueError: for an import upwards.
    """
    order = rooms()
    found: dict[str, set[str]] = {}
    for room in order:
        sources = (file.read_text(encoding="utf-8") for file in (PACKAGE / room).rglob("*.py"))
        named = {
            m for text in sources for m in re.findall(r"(?:from|import) hyperrbp\.(\w+)", text)
        }
        found[room] = (named & set(order)) - {room}
        for other in found[room]:
            if order.index(other) < order.index(room):
                raise ValueError(f"hyperrbp.{room} imports hyperrbp.{other}, which is above it")
    return found


def needed(arrows: dict[str, set[str]]) -> dict[str, set[str]]:
    """Leave out every arrow that follows from others."""

    def reached(room: str) -> set[str]:
        return arrows[room].union(*(reached(other) for other in arrows[room]))

    return {
        room: others - set[str]().union(*(reached(other) for other in others))
        for room, others in arrows.items()
    }


def about(room: str) -> str:
    """Take the first sentence of a room's docstring."""
    source = (PACKAGE / room / "__init__.py").read_text(encoding="utf-8")
    text = " ".join((ast.get_docstring(ast.parse(source)) or "").partition("\n\n")[0].split())
    return re.split(r"(?<=\.)(?<!al\.)\s", text)[0].replace("``", "")


def rooms_table() -> str:
    """List the rooms and what lives in each."""
    rows = ([f"`hyperrbp.{room}`", about(room)] for room in rooms())
    return table(["room", "what lives there"], rows)


WIDTH, HEIGHT, GAP, LEFT = 700, 48, 26, 20


def architecture() -> str:
    """Draw the rooms, top to bottom, with an arrow for each import that does not follow."""
    order, arrows = rooms(), needed(imports())
    top = {room: 16 + n * (HEIGHT + GAP) for n, room in enumerate(order)}
    shapes, lane = [], 0
    for room in order:
        shapes.append(_box(room, top[room]))
        for other in sorted(arrows[room], key=order.index):
            if order.index(other) == order.index(room) + 1:
                x = LEFT + WIDTH // 2
                path = f"M{x} {top[room] + HEIGHT} V{top[other] - 5}"
            else:
                lane += 1
                x, out = LEFT + WIDTH, LEFT + WIDTH + 16 * lane
                start, end = top[room] + HEIGHT - 12, top[other] + 12
                path = f"M{x} {start} H{out} V{end} H{x + 6}"
            shapes.append(f'<path d="{path}" class="arrow" marker-end="url(#head)"/>')
    width = LEFT * 2 + WIDTH + 16 * lane
    height = 16 + len(order) * (HEIGHT + GAP)
    return _SVG.format(width=width, height=height, shapes="\n".join(shapes))


_SVG = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}">
<style>
  text {{ font: 13px sans-serif; fill: #444 }}
  .room {{ font: bold 15px sans-serif; fill: #1a237e }}
  .box {{ fill: #eef0fa; stroke: #5c6bc0 }}
  .arrow {{ fill: none; stroke: #5c6bc0; stroke-width: 1.4 }}
</style>
<defs><marker id="head" viewBox="0 0 8 8" refX="6" refY="4" markerWidth="7" markerHeight="7"
 orient="auto"><path d="M0 0 L8 4 L0 8 z" fill="#5c6bc0"/></marker></defs>
<rect width="100%" height="100%" fill="#fff"/>
{shapes}
</svg>
"""


def _box(room: str, y: int) -> str:
    sentence = about(room)
    if len(sentence) > 110:
        sentence = sentence[:110].rsplit(" ", 1)[0] + " …"
    return (
        f'<rect x="{LEFT}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="6" class="box"/>\n'
        f'<text x="{LEFT + 12}" y="{y + 20}" class="room">{room}</text>\n'
        f'<text x="{LEFT + 12}" y="{y + 38}">{escape(sentence)}</text>'
    )


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
    (FIGURES / "architecture.svg").write_text(architecture(), encoding="utf-8")
    print(f"wrote {len(PARTS_BY_NAME)} parts to {PARTS} and the figures to {FIGURES}")


if __name__ == "__main__":
    main()
