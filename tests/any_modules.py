"""A table of the modules that people train, each with inputs, and with the words of its refusal."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize
from torch.utils.checkpoint import checkpoint
from whole_runs import relative, run_of_two, weights_by_torch

from hyperrbp.data.batches import Batch
from hyperrbp.problems.training.run import TrainingRun

B = 4
"""Examples of a minibatch."""


# --- inputs ---------------------------------------------------------------------------------------


def numbers(*shape: int, seed: int = 0) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=source, dtype=torch.float64)


def whole_numbers(high: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, high, shape, generator=torch.Generator().manual_seed(seed))


def of_shape(*shape: int) -> Callable[[int], Tensor]:
    return lambda seed: numbers(B, *shape, seed=seed)


FEATURES = of_shape(6)
SIGNAL, IMAGE, VOLUME = of_shape(2, 8), of_shape(2, 6, 6), of_shape(1, 4, 4, 4)
SEQUENCE = of_shape(5, 6)


def TOKENS(seed: int) -> Tensor:
    return whole_numbers(7, B, 5, seed=seed)


def classes(seed: int) -> Tensor:
    return whole_numbers(3, B, seed=100 + seed)


# --- what is done in a forward pass ---------------------------------------------------------------


class Net(nn.Module):
    """A body, and a linear layer of three classes on all of its outputs."""

    def __init__(self, body: nn.Module, inputs: Callable[[int], Tensor]) -> None:
        super().__init__()
        self.body = body
        with torch.no_grad():
            size = body.double()(inputs(0).clone()).flatten(1).shape[1]
        self.head = nn.Linear(size, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).flatten(1))


class Does(nn.Module):
    """A linear layer, and then what a function of (this module, outputs) does."""

    def __init__(self, then: Callable[[Any, Tensor], Tensor], size: int = 6) -> None:
        super().__init__()
        self.linear, self.then, self.calls = nn.Linear(6, size), then, 0
        self.scale = nn.Parameter(torch.tensor(0.7))
        self.register_buffer("mask", torch.tril(torch.ones(size, size)))

    def forward(self, x: Tensor) -> Tensor:
        return self.then(self, self.linear(x)) * self.scale


class First(nn.Module):
    """The first of what a module gives, such as the outputs of a recurrent one."""

    def __init__(self, module: nn.Module, *, thrice: bool = False) -> None:
        super().__init__()
        self.module, self.thrice = module, thrice

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x, x, x)[0] if self.thrice else self.module(x)[0]


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerDecoderLayer(6, 2, 8, dropout=0.1, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x, x.flip(1))


class Causal(nn.Module):
    """Attention as GPTs write it: a buffer masks what comes later."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(6, 18), nn.Linear(6, 6)
        self.register_buffer("mask", torch.tril(torch.ones(5, 5, dtype=torch.bool)))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        scores = (q @ k.transpose(1, 2) / 6**0.5).masked_fill(~self.mask, -math.inf)
        return self.out(scores.softmax(-1) @ v)


class Skips(nn.Module):
    """A small U-Net."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.mid = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.up = nn.Conv2d(6, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.down(x).tanh()
        second = self.mid(F.avg_pool2d(first, 2)).tanh()
        wide = F.interpolate(second, scale_factor=2, mode="bilinear")
        return self.up(torch.cat([first, wide], 1))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.read = nn.Embedding(7, 6), nn.Linear(6, 7, bias=False)
        self.read.weight = self.table.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self.table(x).tanh())


class Shifted(nn.Module):
    """An augmentation: what is put in is moved at random."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.3 * torch.rand(x.shape, dtype=x.dtype) if self.training else x


class Layered(nn.Module):
    """Stochastic depth."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(6, 6) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        from torchvision.ops import stochastic_depth

        for block in self.blocks:
            x = x + stochastic_depth(block(x).tanh(), 0.4, "row", self.training)
        return x


class Reversal(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, g):
        return -g


class RightSquare(torch.autograd.Function):
    """A backward of one's own that is right, twice."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 2 * g * x


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Dropout(0.3))

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.inner, x, use_reentrant=False)


class ChangesInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.mul_(0.5))


class ComplexWeight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(6, dtype=torch.complex128))

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.factor).abs()


class StartsAtZero(nn.Module):
    """A state of zeros in the default precision, as is often written."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.read = nn.GRUCell(6, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self.cell(x, torch.zeros(len(x), 4)))


class AsFloat(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.float()


class Spectrum(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.rfft(x).abs()


class UnitNorm(nn.Module):
    """Weight normalization, written out."""

    def forward(self, v: Tensor) -> Tensor:
        return v / v.norm(dim=1, keepdim=True)


def double_where(x: Tensor) -> Tensor:
    safe = torch.where(x > 0.05, x, torch.ones_like(x))
    return torch.where(x > 0.05, safe.sqrt(), x)


def single_where(x: Tensor) -> Tensor:
    """The derivative of a root of nothing times zero is not a number."""
    return torch.where(x > 0.05, x.sqrt(), x)


def counted(self: Any, y: Tensor) -> Tensor:
    self.calls += 1
    return y * (1 + 0.1 * self.calls)


def with_hook(module: nn.Module) -> nn.Module:
    module.register_full_backward_hook(lambda *of: None)
    return module


def with_forward_hook(module: nn.Module) -> nn.Module:
    module.register_forward_hook(lambda _, inputs, outputs: 1.5 * outputs)
    return module


def compiled(module: nn.Module) -> nn.Module:
    return torch.compile(module)


def part_frozen() -> nn.Module:
    body = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6))
    body[0].requires_grad_(False)
    return body


def frozen_below_norms() -> nn.Module:
    """Statistics of which the first depend on nothing that is trained."""
    body = nn.Sequential(
        nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Tanh()
    )
    body[0].requires_grad_(False)
    return body


def norm_frozen() -> nn.Module:
    """One layer of batch normalization that keeps the statistics it came with."""
    body = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 6))
    body[1].running_mean = numbers(6, seed=5)
    body[1].running_var = 1 + numbers(6, seed=6).square()
    body[1].eval()
    return body


def parametrized(register: Callable[[nn.Module], Any]) -> nn.Module:
    layer = nn.Linear(6, 6)
    register(layer)
    return nn.Sequential(layer, nn.Tanh())


def bag(**options: Any) -> nn.Module:
    return nn.EmbeddingBag(7, 6, **options)


@dataclass
class Row:
    """A module with what it is trained on."""

    body: Callable[[], nn.Module]
    inputs: Callable[[int], Tensor] = FEATURES
    words: str | None = None
    """With which it is refused; None: it is right."""
    bound: float = 1e-5
    """The largest relative distance to finite differences."""
    head: bool = True
    step: float = 1e-5
    """Of the finite differences."""

    def model(self) -> nn.Module:
        torch.manual_seed(0)
        made = self.body()
        return Net(made, self.inputs).double() if self.head else made

    def problem(self, loss: Any = F.cross_entropy, **options: Any) -> tuple[TrainingRun, Tensor]:
        """Return a run and its θ; a row of float32 has inputs in float32."""
        model = self.model()
        return run_of_two(
            model,
            self.batches(model),
            loss=loss,
            meta_examples=Batch(self.of(model, self.inputs(3)), classes(3)),
            **options,
        )

    def batches(self, model: nn.Module) -> list[tuple[Tensor, Tensor]]:
        return [(self.of(model, self.inputs(seed)), classes(seed)) for seed in (1, 2)]

    @staticmethod
    def of(model: nn.Module, x: Tensor) -> Tensor:
        dtype = next(iter(model.parameters())).dtype
        return x.to(dtype) if x.is_floating_point() and not dtype.is_complex else x


def sequence(*modules: nn.Module) -> nn.Module:
    return nn.Sequential(*modules)


def then(function: Callable[[Any, Tensor], Tensor], size: int = 6) -> Callable[[], nn.Module]:
    return lambda: Does(function, size)


ENCODER = partial(nn.TransformerEncoderLayer, 6, 2, 8, batch_first=True)

MODULES: dict[str, Row] = {
    # layers with weights
    "Linear": Row(lambda: sequence(nn.Linear(6, 5), nn.Tanh())),
    "Bilinear": Row(then(lambda self, y: y * y.roll(1, 1))),
    "Conv1d": Row(lambda: sequence(nn.Conv1d(2, 3, 3), nn.GELU()), SIGNAL),
    "Conv2d grouped, dilated": Row(
        lambda: sequence(nn.Conv2d(2, 4, 3, groups=2, dilation=2), nn.SiLU()), IMAGE
    ),
    "Conv3d": Row(lambda: sequence(nn.Conv3d(1, 2, 2), nn.Softplus()), VOLUME),
    "ConvTranspose2d": Row(
        lambda: sequence(nn.ConvTranspose2d(2, 2, 3, stride=2), nn.Tanh()), IMAGE
    ),
    "Embedding, padding_idx": Row(lambda: nn.Embedding(7, 4, padding_idx=0), TOKENS),
    "EmbeddingBag": Row(bag, TOKENS, words="cannot be differentiated twice"),
    "EmbeddingBag, max": Row(lambda: bag(mode="max"), TOKENS, words="differentiated twice"),
    "GRU": Row(lambda: First(nn.GRU(6, 4, batch_first=True)), SEQUENCE),
    "LSTM, bidirectional": Row(
        lambda: First(nn.LSTM(6, 3, batch_first=True, bidirectional=True)), SEQUENCE
    ),
    "LSTM with projections": Row(
        lambda: First(nn.LSTM(6, 4, batch_first=True, proj_size=2)), SEQUENCE
    ),
    "RNN with dropout": Row(
        lambda: First(nn.RNN(6, 4, num_layers=2, dropout=0.3, batch_first=True)), SEQUENCE
    ),
    "MultiheadAttention": Row(
        lambda: First(nn.MultiheadAttention(6, 2, dropout=0.2, batch_first=True), thrice=True),
        SEQUENCE,
    ),
    "TransformerEncoderLayer": Row(ENCODER, SEQUENCE),
    "TransformerEncoder, norm first": Row(
        lambda: nn.TransformerEncoder(
            ENCODER(norm_first=True, activation="gelu"), 2, enable_nested_tensor=False
        ),
        SEQUENCE,
    ),
    "TransformerDecoderLayer": Row(Decoder, SEQUENCE),
    "scaled_dot_product_attention": Row(
        then(lambda self, y: F.scaled_dot_product_attention(y, y, y, is_causal=True)), SEQUENCE
    ),
    "mask in a buffer": Row(Causal, SEQUENCE),
    # normalization
    "BatchNorm1d": Row(lambda: sequence(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Tanh())),
    "BatchNorm2d": Row(lambda: sequence(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU()), IMAGE),
    "BatchNorm3d, cumulative": Row(
        lambda: sequence(nn.Conv3d(1, 2, 2), nn.BatchNorm3d(2, momentum=None), nn.Tanh()), VOLUME
    ),
    "BatchNorm without statistics": Row(
        lambda: sequence(nn.Linear(6, 5), nn.BatchNorm1d(5, track_running_stats=False), nn.Tanh())
    ),
    "BatchNorm held fixed": Row(norm_frozen),
    "InstanceNorm2d": Row(
        lambda: sequence(nn.Conv2d(2, 3, 3), nn.InstanceNorm2d(3, affine=True), nn.Tanh()), IMAGE
    ),
    "InstanceNorm2d with statistics": Row(
        lambda: sequence(
            nn.Conv2d(2, 3, 3), nn.InstanceNorm2d(3, track_running_stats=True), nn.Tanh()
        ),
        IMAGE,
    ),
    "GroupNorm": Row(lambda: sequence(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.Tanh()), IMAGE),
    "LayerNorm": Row(lambda: sequence(nn.Linear(6, 5), nn.LayerNorm(5), nn.Tanh())),
    "RMSNorm": Row(lambda: sequence(nn.Linear(6, 5), nn.RMSNorm(5), nn.Tanh())),
    "LocalResponseNorm": Row(
        lambda: sequence(nn.Conv2d(2, 4, 3), nn.LocalResponseNorm(2), nn.Tanh()), IMAGE
    ),
    # random layers
    "Dropout": Row(lambda: sequence(nn.Linear(6, 5), nn.Dropout(0.4), nn.Tanh())),
    "Dropout2d": Row(lambda: sequence(nn.Conv2d(2, 3, 3), nn.Dropout2d(0.4), nn.Tanh()), IMAGE),
    "AlphaDropout": Row(lambda: sequence(nn.Linear(6, 5), nn.SELU(), nn.AlphaDropout(0.3))),
    "F.dropout": Row(then(lambda self, y: F.dropout(y, 0.4, self.training).tanh())),
    "RReLU": Row(lambda: sequence(nn.Linear(6, 5), nn.RReLU())),
    "gumbel_softmax": Row(then(lambda self, y: F.gumbel_softmax(y) if self.training else y)),
    "gumbel_softmax, hard": Row(
        then(lambda self, y: F.gumbel_softmax(y, hard=True) if self.training else y),
        words="is not its derivative",
    ),
    "stochastic depth": Row(Layered),
    "augmentation": Row(lambda: sequence(Shifted(), nn.Linear(6, 5), nn.Tanh())),
    # activations, pooling, shapes
    "PReLU": Row(lambda: sequence(nn.Linear(6, 5), nn.PReLU(5))),
    "GLU": Row(lambda: sequence(nn.Linear(6, 8), nn.GLU())),
    "Hardtanh in place": Row(lambda: sequence(nn.Linear(6, 5), nn.Hardtanh(inplace=True))),
    "Hardswish": Row(lambda: sequence(nn.Linear(6, 5), nn.Hardswish())),
    "Hardsigmoid": Row(
        lambda: sequence(nn.Linear(6, 5), nn.Hardsigmoid()), words="cannot be differentiated twice"
    ),
    "PixelShuffle": Row(lambda: sequence(nn.Conv2d(2, 4, 1), nn.PixelShuffle(2)), IMAGE),
    "MaxPool2d": Row(lambda: sequence(nn.Conv2d(2, 3, 3), nn.MaxPool2d(2)), IMAGE),
    "AdaptiveAvgPool2d": Row(
        lambda: sequence(nn.Conv2d(2, 3, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(2)), IMAGE
    ),
    "Upsample": Row(
        lambda: sequence(nn.Conv2d(2, 2, 3), nn.Upsample(scale_factor=1.5, mode="bicubic")), IMAGE
    ),
    "U-Net": Row(Skips, IMAGE),
    # weights
    "tied": Row(Tied, TOKENS),
    "a part held fixed": Row(part_frozen),
    "a part held fixed, BatchNorm": Row(frozen_below_norms),
    "all below BatchNorm held fixed": Row(
        lambda: sequence(nn.Linear(6, 6).requires_grad_(False), nn.BatchNorm1d(6), nn.Tanh())
    ),
    "written-out weight norm": Row(
        lambda: parametrized(
            lambda m: parametrize.register_parametrization(m, "weight", UnitNorm())
        )
    ),
    "orthogonal": Row(lambda: parametrized(parametrizations.orthogonal)),
    "orthogonal, Cayley": Row(
        lambda: parametrized(partial(parametrizations.orthogonal, orthogonal_map="cayley"))
    ),
    "weight_norm": Row(lambda: parametrized(parametrizations.weight_norm), words="g v / ‖v‖"),
    "spectral_norm": Row(
        lambda: parametrized(parametrizations.spectral_norm), words="power iteration"
    ),
    "not reached": Row(
        then(lambda self, y: y.detach() * 1.0 + 0 * self.mask[0]), words="does not reach"
    ),
    # what no derivative shows
    "checkpoint": Row(
        then(lambda self, y: checkpoint(torch.tanh, y, use_reentrant=False)),
    ),
    "checkpoint with weights": Row(
        lambda: sequence(nn.Linear(6, 6), Checkpointed()),
        words=r"'body.1.inner' \(Sequential\) is called again in backward",
    ),
    "checkpoint, re-entrant": Row(
        then(lambda self, y: checkpoint(torch.tanh, y, use_reentrant=True)),
        words="use_reentrant=False",
    ),
    "counter": Row(then(counted), words="'body.calls', which was"),
    "numpy": Row(then(lambda self, y: y * np.random.rand()), words=r"numpy\.random"),
    "Python's random": Row(then(lambda self, y: y * random.random()), words="random module"),
    "input in place": Row(ChangesInputs, words="in place"),
    "buffer in place": Row(
        then(lambda self, y: y + 0 * self.mask.mul_(0.9).sum()), words="buffer 'body.mask'"
    ),
    "gradient reversal": Row(
        then(lambda self, y: Reversal.apply(y)), words="is not its derivative"
    ),
    "own backward that is right": Row(then(lambda self, y: RightSquare.apply(y))),
    "straight-through": Row(
        then(lambda self, y: y + (y.round() - y).detach()), words="is not its derivative"
    ),
    "detached factor": Row(then(lambda self, y: y * y.detach()), words="is not its derivative"),
    "backward hook": Row(
        lambda: sequence(with_hook(nn.Linear(6, 5)), nn.Tanh()), words="backward hook"
    ),
    "forward hook": Row(lambda: sequence(with_forward_hook(nn.Linear(6, 5)), nn.Tanh())),
    "double where": Row(then(lambda self, y: double_where(y))),
    "single where": Row(
        then(lambda self, y: single_where(y)), words="is not finite, although the loss is"
    ),
    "complex inside": Row(lambda: sequence(nn.Linear(6, 6), Spectrum())),
    "complex parameter": Row(
        lambda: ComplexWeight(), words="is complex; use its real and imaginary part"
    ),
    "float32 inside": Row(
        then(lambda self, y: y.float().tanh().to(y.dtype)), bound=1e-3, step=0.01
    ),
    # whole networks, modes and wrappers
    "in evaluation mode": Row(lambda: sequence(nn.Linear(6, 5), nn.Dropout(0.4), nn.Tanh()).eval()),
    "DataParallel": Row(lambda: nn.DataParallel(nn.Linear(6, 3)), words="pass model.module"),
    "compiled": Row(lambda: compiled(nn.Linear(6, 3)), words="model._orig_mod", head=False),
    "lazy": Row(lambda: nn.LazyLinear(3), words="call it on one batch first", head=False),
    "scripted": Row(
        lambda: torch.jit.script(nn.Linear(6, 3)), words="is a TorchScript module", head=False
    ),
    "sparse": Row(lambda: nn.Embedding(7, 3, sparse=True), TOKENS, words="use sparse=False"),
    "zeros of its own in float32": Row(StartsAtZero, head=False, bound=1e-3, step=0.01),
    "inputs made float32": Row(
        lambda: sequence(AsFloat(), nn.Linear(6, 3)), head=False, bound=1e-3, step=0.01
    ),
    "float16": Row(lambda: nn.Linear(6, 3).half(), head=False, bound=0.1, step=0.1),
    "bfloat16": Row(lambda: nn.Linear(6, 3).bfloat16(), head=False, bound=0.5, step=0.3),
}


def assert_as_torch(row: Row, run: TrainingRun, theta: Tensor, **options: Any) -> None:
    """The run is the training that PyTorch makes, and the loss is that of the trained module."""
    model = row.model()
    h = run.last_state(theta)
    trained = weights_by_torch(
        model, row.batches(model), F.cross_entropy, draws=run.objective.draws, **options
    )
    tolerance = 1e-12 if h.dtype is torch.float64 else 20 * torch.finfo(h.dtype).eps
    assert relative(h[: run.weights], trained) < tolerance
    if run.objective.normalizing:
        return  # which are evaluated by recalibrated statistics
    nn.utils.vector_to_parameters(trained, [p for p in model.parameters() if p.requires_grad])
    with torch.no_grad():
        loss = F.cross_entropy(model.eval()(row.of(model, row.inputs(3))), classes(3))
    assert float(run.loss(h)) == pytest.approx(float(loss), rel=tolerance, abs=tolerance)
