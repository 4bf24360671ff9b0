"""Training runs on disk: of networks with a convergent part, and of a tuning recipe's network."""

from __future__ import annotations

import json
import math
import random
import runpy
import shutil
from collections.abc import Callable
from pathlib import Path

import factories
import pytest
import torch
from factories import LEARNING, documents_text, memory_text, outcome, tuning_text
from runs import Keeps, as_json, records_of, result_of
from systems import small_graph
from torch import Tensor
from torch.nn.functional import cross_entropy

from hyperrbp.data.citation_networks import CitationGraph
from hyperrbp.exceptions import CheckpointError, DivergedError, UsageError
from hyperrbp.experiments import checkpoint
from hyperrbp.experiments.checkpoint import read_tensors
from hyperrbp.experiments.experiment import Experiment
from hyperrbp.experiments.run_folder import RunFolder
from hyperrbp.experiments.systems.associative_memory import AssociativeMemory, binarized, corrupt
from hyperrbp.experiments.train import train_recipe
from hyperrbp.experiments.trainers.equilibrium import Best, EquilibriumTrainer
from hyperrbp.experiments.trainers.inner_run import InnerRunTrainer
from hyperrbp.experiments.tune import tune_recipe
from hyperrbp.hypergradients import METHODS
from hyperrbp.hypergradients.implicit_layer import Diagnosis
from hyperrbp.problems.hopfield import Hopfield
from hyperrbp.problems.penalties import PENALTIES
from hyperrbp.problems.training.run import TrainingRun
from hyperrbp.runtime import files

TEXTS = {
    "memory": memory_text(
        name="memory",
        data__images=3,
        network__hidden=6,
        inference__updates=8,
        gradient__trunc=4,
        training={"epochs": 6, "validate_every": 2, "learning_rate": 0.01},
    ),
    "documents": documents_text(name="documents"),
    "inner": tuning_text(**LEARNING, name="inner"),
}


def recipe(kind: str, **changes):
    """A small recipe with other values: ``recipe("memory", training__epochs=3)``."""
    return factories.recipe(TEXTS[kind], **changes)


def graph() -> CitationGraph:
    """200 documents of three classes, whose features tell their class a little."""
    source = torch.Generator().manual_seed(2)
    labels = torch.randint(0, 3, (200,), generator=source)
    features = torch.randn(200, 8, generator=source)
    features[:, :3] += 2.0 * torch.nn.functional.one_hot(labels, 3)
    edges = small_graph(200, 300)
    return CitationGraph(features, labels, edges, citation_count=310)


@pytest.fixture(autouse=True)
def surroundings(monkeypatch):
    """Documents of our own."""
    monkeypatch.setattr(
        "hyperrbp.experiments.systems.document_classification.load_citations",
        lambda *a, **k: graph(),
    )


# --- a run and its folder ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["memory", "documents"])
def test_a_run_folder_of_a_network(tmp_path, kind):
    watcher = Keeps()
    result = as_json(train_recipe(recipe(kind), tmp_path / "run", callbacks=[watcher]))
    folder = RunFolder(tmp_path / "run")
    assert result == result_of(folder)
    assert set(result) == {
        "status", "seed", "device", "system", "method", "trunc", "updates", "epochs", "best",
        "test", "seconds", "peak_bytes", "wall_seconds", "run_folder", "weights", "environment",
        "inexact_resumes", "kind", "schema_version",
    }  # fmt: skip
    assert result["status"] == "done"
    assert (result["epochs"], result["seed"], result["device"]) == (6, 1234, "cpu")
    records = records_of(folder)
    assert records == watcher.records
    assert watcher.earlier == []
    assert watcher.calls == ["start", "end"]
    assert [record["epoch"] for record in records] == list(range(7))
    updates = result["updates"]
    for record in records:
        due = record["epoch"] % 2 == 0
        assert math.isfinite(record["loss"])
        assert ("validation" in record) == due
        assert len(record.get("change_norms", [])) == (updates if due else 0)
        assert ("energy" in record) == (due and kind == "memory")
        assert len(record.get("energy", range(updates))) == updates
        assert ("gradient" in record) == (record["epoch"] > 0)
        phases = {"inference", "gradient", "update"} if record["epoch"] else set()
        assert set(record["measured"]["seconds"]) == phases | ({"validation"} if due else set())
        assert "penalty" not in record
    gradient = records[1]["gradient"]
    assert set(gradient) == {"norm", "residual", "steady_state_residual", "status", "products"}
    assert gradient["products"] == {"memory": 3 * 4, "documents": 3}[kind]
    assert gradient["norm"] > 0
    assert result["seconds"] == pytest.approx(
        sum(sum(record["measured"]["seconds"].values()) for record in records)
    )
    measure = {"memory": "pixel_error", "documents": "accuracy"}[kind]
    sign = {"memory": 1, "documents": -1}[kind]
    validated = [record for record in records if "validation" in record]
    best = min(validated, key=lambda record: sign * record["validation"][measure])
    assert result["best"] == {"epoch": best["epoch"], "validation": best["validation"]}
    assert measure in result["test"]
    assert [p.name for p in folder.path.glob(".*")] == []
    assert len(list(folder.path.glob("checkpoint-*.safetensors"))) == 2


