"""``hyperrbp ls``: lists the presets."""

from __future__ import annotations

from typing import Annotated

import typer

from hyperrbp.cli.exit_codes import faults_to_exit_codes
from hyperrbp.cli.output import print_answer, print_json
from hyperrbp.config import presets


def ls(as_json: Annotated[bool, typer.Option("--json", help="As JSON on stdout.")] = False) -> None:
    """List the built-in recipes."""
    with faults_to_exit_codes():
        rows = {name: presets.summary(presets.built_in(name)) for name in presets.names()}
        if as_json:
            print_json(rows)
            return
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 2))
        for name, text in rows.items():
            table.add_row(Text(name, style="bold"), text)
        print_answer(table)
