"""What a recipe of a network may say, and what is said when it says something else."""

from __future__ import annotations

import subprocess
import sys

import pytest

from hyperrbp.config import presets
from hyperrbp.config.cross_checks import cross_check
from hyperrbp.config.equilibrium import SYSTEMS, EquilibriumRecipe, GraphNetRecipe, HopfieldRecipe
from hyperrbp.config.loading import parse, parse_any, read, read_any
from hyperrbp.config.recipe import Recipe
from hyperrbp.config.schema import Section
from hyperrbp.exceptions import RecipeError

NETWORKS = ("cora", "hopfield", "pubmed")


def refused(text: str, *, overrides=()) -> str:
    with pytest.raises(RecipeError) as raised:
        parse_any(text, source="net.yaml", overrides=overrides)
    assert raised.value.exit_code == 2
    return str(raised.value)


# --- what comes with the tool --------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_built_in_recipes_are_what_they_say(name):
    recipe = read_any(presets.built_in(name))
    assert isinstance(recipe, EquilibriumRecipe)
    assert recipe.name == name
    assert recipe.system == {"hopfield": "hopfield"}.get(name, "graph-net")
    assert list(cross_check(recipe)) == []
    again = parse_any(recipe.to_yaml(), name="another")
    assert again.model_dump() == recipe.model_dump()
    assert type(again) is type(recipe)
    assert again.to_yaml() == recipe.to_yaml()
    assert presets.built_in(name).read_text().startswith(f"# hyperrbp train {name}\n")


@pytest.mark.parametrize(("system", "kind"), sorted(SYSTEMS.items()))
def test_defaults_are_recipes(system, kind):
    recipe = parse_any(f"system: {system}")
    assert recipe == kind()
    assert parse_any(recipe.to_yaml()).model_dump() == recipe.model_dump()
    assert recipe.may_change == ("training.epochs",)


@pytest.mark.parametrize(
    ("system", "section", "value"),
    [
        ("hopfield", "inference", "{settled: 0.1}"),
        ("hopfield", "training", "{learning_rate: 0.1}"),
        ("graph-net", "training", "{epochs: 3}"),
        ("graph-net", "gradient", "{method: cg}"),
        ("graph-net", "inference", "{settled: 0.1}"),
    ],
)
def test_a_key_that_is_not_named_has_its_systems_default(system, section, value):
    plain = parse_any(f"system: {system}").model_dump()[section]
    begun = parse_any(f"system: {system}\n{section}: {value}").model_dump()[section]
    named = value.strip("{}").partition(":")[0]
    assert begun.pop(named) != plain.pop(named)
    assert begun == plain


def test_what_the_paper_runs():
    memory, cora = (read_any(presets.built_in(name)) for name in ("hopfield", "cora"))
    assert isinstance(memory, HopfieldRecipe)
    assert isinstance(cora, GraphNetRecipe)
    assert (memory.data.name, memory.data.images, memory.data.corruption) == ("mnist", 10, 0.5)
    assert (memory.network.hidden, memory.network.a, memory.network.b) == (1024, 1.0, 0.5)
    assert (memory.inference.updates, memory.training.epochs) == (50, 1000)
    assert memory.training.optimizer == "adam"
    assert (cora.data.dimensions, cora.inference.updates, cora.gradient.trunc) == (64, 100, 5)
    assert (cora.training.optimizer, cora.training.momentum) == ("sgd", 0.9)
    assert (cora.training.weight_decay, cora.training.epochs) == (5e-4, 2000)
    assert cora.gradient.options == {"cg": {"damping": 1e-5, "tolerance": 1e-5}}
    pubmed = read_any(presets.built_in("pubmed"))
    assert isinstance(pubmed, GraphNetRecipe)
    assert (pubmed.data.name, pubmed.data.dimensions) == ("pubmed", 16)


def test_numbers_as_scientists_write_them():
    text = "system: hopfield\ntraining: {learning_rate: 1e-3}\nnetwork: {init_std: .5, a: 1E0}"
    recipe = parse_any(text)
    assert isinstance(recipe, HopfieldRecipe)
    assert recipe.training.learning_rate == 0.001
    assert (recipe.network.init_std, recipe.network.a) == (0.5, 1.0)
    penalty = "penalty: {name: columns, weight: 1e-2, options: {eta: 5e-1}}"
    with_penalty = parse_any(f"system: graph-net\n{penalty}")
    assert isinstance(with_penalty, GraphNetRecipe)
    assert with_penalty.penalty is not None
    assert with_penalty.penalty.weight == 0.01
    assert with_penalty.penalty.options == {"eta": 0.5}