@pytest.mark.parametrize("kind", ["memory", "documents"])
def test_the_weights_are_those_of_the_best_epoch(tmp_path, kind):
    # So large a rate that later epochs are worse than some earlier one.
    rate = {"memory": 0.3, "documents": 5.0}[kind]
    train_recipe(recipe(kind, training__learning_rate=rate), tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    result = result_of(folder)
    epoch = result["best"]["epoch"]
    assert epoch < 6, "the last one is the best: nothing is shown"
    found = read_tensors(folder.weights_file)
    by_hand = EquilibriumTrainer(recipe(kind, training__learning_rate=rate))
    for _ in range(epoch + 1):
        by_hand.advance()
    network = by_hand.system.network
    assert set(found) == set(network.state_dict()) == dict(network.named_parameters()).keys()
    for name, tensor in network.state_dict().items():
        assert torch.equal(found[name], tensor)
    assert result["test"] == by_hand.system.test(by_hand.answer)
    assert result["best"]["validation"] == by_hand.system.validate(by_hand.answer)


def test_of_epochs_that_are_alike_the_first_is_best(monkeypatch):
    monkeypatch.setattr(AssociativeMemory, "badness", lambda self, validation: 0.25)
    training = EquilibriumTrainer(recipe("memory"))
    for _ in range(3):
        training.advance()
    assert training.best.epoch == 0


@pytest.mark.parametrize(("kind", "epochs"), [("memory", 20), ("documents", 40)])
def test_the_loss_falls(tmp_path, kind, epochs):
    changes = {"training__epochs": epochs, "training__validate_every": 10}
    train_recipe(recipe(kind, **changes), tmp_path / "run")
    records = records_of(tmp_path / "run")
    assert records[-1]["loss"] < 0.6 * records[0]["loss"]


@pytest.mark.parametrize("kind", ["memory", "documents"])
def test_an_epoch_is_an_ordinary_training_loop(kind):
    """Against a loop with autograd all the way through."""
    training = EquilibriumTrainer(
        recipe(kind, gradient__method="bptt", dtype="float64", training__weight_decay=0.01)
    )
    reference = EquilibriumTrainer(recipe(kind, dtype="float64"))
    network, section = reference.system.network, training.recipe.training
    optimizer = (
        torch.optim.Adam(network.parameters(), section.learning_rate, weight_decay=0.01)
        if section.optimizer == "adam"
        else torch.optim.SGD(
            network.parameters(), section.learning_rate, section.momentum, weight_decay=0.01
        )
    )
    training.advance()
    for epoch in (1, 2):
        total = 0.0
        for example in reference.system.epoch(epoch):
            update, h, parameters, x = network.recurrence(example.inputs)
            for _ in range(training.recipe.inference.updates):
                h = update(h, parameters, x)
            loss = example.loss(network.output(h))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += example.share * float(loss.detach())
        assert training.advance().loss == pytest.approx(total, rel=1e-9)
    for ours, theirs in zip(
        training.system.network.parameters(), network.parameters(), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-10)


def test_what_the_memory_is_made_of():
    training = EquilibriumTrainer(recipe("memory", training__batch_size=2))
    system = training.system
    assert isinstance(system, AssociativeMemory)
    assert system.inputs.shape == (3, 64)
    assert set(system.inputs.unique().tolist()) == {0.0, 1.0}
    lost = system.inputs - system.corrupted
    assert (lost >= 0).all()
    for whole, gone in zip(system.inputs.sum(1).tolist(), lost.sum(1).tolist(), strict=True):
        assert gone == int(whole * 0.5)
    assert torch.equal(corrupt(system.inputs, 0.0, 1), system.inputs)
    assert not corrupt(system.inputs, 1.0, 1).any()
    assert not torch.equal(corrupt(system.inputs, 0.5, 1), corrupt(system.inputs, 0.5, 2))
    assert binarized(torch.tensor([0.49, 0.5, 0.51])).tolist() == [0.0, 1.0, 1.0]
    examples = list(system.epoch(3))
    assert [len(example.inputs) for example in examples] == [2, 1]
    assert sum(example.share for example in examples) == pytest.approx(1)
    orders = {tuple(torch.cat([e.inputs for e in system.epoch(n)]).flatten().tolist())
              for n in range(6)}  # fmt: skip
    assert len(orders) > 1, "every epoch has the same order"
    names, rows = training.pictures()
    assert names == ["original", "corrupted", "retrieved"]
    assert rows.shape == (3, 3, 8, 8)
    assert torch.equal(rows[0].reshape(3, 64), system.inputs)


def test_what_the_documents_are_split_into():
    system = EquilibriumTrainer(recipe("documents")).system
    parts = [getattr(system, f"_{part}") for part in ("train", "validation", "test")]
    assert [len(part) for part in parts] == [2, 98, 100]
    assert torch.cat(parts).sort().values.tolist() == list(range(200))

    def right(inputs: Tensor) -> Tensor:
        return 30.0 * torch.nn.functional.one_hot(graph().labels, 3).float()

    assert system.test(right) == {"accuracy": 1.0}
    assert system.validate(right)["accuracy"] == 1.0
    assert system.loss(right) < 1e-6
    assert system.badness({"accuracy": 0.75}) == 0.25
    assert EquilibriumTrainer(recipe("documents")).pictures() is None


# --- seeds ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(TEXTS))
def test_the_seed_decides_and_nothing_else(tmp_path, kind):
    import random as python_random

    import numpy as np

    train_recipe(recipe(kind), tmp_path / "one")
    torch.manual_seed(77)  # nobody cares
    before = torch.get_rng_state(), python_random.getstate(), np.random.get_state()[1].tolist()
    train_recipe(recipe(kind), tmp_path / "two")
    assert torch.equal(torch.get_rng_state(), before[0])
    assert python_random.getstate() == before[1]
    assert np.random.get_state()[1].tolist() == before[2]
    assert outcome(tmp_path / "one") == outcome(tmp_path / "two")
    train_recipe(recipe(kind, seed=5), tmp_path / "three")
    assert outcome(tmp_path / "one")[2] != outcome(tmp_path / "three")[2]
    assert outcome(tmp_path / "one")[0] != outcome(tmp_path / "three")[0]


# --- resuming ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(TEXTS))
@pytest.mark.parametrize("stride", [3, pytest.param(1, marks=pytest.mark.slow)])
def test_a_run_stopped_at_any_record_goes_on_to_the_same_bits(tmp_path, kind, stride):
    train_recipe(recipe(kind), tmp_path / "whole")
    expected = outcome(tmp_path / "whole")
    for stop_at in range(0, len(expected[0]), stride):
        folder = tmp_path / f"stopped{stop_at}"
        watcher = Keeps(stop_at)
        with pytest.raises(KeyboardInterrupt):
            train_recipe(recipe(kind), folder, callbacks=[watcher])
        assert watcher.calls == ["start", "end"]
        assert not RunFolder(folder).result_file.exists()
        assert len(records_of(folder)) == stop_at
        again = Keeps()
        train_recipe(recipe(kind), folder, resume=True, callbacks=[again])
        assert outcome(folder) == expected
        assert again.earlier + again.records == records_of(folder)
        shutil.rmtree(folder)


@pytest.mark.parametrize("kind", ["memory", "inner"])
@pytest.mark.parametrize("place", ["before tensors", "before json", "before sweeping", "between"])
def test_a_run_stopped_while_it_saves_goes_on_to_the_same_bits(tmp_path, monkeypatch, kind, place):
    changes = {} if kind == "memory" else {"inner__steps": 24}
    train_recipe(recipe(kind, **changes), tmp_path / "whole")
    expected = outcome(tmp_path / "whole")
    real = files.write_atomically
    for number in (1, 2) if kind == "inner" else (2,):
        seen = {"tensors": 0, "json": 0}

        def stopping(path, content, keep=None, number=number, seen=seen):
            tensors = path.name.startswith("checkpoint-")
            if not tensors and path.name != "checkpoint.json":
                return real(path, content, keep)
            seen["tensors" if tensors else "json"] += 1
            at = seen["tensors" if tensors else "json"] == number
            if at and place == ("before tensors" if tensors else "before json"):
                raise KeyboardInterrupt
            real(path, content, keep)
            if at and place == ("between" if tensors else "before sweeping"):
                raise KeyboardInterrupt
            return None

        folder = tmp_path / f"stopped{number}"
        monkeypatch.setattr(files, "write_atomically", stopping)
        with pytest.raises(KeyboardInterrupt):
            train_recipe(recipe(kind, **changes), folder)
        monkeypatch.setattr(files, "write_atomically", real)
        train_recipe(recipe(kind, **changes), folder, resume=True)
        assert outcome(folder) == expected
        assert len(list(folder.glob("checkpoint-*.safetensors"))) == 2  # and the one before


def test_resuming_twice_and_resuming_what_is_done(tmp_path):
    train_recipe(recipe("memory"), tmp_path / "whole")
    for stop_at in (3, 5):
        with pytest.raises(KeyboardInterrupt):
            train_recipe(
                recipe("memory"),
                tmp_path / "run",
                resume=stop_at > 3,
                callbacks=[Keeps(stop_at)],
            )
    train_recipe(recipe("memory"), tmp_path / "run", resume=True)
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")
    watcher = Keeps()
    train_recipe(recipe("memory"), tmp_path / "run", resume=True, callbacks=[watcher])
    assert watcher.records == []
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


def test_another_recipe_is_refused(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train_recipe(recipe("documents"), tmp_path / "run", callbacks=[Keeps(3)])
    before = sorted((p.name, p.read_bytes()) for p in (tmp_path / "run").iterdir())
    change = r"inference\.updates: 7 → 5.*only training\.epochs may change"
    with pytest.raises(CheckpointError, match=change):
        train_recipe(recipe("documents", inference__updates=5), tmp_path / "run", resume=True)
    assert sorted((p.name, p.read_bytes()) for p in (tmp_path / "run").iterdir()) == before


@pytest.mark.parametrize("kind", ["memory", "documents"])
def test_more_epochs_are_as_if_asked_for_at_once(tmp_path, kind):
    train_recipe(recipe(kind, training__epochs=4), tmp_path / "run")
    train_recipe(recipe(kind), tmp_path / "run", resume=True)
    train_recipe(recipe(kind), tmp_path / "straight")
    assert outcome(tmp_path / "run") == outcome(tmp_path / "straight")
    assert "epochs: 6" in RunFolder(tmp_path / "run").recipe_file.read_text()
    with pytest.raises(CheckpointError, match="6 epochs are done already, more than the 3 asked"):
        train_recipe(recipe(kind, training__epochs=3), tmp_path / "run", resume=True)


def test_more_epochs_where_the_last_one_was_not_due(tmp_path):
    train_recipe(recipe("memory", training__epochs=3), tmp_path / "run")
    train_recipe(recipe("memory"), tmp_path / "run", resume=True)
    train_recipe(recipe("memory"), tmp_path / "straight")
    assert outcome(tmp_path / "run") == outcome(tmp_path / "straight")


def test_folders_that_cannot_be_used(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="not empty"):
        train_recipe(recipe("memory"), tmp_path / "run")
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["notes.txt"]
    with pytest.raises(UsageError, match="there is no run"):
        train_recipe(recipe("memory"), tmp_path / "run", resume=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="not a folder"):
        train_recipe(recipe("memory"), tmp_path / "file")
    with pytest.raises(UsageError, match="memory has none"):
        train_recipe(recipe("memory"), tmp_path / "new", hyperparameters={})
    assert not (tmp_path / "new").exists()


# --- damage --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    train_recipe(recipe("memory", network__hidden=2, data__images=1), folder)
    return folder


@pytest.mark.parametrize("which", ["checkpoint.json", "checkpoint-*.safetensors"])
def test_a_damaged_checkpoint_is_not_loaded(tmp_path, finished, which):
    shutil.copytree(finished, tmp_path / "run")
    main = tmp_path / "run" / "checkpoint.json"
    checkpoint.previous(main).unlink()  # there is nothing to fall back on
    checkpoint.save(main, *checkpoint.load(main))
    checkpoint.previous(main).unlink()
    (file,) = (tmp_path / "run").glob(which)
    whole, chance = file.read_bytes(), random.Random(3)
    damaged = []
    for _ in range(60):
        flipped = bytearray(whole)
        flipped[chance.randrange(len(whole) - 1)] ^= 1 << chance.randrange(8)
        damaged.append(bytes(flipped))
    damaged += [whole[: int(share * (len(whole) - 2))] for share in (0, 0.01, 0.3, 0.7, 1)]
    for content in damaged:
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match="checkpoint"):
            checkpoint.load(main)
    before = sorted((p.name, p.read_bytes()) for p in (tmp_path / "run").iterdir())
    with pytest.raises(CheckpointError, match="checkpoint"):
        train_recipe(
            recipe("memory", network__hidden=2, data__images=1), tmp_path / "run", resume=True
        )
    assert sorted((p.name, p.read_bytes()) for p in (tmp_path / "run").iterdir()) == before
    file.unlink()
    if which != "checkpoint.json":
        with pytest.raises(CheckpointError, match="tensors cannot be read"):
            checkpoint.load(main)


def test_a_checkpoint_of_another_network_is_named(tmp_path):
    train_recipe(recipe("memory"), tmp_path / "run")
    train_recipe(recipe("memory", network__hidden=7), tmp_path / "other")
    shutil.rmtree(tmp_path / "stray", ignore_errors=True)
    shutil.copytree(tmp_path / "run", tmp_path / "stray")
    for file in (tmp_path / "stray").glob("checkpoint*"):
        file.unlink()
    for file in (tmp_path / "other").glob("checkpoint*"):
        shutil.copy(file, tmp_path / "stray")
    with pytest.raises(CheckpointError, match=r"checkpoint\.json: of another run"):
        train_recipe(recipe("memory"), tmp_path / "stray", resume=True)


def test_a_file_that_holds_no_tensors_is_named(tmp_path):
    (tmp_path / "weights.safetensors").write_text("{}")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_tensors(tmp_path / "weights.safetensors")


# --- what is not finite --------------------------------------------------------------------------


def injected(kind: str, monkeypatch, site: str, value: float) -> None:
    """NaN or infinity in the loss, or in its gradient alone, from epoch 3 on."""
    real_epoch = EquilibriumTrainer._loss

    class Poisoned(torch.autograd.Function):
        @staticmethod
        def forward(ctx, loss):
            return loss * value if site == "loss" else loss.clone()

        @staticmethod
        def backward(ctx, g):
            return g * value if site == "gradient" else g

    def loss(self, example, number, found):
        loss, penalty = real_epoch(self, example, number, found)
        return (Poisoned.apply(loss) if self.position >= 3 else loss), penalty

    monkeypatch.setattr(EquilibriumTrainer, "_loss", loss)


@pytest.mark.parametrize("kind", ["memory", "documents"])
@pytest.mark.parametrize("site", ["loss", "gradient"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nothing_non_finite_reaches_the_weights(tmp_path, monkeypatch, kind, site, value):
    """Two sites, systems and values; catches an update before its gradient was looked at."""
    injected(kind, monkeypatch, site, value)
    watcher = Keeps()
    with pytest.raises(DivergedError, match=f"epoch 3: the {site} is not finite") as raised:
        train_recipe(recipe(kind), tmp_path / "run", callbacks=[watcher])
    assert raised.value.exit_code == 6
    assert watcher.calls == ["start", "end"]
    folder = RunFolder(tmp_path / "run")
    result = result_of(folder)
    assert result["status"] == f"epoch 3: the {site} is not finite"
    assert result["epochs"] == 2
    assert result["best"]["epoch"] in (0, 2)
    assert [record["epoch"] for record in records_of(folder)] == [0, 1, 2]
    for tensor in read_tensors(folder.weights_file).values():
        assert tensor.isfinite().all()
    tensors = checkpoint.load(folder.checkpoint_file)[1]
    assert all(tensor.isfinite().all() for tensor in tensors.values())


def test_the_inner_training_diverges_by_name(tmp_path, monkeypatch):
    """A loss on the way; catches one that only the end would show."""
    real = TrainingRun.batch_loss
    monkeypatch.setattr(
        TrainingRun, "batch_loss", lambda self, h, t: math.nan if t == 5 else real(self, h, t)
    )
    with pytest.raises(DivergedError, match="training step 5: the loss is not finite"):
        train_recipe(recipe("inner"), tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    assert result_of(folder)["status"] == "training step 5: the loss is not finite"
    assert [record["step"] for record in records_of(folder)] == list(range(5))
    assert all(tensor.isfinite().all() for tensor in read_tensors(folder.weights_file).values())


def test_the_weights_of_an_inner_training_that_overflows_are_finite(tmp_path):
    """Weights that overflow; catches those being saved."""
    with pytest.raises(DivergedError):
        train_recipe(
            recipe(
                "inner",
                inner__steps=450,
                inner__learning_rate=1e30,
                model__options__activation="relu",
            ),
            tmp_path / "run",
        )
    tensors = read_tensors(RunFolder(tmp_path / "run").weights_file)
    assert all(tensor.isfinite().all() for tensor in tensors.values())


def test_an_untrained_network_that_overflows_is_named(tmp_path):
    overflowing = recipe("memory", network__a=0.05, inference__updates=60)
    with pytest.raises(DivergedError, match="epoch 0"):
        train_recipe(overflowing, tmp_path / "run")


def test_an_output_that_is_not_finite_is_never_the_best(tmp_path, monkeypatch):
    real = Hopfield.output

    def output(self, h):
        shown = real(self, h)
        return shown * math.nan if not torch.is_grad_enabled() and self.spoilt else shown

    monkeypatch.setattr(Hopfield, "output", output)
    monkeypatch.setattr(Hopfield, "spoilt", False, raising=False)
    training = EquilibriumTrainer(recipe("memory", data__corruption=1.0))
    training.advance()
    training.best = Best(badness=0.9)  # as an unlucky start has it
    monkeypatch.setattr(Hopfield, "spoilt", True)
    training.advance()
    with pytest.raises(DivergedError, match="epoch 2: the network's output is not finite"):
        training.advance()
    assert training.best.epoch == 0


# --- methods and penalties -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["memory", "documents"])
@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_trains(tmp_path, kind, method):
    smaller = {"data__downsample": 2} if kind == "memory" else {}
    changed = recipe(kind, gradient__method=method, training__epochs=2, **smaller)
    result = as_json(train_recipe(changed, tmp_path / "run"))
    records = records_of(tmp_path / "run")
    assert result["method"] == method
    assert records[2]["loss"] < records[0]["loss"]
    assert isinstance(records[1]["gradient"]["status"], str)


def test_a_methods_options_reach_it(monkeypatch):
    damped = recipe("memory", gradient__method="cg", gradient__options={"cg": {"damping": 1e3}})
    plain = recipe("memory", gradient__method="cg", gradient__options={"cg": {"damping": 0.0}})
    norms = []
    for changed in (damped, plain):
        training = EquilibriumTrainer(changed)
        training.advance()
        norms.append(training.advance().gradient.norm)
    assert norms[0] < 0.1 * norms[1]


ACTIVE = {
    "columns": {"eta": 1e-6},
    "gershgorin": {},
    "smallest-eigenvalue": {"eta": 100.0},
}


@pytest.mark.parametrize("kind", ["memory", "documents"])
@pytest.mark.parametrize("name", sorted(PENALTIES))
def test_every_penalty_is_recorded_and_felt(tmp_path, kind, name):
    initial = {"network__init_std": 0.3} if kind == "memory" else {}
    options = dict(ACTIVE[name], dense_up_to=0)
    section = {"name": name, "weight": 3.0, "options": options}
    settings = {**initial, "training__epochs": 2}
    train_recipe(recipe(kind, **settings), tmp_path / "plain")
    train_recipe(recipe(kind, **settings, penalty=section), tmp_path / "run")
    records = records_of(tmp_path / "run")
    assert "penalty" not in records[0]
    for record in records[1:]:
        penalty = record["penalty"]
        assert set(penalty) == {"value", "quantity", "error", "exact", "products"}
        assert penalty["value"] > 0
        assert penalty["quantity"] > 0
        assert penalty["exact"] is False
        assert penalty["products"] >= 1
    # Its loss is recorded without it, and what comes after it is trained with it.
    plain = RunFolder(tmp_path / "plain")
    if kind == "documents":
        assert records[1]["loss"] == records_of(plain)[1]["loss"]
    assert records[2]["loss"] != records_of(plain)[2]["loss"]
    weights = (read_tensors(run / "weights.safetensors") for run in tmp_path.iterdir())
    one, other = (list(tensors.values()) for tensors in weights)
    if result_of(tmp_path / "run")["best"]["epoch"]:
        assert any(not torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_penalty_resumes_to_the_same_bits(tmp_path):
    section = {"name": "gershgorin", "options": {"dense_up_to": 0, "probes": 2}}
    spread = {"network__init_std": 0.3, "penalty": section}
    train_recipe(recipe("memory", **spread), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train_recipe(recipe("memory", **spread), tmp_path / "run", callbacks=[Keeps(4)])
    train_recipe(recipe("memory", **spread), tmp_path / "run", resume=True)
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


def test_the_weight_of_a_penalty_counts():
    """Its gradient is added λ times: with a λ so large, it is all there is."""
    norms = {}
    for weight in (1.0, 1e4, 2e4):
        section = {"name": "columns", "weight": weight, "options": {"eta": 1e-6}}
        training = EquilibriumTrainer(recipe("memory", network__init_std=0.3, penalty=section))
        training.advance()
        training.position = 1
        example = next(training.system.epoch(1))
        loss, penalty = training._loss(example, 0, Diagnosis())
        (loss + training._weighed(penalty)).backward()
        norms[weight] = training._gradient_norm()
    assert norms[2e4] == pytest.approx(2 * norms[1e4], rel=1e-3)


# --- a tuning recipe's network -------------------------------------------------------------------


def run_by_hand(theta_of: Callable[[TrainingRun], Tensor], **changes):
    experiment = Experiment(recipe("inner", **changes))
    problem = experiment.problem()
    h = problem.run(theta_of(problem), 0, problem.steps, problem.initial_state())
    return experiment, problem, h


def test_an_inner_training_is_the_problems_run(tmp_path):
    result = as_json(train_recipe(recipe("inner"), tmp_path / "run"))
    folder = RunFolder(tmp_path / "run")
    experiment, problem, h = run_by_hand(lambda problem: problem.initial_theta(math.exp(-1), 0.5))
    assert result == result_of(folder)
    assert set(result) == {
        "status", "seed", "device", "train_steps", "meta_loss", "heldout", "heldout_accuracy",
        "hyperparameters", "seconds", "peak_bytes", "wall_seconds", "run_folder", "weights",
        "environment", "inexact_resumes", "kind", "schema_version",
    }  # fmt: skip
    assert result["meta_loss"] == float(problem.loss_and_gradient(h)[0])
    assert result["heldout_accuracy"] == problem.evaluated(h).accuracy(experiment.data.heldout)
    assert result["train_steps"] == 12
    found = read_tensors(folder.weights_file)
    pieces = problem.objective.pieces(h[: problem.weights])
    assert set(found) == set(problem.tensors)
    for name, piece in zip(problem.tensors, pieces, strict=True):
        assert torch.equal(found[name], piece)
    records = records_of(folder)
    assert [record["step"] for record in records] == list(range(13))
    assert all("loss" in record and "meta_loss" not in record for record in records[:-1])
    assert records[-1]["meta_loss"] == result["meta_loss"]
    assert records[0]["loss"] == problem.batch_loss(problem.initial_state(), 0)


def test_a_long_inner_training_is_recorded_in_stretches(tmp_path):
    longer = {"inner__steps": 450}
    train_recipe(recipe("inner", **longer), tmp_path / "run")
    records = records_of(tmp_path / "run")
    assert [record["step"] for record in records] == list(range(0, 451, 3))
    _, problem, h = run_by_hand(lambda p: p.initial_theta(math.exp(-1), 0.5), **longer)
    assert records[-1]["meta_loss"] == float(problem.loss_and_gradient(h)[0])


def test_an_inner_training_with_tuned_hyperparameters(tmp_path):
    tuned = as_json(tune_recipe(recipe("inner"), tmp_path / "tuned"))["hyperparameters"]
    result = as_json(train_recipe(recipe("inner"), tmp_path / "run", hyperparameters=tuned))
    for kind in ("learning_rate", "momentum"):
        for name, value in tuned[kind].items():
            assert result["hyperparameters"][kind][name] == pytest.approx(value, rel=1e-5)
    _, problem, h = run_by_hand(lambda problem: problem.theta_of(tuned))
    assert result["meta_loss"] == float(problem.loss_and_gradient(h)[0])
    with pytest.raises(KeyboardInterrupt):
        train_recipe(
            recipe("inner"), tmp_path / "cut", hyperparameters=tuned, callbacks=[Keeps(11)]
        )
    train_recipe(recipe("inner"), tmp_path / "cut", hyperparameters=tuned, resume=True)
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "run")


def test_hyperparameters_are_kept_from_the_first_record_on(tmp_path):
    problem = Experiment(recipe("inner")).problem()
    tuned = problem.describe(problem.initial_theta(0.1, 0.9))
    with pytest.raises(KeyboardInterrupt):
        train_recipe(recipe("inner"), tmp_path / "run", hyperparameters=tuned, callbacks=[Keeps(4)])
    others = problem.describe(problem.initial_theta(0.2, 0.9))
    with pytest.raises(UsageError, match="begun with others"):
        train_recipe(recipe("inner"), tmp_path / "run", hyperparameters=others, resume=True)
    train_recipe(recipe("inner"), tmp_path / "run", resume=True)
    train_recipe(recipe("inner"), tmp_path / "straight", hyperparameters=tuned)
    assert outcome(tmp_path / "run") == outcome(tmp_path / "straight")


def test_hyperparameters_that_cannot_be_meant(tmp_path):
    problem = Experiment(recipe("inner")).problem()
    good = problem.describe(problem.initial_theta(0.1, 0.9))

    def spoilt(kind: str, change: Callable[[dict], object]) -> dict:
        copy = json.loads(json.dumps(good))
        change(copy[kind])
        return copy

    bad = [
        (spoilt("momentum", lambda d: d.pop("output.bias")), r"tensors that differ: output\.bias"),
        (spoilt("learning_rate", lambda d: d.update(extra=1.0)), "tensors that differ: extra"),
        (spoilt("learning_rate", lambda d: d.update({"output.bias": -0.1})), "above 0"),
        (spoilt("learning_rate", lambda d: d.update({"output.bias": math.inf})), "above 0"),
        (spoilt("momentum", lambda d: d.update({"output.bias": 1.0})), "between 0 and 1"),
        ({}, "not the hyperparameters of this run"),
    ]
    for hyperparameters, words in bad:
        with pytest.raises(UsageError, match=words):
            train_recipe(recipe("inner"), tmp_path / "run", hyperparameters=hyperparameters)
        assert not (tmp_path / "run").exists()


def test_headlines_say_what_is_trained():
    assert EquilibriumTrainer(recipe("memory")).headline() == (
        "memory: 134 neurons, 3 images of 8×8; 17,956 weights; neumann with K = 4 on cpu,"
        " 1 thread\n6 epochs of 8 updates an inference"
    )
    assert (
        "documents: 200 documents, 300 links, 2 labels;"
        in EquilibriumTrainer(recipe("documents")).headline()
    )
    assert (
        "\n12 training steps, learning rates 0.368 … 0.368"
        in InnerRunTrainer(recipe("inner")).headline()
    )


# --- the weights of a network with all that a network has ----------------------------------------

NETWORK = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, features, outputs):
        super().__init__()
        self.first = nn.Linear(features, 6)
        self.norm = nn.BatchNorm1d(6)
        self.fixed = nn.Linear(6, 6)
        self.again = nn.Linear(6, 6)
        self.again.weight = self.fixed.weight
        self.tied = nn.Linear(6, 6)
        self.tied_too = nn.Linear(6, 6)
        self.tied_too.weight = self.tied.weight
        self.unused = nn.BatchNorm1d(3)
        self.unused.requires_grad_(False)
        self.register_buffer("mask", torch.linspace(0.5, 1.5, 6))
        self.register_buffer("scratch", torch.ones(2), persistent=False)
        self.drop = nn.Dropout(0.2)
        self.last = nn.Linear(6, outputs)

    def forward(self, x):
        x = self.drop(self.norm(self.first(x)) * self.mask).tanh()
        return self.last(self.tied_too(self.tied(self.again(self.fixed(x)).tanh()).tanh()))
"""


def test_weights_and_buffers_are_those_of_the_plain_module(elsewhere):
    """In evaluation mode it has the held-out loss that is reported."""
    Path("net.py").write_text(NETWORK)
    run = recipe(
        "inner",
        dtype="float64",
        model={"name": "net.py:Net", "frozen": ["fixed"]},
        inner__recalibration=5,
    )
    result = train_recipe(run, Path("run"))
    kept = read_tensors(RunFolder(Path("run")).weights_file)
    model = runpy.run_path("net.py")["Net"](64, 10).double()
    assert not model.load_state_dict(kept, strict=True).missing_keys
    model.eval()
    heldout = Experiment(run).data.heldout
    with torch.no_grad():
        loss = float(cross_entropy(model(heldout.inputs), heldout.targets))
    assert loss == pytest.approx(result.heldout["loss"], rel=1e-9)
    assert torch.equal(kept["fixed.weight"], kept["again.weight"])
    assert torch.equal(kept["tied.weight"], kept["tied_too.weight"])
    assert int(kept["norm.num_batches_tracked"]) == 5
    assert int(kept["unused.num_batches_tracked"]) == 0
    assert kept["mask"].tolist() == pytest.approx([0.5, 0.7, 0.9, 1.1, 1.3, 1.5])


def test_such_weights_are_where_another_run_can_start(elsewhere):
    Path("net.py").write_text(NETWORK)
    model = {"name": "net.py:Net", "frozen": ["fixed"]}
    first = recipe("inner", dtype="float64", model=model)
    train_recipe(first, Path("run"))
    weights = RunFolder(Path("run")).weights_file
    again = Experiment(recipe("inner", dtype="float64", model=model | {"weights": str(weights)}))
    problem = again.problem()
    start = problem.initial_state()[: problem.weights]
    kept = read_tensors(weights)
    named = problem.objective.named(problem.objective.pieces(start))
    assert all(torch.equal(tensor, kept[name]) for name, tensor in named.items())
