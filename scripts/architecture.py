"""Draw the rooms of the package and what they import, in the order of import-linter."""

from __future__ import annotations

import ast
import re
import tomllib
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "hyperrbp"


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


WIDTH, HEIGHT, GAP, LEFT = 700, 48, 26, 20


def drawing() -> str:
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
