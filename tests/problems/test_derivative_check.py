"""Whether backward is the derivative of forward: faults are named, and nothing else is."""

from __future__ import annotations

import re
from collections import Counter

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy, huber_loss, l1_loss, one_hot
from torch.nn.utils.parametrizations import weight_norm

from hyperrbp.exceptions import UsageError
from hyperrbp.problems.training.derivative_check import check_derivatives


def check(model, inputs, loss, seed=0, fixed=None):
    """Check a model in float64 on labels in turn; return what was evaluated."""
    model = model.double()
    named = dict(model.named_parameters())
    sizes = [tensor.numel() for tensor in named.values()]
    counts = Counter()

    def value(w):
        pieces = zip(torch.split(w, sizes), named.values(), strict=True)
        tensors = [piece.view(like.shape) for piece, like in pieces]
        outputs = functional_call(model, dict(zip(named, tensors, strict=True)), (inputs,))
        return loss(outputs, torch.arange(len(outputs)) % outputs.shape[-1])

    def counted_value(w):
        counts["values"] += 1
        return value(w)

    def derivative(w, twice=False):
        leaf = w.detach().requires_grad_()
        (g,) = torch.autograd.grad(value(leaf), leaf, create_graph=twice, materialize_grads=True)
        return leaf, g

    def gradient(w):
        counts["gradients"] += 1
        return derivative(w)[1]

    def product(w, d):
        counts["products"] += 1
        leaf, g = derivative(w, twice=True)
        if not g.requires_grad:
            return torch.zeros_like(w)
        return torch.autograd.grad(g, leaf, d, materialize_grads=True)[0]

    weights = nn.utils.parameters_to_vector(named.values()).detach()
    generator = torch.Generator().manual_seed(seed)
    check_derivatives(
        counted_value, gradient, product, weights, tuple(named), sizes, generator, fixed
    )
    return counts


# --- faults ---------------------------------------------------------------------------------------


class Reversal(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, g):
        return -g


