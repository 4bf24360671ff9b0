"""Modules that no training run can differentiate, found by what they are before anything is run.

What cannot be told from a module itself, a state in its ``forward``, ``trial_calls`` finds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules import module as module_globals
from torch.nn.modules.lazy import LazyModuleMixin

from hyperrbp.exceptions import UsageError

_PRECISIONS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

_ONE_PROCESS = "pass model.module: a run is made in one process, on one device"
_UNSHARDED = "pass the module before it is sharded: a run is made in one process, on one device"
_UNCOMPILED = "pass the uncompiled module, model._orig_mod"
_EAGER = "pass the module that it was made from"
_REFUSED_CLASSES = {
    "torch.nn.parallel.distributed.DistributedDataParallel": (
        f"averages gradients between processes; {_ONE_PROCESS}"
    ),
    "torch.nn.parallel.data_parallel.DataParallel": (
        f"copies itself to several GPUs; {_ONE_PROCESS}"
    ),
    "torch.distributed.fsdp.fully_sharded_data_parallel.FullyShardedDataParallel": (
        f"shards its parameters between processes; {_UNSHARDED}"
    ),
    "torch.distributed.fsdp.FSDPModule": f"shards its parameters between processes; {_UNSHARDED}",
    "torch._dynamo.eval_frame.OptimizedModule": (
        f"is compiled, and what torch.compile makes has no second derivative; {_UNCOMPILED}"
    ),
    "torch.jit._script.ScriptModule": (
        "is a TorchScript module: its parameters cannot be replaced, and a traced one keeps the"
        f" mode, training or evaluation, that it was traced in; {_EAGER}"
    ),
    "torch.nn.modules.batchnorm.SyncBatchNorm": (
        "takes its statistics over several processes; use nn.BatchNorm1d, 2d or 3d"
    ),
    "torch.nn.utils.parametrizations._SpectralNorm": (
        "keeps a power iteration from one call to the next, which is part of no gradient; remove"
        " it (torch.nn.utils.parametrize.remove_parametrizations)"
    ),
    "torch.nn.utils.parametrizations._WeightNorm": (
        "has a second derivative in PyTorch that is not its own; write g v / ‖v‖ out as a"
        " parametrization (torch.nn.utils.parametrize.register_parametrization)"
    ),
    "torch.ao.quantization.fake_quantize.FakeQuantizeBase": (
        "rounds, and hands gradients on as if it did not; train the module without quantization"
    ),
}
"""What a class and all that are derived from it are refused for, by the class's full name."""

_REFUSED_PACKAGES = {
    "torch.ao.nn.quantized.": "is quantized, and has no gradient; train the floating-point module",
    "torch.ao.nn.intrinsic.quantized.": (
        "is quantized, and has no gradient; train the floating-point module"
    ),
}

_REFUSED_HOOKS = {
    "torch.nn.utils.spectral_norm.SpectralNorm": (
        "has spectral_norm, which keeps a power iteration from one call to the next, part of no"
        " gradient; remove it (torch.nn.utils.remove_spectral_norm)"
    ),
    "torch.nn.utils.weight_norm.WeightNorm": (
        "has weight_norm, whose second derivative in PyTorch is not its own; write g v / ‖v‖ out"
        " as a parametrization (torch.nn.utils.parametrize.register_parametrization)"
    ),
}


def refuse_module(model: nn.Module) -> None:
    """Refuse a module that a training run would differentiate wrongly, or not at all.

    Raises:
        UsageError: with the path and the class of the module, the reason, and what to use instead.
    """
    for path, module in model.named_modules():
        for reason in _reasons(module):
            raise UsageError(f"{_where(path, module)} {reason}")
    _refuse_hooks_of_all_modules()
    _refuse_parameters(model)


def _where(path: str, module: nn.Module) -> str:
    name = type(module).__name__
    return f"the model's '{path}' ({name})" if path else f"the model ({name})"


def _reasons(module: nn.Module) -> Iterator[str]:
    """Yield why a module by itself, without those inside it, cannot be differentiated."""
    for name in map(_full_name, type(module).__mro__):
        if name in _REFUSED_CLASSES:
            yield _REFUSED_CLASSES[name]
        for package, reason in _REFUSED_PACKAGES.items():
            if name.startswith(package):
                yield reason
    compiled = getattr(module, "_compiled_call_impl", None) is not None
    if compiled or hasattr(module.forward, "_torchdynamo_orig_callable"):
        yield (
            "is compiled, and what torch.compile makes has no second derivative; pass it without"
            " its compile()"
        )
    if isinstance(module, LazyModuleMixin) and module.has_uninitialized_params():
        yield "has no parameters yet; call it on one batch first, which gives them their shapes"
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        yield from _reasons_of_embedding(module)
    if _is_reentrant(module):
        yield (
            "recomputes its forward pass inside backward, which is not differentiated twice; use"
            " use_reentrant=False"
        )
    yield from _reasons_of_hooks(module)


