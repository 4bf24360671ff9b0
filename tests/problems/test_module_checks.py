"""Modules that cannot be differentiated are refused by name, before anything is run."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.modules import module as module_globals
from torch.nn.utils import parametrizations, parametrize, prune

from hyperrbp.exceptions import UsageError
from hyperrbp.problems.training.module_checks import refuse_module

pytestmark = pytest.mark.filterwarnings("ignore:.*(weight_norm|quantiz|torch.jit|NO_SHARD).*")


@pytest.fixture
def process_group(tmp_path):
    """One process that takes itself for several."""
    distributed = pytest.importorskip("torch.distributed")
    store = distributed.FileStore(str(tmp_path / "store"), 1)
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def inside(module: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Sequential(module), nn.Linear(2, 2))


def linear() -> nn.Module:
    return nn.Linear(3, 3)


def compiled_in_place() -> nn.Module:
    module = linear()
    module.compile()
    return module


class CompiledForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))

    @torch.compile
    def forward(self, x):
        return x * self.weight


class Reentrant(nn.Module):
    """As fairscale's and PyTorch's own checkpoint_wrapper."""

    def __init__(self) -> None:
        from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointImpl

        super().__init__()
        self.checkpoint_impl = CheckpointImpl.REENTRANT


def with_hook(register: str) -> nn.Module:
    module = linear()

    def reversed_gradient(*arguments):
        return None

    getattr(module, register)(reversed_gradient)
    return module


def quantized() -> nn.Module:
    return torch.ao.nn.quantized.dynamic.Linear(3, 3)


def trained_for_quantization() -> nn.Module:
    return torch.ao.quantization.FakeQuantize()


def scripted() -> nn.Module:
    return torch.jit.script(linear())


def traced() -> nn.Module:
    return torch.jit.trace(linear(), torch.ones(1, 3))


MODULES = {
    "data parallel": (lambda: nn.DataParallel(linear()), "DataParallel", "pass model.module"),
    "compiled": (lambda: torch.compile(linear()), "OptimizedModule", "model._orig_mod"),
    "compiled in place": (compiled_in_place, "Linear", "pass it without its compile()"),
    "compiled forward": (CompiledForward, "CompiledForward", "pass it without its compile()"),
    "script": (scripted, "RecursiveScriptModule", "pass the module that it was made from"),
    "trace": (traced, "TopLevelTracedModule", "pass the module that it was made from"),
    "lazy": (lambda: nn.LazyLinear(3), "LazyLinear", "call it on one batch first"),
    "lazy buffers": (lambda: nn.LazyBatchNorm1d(), "LazyBatchNorm1d", "call it on one batch"),
    "sync batch norm": (lambda: nn.SyncBatchNorm(3), "SyncBatchNorm", "nn.BatchNorm1d, 2d or 3d"),
    "sparse": (lambda: nn.Embedding(3, 2, sparse=True), "Embedding", "use sparse=False"),
    "sparse bag": (lambda: nn.EmbeddingBag(3, 2, sparse=True), "EmbeddingBag", "sparse=False"),
    "max norm": (lambda: nn.Embedding(3, 2, max_norm=1.0), "Embedding", "max_norm=None"),
    "frequency": (
        lambda: nn.Embedding(3, 2, scale_grad_by_freq=True), "Embedding", "scale_grad_by_freq=False"
    ),
    "quantized": (quantized, "Linear", "train the floating-point module"),
    "straight through": (trained_for_quantization, "FakeQuantize", "without quantization"),
    "spectral norm": (
        lambda: parametrizations.spectral_norm(linear()), "_SpectralNorm", "power iteration"
    ),
    "old spectral norm": (
        lambda: nn.utils.spectral_norm(linear()), "Linear", "remove_spectral_norm"
    ),
    "weight norm": (
        lambda: parametrizations.weight_norm(linear()), "_WeightNorm", "write g v / ‖v‖ out"
    ),
    "old weight norm": (lambda: nn.utils.weight_norm(linear()), "Linear", "write g v / ‖v‖ out"),
    "backward hook": (
        lambda: with_hook("register_full_backward_hook"), "Linear", "reversed_gradient"
    ),
    "backward pre hook": (
        lambda: with_hook("register_full_backward_pre_hook"), "Linear", "reversed_gradient"
    ),
    "reentrant": (Reentrant, "Reentrant", "use_reentrant=False"),
}  # fmt: skip


@pytest.mark.parametrize("case", MODULES)
@pytest.mark.parametrize("where", ["alone", "inside"])
def test_a_module_is_refused_by_its_name_with_what_to_use(case, where):
    make, name, words = MODULES[case]
    model = make() if where == "alone" else inside(make())
    with pytest.raises(UsageError) as refused:
        refuse_module(model)
    said = str(refused.value)
    assert f"({name})" in said
    assert words in said
    assert ("'0.0" in said) == (where == "inside")
    assert "\n" not in said


@pytest.mark.parametrize("where", ["alone", "inside"])
@pytest.mark.parametrize("kind", ["ddp", "fsdp", "fully_shard"])
def test_what_is_spread_over_processes_is_refused(process_group, kind, where):
    from torch.distributed import fsdp

    module = nn.Sequential(linear())
    if kind == "ddp":
        made, words = nn.parallel.DistributedDataParallel(module), "pass model.module"
    elif kind == "fsdp":
        made, words = fsdp.FullyShardedDataParallel(module, device_id=torch.device("cpu")), "shard"
    else:
        fsdp.fully_shard(module)
        made, words = module, "before it is sharded"
    with pytest.raises(UsageError, match=f"the model.*{words}"):
        refuse_module(made if where == "alone" else inside(made))


def test_a_part_of_a_distributed_tensor_is_refused(process_group):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import distribute_tensor

    module, mesh = linear(), init_device_mesh("cpu", (1,))
    module.weight = nn.Parameter(distribute_tensor(module.weight.detach(), mesh))
    with pytest.raises(UsageError, match=r"parameter 'weight' is a part of a tensor .*DTensor"):
        refuse_module(module)


def with_parameter(parameter: nn.Parameter) -> nn.Module:
    module = nn.Module()
    module.kept = parameter
    return module


def hooked(register: str) -> nn.Module:
    parameter = nn.Parameter(torch.ones(2))
    getattr(parameter, register)(lambda gradient: None)
    return with_parameter(parameter)


def frozen(module: nn.Module) -> nn.Module:
    return module.requires_grad_(False)


def made_for_inference() -> nn.Module:
    with torch.inference_mode():
        return linear()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: with_parameter(nn.Parameter(torch.ones(2, dtype=torch.cfloat))), "complex"),
        (
            lambda: with_parameter(nn.Parameter(torch.ones(2).to(torch.float8_e4m3fn))),
            "is of type torch.float8_e4m3fn",
        ),
        (lambda: with_parameter(nn.Parameter(torch.ones(2, 2).to_sparse())), "is sparse"),
        (lambda: hooked("register_hook"), "has a hook on its gradient"),
        (lambda: hooked("register_post_accumulate_grad_hook"), "has a hook on its gradient"),
        (made_for_inference, "made under torch.inference_mode"),
        (lambda: nn.Linear(2, 2, device="meta"), "has no values"),
    ],
)
def test_a_parameter_is_refused_by_its_name(make, words):
    with pytest.raises(UsageError, match=rf"the model's parameter '(0\.0\.)?\w+' .*{words}"):
        refuse_module(make())
    with pytest.raises(UsageError, match=rf"'0\.0\.\w+' .*{words}"):
        refuse_module(inside(make()))


def test_parameters_of_two_types_are_refused_unless_one_is_frozen():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double())
    with pytest.raises(UsageError, match=r"'0.weight' of float32, '1.weight' of float64; .*dtype="):
        refuse_module(model)
    frozen(model[1])
    refuse_module(model)


def test_a_model_without_anything_to_train_is_refused():
    with pytest.raises(UsageError, match=r"the model \(ReLU\) has no parameters to train"):
        refuse_module(nn.ReLU())
    with pytest.raises(UsageError, match=r"no parameter of the model \(Linear\) requires a grad"):
        refuse_module(frozen(linear()))


@pytest.mark.parametrize(
    "register", ["register_module_full_backward_hook", "register_module_full_backward_pre_hook"]
)
def test_a_backward_hook_of_all_modules_is_refused(register):
    handle = getattr(module_globals, register)(lambda *arguments: None)
    try:
        with pytest.raises(UsageError, match="a backward hook of all modules"):
            refuse_module(linear())
    finally:
        handle.remove()
    refuse_module(linear())


def with_forward_hooks() -> nn.Module:
    module = linear()
    module.register_forward_hook(lambda module, x, y: y * 2)
    module.register_forward_pre_hook(lambda module, x: x)
    return module


def initialized() -> nn.Module:
    module = nn.LazyLinear(3)
    module(torch.ones(1, 2))
    return module


def tied() -> nn.Module:
    module = nn.Sequential(linear(), linear())
    module[1].weight = module[0].weight
    return module


def with_integers() -> nn.Module:
    module = linear()
    module.kept = nn.Parameter(torch.ones(2, dtype=torch.int8), requires_grad=False)
    return module


def own_parametrization() -> nn.Module:
    class Skew(nn.Module):
        def forward(self, x):
            return x - x.T

    module = linear()
    parametrize.register_parametrization(module, "weight", Skew())
    return module


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.BatchNorm1d(3),
        lambda: nn.InstanceNorm1d(3, affine=True, track_running_stats=True),
        lambda: nn.Sequential(linear(), nn.Dropout(0.5), nn.RReLU()),
        lambda: nn.Embedding(3, 2, padding_idx=0),
        lambda: nn.TransformerEncoderLayer(4, 2),
        lambda: nn.LSTM(3, 3),
        lambda: prune.l1_unstructured(linear(), "weight", 1),
        lambda: parametrizations.orthogonal(linear()),
        own_parametrization,
        with_forward_hooks,
        initialized,
        tied,
        with_integers,
    ],
)
def test_what_can_be_differentiated_is_accepted(make):
    refuse_module(make())
    refuse_module(inside(make()))