class Rounding(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return (x * 8).round() / 8

    @staticmethod
    def backward(ctx, g):
        return g


class Cube(torch.autograd.Function):
    """A right first derivative, and no second one by what it was made of."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * (3 * x * x).detach()


class Layer(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class OneWeight(nn.Module):
    """A fault by a tensor of one weight, behind thousands that are right."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return x * self.scale * self.scale.detach()


class InFloat32(nn.Module):
    """A norm that computes in float32, as many transformers do."""

    def forward(self, x):
        y = x.float()
        return (y * torch.rsqrt(y.square().mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


def scaled_by_a_hook(module, factor):
    module.register_full_backward_hook(lambda module, given, _: (given[0] * factor,))
    return module


def sandwich(*between, activation=nn.ReLU):
    return nn.Sequential(nn.Linear(6, 20), *between, activation(), nn.Linear(20, 4))


FIRST = {
    "reversal": (lambda: sandwich(Layer(Reversal.apply)), ["0.weight", "0.bias"]),
    "straight-through": (lambda: sandwich(Layer(Rounding.apply)), ["0.weight", "0.bias"]),
    "8 bits": (
        lambda: sandwich(Layer(lambda x: x + ((x * 128).round() / 128 - x).detach())),
        ["0.weight", "0.bias"],
    ),
    "detached": (lambda: sandwich(Layer(lambda x: x.detach() * x)), ["0.weight", "0.bias"]),
    "detached statistics": (
        lambda: sandwich(Layer(lambda x: x / x.std(0).detach())),
        ["0.weight"],  # which no bias changes
    ),
    "hook": (
        lambda: sandwich(nn.ReLU(), scaled_by_a_hook(nn.Linear(20, 20), 1.1)),
        ["0.weight", "0.bias"],
    ),
    "one weight of many": (
        lambda: nn.Sequential(
            *[layer for _ in range(6) for layer in (nn.Linear(6, 6), nn.Tanh())],
            nn.Linear(6, 20), nn.LayerNorm(20), OneWeight(), nn.Linear(20, 4),
        ),
        ["14.scale"],
    ),
    "in float32": (lambda: sandwich(InFloat32(), Layer(Reversal.apply)), ["0.weight", "0.bias"]),
}  # fmt: skip
SECOND = {
    "double backward": lambda: sandwich(Layer(Cube.apply)),
    "weight_norm": lambda: nn.Sequential(
        weight_norm(nn.Linear(6, 20)), nn.Tanh(), nn.Linear(20, 4)
    ),
}


def made(maker, seed):
    torch.manual_seed(seed)
    return maker(), torch.randn(8, 6, dtype=torch.float64)


@pytest.mark.parametrize("fault", FIRST)
@pytest.mark.parametrize("seed", range(3))
def test_a_backward_that_is_not_the_derivative_is_named(fault, seed):
    maker, names = FIRST[fault]
    with pytest.raises(UsageError, match="not its derivative: finite differences say") as raised:
        check(*made(maker, seed), cross_entropy, seed)
    assert re.findall(r"'([\w.]+)'", str(raised.value)) == names
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("fault", SECOND)
@pytest.mark.parametrize("seed", range(3))
def test_a_second_derivative_that_is_not_that_of_the_first_is_named(fault, seed):
    with pytest.raises(UsageError, match=r"differentiated twice.*plain operations") as raised:
        check(*made(SECOND[fault], seed), cross_entropy, seed)
    named = re.findall(r"'(\d)\.[\w.]+'", str(raised.value))
    assert named
    assert set(named) == {"0"}, "of the layer that is at fault"


def test_the_number_in_the_message_is_the_derivative_along_a_direction():
    with pytest.raises(UsageError) as raised:
        check(*made(FIRST["reversal"][0], 0), cross_entropy)
    number = r"(-?[\d.]+(?:e-\d+)?)"
    pattern = f"finite differences say {number}, backward says {number};"
    difference, product = map(float, re.search(pattern, str(raised.value)).groups())
    assert difference == pytest.approx(-product, rel=1e-3)


def test_no_more_than_three_tensors_are_named():
    many = nn.Sequential(*[nn.Linear(6, 6) for _ in range(4)], Layer(Reversal.apply))
    with pytest.raises(UsageError, match=r"by '0.weight', '0.bias', '1.weight', … is not"):
        check(many, torch.randn(8, 6, dtype=torch.float64), cross_entropy)


# --- none -----------------------------------------------------------------------------------------


def huber(outputs, targets):
    return huber_loss(outputs, 2 * one_hot(targets, outputs.shape[-1]).to(outputs))


def absolute(outputs, targets):
    return l1_loss(outputs, 2 * one_hot(targets, outputs.shape[-1]).to(outputs))


def of_tokens(outputs, targets):
    return cross_entropy(outputs.flatten(0, 1), torch.arange(48) % 9)


class Attention(nn.Module):
    """A block of a transformer with tied weights."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.norm = nn.Embedding(9, 8), nn.LayerNorm(8)
        self.queries, self.last = nn.Linear(8, 24), nn.Linear(8, 8)
        self.head = nn.Linear(8, 9, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, x):
        hidden = self.tokens(x)
        q, k, v = self.queries(self.norm(hidden)).chunk(3, -1)
        with nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH):
            mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.head(hidden + nn.functional.gelu(self.last(mixed)))


def zeroed(model):
    for name, tensor in model.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(tensor)
    return model


def convolution(*norm):
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), *norm, nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip


def rows():
    return torch.randn(8, 6, dtype=torch.float64)


def pictures():
    drawing = torch.randn(8, 1, 10, 10, dtype=torch.float64)
    drawing[:, :, :4] = 0.0  # windows whose entries are all equal
    return drawing


def half_zero():
    return torch.cat([rows()[:4], torch.zeros(4, 6, dtype=torch.float64)])


def tokens():
    return torch.randint(9, (8, 6))


def silenced():
    model = sandwich()
    nn.init.zeros_(model[-1].weight)
    return zeroed(model)


RIGHT = {
    "relu": (sandwich, rows, cross_entropy),
    "deep relu, huber": (lambda: sandwich(*[nn.Linear(20, 20), nn.ReLU()] * 6), rows, huber),
    "leaky relu, absolute": (lambda: sandwich(activation=nn.LeakyReLU), rows, absolute),
    "units on their kink": (lambda: zeroed(sandwich()), half_zero, cross_entropy),
    "a last layer of zeros": (silenced, rows, lambda outputs, _: outputs.abs().mean()),
    "max-pooling": (convolution, pictures, cross_entropy),
    "batch norm": (lambda: convolution(nn.BatchNorm2d(6)), pictures, cross_entropy),
    "gelu, batch norm": (
        lambda: sandwich(nn.BatchNorm1d(20), activation=nn.GELU), rows, cross_entropy,
    ),
    "attention": (Attention, tokens, of_tokens),
    "affine": (lambda: nn.Linear(6, 4), rows, lambda outputs, _: outputs.mean()),
    "no derivative": (lambda: nn.Linear(6, 4), rows, lambda outputs, _: outputs.sum() * 0),
}  # fmt: skip
IN_FLOAT32 = {
    "relu": lambda: sandwich(InFloat32()),
    "gelu": lambda: sandwich(InFloat32(), activation=nn.GELU),
    "outputs": lambda: nn.Sequential(sandwich(), Layer(lambda x: x.float().double())),
}


@pytest.mark.parametrize("name", RIGHT)
@pytest.mark.parametrize("seed", range(3))
def test_nothing_is_said_of_what_is_right(name, seed):
    maker, inputs, loss = RIGHT[name]
    torch.manual_seed(seed)
    counts = check(maker(), inputs(), loss, seed)
    assert counts["values"] <= 30


def test_what_is_right_costs_little():
    model, inputs = made(lambda: sandwich(activation=nn.Tanh), 0)
    assert check(model, inputs, cross_entropy) == {"values": 2, "gradients": 3, "products": 1}


@pytest.mark.parametrize("name", IN_FLOAT32)
@pytest.mark.parametrize("seed", range(3))
def test_float32_somewhere_inside_is_no_fault(name, seed):
    check(*made(IN_FLOAT32[name], seed), cross_entropy, seed)


@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
def test_what_is_not_finite_is_not_its_business(factor):
    check(*made(sandwich, 0), lambda outputs, _: (outputs * factor).sum())


def test_what_is_another_value_at_every_call_is_not_its_business():
    noisy = sandwich(Layer(lambda x: x + torch.randn_like(x)))
    check(noisy, rows(), cross_entropy)


def test_a_padding_row_is_fixed():
    """PyTorch leaves its gradient out on purpose: the row is used, and never learned."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(9, 4, padding_idx=0), nn.Flatten(), nn.Linear(24, 4))
    some = tokens()
    with pytest.raises(UsageError, match=r"'0\.weight' is not its derivative"):
        check(model, some, cross_entropy)
    fixed = torch.zeros(sum(tensor.numel() for tensor in model.parameters()), dtype=torch.bool)
    fixed[:4] = True
    check(model, some, cross_entropy, fixed=fixed)
