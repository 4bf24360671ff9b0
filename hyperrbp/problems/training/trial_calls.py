"""Trial calls of a model: does the same input, with the same seed, give the same output again?

A gradient of a run is one of a function. A counter in ``forward``, numbers that numpy draws, and an
input that is changed in place make something else of it, and no derivative shows that.
"""

from __future__ import annotations

import random
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from hyperrbp.exceptions import UsageError
from hyperrbp.runtime.randomness import generator, seeded

ROUNDING = 1e3
"""Outputs that differ by so many units of rounding of the largest are the same outputs."""

_NORMALIZATIONS = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)
_REENTRANT = (
    "the model calls torch.utils.checkpoint with use_reentrant=True, through which nothing is"
    " differentiated twice; use use_reentrant=False"
)


@dataclass(frozen=True)
class Probe:
    """What trial calls showed of a function that is safe to differentiate."""

    draws: bool
    """Whether PyTorch's global generator of the CPU or of a GPU was moved."""
    depends_on_seed: bool
    """Whether another seed gave something else."""
    custom_functions: tuple[str, ...]
    """The names of the autograd functions in the graph whose backward is the user's own."""


def probe(forward: Callable[[], Any], tensors: Sequence[Tensor], model: nn.Module) -> Probe:
    """Call a function twice under one seed of PyTorch's generators, and once under another.

    Gradients are enabled. Buffers of the model, ``tensors`` and all global generators are
    afterwards what they were before.

    Args:
        forward: gives tensors, numbers and containers of them; what they were made of is not
            changed between the calls.
        tensors: which it is not to change in place: inputs, targets.
        model: which it is not to change, but for the running statistics of normalizations.

    Raises:
        UsageError: if it keeps a state, draws numbers that PyTorch's seed does not decide,
            changes something in place, or calls a checkpoint that cannot be differentiated twice.
    """
    kept = _Kept(tensors, model)
    with _generators_kept(), _checkpoints_watched():
        try:
            first, moved, names = _called(forward, 0, kept)
            attributes = _attributes(model)
            again, _, _ = _called(forward, 0, kept, of_others=True)
            _refuse_counted(attributes, _attributes(model))
            other, moved_again, _ = _called(forward, 1, kept)
        finally:
            kept.restore()
    if not _equal(first, again):
        raise UsageError(
            "the model or its loss made something else of the same inputs under the same seed: a"
            " counter, numbers drawn by a generator of its own, or another state in forward; draw"
            " with torch's functions, which every step seeds, and keep no state"
        )
    return Probe(moved or moved_again, not _equal(first, other), names)


def _called(
    forward: Callable[[], Any], step: int, kept: _Kept, of_others: bool = False
) -> tuple[list[Any], bool, tuple[str, ...]]:
    """Call once; return the leaves, whether PyTorch's generators moved, and its own functions."""
    with seeded(generator(0, "trial call", step).initial_seed()), torch.enable_grad():
        before, others = _torch_states(), _other_states()
        made = tree_leaves(forward())
        moved = not _equal(before, _torch_states())
        # At a first call, a library that is imported may draw for itself.
        if of_others:
            _refuse_moved(others, _other_states())
    kept.refuse_changed()
    outputs = [leaf for leaf in made if isinstance(leaf, Tensor)]
    names = _custom_functions(outputs)
    return [each.detach() if isinstance(each, Tensor) else each for each in made], moved, names


class _Kept:
    """The tensors and buffers that are not to be changed, as they were."""

    def __init__(self, tensors: Sequence[Tensor], model: nn.Module) -> None:
        self._tensors = [(each, _version(each), each.detach().clone()) for each in tensors]
        self._buffers = [
            (module, path, name, buffer, _version(buffer), buffer.detach().clone())
            for path, module in model.named_modules()
            for name, buffer in module._buffers.items()
            if buffer is not None
        ]
        self._parameters = [
            (name, parameter, _version(parameter)) for name, parameter in model.named_parameters()
        ]

    def refuse_changed(self) -> None:
        for i, (tensor, version, value) in enumerate(self._tensors):
            if _changed(tensor, version, value):
                raise UsageError(
                    f"the model or its loss changes tensor {i + 1} of its inputs and targets, of"
                    f" shape {tuple(tensor.shape)}, in place; change a clone() of it"
                )
        for module, path, name, buffer, version, value in self._buffers:
            if isinstance(module, _NORMALIZATIONS):
                continue
            if module._buffers.get(name) is not buffer or _changed(buffer, version, value):
                where = f"{path}.{name}" if path else name
                raise UsageError(
                    f"the model ({type(module).__name__}) keeps a state in the buffer '{where}',"
                    " which its forward changes and which is part of no gradient; use a layer"
                    " without, or leave the buffer as it is"
                )
        for name, parameter, version in self._parameters:
            if _version(parameter) != version:
                raise UsageError(
                    f"the model changes its parameter '{name}' in place in forward, outside of any"
                    " gradient; compute with a changed copy instead"
                )

    def restore(self) -> None:
        """Give everything that changed its value back."""
        with torch.no_grad():
            for module, _, name, buffer, _, _ in self._buffers:
                module._buffers[name] = buffer
            for kept in (self._tensors, self._buffers):
                for *_, tensor, _, value in kept:
                    if not torch.equal(tensor, value):
                        tensor.copy_(value)


