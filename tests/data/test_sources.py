"""Recipes that name data, networks and losses of the user's own."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import assert_refused, run
from own_parts import SHORT

from hyperrbp.config.loading import parse
from hyperrbp.data import sources as own_data
from hyperrbp.exceptions import RecipeError

pytestmark = pytest.mark.usefixtures("elsewhere")


@pytest.mark.parametrize(
    ("text", "key", "words"),
    [
        ("data: {name: mydata.np}", "data.name", "or file.npz, folder/, torchvision:NAME"),
        ("data: {name: photos}", "data.name", "expected one of digits, mnist"),
        ("data: {name: 'torchvision:CIFAR11'}", "data.name", "did you mean CIFAR10?"),
        ("data: {name: a.npz, options: {heldot: 0.5}}", "data.options.heldot", "mean heldout?"),
        ("data: {name: a.npz, options: {heldout: 1}}", "data.options.heldout", "below 1, got 1"),
        ("data: {name: a.npz, options: {channels: x}}", "data.options.channels", "first, last"),
        ("data: {name: a/, options: {size: 0}}", "data.options.size", "at least 1, got 0"),
        ("data: {name: a/, options: {colors: red}}", "data.options.colors", "one of gray, rgb"),
        ("data: {options: {size: 3}}", "data.options.size", "there are no options here"),
        (
            "data: {name: 'torchvision:EMNIST'}",
            "data.options.split",
            "expected one of byclass, bymerge, balanced, letters, digits, mnist",
        ),
        (
            "data: {name: 'torchvision:EMNIST', options: {split: leters}}",
            "data.options.split",
            "did you mean letters?",
        ),
        (
            "data: {name: 'torchvision:SVHN', options: {split: extra}}",
            "data.options.split",
            "only EMNIST has one, SVHN none; got 'extra'",
        ),
        (
            "data: {name: 'torchvision:MNIST', options: {split: digits}}",
            "data.options.split",
            "only EMNIST has one, MNIST none; got 'digits'",
        ),
        ("data: {shape: round}", "data.shape", "expected one of auto, flat, image, own"),
        ("data: {shape: image}", "data.shape", "mlp takes inputs of shape flat; expected auto or"),
        ("data: {shape: flat}\nmodel: {name: conv}", "data.shape", "conv takes inputs of shape im"),
        ("inner: {loss: crossentropy}", "inner.loss", "did you mean cross-entropy?"),
        ("inner: {loss: loss.py}", "inner.loss", "; or file.py:function"),
        ("model: {name: 'torchvision:'}", "model.name", "as in torchvision:resnet18"),
        ("model: {name: 'torchvision:a b'}", "model.name", "as in torchvision:resnet18"),
        ("model: {name: conv, options: {kernel: 4}}", "model.options.kernel", "1, 3, 5, 7, got 4"),
        ("model: {name: conv, options: {channels: []}}", "model.options.channels", "at least 1"),
        ("model: {init_std: 0}", "model.init_std", "expected a number above 0, got 0"),
    ],
)
def test_a_fault_in_what_is_ones_own_names_its_key(text, key, words):
    with pytest.raises(RecipeError) as refused:
        parse(text)
    (fault,) = refused.value.faults
    assert fault.key == key
    assert words in fault.message


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.npz", "file.npz"),
        ("/x/a b.npz", "file.npz"),
        ("a/", "folder/"),
        ("torchvision:SVHN", "torchvision:NAME"),
        ("a.py:load", "file.py:function"),
        ("a.b:load", "file.py:function"),
        ("a", None),
        (".npz", None),
        ("", None),
    ],
)
def test_what_a_name_means(name, kind):
    assert own_data.kind_of(name) == kind


def test_what_is_torchvisions_needs_no_run_code(elsewhere):
    names = "data: {name: 'torchvision:CIFAR10'}\nmodel: {name: 'torchvision:resnet18'}"
    assert list(parse(names).code()) == []
    Path("own.yaml").write_text(f"{SHORT}{names}\n")
    assert_refused(run("tune", "own.yaml", "--data-root", elsewhere), 3, "cannot be read from")


def test_a_recipe_with_all_of_it_reads_back_as_written():
    recipe = parse(
        "data: {name: /a/b.npz, options: {heldout: 0.5}, shape: own}\n"
        "model: {name: '/a/c.py:make', init_std: null}\ninner: {loss: '/a/d.py:loss'}"
    )
    assert parse(recipe.to_yaml()) == recipe
    assert [key for key, _ in recipe.code()] == ["model.name", "inner.loss"]