def _reasons_of_embedding(module: nn.Embedding | nn.EmbeddingBag) -> Iterator[str]:
    if module.sparse:
        yield "has sparse gradients; use sparse=False"
    if module.max_norm is not None:
        yield "rescales its weight in place, outside of any gradient; use max_norm=None"
    if module.scale_grad_by_freq:
        yield (
            "scales its gradient by how often an index occurs, so that it is not the derivative of"
            " what it computes; use scale_grad_by_freq=False"
        )


def _reasons_of_hooks(module: nn.Module) -> Iterator[str]:
    for hook in module._forward_pre_hooks.values():
        if (reason := _REFUSED_HOOKS.get(_full_name(type(hook)))) is not None:
            yield reason
    for hooks in (module._backward_hooks, module._backward_pre_hooks):
        for hook in hooks.values():
            yield (
                f"has a backward hook ({_named(hook)}), after which a gradient is not the"
                " derivative of what the module computes; remove it"
            )


def _refuse_hooks_of_all_modules() -> None:
    for kept in ("_global_backward_hooks", "_global_backward_pre_hooks"):
        for hook in getattr(module_globals, kept, {}).values():
            raise UsageError(
                f"a backward hook of all modules is registered ({_named(hook)}), after which a"
                " gradient is not the derivative of what a module computes; remove it"
            )


def _refuse_parameters(model: nn.Module) -> None:
    named = dict(model.named_parameters())
    if not named:
        raise UsageError(f"the model ({type(model).__name__}) has no parameters to train")
    for name, parameter in named.items():
        if (reason := _reason_of_parameter(parameter)) is not None:
            raise UsageError(f"the model's parameter '{name}' {reason}")
    trained = {name: p for name, p in named.items() if p.requires_grad}
    if not trained:
        raise UsageError(
            f"no parameter of the model ({type(model).__name__}) requires a gradient; set"
            " requires_grad of those to be trained"
        )
    _refuse_different(trained, "type", lambda p: str(p.dtype).removeprefix("torch."), "dtype")
    _refuse_different(trained, "device", lambda p: str(p.device), "device")


def _reason_of_parameter(parameter: Tensor) -> str | None:
    if any(_full_name(each).endswith(".DTensor") for each in type(parameter).__mro__):
        return f"is a part of a tensor that is distributed (DTensor); {_UNSHARDED}"
    if parameter.is_meta:
        return "has no values (device meta); give it some first, model.to_empty and a weight file"
    if parameter.is_inference():
        return "was made under torch.inference_mode; make the model outside of it"
    if not parameter.requires_grad:
        return None  # held fixed, and so free to be of any type
    if parameter.is_complex():
        return "is complex; use its real and imaginary part as two parameters (torch.view_as_real)"
    if parameter.dtype not in _PRECISIONS:
        return f"is of type {parameter.dtype}; train it in float32"
    if parameter.layout is not torch.strided:
        return "is sparse; use a dense one"
    for hooks in (parameter._backward_hooks, parameter._post_accumulate_grad_hooks):
        for hook in (hooks or {}).values():
            return (
                f"has a hook on its gradient ({_named(hook)}), which a run does not call; remove it"
            )
    return None


def _refuse_different(
    trained: dict[str, nn.Parameter], what: str, value: Callable[[nn.Parameter], str], of_to: str
) -> None:
    (first, one), *others = [(name, value(p)) for name, p in trained.items()]
    for name, other in others:
        if other != one:
            raise UsageError(
                f"the model's parameters are of more than one {what}: '{first}' of {one}, '{name}'"
                f" of {other}; bring all that require a gradient to one (model.to({of_to}=…))"
            )


def _is_reentrant(module: nn.Module) -> bool:
    return getattr(getattr(module, "checkpoint_impl", None), "name", "") == "REENTRANT"


def _full_name(of: type) -> str:
    # By name: most of these classes are in modules that are not imported unless they are in use.
    return f"{of.__module__}.{of.__qualname__}"


def _named(hook: object) -> str:
    return str(getattr(hook, "__qualname__", type(hook).__qualname__))
