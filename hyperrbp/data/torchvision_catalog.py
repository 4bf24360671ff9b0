"""The data sets of torchvision that a recipe can name, known without importing torchvision."""

from __future__ import annotations

from typing import Any, Literal, get_args

TORCHVISION_SETS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    **{
        name: ({"train": True}, {"train": False})
        for name in (
            *("MNIST", "FashionMNIST", "KMNIST", "EMNIST", "QMNIST"),
            *("USPS", "CIFAR10", "CIFAR100"),
        )
    },
    **{
        name: ({"split": "train"}, {"split": "test"})
        for name in ("SVHN", "STL10", "GTSRB", "Flowers102", "DTD", "Food101")
    },
    "OxfordIIITPet": ({"split": "trainval"}, {"split": "test"}),
}
"""The arguments with which each gives its two parts, to train on and held out.

Sets that unpickle unverified files are not among them.
"""

EmnistSplit = Literal["byclass", "bymerge", "balanced", "letters", "digits", "mnist"]
SPLITS: dict[str, tuple[str, ...]] = {"EMNIST": get_args(EmnistSplit)}
"""The names that stand for several sets, one of which the option ``split`` names."""