def test_every_key_is_described():
    def described(section, at=""):
        for name, field in section.model_fields.items():
            if isinstance(field.default, Section):
                yield from described(type(field.default), f"{at}{name}.")
            elif not field.description and name not in ("name", "system", "penalty"):
                yield at + name

    for kind in SYSTEMS.values():
        assert list(described(kind)) == []


# --- faults --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "where", "words"),
    [
        ("system: hopfeild", "net.yaml:1: system:", "did you mean hopfield?"),
        ("name: x\nsystem: graphnet", "net.yaml:2: system:", "did you mean graph-net?"),
        ("system: 3", "net.yaml:1: system:", "expected one of hopfield, graph-net, got 3"),
        ("system: null", "net.yaml:1: system:", "expected one of hopfield, graph-net"),
        ("system: [hopfield]", "net.yaml:1: system:", "expected one of hopfield, graph-net"),
        (
            "system: hopfield\ntraining:\n  epochz: 3",
            "net.yaml:3: training.epochz: unknown key",
            "did you mean epochs?",
        ),
        (
            "system: hopfield\ntrainings: {}",
            "net.yaml:2: trainings: unknown key",
            "did you mean training?",
        ),
        ("system: hopfield\nupdates: 3", "net.yaml:2: updates: unknown key", "inference"),
        (
            "system: hopfield\ninner: {steps: 3}",
            "net.yaml:2: inner: unknown key",
            "did you mean",
        ),
        (
            "system: graph-net\ntraining: {batch_size: 3}",
            "net.yaml:2: training.batch_size: unknown key",
            "",
        ),
        (
            "system: hopfield\ntraining: {epochs: 0}",
            "net.yaml:2: training.epochs: expected",
            "at least 1, got 0",
        ),
        (
            "system: hopfield\ntraining:\n  learning_rate: fast",
            "net.yaml:3: training.learning_rate: expected a number",
            "got 'fast'",
        ),
        (
            "system: hopfield\ntraining: {optimizer: adamw}",
            "net.yaml:2: training.optimizer: expected one of adam, sgd",
            "did you mean adam?",
        ),
        (
            "system: hopfield\n\ninference:\n  settled: 1",
            "net.yaml:4: inference.settled: expected",
            "below 1, got 1",
        ),
        ("system: hopfield\nnetwork: {a: 0}", "net.yaml:2: network.a:", "above 0, got 0"),
        ("system: hopfield\nnetwork: {b: .inf}", "net.yaml:2: network.b:", "finite"),
        (
            "system: hopfield\nnetwork: {readout: stat}",
            "net.yaml:2: network.readout: expected one of state, activation",
            "did you mean state?",
        ),
        (
            "system: hopfield\ndata: {corruption: 1.5}",
            "net.yaml:2: data.corruption: expected",
            "at most 1, got 1.5",
        ),
        ("system: graph-net\nnetwork: 3", "net.yaml:2: network: expected a mapping of", "got 3"),
        (
            "system: graph-net\nnetwork: {aggregation: max}",
            "net.yaml:2: network.aggregation: expected one of sum, mean",
            "got 'max'",
        ),
        # --- cross_check
        (
            "system: hopfield\ninference: {updates: 10}\ngradient:\n  method: tbptt\n  trunc: 11",
            "net.yaml:5: gradient.trunc: tbptt goes back over 11 updates",
            "at most the 10 of inference.updates",
        ),
        (
            "system: hopfield\ndata: {images: 4}\ntraining: {batch_size: 5}",
            "net.yaml:3: training.batch_size:",
            "expected at most the 4 images, got 5",
        ),
        (
            "system: hopfield\ndata: {images: 11}",
            "net.yaml:2: data.images:",
            "expected at most the 10 classes of mnist, got 11",
        ),
        (
            "system: hopfield\ndata: {name: mnits}",
            "net.yaml:2: data.name: expected one of digits, mnist",
            "did you mean mnist?",
        ),
        (
            "system: graph-net\ndata: {name: corra}",
            "net.yaml:2: data.name: expected one of cora, pubmed",
            "did you mean cora?",
        ),
        (
            "system: graph-net\npenalty: {name: gershgorins}",
            "net.yaml:2: penalty.name: expected one of columns, gershgorin, smallest-eigenvalue",
            "did you mean gershgorin?",
        ),
        ("system: graph-net\npenalty: {}", "net.yaml:2: penalty.name:", "expected"),
        (
            "system: graph-net\npenalty: {name: columns, weigth: 2}",
            "net.yaml:2: penalty.weigth: unknown key",
            "did you mean weight?",
        ),
        (
            "system: graph-net\npenalty: {name: columns, weight: 0}",
            "net.yaml:2: penalty.weight:",
            "above 0",
        ),
        (
            "system: graph-net\npenalty:\n  name: columns\n  options: {etta: 0.5}",
            "net.yaml:4: penalty.options.etta: unknown key",
            "did you mean eta?",
        ),
        (
            "system: graph-net\npenalty:\n  name: columns\n  options: {eta: 1.5}",
            "net.yaml:4: penalty.options.eta: expected",
            "below 1, got 1.5",
        ),
        (
            "system: graph-net\ngradient: {method: neuman}",
            "net.yaml:2: gradient.method: expected one of bptt, tbptt, rbp, cg, neumann",
            "did you mean neumann?",
        ),
        (
            "system: graph-net\ngradient: {options: {neuman: {}}}",
            "net.yaml:2: gradient.options.neuman: expected one of",
            "did you mean neumann?",
        ),
        (
            "system: graph-net\ngradient:\n  options:\n    cg: {dampening: 1}",
            "net.yaml:4: gradient.options.cg.dampening: unknown key",
            "did you mean damping?",
        ),
        (
            "system: graph-net\ngradient: {averaging: {series: 1}}",
            "net.yaml:2: gradient.averaging: unknown key",
            "",
        ),
    ],
)
def test_a_fault_says_where_and_what(text, where, words):
    message = refused(text)
    assert len(message.splitlines()) == 1
    assert message.startswith(where)
    assert words in message


