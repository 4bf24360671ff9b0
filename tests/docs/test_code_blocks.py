"""Every code block that can run does what its page says."""

from __future__ import annotations

import re
import shlex

import pytest
from run_docs import ROOT, DocsError, Session, blocks, commands, matches, pages, refused, rewrite

from hyperrbp.config import presets

PAGES = [page for page in pages() if blocks(page)]
SLOW = [page for page in PAGES if any(block.slow for block in blocks(page))]


def name(page):
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_a_page_runs(page, tmp_path):
    Session(tmp_path).run(page)


@pytest.mark.slow
@pytest.mark.parametrize("page", SLOW, ids=name)
def test_a_page_runs_with_its_slow_blocks(page, tmp_path):
    Session(tmp_path, slow=True).run(page)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_the_recipes_that_a_page_names_exist(page):
    for block in blocks(page):
        if block.language != "console":
            continue
        for command, _ in commands(block):
            words = shlex.split(command.partition("|")[0], comments=True)
            takes = words[:1] == ["hyperrbp"] and words[1:2]
            if takes and takes[0] in ("tune", "train", "check", "compare", "cat", "cp"):
                own = re.search(r"[./]|RECIPE", words[2])
                assert own or words[2] in presets.names(), command


def page_of(tmp_path, text):
    page = tmp_path / "page.md"
    page.write_text(text, encoding="utf-8")
    return page


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs the text of a page."""
    monkeypatch.setattr("run_docs.ROOT", tmp_path)
    folder = tmp_path / "session"
    folder.mkdir()

    def run(text, **settings):
        session = Session(folder, **settings)
        session.run(page_of(tmp_path, text))
        return session

    return run


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('```python\nprint(1)\n```\n\n```text title="Output"\n2\n```\n', "printed was"),
        ("```console\n$ echo a\nb\n```\n", "printed was"),
        ("```console\n$ exit 3\n```\n", "ended with 3"),
        ("```yaml\na: 1\n```\n", "neither run nor excused"),
        ("```sh\nls\n```\n", "neither run nor excused"),
        ("<!-- not run: slow -->\n```console\n$ hyperrbp tune x --nonsense 3\n```\n", "nonsense"),
        ("<!-- not run: slow -->\n```console\n$ hyperrbp tone x\n```\n", "no command 'tone'"),
        ("<!-- slow -->\n```console\n$ hyperrbp tune x --trunc few\n```\n", "few"),
    ],
)
def test_a_page_that_lies_is_found_out(run, text, fault):
    with pytest.raises(DocsError, match=re.escape(fault)) as found:
        run(text)
    assert str(found.value).startswith("page.md:")


def test_the_blocks_of_a_page_follow_each_other(run):
    run(
        '```python title="net.py"\nwidth = 3\n```\n\n```python\nfrom net import width\n```\n\n'
        '```python\nprint(width)\n```\n\n```text title="Output"\n3\n```\n\n'
        "```console\n$ cat net.py\nwidth = 3\n$ true\n```\n"
    )


def test_what_is_printed_can_be_written_into_a_page(run, tmp_path):
    text = (
        '```python\nprint("new")\n```\n\n```text title="Output"\nold\n```\n\n'
        "```console\n$ echo new\nold\n$ echo silent\n```\n"
    )
    session = run(text, write=True)
    rewrite(tmp_path / "page.md", session.edits)
    assert (tmp_path / "page.md").read_text(encoding="utf-8") == text.replace("old", "new")


@pytest.mark.parametrize(
    ("expected", "printed", "same"),
    [
        ("loss 0.500", "loss 0.505", True),
        ("loss 0.500", "loss 0.600", False),
        ("loss 0.500", "gain 0.500", False),
        ("cost 3.4 s, 815 MB", "cost 9.1 s, 20 MB", True),
        ("1,200 steps", "1,210 steps", True),
        ("a\n…\nz", "a\nb\nc\nz", True),
        ("a\n…\nz", "a\nb\nc", False),
        ("a", "a\nb", False),
        ("x   1", "x 1", True),
        ("██▇▁", "█▇▇▁", True),
    ],
)
def test_output_is_compared_loosely_and_words_exactly(expected, printed, same):
    assert matches(expected, printed) is same


def test_commands_are_parsed_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert not refused(["tune", "digits", "--out", "run"])
    assert list(tmp_path.iterdir()) == []
