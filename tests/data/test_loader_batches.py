"""Data sets and loaders of torch.utils.data as minibatches."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from hyperrbp import Batch, LoaderBatches, LoaderExamples, ShuffledBatches
from hyperrbp.data import loader_batches
from hyperrbp.exceptions import DataError, UsageError


class Augmented(Dataset):
    """Numbers, each with noise from all three global generators."""

    def __init__(self, count=40):
        self.count, self.fetched = count, 0

    def __len__(self):
        return self.count

    def __getitem__(self, n):
        self.fetched += 1
        noise = [torch.rand(()), random.random(), np.random.rand()]
        return {"x": torch.tensor([float(n), *noise]), "n": n}


class Stream(IterableDataset):
    """Numbers in an order of their own every epoch, with noise."""

    def __init__(self, count=23):
        self.count = count

    def __iter__(self):
        for n in torch.randperm(self.count).tolist():
            yield torch.tensor([float(n), random.random()]), n % 3


class OneGeneratorOfItsOwn(Augmented):
    def __init__(self, late=0):
        super().__init__()
        self.rng, self.late = np.random.default_rng(0), late

    def __getitem__(self, n):
        return torch.tensor([float(n), self.rng.random() if n >= self.late else 0.0])


class MadeBatches(Augmented):
    """Every item is a minibatch already, of 2 or 3 examples."""

    def __init__(self):
        super().__init__(9)

    def __getitem__(self, n):
        return torch.rand(2 + n % 2, 1) + n, torch.full((2 + n % 2,), n)


def tensors(batch):
    return [tensor.clone() for tensor in batch.tensors]


def same(one, two):
    return all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def sources():
    data = Augmented()
    return {
        "data set": lambda: LoaderBatches(data, 6, seed=3),
        "stream": lambda: LoaderBatches(Stream(), 4, seed=3),
        "shuffled": lambda: LoaderBatches(DataLoader(data, batch_size=6, shuffle=True), seed=3),
        "weighted": lambda: LoaderBatches(
            DataLoader(data, 6, sampler=WeightedRandomSampler(torch.arange(1.0, 41.0), 40)), seed=3
        ),
        "own generator": lambda: LoaderBatches(
            DataLoader(data, 6, sampler=RandomSampler(data, replacement=True, num_samples=30,
                                                      generator=torch.Generator())), seed=3
        ),
        "batches": lambda: LoaderBatches(
            DataLoader(data, batch_sampler=BatchSampler(RandomSampler(data), 7, False)), seed=3
        ),
        "made batches": lambda: LoaderBatches(
            DataLoader(MadeBatches(), batch_size=None, shuffle=True), seed=3
        ),
        "loader of a stream": lambda: LoaderBatches(DataLoader(Stream(), batch_size=4), seed=3),
    }  # fmt: skip


@pytest.mark.parametrize("kind", sources())
@pytest.mark.parametrize("kept", [True, False])
def test_the_same_step_has_the_same_bits_whenever_it_is_asked_for(kind, kept, monkeypatch):
    """In order, backwards over epochs, and from another object: with and without a cache."""
    if not kept:
        monkeypatch.setattr(loader_batches, "_CACHE_BYTES", 0)
        monkeypatch.setattr(loader_batches, "_CACHE_FEWEST", 1)
    make = sources()[kind]
    batches = make()
    found = [tensors(batches(t)) for t in range(20)]
    for t in [*reversed(range(20)), 7, 3, 19, 0, 13]:
        assert same(found[t], tensors(batches(t))), t
    for seed in (random.seed, np.random.seed, torch.manual_seed):  # which decide nothing
        seed(5)
    assert same(found[17], tensors(make()(17)))
    assert not same(found[0], found[1])
    others = batches.with_seed(4)
    assert not same(found[0], tensors(others(0)))
    assert same(found[5], tensors(others.with_seed(3)(5)))


def test_global_generators_are_left_as_they_were():
    def state():
        return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()

    batches, before = LoaderBatches(Augmented(), 6), state()
    batches(4)
    list(batches.population())
    stream = LoaderBatches(Stream(), 4)
    stream(9)
    assert state() == before


def test_a_data_set_of_tensors_has_the_minibatches_of_arrays():
    x, y = torch.randn(50, 3), torch.randint(0, 3, (50,))
    ours = LoaderBatches(TensorDataset(x, y), 8, seed=5)
    theirs = ShuffledBatches(Batch(x, y), 8, 5)
    for t in (13, 0, 5, 40):
        assert same(ours(t)[:3], theirs(t)[:3])
    assert ours.steps_per_epoch == theirs.steps_per_epoch == 6


def test_an_epoch_takes_every_example_once():
    batches = LoaderBatches(DataLoader(Augmented(20), batch_size=5, shuffle=True))
    epochs = [[n for t in range(4 * e, 4 * e + 4) for n in batches(t).inputs["n"].tolist()]
              for e in (0, 1)]  # fmt: skip
    assert [sorted(numbers) for numbers in epochs] == [list(range(20))] * 2
    assert epochs[0] != epochs[1]
    assert batches(2).rows.tolist() == batches(2).inputs["n"].tolist()


def test_a_sequential_loader_keeps_its_order_and_drops_what_fills_no_minibatch():
    batches = LoaderBatches(DataLoader(Augmented(10), batch_size=4))
    assert [batches(t).inputs["n"].tolist() for t in range(3)] == [
        [0, 1, 2, 3], [4, 5, 6, 7], [0, 1, 2, 3],
    ]  # fmt: skip
    assert batches.steps_per_epoch == 2


def test_a_collation_of_the_users_own_makes_the_minibatch():
    def collate(items):
        return Batch(torch.stack([item["x"] for item in items]), [item["n"] for item in items])

    found = LoaderBatches(DataLoader(Augmented(), batch_size=3, collate_fn=collate))(0)
    assert found.inputs.shape == (3, 4)
    assert found.targets == [0, 1, 2]


def test_items_that_are_minibatches_are_taken_one_by_one():
    batches = LoaderBatches(DataLoader(MadeBatches(), batch_size=None), population=10)
    assert [batches(t).targets.tolist() for t in range(10)] == [
        [n] * (2 + n % 2) for n in [*range(9), 0]
    ]
    found = list(batches.population())
    assert batches.population_note == "a fixed sample of 5 of 9 minibatches stands for all of them"
    assert [share for share, _ in found] == pytest.approx(
        [len(x) / sum(len(x) for _, x in found) for _, x in found]
    )


def test_floats_are_converted_and_ids_are_not():
    found = LoaderBatches(Augmented(), 3, dtype=torch.float64)(0)
    assert found.inputs["x"].dtype is torch.float64
    assert found.inputs["n"].dtype is torch.int64


# --- what stands for all examples -----------------------------------------------------------------


@pytest.mark.parametrize("kind", ["data set", "shuffled", "batches", "stream"])
def test_the_population_is_exact_where_it_fits(kind):
    """Every example once, the incomplete minibatch too, with weights that sum to one."""
    batches = sources()[kind]()
    for _ in range(2):
        found = list(batches.population())
        numbers = torch.cat([x.tensors[0][:, 0] for _, x in found]).int().tolist()
        assert sorted(numbers) == list(range(23 if kind == "stream" else 40))
        assert sum(share for share, _ in found) == pytest.approx(1, abs=1e-12)
        assert [share * len(numbers) for share, _ in found] == pytest.approx(
            [len(x) for _, x in found]
        )
    assert batches.population_note is None


@pytest.mark.parametrize("kept", [True, False])
def test_a_fixed_sample_stands_for_more_and_says_so(kept, monkeypatch):
    """The same for every seed, so that losses compare."""
    if not kept:
        monkeypatch.setattr(loader_batches, "_CACHE_BYTES", 0)
    batches = LoaderBatches(Augmented(), 6, population=15, seed=1)
    found = [torch.cat([x.inputs["x"] for _, x in of.population()])
             for of in (batches, batches, batches.with_seed(2),
                        LoaderBatches(Augmented(), 6, population=15, seed=9))]  # fmt: skip
    assert len(found[0][:, 0].unique()) == 15
    assert all(torch.equal(found[0], other) for other in found)
    assert batches.population_note == "a fixed sample of 15 of 40 examples stands for all of them"
    assert [len(x) for _, x in batches.population()] == [6, 6, 3]
    assert [len(x) for _, x in batches.population(10)] == [10, 5]


def test_the_first_of_a_stream_stand_for_all():
    batches = LoaderBatches(Stream(), 4, population=10)
    assert [len(x) for _, x in batches.population()] == [4, 4, 2]
    assert batches.population_note == "the first 10 examples of a stream stand for all"


def test_a_sampler_decides_what_all_examples_are():
    loader = DataLoader(Augmented(), 4, sampler=SubsetRandomSampler([3, 5, 8, 13, 21]))
    found = torch.cat([x.inputs["n"] for _, x in LoaderBatches(loader).population()])
    assert sorted(found.tolist()) == [3, 5, 8, 13, 21]


def test_a_heldout_part_may_be_smaller_than_a_minibatch():
    loader = DataLoader(Augmented(5), batch_size=8)
    examples = LoaderExamples(LoaderBatches(loader, evaluation=True))
    ((share, found),) = examples.chunks()
    assert (share, len(found), len(examples)) == (1.0, 5, 5)
    ((_, double),) = examples.in_precision(torch.float64).chunks()
    assert double.inputs["x"].dtype is torch.float64


def test_minibatches_are_kept_in_memory_that_has_a_bound(monkeypatch):
    monkeypatch.setattr(loader_batches, "_CACHE_BYTES", 3 * 6 * (4 * 4 + 8))
    monkeypatch.setattr(loader_batches, "_CACHE_FEWEST", 1)
    data = Augmented()
    batches = LoaderBatches(data, 6)
    batches(0), batches(1), batches(2)
    before = data.fetched
    batches(2), batches(1)
    assert data.fetched == before
    batches(3), batches(0)
    assert data.fetched == before + 12


# --- refusals -------------------------------------------------------------------------------------


class Endless(torch.utils.data.Sampler):
    def __iter__(self):
        while True:
            yield 0


class Counting(torch.utils.data.Sampler):
    """Another order every time, whatever is seeded."""

    def __init__(self, count):
        self.count, self.times = count, 0

    def __len__(self):
        return self.count

    def __iter__(self):
        self.times += 1
        return iter([(n + self.times) % self.count for n in range(self.count)])


class Epochs(Stream):
    """A stream that counts its own epochs."""

    epoch = 0

    def __iter__(self):
        self.epoch += 1
        for n in range(12):
            yield torch.tensor([float(n + self.epoch)])


class Broken(Augmented):
    def __getitem__(self, n):
        raise KeyError("no such file")


REFUSED = [
    (lambda: LoaderBatches(Augmented(5), 6), DataError, "5 examples are fewer than a minibatch"),
    (lambda: LoaderBatches(Stream(3), 4), DataError, "epoch 0 has fewer than 4 examples"),
    (lambda: LoaderBatches(Augmented()), UsageError, "needs a minibatch size of 1 or more"),
    (lambda: LoaderBatches(3, 4), UsageError, "int is no data set: expected __getitem__"),
    (
        lambda: LoaderBatches(DataLoader(Augmented(), batch_size=4), 6),
        UsageError,
        "the loader's minibatches have 4 examples; got size 6",
    ),
    (lambda: LoaderBatches(OneGeneratorOfItsOwn(), 4), DataError, "another the second time"),
    (lambda: LoaderBatches(Epochs(), 4), DataError, "minibatch 0 is another the second time"),
    (
        lambda: LoaderBatches(DataLoader(Augmented(), 4, sampler=Endless())),
        UsageError,
        "its sampler Endless does not know its length",
    ),
    (
        lambda: LoaderBatches(DataLoader(Augmented(), 4, sampler=Counting(8))),
        DataError,
        "its sampler Counting gives another order the second time",
    ),
    (
        lambda: LoaderBatches(DataLoader(Augmented(), 4, collate_fn=lambda items: "text")),
        DataError,
        "begins with no tensor of shape",
    ),
    (lambda: LoaderBatches(Broken(), 4), DataError, r"KeyError: 'no such file' \(.*\.py:\d+\)"),
]


@pytest.mark.parametrize(("make", "error", "words"), REFUSED)
def test_what_cannot_be_a_function_of_the_step_is_refused(make, error, words):
    with pytest.raises(error, match=words) as refused:
        make()
    assert "\n" not in str(refused.value)


def test_code_with_a_state_is_found_when_it_shows(monkeypatch):
    """The first minibatches are in order: the one that is not is refused when it is asked again."""
    monkeypatch.setattr(loader_batches, "_CACHE_BYTES", 0)
    monkeypatch.setattr(loader_batches, "_CACHE_FEWEST", 1)
    data = OneGeneratorOfItsOwn(late=20)
    batches = LoaderBatches(DataLoader(data, 5, sampler=SequentialSampler(data)))
    batches(0), batches(6), batches(0)
    with pytest.raises(DataError, match="minibatch 6 is another the second time"):
        batches(6)
    with pytest.raises(DataError, match="chunk 4 of what stands for all is another"):
        list(batches.population()), list(batches.population())
