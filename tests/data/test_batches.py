"""Minibatches as nests of tensors."""

from __future__ import annotations

import pytest
import torch

from hyperrbp import Batch, ShuffledBatches
from hyperrbp.data.batches import ListedBatches
from hyperrbp.exceptions import UsageError


def nested(count=5):
    ids = torch.arange(3 * count).view(count, 3)
    mask = torch.rand(count, 3)
    return Batch({"ids": ids, "mask": mask, "name": "a"}, None, torch.arange(count))


def test_a_batch_of_a_dict_is_cut_and_converted_leaf_by_leaf():
    """Token ids stay whole, other leaves stay as they are, and the pieces make up the whole."""
    whole = nested()
    assert len(whole) == 5
    found = list(whole.chunks(2))
    assert [len(piece) for _, piece in found] == [2, 2, 1]
    assert [share for share, _ in found] == [0.4, 0.4, 0.2]
    for leaf in ("ids", "mask"):
        assert torch.equal(torch.cat([x.inputs[leaf] for _, x in found]), whole.inputs[leaf])
    assert torch.cat([x.rows for _, x in found]).tolist() == list(range(5))
    double = whole.in_precision(torch.float64)
    assert double.inputs["mask"].dtype is torch.float64
    assert torch.equal(double.inputs["ids"], whole.inputs["ids"])
    assert double.inputs["ids"].dtype is torch.int64
    assert (double.inputs["name"], double.targets) == ("a", None)


def test_the_step_stays_with_the_pieces():
    batch = Batch(torch.zeros(4, 1), torch.zeros(4)).at_step(7)
    assert [x.step for _, x in batch.chunks(3)] == [7, 7]
    assert batch.in_precision(torch.float64).step == 7
    assert Batch(torch.zeros(4, 1), torch.zeros(4)).step is None


def test_what_is_no_row_of_an_example_is_not_cut():
    batch = Batch({"x": torch.zeros(4, 2), "mask": torch.zeros(2, 2)}, torch.zeros(4))
    assert [len(x) for _, x in batch.chunks(4)] == [4], "a whole batch need not be cut"
    with pytest.raises(UsageError, match=r"tensor of shape \(2, 2\).*expected \(4, …\)"):
        list(batch.chunks(3))


@pytest.mark.parametrize("inputs", ["text", {"a": 1}, torch.tensor(3.0)])
def test_a_batch_without_examples_is_refused(inputs):
    with pytest.raises(UsageError, match="begins with no tensor of shape"):
        len(Batch(inputs, None))


def test_a_nest_is_shuffled_as_a_pair_is():
    whole = nested(10)
    of_pair = ShuffledBatches(Batch(whole.inputs["ids"], whole.inputs["mask"]), 3, seed=4)
    of_nest = ShuffledBatches(Batch({"x": whole.inputs["ids"]}, None), 3, seed=4)
    for t in (0, 4, 2):
        assert torch.equal(of_nest(t).inputs["x"], of_pair(t).inputs)
        assert torch.equal(of_nest(t).rows, of_pair(t).rows)


def test_a_list_may_hold_pairs_and_anything_else():
    x, y = torch.rand(4, 2), torch.rand(4)
    pair, single = ListedBatches([(x, y)])(0), ListedBatches([{"x": x}, {"x": x}])(1)
    assert torch.equal(pair.targets, y)
    assert torch.equal(single.inputs["x"], x)
    assert single.targets is None
    assert single.rows.tolist() == [4, 5, 6, 7]
