"""Recipes that are damaged at random: each is a recipe still, or is refused in plain words."""

from __future__ import annotations

import random
import time

import pytest
from typer.testing import CliRunner

from hyperrbp.cli.app import app
from hyperrbp.config import presets
from hyperrbp.config.loading import parse_any, read_any
from hyperrbp.exceptions import RecipeError

JUNK = [
    b"[", b"]", b"{", b"}", b":", b": ", b"- ", b"#", b"&a", b"*a", b"!!python/name:os.system",
    b"!", b"'", b'"', b"|", b">", b"%", b"@", b"?", b"\t", b"---", b"...", b"<<", b"~", b"null",
    b"true", b"yes", b".inf", b"-.inf", b".nan", b"1e999", b"-1", b"0", b"", b"''", b"[[]]",
    b"{a: b}", b"9" * 400, b"-" + b"9" * 40, b"1e-320", b"0x1F", b"\xff", b"\x00", b"\xc3\xa9",
    b"\xe2\x80\xa8", b"\r", b"\xed\xa0\x80", b"\x1b[0m", b"neumann", b"cg", b"bptt", b"tbptt",
    b"resampled", b"validation", b"mnist", b"steps", b"gradient.trunc", b"tanh", b"10000000000",
]  # fmt: skip


def mutant(text: bytes, source: random.Random) -> bytes:
    for _ in range(source.choice([1, 1, 1, 2, 5])):
        lines = text.split(b"\n")
        i, j = source.randrange(len(lines)), source.randrange(len(lines))
        what = source.randrange(7)
        if what == 0:
            del lines[i]
        elif what == 1:
            lines.insert(j, lines[i])
        elif what == 2:
            lines[i], lines[j] = lines[j], lines[i]
        elif what == 3:
            lines[i] = b" " * source.randrange(8) + lines[i].lstrip()
        elif what == 4:
            tokens = lines[i].split(b" ")
            tokens[source.randrange(len(tokens))] = source.choice(JUNK)
            lines[i] = b" ".join(tokens)
        elif what == 5:
            place = source.randrange(len(lines[i]) + 1)
            inserted = source.choice([bytes([source.randrange(256)]), source.choice(JUNK)])
            lines[i] = lines[i][:place] + inserted + lines[i][place:]
        else:
            values = [n for n, line in enumerate(lines) if b": " in line.split(b"#")[0]] or [i]
            n = source.choice(values)
            lines[n] = lines[n].split(b": ")[0] + b": " + source.choice(JUNK)
        text = b"\n".join(lines) or b"\n"
    return text


ORIGINALS = ("mnist", "digits", "cora", "hopfield")


def mutants(count: int, seed: int):
    source = random.Random(seed)
    originals = [presets.built_in(name).read_bytes() for name in ORIGINALS]
    for n in range(count):
        yield mutant(originals[n % len(originals)], source)


def outcomes(tmp_path, count: int, seed: int) -> tuple[int, int]:
    """How many mutants are recipes, and how many are refused; there is nothing else."""
    file = tmp_path / "mutant.yaml"
    accepted = refused = 0
    for content in mutants(count, seed):
        file.write_bytes(content)
        began = time.process_time()
        try:
            recipe = read_any(file)
        except RecipeError as error:
            refused += 1
            for line in str(error).splitlines():
                assert line.startswith(f"{file}:"), content
                assert line.isprintable(), content
        else:
            accepted += 1
            assert parse_any(recipe.to_yaml()) == recipe, content
        assert time.process_time() - began < 2, content
    return accepted, refused


def test_a_mutated_recipe_is_a_recipe_or_is_refused(tmp_path):
    """Random damage to four recipes: a recipe that reads back, or lines that name the file.

    Catches any exception that is no RecipeError, and a reader that takes 2 s.
    """
    accepted, refused = outcomes(tmp_path, 500, seed=1)
    assert accepted >= 50
    assert refused >= 200


@pytest.mark.slow
def test_many_mutated_recipes_are_recipes_or_are_refused(tmp_path):
    """The same, many times over."""
    accepted, refused = outcomes(tmp_path, 20_000, seed=2)
    assert accepted >= 2000
    assert refused >= 8000


def test_mutated_recipes_on_the_command_line(tmp_path):
    """Exit code 0 and the recipe, or 2 and a line a fault on stderr. Catches a traceback."""
    codes = set()
    for n, content in enumerate(mutants(25, seed=3)):
        file = tmp_path / f"mutant{n}.yaml"
        file.write_bytes(content)
        done = CliRunner().invoke(app, ["validate", str(file)])
        assert done.exception is None or isinstance(done.exception, SystemExit)
        assert (done.exit_code == 0) == (done.stderr == "") == (done.stdout != "")
        assert all(line.startswith(f"hyperrbp: {file}:") for line in done.stderr.splitlines())
        codes.add(done.exit_code)
    assert codes == {0, 2}
