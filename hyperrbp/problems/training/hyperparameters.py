"""The hyperparameters of a training run, and their place in the vector θ.

θ is one flat vector of unconstrained numbers, kind after kind in the order of KINDS. Within a kind
it goes segment by segment, and within a segment part by part (tensors, layers, weights, examples).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from hyperrbp.exceptions import UsageError
from hyperrbp.runtime.suggestions import did_you_mean


@dataclass(frozen=True)
class HyperparameterKind:
    """A kind of hyperparameter, and how its unconstrained number becomes one in natural units."""

    natural: Callable[[Tensor], Tensor]
    unconstrained: Callable[[Tensor], Tensor]
    derivative: Callable[[Tensor], Tensor]
    """The derivative of ``natural``, from the natural value."""
    limits: tuple[float, float]
    """The bounds that its natural values lie strictly between."""
    default: float
    """Its natural value where none is given, fixed or initial."""
    transient: bool = False
    """Whether it changes how a steady state is reached, but not where it is."""


def _log(default: float, transient: bool = False) -> HyperparameterKind:
    return HyperparameterKind(
        torch.exp, torch.log, lambda x: x, (0.0, math.inf), default, transient
    )


def _logit(default: float) -> HyperparameterKind:
    return HyperparameterKind(
        torch.sigmoid, torch.logit, lambda x: x * (1 - x), (0.0, 1.0), default, transient=True
    )


KINDS: dict[str, HyperparameterKind] = {
    "learning_rate": _log(math.exp(-1), transient=True),
    "momentum": _logit(0.5),
    "beta1": _logit(0.9),
    "beta2": _logit(0.999),
    "alpha": _logit(0.99),
    "eps": _log(1e-8, transient=True),
    "warmup_share": _logit(0.0),
    "end_share": _logit(0.0),
    "knots": _log(1.0, transient=True),
    "weight_decay": _log(0.0),
    "init_scale": _log(1.0, transient=True),
    # Twice a sigmoid: at its start, 1, the loss is the plain mean.
    "example_weight": HyperparameterKind(
        lambda x: 2 * x.sigmoid(),
        lambda x: (x / 2).logit(),
        lambda x: x * (1 - x / 2),
        (0.0, 2.0),
        1.0,
    ),
}
"""All kinds by name, in the order of θ."""


@dataclass(frozen=True)
class Grain:
    """The parts of the network and of the run for which a kind has values of its own."""

    by: str = "tensor"
    """``net``, ``layer``, ``tensor``, ``weight`` (weight decay) or ``example``."""
    segments: int = 1
    """S, the number of equal segments of the run."""


@dataclass(frozen=True)
class Hyperparameters:
    """The kinds that are tuned, and the values of those fixed (their default if not named)."""

    tuned: Mapping[str, Grain] = field(
        default_factory=lambda: {"learning_rate": Grain(), "momentum": Grain()}
    )
    fixed: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for kind in (*self.tuned, *self.fixed):
            if kind not in KINDS:
                raise UsageError(
                    f"no kind of hyperparameter '{kind}'{did_you_mean(kind, KINDS)}; there are"
                    f" {', '.join(KINDS)}"
                )
        for kind, value in self.fixed.items():
            low, high = KINDS[kind].limits
            # A limit itself is no place to start from, but a value to keep: no momentum, no decay.
            closed = kind.endswith("_share") and value == high
            if not (low <= value < high or closed):
                raise UsageError(_expected(kind, closed=True))

    def refuse_other_than(self, known: Sequence[str], whose: str) -> None:
        """Refuse to tune what a run does not have.

        Args:
            known: the kinds that it has.
            whose: who does not have others: ``neither … nor …``.

        Raises:
            UsageError: for the first such kind.
        """
        for kind in self.tuned:
            if kind not in known:
                raise UsageError(
                    f"{kind.replace('_', ' ')}: {whose} has it; there are {', '.join(known)}"
                )


class Layout:
    """The place in θ of every hyperparameter, for one network and one training set.

    Args:
        hyperparameters: what is tuned.
        tensors: the names of the parameter tensors.
        sizes: their numbers of weights.
        examples: how many training examples there are.
        defaults: natural values of kinds where none are given, instead of those of KINDS.

    Raises:
        UsageError: if nothing is tuned.
    """

    def __init__(
        self,
        hyperparameters: Hyperparameters,
        tensors: Sequence[str],
        sizes: Sequence[int],
        examples: int,
        defaults: Mapping[str, float] | None = None,
    ) -> None:
        self.tensors, self.sizes = tuple(tensors), tuple(sizes)
        self._defaults = {kind: of.default for kind, of in KINDS.items()} | dict(defaults or {})
        self.grains = {kind: of for kind in KINDS if (of := hyperparameters.tuned.get(kind))}
        """By kind, the granularity of each that is tuned, in the order of θ."""
        self.fixed = {
            kind: float(hyperparameters.fixed.get(kind, self._defaults[kind]))
            for kind in KINDS
            if kind not in self.grains
        }
        if not self.grains:
            raise UsageError("no hyperparameter is tuned")
        self.parts: dict[str, tuple[str, ...]] = {}
        """By kind, the names of the parts that have values of their own."""
        self._member: dict[str, list[int]] = {}  # the part that each tensor belongs to
        self.slices: dict[str, slice] = {}
        """By kind, where in θ it stands."""
        start = 0
        for kind, grain in self.grains.items():
            self.parts[kind], self._member[kind] = self._divided(grain.by, examples)
            stop = start + grain.segments * len(self.parts[kind])
            self.slices[kind], start = slice(start, stop), stop
        self.count = start
        """p, the number of entries of θ."""

    def _divided(self, by: str, examples: int) -> tuple[tuple[str, ...], list[int]]:
        if by == "example":
            return tuple(map(str, range(examples))), []
        if by == "weight":
            return tuple(map(str, range(sum(self.sizes)))), []
        named = {
            "net": ["net"] * len(self.tensors),
            "layer": [name.rpartition(".")[0] or name for name in self.tensors],
            "tensor": list(self.tensors),
        }[by]
        parts = tuple(dict.fromkeys(named))
        return parts, [parts.index(name) for name in named]

    @cached_property
    def segments(self) -> int:
        """The least number of segments of the run within which no hyperparameter changes.

        Knots are no segments: the schedule goes from one to the next in every step.
        """
        return math.lcm(*(of.segments for kind, of in self.grains.items() if kind != "knots"))

    def segment(self, step: int, steps: int) -> int:
        """Return the segment of a run of so many steps that a step is in; after it, the last."""
        return 0 if self.segments == 1 else min(step, steps - 1) * self.segments // steps

    def block(self, theta: Tensor, kind: str, segment: int) -> Tensor:
        """Return the unconstrained values of a tuned kind in one of ``segments``."""
        grain = self.grains[kind]
        at = segment % self.segments * grain.segments // self.segments
        return theta[self.slices[kind]].view(grain.segments, -1)[at]

    def by_tensor(self, theta: Tensor, kind: str, segment: int) -> list[Tensor]:
        """Return a natural value for every tensor, with its graph.

        Its shape is (), or that of the flat tensor where every weight has its own.
        """
        if kind not in self.grains:
            value = theta.new_tensor(self.fixed[kind])
            return [value] * len(self.tensors)
        natural = KINDS[kind].natural(self.block(theta, kind, segment))
        if self.grains[kind].by == "weight":
            return list(torch.split(natural, list(self.sizes)))
        each = natural.unbind()
        return [each[part] for part in self._member[kind]]

    def by_weight(self, theta: Tensor, kind: str, segment: int) -> Tensor:
        """Return a natural value for every weight of the network, shape (N,), with its graph."""
        # Expanding and joining has a deterministic backward pass on every device; indexing has not.
        values = self.by_tensor(theta, kind, segment)
        return torch.cat(
            [value.expand(size) for value, size in zip(values, self.sizes, strict=True)]
        )

    def of_net(self, theta: Tensor, kind: str) -> Tensor:
        """Return the natural values of a kind that the whole network shares, with their graph.

        Their shape is (S,) for S segments or knots that are tuned, and (1,) otherwise.
        """
        if kind not in self.grains:
            return theta.new_tensor([self.fixed[kind]])
        return KINDS[kind].natural(theta[self.slices[kind]])

    def example_weights(self, theta: Tensor) -> Tensor | None:
        """Return natural weights of all training examples, with their graph; None if not tuned."""
        if "example_weight" not in self.grains:
            return None
        return KINDS["example_weight"].natural(self.block(theta, "example_weight", 0))

    def rows(self, kind: str, segment: int) -> list[tuple[int, list[int]]]:
        """Return the entries of θ that act in a segment, each with the tensors that it acts on."""
        grain, member = self.grains[kind], self._member[kind]
        at = segment % self.segments * grain.segments // self.segments
        start = self.slices[kind].start + at * len(self.parts[kind])
        return [
            (start + part, [i for i, of in enumerate(member) if of == part])
            for part in range(len(self.parts[kind]))
        ]

    def collect(self, along: Tensor, kind: str, segment: int, each: Tensor) -> None:
        """Add ∂/∂θ to ``along``, shape (p,), from derivatives by natural values.

        ``each`` has one for every tensor, for every weight or for every example.
        """
        block = self.block(along, kind, segment)
        member = self._member[kind]
        if len(block) == len(each):
            block += each
        else:
            for part, value in zip(member, each.unbind(), strict=True):
                block[part] += value

    def derivatives(self, theta: Tensor) -> Tensor:
        """Return the derivative of every natural value by its entry of θ, shape (p,)."""
        natural = self.natural(theta)
        return torch.cat([KINDS[kind].derivative(natural[at]) for kind, at in self.slices.items()])

    def across_segments(self) -> list[int]:
        """Number the entries of θ so that those of one part and kind share a number."""
        numbers: list[int] = []
        start = 0
        for kind, grain in self.grains.items():
            parts = len(self.parts[kind])
            numbers += list(range(start, start + parts)) * grain.segments
            start += parts
        return numbers

    # --- names and natural units ------------------------------------------------------------------

    def names(self, kind: str) -> list[str]:
        """Return the names of the entries of a kind, in the order of θ."""
        grain = self.grains[kind]
        if grain.segments == 1:
            return list(self.parts[kind])
        if kind == "knots":
            return [f"k{s + 1}" for s in range(grain.segments)]
        return [f"{part}.s{s + 1}" for s in range(grain.segments) for part in self.parts[kind]]

    def by_name(self, values: Tensor) -> dict[str, dict[str, float]]:
        """Return values in the order of θ, shape (p,), as ``{kind: {name: value}}``."""
        values = values.detach()
        return {
            kind: dict(zip(self.names(kind), values[at].tolist(), strict=True))
            for kind, at in self.slices.items()
        }

    def natural(self, theta: Tensor) -> Tensor:
        """Return θ in natural units, shape (p,)."""
        theta = theta.detach()
        return torch.cat([KINDS[kind].natural(theta[at]) for kind, at in self.slices.items()])

    def uniform(self, values: Mapping[str, float | Sequence[float]], like: Tensor) -> Tensor:
        """Return θ with one natural value for each kind, or one for each of its entries.

        Kinds that are not named have their default.

        Raises:
            UsageError: for a value outside the limits of its kind, or too near them to be held.
        """
        theta = like.new_empty(self.count)
        for kind, at in self.slices.items():
            given = values.get(kind, self._defaults[kind])
            value = torch.tensor(given, dtype=torch.float64)
            held = KINDS[kind].unconstrained(value).to(like)
            low, high = KINDS[kind].limits
            if not bool(((low < value) & (value < high)).all()):
                raise UsageError(_expected(kind))
            natural = KINDS[kind].natural(held)
            if not bool(((low < natural) & (natural < high)).all()):
                raise UsageError(
                    f"{kind.replace('_', ' ')} {given!r} is out of the range of"
                    f" {str(like.dtype).removeprefix('torch.')}"
                )
            theta[at] = held
        return theta

    def named(self, hyperparameters: Mapping[str, Mapping[str, float]], like: Tensor) -> Tensor:
        """Return θ with these values, as ``by_name`` gives them in natural units.

        Raises:
            UsageError: if they are not those of this run, or out of their limits.
        """
        if other := sorted(set(hyperparameters) ^ set(self.slices)):
            raise UsageError(f"not the hyperparameters of this run; kinds that differ: {other}")
        theta = like.new_empty(self.count)
        for kind, at in self.slices.items():
            named, names = hyperparameters[kind], self.names(kind)
            if set(named) != set(names):
                different = sorted(set(named) ^ set(names))
                few = ", ".join(different[:10]) + (" …" if len(different) > 10 else "")
                raise UsageError(f"{kind}: not of this network; tensors that differ: {few}")
            values = torch.tensor([float(named[name]) for name in names], dtype=torch.float64)
            low, high = KINDS[kind].limits
            if not ((values > low) & (values < high)).all():
                raise UsageError(_expected(kind))
            theta[at] = KINDS[kind].unconstrained(values).to(like)
        return theta


def _expected(kind: str, closed: bool = False) -> str:
    low, high = KINDS[kind].limits
    above = "from 0 on" if closed else "above 0"
    where = above if math.isinf(high) else f"between {low:g} and {high:g}"
    return f"{kind.replace('_', ' ')}: expected a number {where}"
