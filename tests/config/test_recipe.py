"""Recipes that are written as YAML and read back."""

from __future__ import annotations

import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hyperrbp.config.loading import parse
from hyperrbp.config.recipe import Recipe


def test_yaml_spells_every_key_out():
    def keys(value):
        return {k: keys(v) for k, v in value.items()} if isinstance(value, dict) else None

    written = yaml.safe_load(Recipe().to_yaml())
    assert keys(written) == keys(Recipe().model_dump())


POSITIVE = st.floats(1e-300, 1e300)


VARIATIONS = st.fixed_dictionaries(
    {},
    optional={
        "name": st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True),
        "seed": st.integers(0, 2**63 - 1),
        "device": st.sampled_from(["auto", "cpu", "cuda"]),
        "dtype": st.sampled_from(["float32", "float64"]),
        "threads": st.none() | st.integers(1, 1024),
        "data": st.fixed_dictionaries(
            {"name": st.sampled_from(["digits", "mnist", "kmnist"])},
            optional={
                "train_examples": st.none() | st.integers(1000, 1200),
                "validation_examples": st.integers(0, 200),
                "center": st.booleans(),
            },
        ),
        "model": st.fixed_dictionaries(
            {"init_std": POSITIVE},
            optional={
                "options": st.fixed_dictionaries(
                    {},
                    optional={
                        "hidden": st.lists(st.integers(1, 10**6), max_size=3),
                        "activation": st.sampled_from(["tanh", "relu", "softplus"]),
                    },
                )
            },
        ),
        "inner": st.fixed_dictionaries(
            {
                "steps": st.integers(200, 10**9),
                "batch_size": st.integers(1, 800),
                "learning_rate": POSITIVE,
                "momentum": st.floats(0, 1, exclude_min=True, exclude_max=True),
                "optimizer": st.sampled_from(["maclaurin", "sgd"]),
                "fresh": st.booleans(),
            }
        ),
        "gradient": st.fixed_dictionaries(
            {
                "method": st.sampled_from(["bptt", "tbptt", "rbp", "cg", "neumann"]),
                "trunc": st.integers(1, 100),
                "averaging": st.fixed_dictionaries({"minibatches": st.integers(1, 100)}),
                "options": st.fixed_dictionaries(
                    {},
                    optional={
                        "cg": st.fixed_dictionaries({"damping": st.floats(0, 1)}),
                        "rbp": st.fixed_dictionaries({"z0": st.sampled_from(["zero", "uniform"])}),
                    },
                ),
            }
        ),
        "meta": st.fixed_dictionaries(
            {"steps": st.integers(1, 10**7), "learning_rate": st.floats(1e-300, 1000)},
            optional={
                "decay": st.none()
                | st.fixed_dictionaries(
                    {"factor": st.floats(0, 1, exclude_min=True), "from_step": st.integers(1, 99)}
                )
            },
        ),
    },
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(VARIATIONS)
@example({"name": "1e3"})  # text that our YAML takes for a number and YAML 1.1 does not
@example({"name": "08"})
@example({"name": "1_0."})
@example({"name": "0x10"})  # and the other way round
@example({"name": "on"})
@example({"name": "null"})
@example({"name": "2001-01-01"})
def test_any_recipe_reads_back_as_written(content):
    recipe = Recipe.model_validate(content)
    assert parse(recipe.to_yaml()) == recipe
    assert yaml.safe_load(recipe.to_yaml())["name"] == recipe.name  # so do other readers
