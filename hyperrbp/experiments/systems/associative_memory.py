"""Associative memory of handwritten digits (Liao et al. 2018, section 5.1)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, l1_loss

from hyperrbp.config.equilibrium import HopfieldRecipe
from hyperrbp.data.builtin import data_root, load_builtin_set
from hyperrbp.exceptions import DataError
from hyperrbp.experiments.systems.base import Answer, Example, System
from hyperrbp.problems.fixed_point import FixedPoint
from hyperrbp.problems.hopfield import Hopfield
from hyperrbp.runtime.randomness import generator


class AssociativeMemory(System):
    """One image a class is stored; a corrupted one is to bring it back.

    Trained on whole images, clamped and asked for at once, with the L1 distance between pixels and
    output neurons; validated and tested on corrupted ones, the output binarized at 0.5.
    """

    def __init__(
        self, recipe: HopfieldRecipe, root: Path | None, device: torch.device, dtype: torch.dtype
    ) -> None:
        data, net = recipe.data, recipe.network
        train = load_builtin_set(data.name, data_root(root), download=data.download).train
        firsts = []
        for label in range(data.images):
            found = (train.targets == label).nonzero()
            if len(found) == 0:
                raise DataError(f"data set '{data.name}' has no example of class {label}")
            firsts.append(int(found[0]))
        images = downsampled(train.inputs[firsts], data.downsample)
        self._side = math.isqrt(images.shape[1])
        self.inputs = (images > data.binarize_above).to(device, dtype)
        self.corrupted = corrupt(self.inputs, data.corruption, recipe.seed)
        self._seed, self._batch_size = recipe.seed, recipe.training.batch_size
        self.network = Hopfield(
            self.inputs.shape[1],
            net.hidden,
            a=net.a,
            b=net.b,
            readout=net.readout,
            init_std=net.init_std,
            generator=generator(recipe.seed, "initial weights"),
        ).to(device, dtype)
        neurons = len(self.network.weight)
        self.size = f"{neurons:,} neurons, {len(self.inputs)} images of {self._side}×{self._side}"

    def epoch(self, n: int) -> Iterator[Example]:
        """Yield the images in a new order, ``batch_size`` at a time."""
        order = torch.randperm(len(self.inputs), generator=generator(self._seed, "order", n))
        for rows in torch.split(order, self._batch_size):
            images = self.inputs[rows.to(self.inputs.device)]
            yield Example(len(rows) / len(order), images, partial(l1_loss, target=images))

    def loss(self, answer: Answer) -> float:
        """Return the mean L1 distance to the pixels of whole images."""
        return float(l1_loss(answer(self.inputs), self.inputs))

    def validate(self, answer: Answer) -> dict[str, float]:
        """Return how far the images retrieved from corrupted ones are from the whole ones."""
        output = answer(self.corrupted)
        return {
            "loss": float(l1_loss(output, self.inputs)),
            "pixel_error": float(l1_loss(binarized(output), self.inputs)),
        }

    def badness(self, validation: Mapping[str, float]) -> float:
        """Return the share of wrong pixels."""
        return validation["pixel_error"]

    def test(self, answer: Answer) -> dict[str, float]:
        """Return the share of wrong pixels in the retrieved and in the corrupted images."""
        return {
            "pixel_error": self.validate(answer)["pixel_error"],
            "corrupted_pixel_error": float(l1_loss(self.corrupted, self.inputs)),
        }

    def curves(self, problem: FixedPoint, theta: Tensor) -> dict[str, list[float]]:
        """Return the change norms, and the mean energy over the images, which need not fall."""
        assert isinstance(self.network, Hopfield)
        states = problem.states(theta, 0, problem.steps, problem.initial_state())
        energies = self.network.energies(map(problem.shaped, states), self.inputs)
        means = torch.stack([energy.mean() for energy in energies])
        return super().curves(problem, theta) | {"energy": means.tolist()}

    def pictures(self, answer: Answer) -> tuple[list[str], Tensor]:
        """Return whole, corrupted and retrieved images."""
        rows = torch.stack([self.inputs, self.corrupted, binarized(answer(self.corrupted))])
        shape = (*rows.shape[:2], self._side, self._side)
        return ["original", "corrupted", "retrieved"], rows.reshape(shape).cpu()


def downsampled(images: Tensor, factor: int) -> Tensor:
    """Return square images, shape (B, pixels), with ``factor`` times fewer pixels a side.

    Raises:
        DataError: if their side is not a multiple of it.
    """
    side = math.isqrt(images.shape[1])
    if side % factor:
        raise DataError(
            f"images of {side}×{side} pixels cannot be downsampled by {factor}: it does not divide"
            f" {side}"
        )
    return avg_pool2d(images.view(-1, 1, side, side), factor).flatten(1)


def corrupt(images: Tensor, share: float, seed: int) -> Tensor:
    """Return the images with this share of their non-zero pixels set to zero, rounded down."""
    corrupted = images.clone()
    for number, image in enumerate(corrupted):
        ink = image.nonzero().squeeze(1)
        order = torch.randperm(len(ink), generator=generator(seed, "corruption", number))
        image[ink[order[: int(len(ink) * share)].to(ink.device)]] = 0.0
    return corrupted


def binarized(output: Tensor) -> Tensor:
    """Return 1 where the output is at least 0.5, else 0."""
    return (output >= 0.5).to(output.dtype)