def test_every_fault_has_a_line():
    text = "system: hopfield\ntraining: {epochs: 0, speed: 2}\ndata: {images: many}\nx: 1"
    lines = refused(text).splitlines()
    assert sorted(line.split(": ")[0] for line in lines) == [
        "net.yaml:2", "net.yaml:2", "net.yaml:3", "net.yaml:4",
    ]  # fmt: skip
    several = "system: hopfield\ndata: {images: 20}\ntraining: {batch_size: 30}\npenalty: {name: x}"
    assert len(refused(several).splitlines()) == 3


def test_the_command_line_is_named_where_it_is_to_blame():
    text = "system: hopfield\ngradient: {method: tbptt, trunc: 20}"
    message = refused(text, overrides=[("--set", "inference.updates", 10)])
    assert message.startswith("net.yaml:2: gradient.trunc: tbptt goes back over 20")
    message = refused(text, overrides=[("--trunc", "gradient.trunc", 51)])
    assert message.startswith("--trunc: gradient.trunc: tbptt goes back over 51")
    message = refused(text, overrides=[("--epochs", "training.epochs", 0)])
    assert message.startswith("--epochs: training.epochs: expected")
    assert "net.yaml: gradient.trunc" in refused(
        "system: hopfield\ngradient: {method: tbptt}\ninference: {updates: 5}"
    ).replace("net.yaml:2: gradient.trunc", "net.yaml: gradient.trunc")


def test_what_does_not_contradict_itself():
    for text in (
        "system: hopfield\ninference: {updates: 10}\ngradient: {method: tbptt, trunc: 10}",
        "system: hopfield\ninference: {updates: 10}\ngradient: {method: neumann, trunc: 11}",
        "system: hopfield\ninference: {updates: 1}\ngradient: {method: bptt, trunc: 99}",
        "system: hopfield\ntraining: {batch_size: 10}",
        "system: hopfield\ndata: {name: digits, images: 10}",
        "system: graph-net\npenalty: null",
    ):
        assert isinstance(parse_any(text), EquilibriumRecipe)


# --- two kinds -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_not_tuned(name):
    for call in (
        lambda: read(presets.built_in(name)),
        lambda: parse(presets.built_in(name).read_text(), source="net.yaml"),
    ):
        with pytest.raises(RecipeError, match=f"{name} is a network to train, not a run to tune"):
            call()
    with pytest.raises(RecipeError, match=r"hyperrbp train net\.yaml"):
        parse(presets.built_in(name).read_text(), source="net.yaml")


@pytest.mark.parametrize("name", ["digits", "mnist"])
def test_a_tuning_recipe_is_a_recipe_of_any_kind(name):
    assert isinstance(read_any(presets.built_in(name)), Recipe)
    assert read_any(presets.built_in(name)) == read(presets.built_in(name))


def test_reading_a_network_imports_no_numerics():
    code = (
        "import sys\nfrom hyperrbp.config import presets\n"
        "from hyperrbp.config.loading import read_any\n"
        "for name in presets.names(): read_any(presets.built_in(name)).to_yaml()\n"
        "print([m for m in ('torch', 'numpy', 'sklearn', 'torchvision') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
