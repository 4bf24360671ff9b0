"""The table of the README's section 'Reproducing the paper', from what `hyperrbp reproduce` wrote.

hyperrbp reproduce all --quick --data-root DATA --out DIR
python benchmarks/reproduction.py DIR [--machine 'two cores of …'] [--out benchmarks/results]
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from hyperrbp.paper.reproduction import ARTIFACTS
from hyperrbp.runtime.files import write_atomically

PICTURES = ("figure1", "figureA1", "figure4")
HELD = {True: "held", False: "did not hold", None: "not said"}


def row(document: dict) -> str:
    quick = " --quick" if document["quick"] else ""
    run_specs = [
        document["title"].split(":")[0],
        f"`hyperrbp reproduce {document['artifact']}{quick}`",
        document["claim"],
        f"**{HELD[document['held']]}**: {document['verdict']}",
        document["scale"],
    ]
    return f"| {' | '.join(spec.replace('|', '/') for spec in run_specs)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--machine", default="")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    given = parser.parse_args()
    documents = [
        json.loads(file.read_text(encoding="utf-8"))
        for name in ARTIFACTS
        if (file := given.folder / f"{name}.json").is_file()
    ]
    found = documents[0]["environment"]
    machine = f"{found['machine']}, {found['threads']} thread(s), torch {found['torch']}"
    lines = [
        f"Measured on {given.machine + ': ' if given.machine else ''}{machine}.",
        "",
        "| | command | what the paper says | what we measured | at what size |",
        "|---|---|---|---|---|",
        *map(row, documents),
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    write_atomically(given.out / "reproduction.md", text)
    for name in PICTURES:
        picture = given.folder / f"{name}.png"
        if picture.is_file():
            shutil.copy(picture, given.out.parent / "figures" / f"reproduced-{name}.png")


if __name__ == "__main__":
    main()
