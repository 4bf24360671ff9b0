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

if TYPE_CHECKING:
    from torch.fx import GraphModule, Node

Function = Callable[..., Sequence[Tensor]]
"""Tensors in, tensors out; free of side effects, and of branches on the values of tensors."""

TRACE_AFTER = 500
"""Calls on tensors of one kind before tracing, which costs about as much as it saves on so many."""


class TracedFunction:
    """A function that is traced, into a list of its operations, once it has been called often.

    Tensors of another shape, stride, dtype or device have a program of their own. A function that
    cannot be traced, or whose program gives other bits, goes on being called as it is.

    Args:
        function: what is called.
        trace_after: how many calls on tensors of one kind are made before it is traced.
    """

    def __init__(self, function: Function, trace_after: int = TRACE_AFTER) -> None:
        self._function = function
        self._trace_after = trace_after
        self._calls: dict[Any, int] = {}
        self._programs: dict[Any, Function] = {}
        self.refusal: str | None = None
        """Why the function is called as it is, if it could not be traced."""

    @property
    def traced(self) -> bool:
        """Whether a traced program is in use for any kind of tensors."""
        return any(program is not self._function for program in self._programs.values())

    def __call__(self, *tensors: Tensor) -> Sequence[Tensor]:
        """Return the function of these tensors; none of the results has a graph."""
        kind = tuple([(t.shape, t.stride(), t.dtype, t.device) for t in tensors])
        program = self._programs.get(kind)
        with torch.no_grad():
            if program is None:
                calls = self._calls[kind] = self._calls.get(kind, 0) + 1
                if calls > self._trace_after:
                    program = self._programs[kind] = self._trace(tensors)
            return (program or self._function)(*tensors)

    def trace(self, *tensors: Tensor) -> None:
        """Trace now what will be called on tensors like these."""
        kind = tuple([(t.shape, t.stride(), t.dtype, t.device) for t in tensors])
        if kind not in self._programs:
            with torch.no_grad():
                self._programs[kind] = self._trace(tensors)

    def _trace(self, tensors: Sequence[Tensor]) -> Function:
        # Traced on other tensors than it is checked on: none stands in for another of the same
        # storage, and no value of theirs has become part of the program.
        others = [t * 0.75 if t.is_floating_point() else t.clone() for t in tensors]
        try:
            program = _program(self._function, others)
            found = program(*tensors)
        except Exception as error:  # whatever a model does that no list of operations can hold
            self.refusal = f"{type(error).__name__}: {error}".splitlines()[0]
            return self._function
        expected = self._function(*tensors)
        if len(found) != len(expected) or not all(map(_same, found, expected)):
            self.refusal = "the traced operations give other bits"
            return self._function
        return program


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=0.0, atol=0.0, equal_nan=True)


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
