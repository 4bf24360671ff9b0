"""Texts as windows of token ids."""

from __future__ import annotations

import hashlib

import pytest
import torch

from hyperrbp.data.text import WindowBatches, character_names, load_text
from hyperrbp.exceptions import DataError, UsageError


def written(tmp_path, content, **options):
    file = tmp_path / "a.txt"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return load_text(file, **{"block": 4, "tokens": "characters", "heldout": 0.2} | options)


def starts(windows):
    return windows.starts.tolist()


def test_the_default_text_is_the_same_in_every_python():
    text = character_names()
    assert (len(text), len(set(text))) == (354744, 39)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "a46a07e65d3b74a1"
    found = load_text(None, 64, "characters", 0.1)
    assert (found.digest, found.vocabulary) == ("a46a07e65d3b74a1", 39)


def test_characters_are_numbered_in_order_and_the_targets_are_the_next(tmp_path):
    text = written(tmp_path, "bäca" * 25)
    assert text.vocabulary == 4
    train, validation, heldout = text.parts(None, 0)
    batch = train.at(torch.tensor([0, 5]))
    assert batch.inputs.tolist() == [[1, 3, 2, 0], [3, 2, 0, 1]]
    assert batch.targets.tolist() == [[3, 2, 0, 1], [2, 0, 1, 3]]
    assert batch.inputs.dtype is batch.targets.dtype is torch.int64
    assert (len(train), len(validation), len(heldout)) == (76, 0, 4)


def test_bytes_are_themselves(tmp_path):
    text = written(tmp_path, bytes(range(256)), tokens="bytes")
    assert text.vocabulary == 256
    assert text.parts(None, 0)[0].at(torch.tensor([7])).targets.tolist() == [[8, 9, 10, 11]]


def test_large_vocabularies_fit(tmp_path):
    text = written(tmp_path, "".join(map(chr, range(0x4E00, 0x4E00 + 600))))
    assert text.vocabulary == 600
    assert int(text.parts(None, 0)[2].at(torch.tensor([0])).inputs.min()) == 480


@pytest.mark.parametrize("limit", [None, 40])
@pytest.mark.parametrize("held_back", [0, 3])
def test_the_parts_share_no_character_that_is_predicted(tmp_path, limit, held_back):
    """Windows of training at every place; those of the other parts side by side, after them."""
    text = written(tmp_path, "".join(map(chr, range(200, 300))))
    train, validation, heldout = text.parts(limit, held_back)
    read = [
        {int(i) for i in torch.cat([x.inputs.flatten(), x.targets.flatten()])}
        for x in (p.at(torch.arange(len(p))) for p in (train, validation, heldout))
    ]
    assert not read[0] & read[1]
    assert not read[0] & read[2]
    assert not read[1] & read[2]
    assert starts(train) == list(range(len(train)))
    assert (len(validation), len(heldout)) == (held_back, 4)
    end = 80 if limit is None else 44
    assert max(read[0] | read[1]) == end - 1, "nothing is left unused"
    for part in (validation, heldout):
        assert all(b - a == 4 for a, b in zip(starts(part), starts(part)[1:], strict=False))


def test_minibatches_take_every_window_once_an_epoch(tmp_path):
    train = written(tmp_path, "abcdefghij" * 5).parts(None, 0)[0]
    batches = WindowBatches(train, 5, seed=1, population=100)
    rows = [batches(t).rows.tolist() for t in range(2 * batches.steps_per_epoch)]
    first = [row for some in rows[: batches.steps_per_epoch] for row in some]
    assert len(set(first)) == len(first) == 35
    again = WindowBatches(train, 5, seed=1, population=100)
    assert [again(t).rows.tolist() for t in reversed(range(14))] == rows[::-1]
    assert batches.population_note is None
    (found,) = batches.population()
    assert (found[0], found[1].rows.tolist()) == (1.0, list(range(36)))
    with pytest.raises(UsageError, match="not between 1 and 36 windows"):
        WindowBatches(train, 37, seed=1, population=1)


def test_a_sample_of_windows_stands_for_all(tmp_path):
    train = written(tmp_path, "abcdefghij" * 5).parts(None, 0)[0]
    ones = [WindowBatches(train, 5, seed=seed, population=9) for seed in (1, 2)]
    rows = [torch.cat([x.rows for _, x in one.population()]).tolist() for one in ones]
    assert rows[0] == rows[1]
    assert len(set(rows[0])) == 9
    assert ones[0].population_note == "a fixed sample of 9 of 36 windows stands for all of them"


@pytest.mark.parametrize(
    ("content", "options", "words"),
    [
        (b"", {}, "an empty text"),
        (b"aaaa", {}, "one character again and again"),
        (b"abc\xff" * 10, {}, "no text in UTF-8 at byte 3; expected UTF-8, or data.options.tokens"),
        (b"abcdefgh", {}, "leave no window of 4 held out"),
        (b"ab" * 12, {"block": 20, "heldout": 0.9}, "leave no window of 20 to train on"),
    ],
)
def test_what_is_no_text_is_refused(tmp_path, content, options, words):
    with pytest.raises(DataError) as refused:
        written(tmp_path, content, **options).parts(None, 0)
    assert words in str(refused.value)


def test_too_few_windows_are_refused(tmp_path):
    text = written(tmp_path, "abcdefghij" * 5)
    with pytest.raises(DataError, match="36 windows of 4 to train on; the recipe needs 50"):
        text.parts(50, 0)
    with pytest.raises(DataError, match="leave no window of 4 to train on"):
        text.parts(None, 10)
    with pytest.raises(DataError, match=r"nowhere: no such file; data\.options\.file"):
        load_text(tmp_path / "nowhere", 4, "bytes", 0.1)
