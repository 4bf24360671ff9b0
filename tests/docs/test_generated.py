"""What the documentation takes from the code is all there."""

from __future__ import annotations

import re

import architecture
import generate_docs
import pytest
from run_docs import ROOT, pages
from typer.main import get_command

import hyperrbp
from hyperrbp.cli.app import app
from hyperrbp.cli.exit_codes import EXIT_CODES
from hyperrbp.config import presets
from hyperrbp.config.hyperparameters import HORIZONS
from hyperrbp.config.loading import read_any
from hyperrbp.hypergradients import METHODS, method_class
from hyperrbp.hypergradients.diagnostics.verdict import Verdict
from hyperrbp.hypergradients.method import Horizon, Status
from hyperrbp.optimizers import OPTIMIZERS


def first_cells(text):
    """The first column of every table."""
    return re.findall(r"^\| `?(.+?)`? \|", text, flags=re.MULTILINE)


@pytest.fixture(scope="module")
def cli():
    return generate_docs.cli()


@pytest.mark.parametrize("verb", sorted(get_command(app).commands))
def test_every_option_of_the_command_line_is_listed(cli, verb):
    section = cli.split(f"## `hyperrbp {verb}`\n")[1].split("\n## ")[0]
    for parameter in get_command(app).commands[verb].params:
        names = [*parameter.opts, *parameter.secondary_opts]
        for option in [name for name in names if name.startswith("-")]:
            assert re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", section), option


def dotted(document, prefix=""):
    for key, value in document.items():
        if isinstance(value, dict) and not key.endswith("options"):
            yield from dotted(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


@pytest.mark.parametrize("name", presets.names())
def test_every_key_of_every_built_in_recipe_is_listed(name):
    recipe = read_any(presets.find(name))
    system = getattr(recipe, "system", None)
    title = f"`system: {system}`" if system else "Training runs to be tuned"
    section = generate_docs.recipes().split(f"## {title}\n")[1].split("\n## ")[0]
    assert set(dotted(recipe.model_dump())) <= set(first_cells(section))


def every_key(kind, prefix=""):
    for key in kind.model_fields:
        below = generate_docs.section_of(kind, key)
        yield from every_key(below, f"{prefix}{key}.") if below else [f"{prefix}{key}"]


def test_every_recipe_key_is_listed_with_a_default():
    text = generate_docs.recipes()
    listed = set(first_cells(text))
    for kind in generate_docs.recipe_kinds().values():
        assert set(every_key(kind)) <= listed
    assert {"inner.batch_size", "meta.optimizer", "hyperparameters.weight_decay.by"} <= listed
    assert "PydanticUndefined" not in text
    assert "typing." not in text


def test_every_method_and_option_is_listed():
    assert first_cells(generate_docs.methods())[2:] == list(METHODS)
    text = generate_docs.method_options()
    for name in METHODS:
        section = text.partition(f"### `{name}`\n")[2].partition("\n### ")[0]
        for option in getattr(method_class(name), "__dataclass_fields__", {}):
            (row,) = [row for row in section.splitlines() if row.startswith(f"| `{option}` |")]
            assert not row.endswith("|  |"), f"{name}.{option} has no docstring"


def test_every_optimizer_is_listed():
    assert first_cells(generate_docs.optimizers())[2:] == list(OPTIMIZERS)


@pytest.mark.parametrize("row", HORIZONS)
def test_what_each_method_can_differentiate_is_listed(row):
    columns = (Horizon.RUN, Horizon.TANGENTS, Horizon.WINDOW, Horizon.STATE)
    cells = [HORIZONS[row].get(horizon, HORIZONS[row][Horizon.RUN]) for horizon in columns]
    line = f"| {row.replace('_', ' ')} | {' | '.join(cells)} |"
    assert line in generate_docs.kinds().splitlines()


def test_the_api_page_has_every_public_name():
    page = (ROOT / "docs/reference/api.md").read_text(encoding="utf-8")
    named = re.findall(r"^::: hyperrbp\.(\w+)$", page, flags=re.MULTILINE)
    assert sorted(named) == sorted(set(hyperrbp.__all__) - {"__version__"})


def test_verdicts_statuses_and_exit_codes_are_listed():
    rows = re.findall(r"^\| `?([\w -]+?)`? \| (.+?) \|", generate_docs.exit_codes(), re.MULTILINE)
    assert {int(code): text for code, text in rows if code.isdigit()} == EXIT_CODES
    assert first_cells(generate_docs.statuses())[2:] == [str(status) for status in Status]
    listed = generate_docs.verdicts()
    assert first_cells(listed)[2:] == [str(verdict) for verdict in Verdict]
    trusted = re.findall(r"^\| ([a-z -]+) \| yes \|", listed, re.MULTILINE)
    assert trusted == [str(verdict) for verdict in Verdict if verdict.trusted]
    assert all(verdict.sentence in listed for verdict in Verdict)


def test_no_arrow_of_the_drawing_points_up(tmp_path, monkeypatch):
    order = architecture.rooms()
    for room, others in architecture.imports().items():
        assert all(order.index(other) > order.index(room) for other in others)
    for room in order:
        assert f">{room}</text>" in architecture.drawing()
        (tmp_path / room).mkdir()
        (tmp_path / room / "__init__.py").write_text('"""."""\n')
    lowest, highest = order[-1], order[0]
    (tmp_path / lowest / "up.py").write_text(f"from hyperrbp.{highest} import x\n")
    monkeypatch.setattr(architecture, "PACKAGE", tmp_path)
    with pytest.raises(ValueError, match=f"hyperrbp.{lowest} imports hyperrbp.{highest}"):
        architecture.imports()


def test_an_arrow_that_follows_from_others_is_left_out():
    arrows = {"a": {"b", "c"}, "b": {"c"}, "c": set()}
    assert architecture.needed(arrows) == {"a": {"b"}, "b": {"c"}, "c": set()}


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_includes_is_there(page):
    text = page.read_text(encoding="utf-8")
    for included in re.findall(r'^--8<-- "([^":]+)', text, flags=re.MULTILINE):
        generated = included.removeprefix("build/docs/")
        assert generated in generate_docs.PARTS_BY_NAME or (ROOT / included).is_file(), included
