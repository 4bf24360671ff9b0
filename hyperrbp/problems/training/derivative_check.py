"""Whether ``backward`` is the derivative of ``forward``, by finite differences in float64.

A gradient method takes what autograd gives for the derivatives of the loss, and calls the outcome
exact. Autograd does not know: a custom ``backward``, a ``detach`` or a hook can say anything, and
a few operations of PyTorch have a second derivative that is not that of their first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hyperrbp.exceptions import UsageError

Value = Callable[[Tensor], Tensor]
Product = Callable[[Tensor, Tensor], Tensor]

NAMED = 3
"""So many parameter tensors are named in an error; the others are an ellipsis."""

CONSISTENT = 0.1
"""Two differences make a fault if they differ by no more than this part of it: kinks do not."""


@dataclass(frozen=True)
class Precision:
    """Steps and tolerances for a function that computes in one floating-point format.

    Steps are relative to the size of a tensor. A smaller step crosses fewer kinks and has more
    rounding. The rounds are made in order: each has a point, a direction, and two steps.
    """

    together: float
    """Tolerance where all tensors move together, relative to the share of one of them."""
    alone: float
    """Tolerance of one tensor, relative to its derivative."""
    eps: float
    agreements: int
    """So many rounds must agree: a wide tolerance is also met by chance."""
    distance: float
    """How far from the weights the points are, relative to the size of each tensor.

    Weights of zero and examples of zeros put units exactly on a kink, where a derivative is a
    convention (that of ReLU at 0) and no difference agrees with it. Longer than the steps.
    """
    first_steps: tuple[tuple[float, float], ...]
    second_steps: tuple[tuple[float, float], ...]

    def noise(self, step: float) -> float:
        """Return how much rounding there may be in a difference, relative to its function."""
        return self.eps / step


DOUBLE = Precision(
    together=1e-6,
    alone=1e-4,
    eps=100 * torch.finfo(torch.float64).eps,
    agreements=2,
    distance=1e-3,
    first_steps=((1e-6, 1e-7), (1e-7, 1e-8)) * 2,
    second_steps=((1e-7, 1e-8), (1e-8, 1e-9)) * 2,
)


def _lower(eps: float) -> Precision:
    """Return what a function is held to that rounds to a shorter format somewhere inside."""
    return Precision(
        together=2e-2,
        alone=2e-2,
        eps=4 * eps,
        agreements=3,
        distance=0.1,
        first_steps=((1e-2, 3e-3), (3e-3, 1e-3)) * 3,
        second_steps=((1e-3, 3e-4), (3e-4, 1e-4)) * 3,
    )


def check_derivatives(
    loss_value: Value,
    gradient: Value,
    hessian_product: Product,
    weights: Tensor,
    names: Sequence[str],
    sizes: Sequence[int],
    generator: torch.Generator,
    fixed: Tensor | None = None,
) -> None:
    """Hold the first and second derivatives of a loss against finite differences.

    Without a fault this costs two losses, three gradients and one product, and more only where
    these disagree: at kinks, and where something is computed in float32. A fault disagrees at
    several points, and differences with two steps agree on it. What is not finite, or is another
    value at every call, is not found here, and hardly anything is where half precision rounds.

    Args:
        loss_value: w, shape (N,) → the loss, shape (); called under ``no_grad``.
        gradient: w → what ``backward`` gives for it, shape (N,).
        hessian_product: w, d → what ``backward`` of ``backward`` gives along d, shape (N,).
        weights: where, float64, shape (N,).
        names: the parameter tensors, in their order in w.
        sizes: how many weights each has; their sum is N.
        generator: of the directions.
        fixed: weights that are never moved, bool, shape (N,), such as the padding row of an
            embedding, whose gradient PyTorch leaves out on purpose.

    Raises:
        UsageError: names the tensors by which the gradient, or the second derivative, is wrong.
    """
    point = _Point(weights.detach(), sizes, generator, fixed)
    _FirstDerivatives(point, loss_value, gradient).check(names)
    _SecondDerivatives(point, loss_value, gradient, hessian_product).check(names)


class _Point:
    """The weights, the size of each of their tensors, and random points and directions there."""

    def __init__(
        self,
        weights: Tensor,
        sizes: Sequence[int],
        generator: torch.Generator,
        fixed: Tensor | None,
    ) -> None:
        self.weights, self.sizes, self.generator = weights, list(sizes), generator
        self.moved = None if fixed is None else (~fixed).to(weights)
        overall = float(_rms(weights)) or 1.0
        self.scales = [max(float(_rms(piece)), 0.1 * overall) for piece in self.pieces(weights)]

    def pieces(self, w: Tensor) -> tuple[Tensor, ...]:
        return torch.split(w, self.sizes)

    def direction(self, lengths: Sequence[float]) -> Tensor:
        """Return a normal direction, shape (N,), with these standard deviations."""
        normal = torch.randn(
            self.weights.shape,
            generator=self.generator,
            dtype=self.weights.dtype,
            device=self.generator.device,
        ).to(self.weights.device)
        if self.moved is not None:
            normal = normal * self.moved
        return torch.cat([a * b for a, b in zip(self.pieces(normal), lengths, strict=True)])

    def near(self, distance: float) -> Tensor:
        """Return a point beside the weights."""
        return self.weights + distance * self.direction(self.scales)

    def sizes_of(self, vector: Tensor) -> list[float]:
        """Return the norm of every piece of a gradient, for a relative change of its tensor."""
        if self.moved is not None:
            vector = vector * self.moved
        norms = [float(piece.norm()) for piece in self.pieces(vector)]
        return [scale * norm for scale, norm in zip(self.scales, norms, strict=True)]


class _FirstDerivatives:
    def __init__(self, point: _Point, loss_value: Value, gradient: Value) -> None:
        self.point, self.gradient, self.loss_value = point, gradient, loss_value

    def value(self, w: Tensor) -> float:
        with torch.no_grad():
            return float(self.loss_value(w))

    def difference(self, w: Tensor, d: Tensor, step: float) -> float:
        return (self.value(w + step * d) - self.value(w - step * d)) / (2 * step)

    def check(self, names: Sequence[str]) -> None:
        if self.all_agree(DOUBLE.first_steps[0][0], DOUBLE):
            return
        precision = _precision_of(self.loss_value, self.point.weights)
        agreed = 0
        for step, _ in precision.first_steps:
            agreed += self.all_agree(step, precision)
            if agreed == precision.agreements:
                return
        wrong: list[tuple[str, float, float]] = []
        for index, name in enumerate(names):
            found = self.fault_of(index, precision)
            if found is not None:
                wrong.append((name, *found))
            if len(wrong) > NAMED:
                break
        if wrong:
            _, difference, product = wrong[0]
            raise UsageError(
                f"the gradient of the loss by {_list([name for name, *_ in wrong])} is not its"
                f" derivative: finite differences say {difference:.4g}, backward says"
                f" {product:.4g}; gradient reversal, straight-through rounding, detach() and hooks"
                " that change gradients do this; use operations that PyTorch differentiates as"
                " they are"
            )

    def all_agree(self, step: float, precision: Precision) -> bool:
        """Whether a difference along all tensors at once agrees; True if nothing is finite."""
        w = self.point.near(precision.distance)
        g = self.gradient(w).detach()
        shares = self.point.sizes_of(g)
        if not math.isfinite(sum(shares)):
            w = self.point.weights
            g = self.gradient(w).detach()
            shares = self.point.sizes_of(g)
            if not math.isfinite(sum(shares)):
                return True
        # Held to the share of one tensor, so that the others hide no fault by it.
        ranked = sorted(share for share in shares if share > 0)
        share = ranked[len(ranked) // 2] if ranked else 0.0
        d = self.point.direction(self.point.scales)
        above, below = self.value(w + step * d), self.value(w - step * d)
        if not math.isfinite(above + below):
            return not math.isfinite(self.value(w))
        error = abs((above - below) / (2 * step) - float(g @ d))
        return error <= precision.together * share + precision.noise(step) * abs(above)

    def fault_of(self, index: int, precision: Precision) -> tuple[float, float] | None:
        """Return the derivatives along one tensor, by differences and by backward, if they differ.

        Both are those along a random direction.
        """
        faults, agreed = [], 0
        lengths = [0.0] * len(self.point.sizes)
        lengths[index] = self.point.scales[index]
        for steps in precision.first_steps:
            w, d = self.point.near(precision.distance), self.point.direction(lengths)
            g = self.gradient(w).detach()
            product, scale = float(g @ d), self.point.sizes_of(g)[index]
            level = abs(self.value(w))
            differences = [self.difference(w, d, step) for step in steps]
            errors = [abs(difference - product) for difference in differences]
            if any(
                error
                <= max(scale, abs(difference)) * precision.alone + precision.noise(step) * level
                for step, difference, error in zip(steps, differences, errors, strict=True)
            ):
                agreed += 1
            elif abs(differences[0] - differences[1]) <= CONSISTENT * min(errors):
                faults.append((differences[0], product))
            if agreed == precision.agreements:
                return None
        return faults[0] if len(faults) >= precision.agreements else None


class _SecondDerivatives:
    def __init__(
        self, point: _Point, loss_value: Value, gradient: Value, hessian_product: Product
    ) -> None:
        self.point, self.loss_value = point, loss_value
        self.gradient, self.hessian_product = gradient, hessian_product

    def check(self, names: Sequence[str]) -> None:
        suspects = set(range(len(names)))
        suspects -= self.compared(DOUBLE.second_steps[0][:1], DOUBLE, suspects)[0]
        if not suspects:
            return
        precision = _precision_of(self.loss_value, self.point.weights)
        agreed = dict.fromkeys(suspects, 0)
        faults: dict[int, list[float]] = {index: [] for index in suspects}
        for steps in precision.second_steps:
            right, wrong = self.compared(steps, precision, suspects)
            for index in right:
                agreed[index] += 1
            for index, error in wrong.items():
                faults[index].append(error)
            suspects = {index for index in suspects if agreed[index] < precision.agreements}
            if not suspects:
                return
        found = {i: faults[i][0] for i in suspects if len(faults[i]) >= precision.agreements}
        wrong_ones = sorted(found, key=lambda index: -found[index])
        if wrong_ones:
            raise UsageError(
                f"the loss differentiated twice by {_list([names[i] for i in wrong_ones])} is not"
                f" the derivative of its gradient: by finite differences it is off by"
                f" {found[wrong_ones[0]]:.2g} of its size; operations with a backward of their own"
                " do this, and PyTorch's weight_norm; write it from plain operations, such as"
                " g * v / v.norm(dim=1, keepdim=True)"
            )

    def compared(
        self, steps: Sequence[float], precision: Precision, suspects: set[int]
    ) -> tuple[set[int], dict[int, float]]:
        """Return the tensors that agree at a point, and the faults that two steps agree on."""
        w, d = self.point.near(precision.distance), self.point.direction(self.point.scales)
        product = self.hessian_product(w, d).detach()
        differences = []
        sizes: list[float] = []
        for step in steps:
            above, below = (self.gradient(w + sign * step * d).detach() for sign in (1, -1))
            differences.append((above - below) / (2 * step))
            sizes = self.point.sizes_of(above)
        if not math.isfinite(sum(sizes) + float(product.norm())):
            return set(suspects), {}
        products = self.point.sizes_of(product)
        level = max(sizes) + max(products)  # of what is summed up to give what may be zero
        errors = [self.point.sizes_of(difference - product) for difference in differences]
        between = self.point.sizes_of(differences[0] - differences[-1])
        right, wrong = set(), {}
        for i in suspects:
            scale = max(products[i], self.point.sizes_of(differences[-1])[i])
            if any(
                error[i] <= precision.alone * scale + precision.noise(step) * level
                for step, error in zip(steps, errors, strict=True)
            ):
                right.add(i)
            elif between[i] <= CONSISTENT * min(error[i] for error in errors):
                wrong[i] = errors[-1][i] / scale
        return right, wrong


class _Formats(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the coarsest floating-point format of anything that is computed."""

    eps = torch.finfo(torch.float64).eps

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in _tensors(made):
            if tensor.is_floating_point():
                self.eps = max(self.eps, torch.finfo(tensor.dtype).eps)
        return made


def _tensors(made: Any) -> Iterator[Tensor]:
    if isinstance(made, Tensor):
        yield made
    elif isinstance(made, list | tuple):
        for part in made:
            yield from _tensors(part)


def _precision_of(function: Value, w: Tensor) -> Precision:
    with torch.no_grad(), _Formats() as formats:  # type: ignore[no-untyped-call]
        function(w)
    return DOUBLE if formats.eps == _Formats.eps else _lower(formats.eps)


def _rms(vector: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(vector)
    return norm / math.sqrt(max(vector.numel(), 1))


def _list(names: Sequence[str]) -> str:
    named = ", ".join(f"'{name}'" for name in names[:NAMED])
    return f"{named}, …" if len(names) > NAMED else named