def _attributes(model: nn.Module) -> dict[str, str]:
    """Return the plain numbers and words that the modules of a model hold."""
    return {
        f"{path}.{name}" if path else name: repr(value)
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, int | float | str)
    }


def _refuse_counted(before: dict[str, str], after: dict[str, str]) -> None:
    for name, value in after.items():
        if before.get(name, value) != value:
            raise UsageError(
                f"the model keeps a state in the attribute '{name}', which was {before[name]} after"
                f" one call and {value} after the next; a gradient sees no such state: keep none"
            )


def _version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version  # which counts no changes


def _changed(tensor: Tensor, version: int, value: Tensor) -> bool:
    # A change that came to nothing is one for autograd; one through .data has no new version.
    return _version(tensor) != version or not _equal([tensor.detach()], [value])


@contextmanager
def _generators_kept() -> Iterator[None]:
    """Give Python's and numpy's global generators back as they were."""
    ours, numpy = random.getstate(), sys.modules.get("numpy")
    theirs = None if numpy is None else numpy.random.get_state()
    try:
        yield
    finally:
        random.setstate(ours)
        if numpy is not None:
            numpy.random.set_state(theirs)


def _other_states() -> dict[str, list[Any]]:
    states: dict[str, list[Any]] = {"Python's random module": [random.getstate()]}
    if (numpy := sys.modules.get("numpy")) is not None:
        _, keys, *rest = numpy.random.get_state()
        states["numpy.random"] = [keys.tolist(), rest]
    return states


def _refuse_moved(before: dict[str, list[Any]], after: dict[str, list[Any]]) -> None:
    for source, state in before.items():
        if after[source] != state:
            raise UsageError(
                f"the model or its loss draws from {source}; draw with torch's functions, which"
                " every step seeds"
            )


def _torch_states() -> list[Any]:
    states = [torch.get_rng_state()]
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # torch's is untyped
        states += torch.cuda.get_rng_state_all()
    return states


def _equal(first: Sequence[Any], second: Sequence[Any]) -> bool:
    return len(first) == len(second) and all(map(_equal_leaves, first, second))


def _equal_leaves(one: Any, other: Any) -> bool:
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        # Anything else than a number is of no account: no gradient is taken of it.
        numbers = isinstance(one, int | float) and isinstance(other, int | float)
        return not numbers or one == other or (one != one and other != other)
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if not (one.is_floating_point() or one.is_complex()) or one.numel() == 0:
        return torch.equal(one, other)
    finite = one[one.isfinite()].abs()
    largest = float(finite.max()) if len(finite) else 0.0
    tolerance = ROUNDING * torch.finfo(one.dtype).eps * largest
    return torch.allclose(one, other, rtol=0.0, atol=tolerance, equal_nan=True)


@contextmanager
def _checkpoints_watched() -> Iterator[None]:
    """Refuse a checkpoint whose inputs need no gradient: the parameters inside get none."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for warning in caught:
        if "None of the inputs have requires_grad=True" in str(warning.message):
            raise UsageError(_REENTRANT)
        warnings.warn_explicit(
            warning.message, warning.category, warning.filename, warning.lineno, source=None
        )


def _custom_functions(outputs: Sequence[Tensor]) -> tuple[str, ...]:
    """Return the names of the functions in a graph whose backward is written in Python."""
    found = dict[str, None]()
    waiting = [each.grad_fn for each in outputs if each.grad_fn is not None]
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        if isinstance(node, torch.autograd.function.BackwardCFunction):
            name = type(node).__name__.removesuffix("Backward")
            if name == "CheckpointFunction":
                raise UsageError(_REENTRANT)
            found[name] = None
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                waiting.append(following)
    return tuple(sorted(found))
