"""Traced functions: the tensor operations of a function, without what surrounds them.

A small training step is bound not by arithmetic but by what Python, modules and autograd do
between two operations. A function that is called thousands of times on tensors of the same shapes
is therefore traced once into the list of its tensor operations (with those that compute its
derivatives: Griewank and Walther 2008, section 2.2), and the list is run instead. The operations
and their kernels are the same ones, and so are the bits; this is checked when the list is made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._C._functorch import peek_interpreter_stack
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from hyperrbp.runtime.process_state import ONE_THREAD

if TYPE_CHECKING:
    from torch.fx import GraphModule, Node

Function = Callable[..., Sequence[Tensor]]
"""Tensors in, tensors out; free of side effects, and of branches on the values of tensors."""

_COUNTERS = "torch.utils.flop_counter"

TRACE_AFTER = 500
"""Calls on tensors of one kind before tracing, which costs about as much as it saves on so many."""


class TracedFunction:
    """A function that is traced, into a list of its operations, once it has been called often.

    Tensors of another shape, stride, dtype or device have a program of their own, and so has
    another autocast, default dtype or device, deterministic or inference mode. A function that
    cannot be traced, or whose program gives other bits, goes on being called as it is, and so is
    one under a transform of ``torch.func`` or a mode that intercepts operations.

    What else the function depends on (a float of a closure, an attribute of a module) is part of
    the program; its owner asks for a ``recheck`` wherever that may have changed. A copy of it, or
    of what holds it, has no programs; its function is the copied object's if it is a method, and
    the same one if it is a closure.

    The function may draw from PyTorch's global generators, and then so does its program; tracing
    and checking draw no more than the one call that they are part of.

    Args:
        function: what is called.
        trace_after: how many calls on tensors of one kind are made before it is traced.
    """

    def __init__(self, function: Function, trace_after: int = TRACE_AFTER) -> None:
        self._function = function
        self._trace_after = trace_after
        self._calls: dict[Any, int] = {}
        self._programs: dict[Any, Function] = {}
        self._due: set[Any] = set()
        self.refusal: str | None = None
        """Why the function is called as it is, if it could not be traced."""

    def __getstate__(self) -> dict[str, Any]:
        return {"function": self._function, "trace_after": self._trace_after}

    def __setstate__(self, state: dict[str, Any]) -> None:
        TracedFunction.__init__(self, **state)

    @property
    def traced(self) -> bool:
        """Whether a traced program is in use for any kind of tensors."""
        return any(program is not self._function for program in self._programs.values())

    def __call__(self, *tensors: Tensor) -> Sequence[Tensor]:
        """Return the function of these tensors; none of the results has a graph."""
        kind = _kind(tensors)
        program = self._programs.get(kind)
        with torch.no_grad():
            if program is None and kind is not None:
                calls = self._calls[kind] = self._calls.get(kind, 0) + 1
                if calls > self._trace_after:
                    program = self._programs[kind] = self._trace(tensors)
            elif self._due and kind in self._due and not _counting():
                return self._checked(kind, tensors)
            return (program or self._function)(*tensors)

    def trace(self, *tensors: Tensor) -> None:
        """Trace now what will be called on tensors like these."""
        kind = _kind(tensors)
        if kind is not None and kind not in self._programs:
            with torch.no_grad():
                self._programs[kind] = self._trace(tensors)

    def recheck(self) -> None:
        """Hold every program against the function at its next call.

        Where the bits differ, that call returns the function's, the program is dropped, and the
        function is traced again once it has again been called often.
        """
        self._due = {kind for kind, made in self._programs.items() if made is not self._function}

    def _checked(self, kind: Any, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        with ONE_THREAD:
            expected, fault = self._compared(self._programs[kind], tensors)
        self._due.discard(kind)
        if fault is not None:
            del self._programs[kind]
            self._calls[kind] = 1
        return expected

    def _trace(self, tensors: Sequence[Tensor]) -> Function:
        # Traced on other tensors than it is checked on: none stands in for another of the same
        # storage, and no value of theirs has become part of the program.
        others = [t * 0.75 if t.is_floating_point() else t.clone() for t in tensors]
        with ONE_THREAD:
            before = _generator_states(tensors)
            try:
                program = _program(self._function, others)
            except Exception as error:  # whatever a model does that no list of operations can hold
                self.refusal = _line(error)
                return self._function
            finally:
                _set_generator_states(before)
            try:
                self.refusal = self._compared(program, tensors)[1]
            finally:
                _set_generator_states(before)
        return program if self.refusal is None else self._function

    def _compared(
        self, program: Function, tensors: Sequence[Tensor]
    ) -> tuple[Sequence[Tensor], str | None]:
        """Return what the function gives, and why the program does not give the same, if so."""
        before, fault = _generator_states(tensors), None
        try:
            found = program(*tensors)
        except Exception as error:  # of tensors that the program was not made for
            found, fault = (), _line(error)
        left = _generator_states(tensors)
        _set_generator_states(before)
        expected = self._function(*tensors)
        if fault is None and not (
            len(found) == len(expected)
            and all(map(_same, found, expected))
            and all(map(torch.equal, left.values(), _generator_states(tensors).values()))
        ):
            fault = "the traced operations give other bits"
        return expected, fault


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _kind(tensors: Sequence[Tensor]) -> Any:
    """Return what the operations of a function depend on beside values, or None: anything."""
    tensors_alone = tuple([(t.shape, t.stride(), t.dtype, t.device) for t in tensors])
    # Asked for at every call: mostly, nothing of all this is in force.
    if not (_functions() or _dispatches() or _autocast() or _inference() or _transformed()):
        return _default_dtype(), _deterministic(), tensors_alone
    place: Any = None
    if count := _functions():  # a default device is one, too
        modes = [torch._C._get_function_stack_at(i) for i in range(count)]
        if not all(isinstance(mode, DeviceContext) for mode in modes):
            return None
        place = tuple([mode.device for mode in modes])
    if _transformed() is not None or (_dispatches() and not _counting()):
        return None
    autocast = [
        torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device)
        for device in ("cpu", "cuda")
    ]
    state: tuple[Any, ...] = () if not any(autocast) else tuple(autocast)
    if place is not None or _inference():
        state = (*state, place, _inference())
    return _default_dtype(), _deterministic(), tensors_alone, *state


_functions, _dispatches = torch._C._len_torch_function_stack, torch._C._len_torch_dispatch_stack
_autocast, _inference = torch._C._is_any_autocast_enabled, torch.is_inference_mode_enabled
_default_dtype, _deterministic = torch.get_default_dtype, torch._C._get_deterministic_algorithms
_transformed = peek_interpreter_stack


def _counting() -> bool:
    """Return whether modes stand between tensors and their operations that only count these.

    What they count is the work of a program, without any check of it.
    """
    modes = _get_current_dispatch_mode_stack()
    return bool(modes) and all(type(mode).__module__ == _COUNTERS for mode in modes)


def _generator_states(tensors: Sequence[Tensor]) -> dict[torch.device, Tensor]:
    """Return the states of the global generators that a function of these tensors draws from."""
    states = {torch.device("cpu"): torch.get_rng_state()}
    for device in {t.device for t in tensors if t.is_cuda}:
        states[device] = torch.cuda.get_rng_state(device)
    return states


def _set_generator_states(states: dict[torch.device, Tensor]) -> None:
    for device, state in states.items():
        if device.type == "cuda":
            torch.cuda.set_rng_state(state, device)
        else:
            torch.set_rng_state(state)


def _same(a: Tensor, b: Tensor) -> bool:
    if (a.shape, a.dtype, a.device) != (b.shape, b.dtype, b.device):
        return False
    return torch.equal(a, b) or torch.allclose(a, b, rtol=0.0, atol=0.0, equal_nan=True)


def _program(function: Function, tensors: Sequence[Tensor]) -> Function:
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.fx.graph import CodeGen

    module: GraphModule = make_fx(lambda *args: tuple(function(*args)))(*tensors)
    graph = module.graph
    aten = torch.ops.aten
    for node in list(graph.nodes):
        node.meta.clear()  # it would keep the tensors of the tracing alive
        # Autograd's copies of a tensor for its own books, and what cancels or does nothing.
        if node.target in (aten.alias.default, aten.detach.default):
            _replace(node, node.args[0])
        elif node.target is aten.t.default and node.args[0].target is aten.t.default:
            _replace(node, node.args[0].args[0])
        elif node.target is aten.mul.Tensor and _is_one(node.args[1]):
            _replace(node, node.args[0])
    graph.eliminate_dead_code()
    for node in graph.nodes:
        if isinstance(node.target, torch._ops.OpOverload):
            node.target = _binding(node.target)
    graph.set_codegen(CodeGen())  # takes and returns flat tuples
    module.recompile()
    program: Function = module.forward
    return program


def _is_one(factor: Any) -> bool:
    return isinstance(factor, int | float) and factor == 1


def _replace(node: Node, by: Node) -> None:
    node.replace_all_uses_with(by)
    node.graph.erase_node(node)


def _binding(operator: torch._ops.OpOverload) -> Callable[..., Any]:
    """Return the same operation by the entry that Python reaches fastest."""
    name = operator._schema.name.removeprefix("aten::")
    for home in (torch, torch.Tensor):
        if operator.namespace == "aten" and hasattr(home, name):
            binding: Callable[..., Any] = getattr(home, name)
            return binding
    return operator
