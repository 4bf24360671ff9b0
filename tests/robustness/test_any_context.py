"""Any context that a run is called in: its gradient is right there, or the call is refused.

And pairs of a module with an optimizer, a schedule, a trace or a context.
"""

from __future__ import annotations

import copy
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import pytest
import torch
from any_modules import FEATURES, MODULES, Row, assert_as_torch, classes, with_hook
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from whole_runs import KEPT, assert_right, by_differences, gradients, relative, run_of_two

from hyperrbp.data.batches import Batch
from hyperrbp.exceptions import UsageError
from hyperrbp.problems.training.run import TrainingRun
from hyperrbp.problems.training.schedules import Schedule
from hyperrbp.runtime.randomness import seeded_everywhere


def with_dropout() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Dropout(0.3), nn.Linear(5, 3)).double()


def usual(model: nn.Module | None = None, loss: Any = F.cross_entropy, **options: Any) -> Any:
    """Return a run and its θ, in the precision of its module."""
    model = with_dropout() if model is None else model
    dtype = next(iter(model.parameters())).dtype
    batches = [(FEATURES(seed).to(dtype), classes(seed)) for seed in (1, 2)]
    later = Batch(FEATURES(3).to(dtype), classes(3))
    return run_of_two(model, batches, loss=loss, meta_examples=later, **options)


@cache
def usual_truth(optimizer: str = "sgd") -> Tensor:
    return by_differences(*usual(optimizer=optimizer))


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextmanager
def warnings_as_errors() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@contextmanager
def other_seeds() -> Iterator[None]:
    with seeded_everywhere(99):
        yield


@contextmanager
def frequent_switches() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


AROUND: dict[str, Callable[[], Any]] = {
    "no_grad": torch.no_grad,
    "no gradients at all": lambda: torch.set_grad_enabled(False),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),  # which leaves float64 alone
    "anomaly mode": partial(torch.autograd.set_detect_anomaly, True),
    "default dtype": partial(default_dtype, torch.float64),
    "default device": lambda: torch.device("cpu"),
    "deterministic algorithms": deterministic,
    "a counter of operations": lambda: FlopCounterMode(display=False),
    "warnings as errors": warnings_as_errors,
    "other seeds": other_seeds,
    "a kernel of attention": lambda: sdpa_kernel(SDPBackend.FLASH_ATTENTION),
}


@pytest.mark.filterwarnings("ignore:Anomaly Detection:UserWarning")
@pytest.mark.parametrize("name", AROUND)
def test_a_run_is_right_under(name):
    run, theta = usual()
    with AROUND[name]():
        found = gradients(run, theta)
    assert_right(found, usual_truth(), 1e-7)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Anomaly Detection:UserWarning")
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("name", AROUND)
def test_a_run_that_is_made_and_traced_under_it_is_right_outside(name, optimizer):
    model = with_dropout()
    with AROUND[name]():
        run, theta = usual(model, optimizer=optimizer)
        run.prepare(theta)
        found = gradients(run, theta)
    assert_right(found, usual_truth(optimizer), 1e-7)
    assert_right(gradients(run, theta), usual_truth(optimizer), 1e-7)


def in_threads(runs: Sequence[tuple[TrainingRun, Tensor]], times: int = 1) -> dict[str, Tensor]:
    """Take the gradients of several runs, each in a thread of its own, several times over."""
    found: dict[str, Tensor] = {}

    def work(number: int) -> None:
        for time in range(times):
            for keep, gradient in gradients(*runs[number]).items():
                found[f"thread {number}, {keep}, {time}"] = gradient

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(runs))]
    with frequent_switches():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(found) == len(runs) * times * len(KEPT)
    return found


def in_two_threads() -> dict[str, Tensor]:
    return in_threads([usual(), usual()], 6)


def in_two_threads_on_one_module() -> dict[str, Tensor]:
    model = with_dropout()
    return in_threads([usual(model), usual(model)], 6)


def copied(copy_of: Callable[[Any], Any]) -> dict[str, Tensor]:
    run, theta = usual()
    run.prepare(theta)
    return gradients(copy_of(run), theta)


def of_evaluation_mode() -> dict[str, Tensor]:
    return gradients(*usual(with_dropout().eval()))


def between_modes() -> dict[str, Tensor]:
    model = with_dropout()
    run, theta = usual(model)
    run.prepare(theta)
    for mode in (False, True, False):
        model.train(mode)
        found = gradients(run, theta)
    return found


def after_other_weights() -> dict[str, Tensor]:
    """The initial weights are those at the time that the run was made."""
    model = with_dropout()
    run, theta = usual(model)
    gradients(run, theta)
    model.load_state_dict({name: 5 * tensor for name, tensor in model.state_dict().items()})
    return gradients(run, theta)


def after_training_by_hand() -> dict[str, Tensor]:
    model = with_dropout()
    run, theta = usual(model)
    F.cross_entropy(model(FEATURES(1)), classes(1)).backward()
    torch.optim.SGD(model.parameters(), lr=1.0).step()
    return gradients(run, theta)


def after_another_loss() -> dict[str, Tensor]:
    factor = [3.0]
    run, theta = usual(loss=lambda o, y: factor[0] * F.cross_entropy(o, y))
    run.prepare(theta)
    gradients(run, theta)
    factor[0] = 1.0
    return gradients(run, theta)


def after_another_attribute() -> dict[str, Tensor]:
    model = with_dropout()
    model[2].p = 0.0  # as if there were no dropout
    run, theta = usual(model)
    run.prepare(theta)
    gradients(run, theta)
    model[2].p = 0.3
    return gradients(run, theta)


class AsFunction(torch.autograd.Function):
    """A run as a layer of something larger."""

    @staticmethod
    def forward(ctx, theta, run):
        ctx.run, ctx.theta = run, theta.detach()
        return run.loss(run.last_state(theta.detach()))

    @staticmethod
    def backward(ctx, g):
        found = gradients(ctx.run, ctx.theta)
        assert torch.allclose(found["graph"], found["states"])
        return g * found["states"], None


def as_a_layer() -> dict[str, Tensor]:
    run, theta = usual()
    leaf = theta.clone().requires_grad_()
    AsFunction.apply(leaf, run).backward()
    return {"layer": leaf.grad}


def of_leaves() -> dict[str, Tensor]:
    """Everything that is given requires a gradient, as it may by mistake."""
    batches = [(FEATURES(seed).requires_grad_(), classes(seed)) for seed in (1, 2)]
    run, theta = run_of_two(
        with_dropout(), batches, loss=F.cross_entropy, meta_examples=Batch(FEATURES(3), classes(3))
    )
    run.prepare(theta)
    return gradients(run, theta.requires_grad_())


def inside_another() -> dict[str, Tensor]:
    """A loss that makes a training run of its own on the way."""
    found: dict[str, Tensor] = {}

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        if not found:
            found.update(gradients(*usual()))
        return F.cross_entropy(outputs, targets)

    gradients(*usual(loss=loss))
    return found


SITUATIONS: dict[str, Callable[[], dict[str, Tensor]]] = {
    "in a thread": lambda: in_threads([usual()]),
    "in two threads": in_two_threads,
    "in two threads, on one module": in_two_threads_on_one_module,
    "deep-copied": lambda: copied(copy.deepcopy),
    "copied": lambda: copied(copy.copy),
    "in evaluation mode": of_evaluation_mode,
    "between modes": between_modes,
    "after other weights": after_other_weights,
    "after training by hand": after_training_by_hand,
    "after another loss": after_another_loss,
    "after another attribute": after_another_attribute,
    "as a layer": as_a_layer,
    "leaves everywhere": of_leaves,
    "inside another": inside_another,
}


@pytest.mark.parametrize("name", SITUATIONS)
def test_a_run_is_right(name):
    assert_right(SITUATIONS[name](), usual_truth(), 1e-7)


def test_a_run_in_float32_is_that_of_the_formats_around_it():
    """Autocast holds where it is; what was traced under it is not what is called outside."""
    model = with_dropout().float()
    assert_right(gradients(*usual(model)), usual_truth(), 1e-5)
    run, theta = usual(model)
    with torch.autocast("cpu", torch.bfloat16):
        run.prepare(theta)
        lower = gradients(run, theta)
    assert_right(lower, usual_truth(), 0.05)
    assert relative(lower["states"], usual_truth()) > 1e-5
    assert_right(gradients(run, theta), usual_truth(), 1e-5)
    with default_dtype(torch.float64):
        assert_right(gradients(run, theta), usual_truth(), 1e-5)


def made_there(context: Callable[[], Any]) -> Any:
    with context():
        return gradients(*usual())


def called_there(context: Callable[[], Any]) -> Any:
    run, theta = usual()
    gradients(run, theta)
    with context():
        return gradients(run, theta)


def changed(change: Callable[[nn.Module], Any]) -> Any:
    model = with_dropout()
    run, theta = usual(model)
    run.prepare(theta)
    gradients(run, theta)
    change(model)
    return gradients(run, theta)


def under_grad_of_func() -> Any:
    run, theta = usual()
    return torch.func.grad(lambda x: (x * gradients(run, theta)["states"].sum()).sum())(theta)


def over_many_thetas() -> Any:
    run, theta = usual()
    return torch.func.vmap(lambda at: gradients(run, at)["states"])(torch.stack([theta, theta]))


REFUSED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "made under inference_mode": (
        lambda: made_there(torch.inference_mode), UsageError, "make the model outside of it"
    ),
    "called under inference_mode": (
        lambda: called_there(torch.inference_mode), UsageError, "nothing has a derivative under"
    ),
    "a device without values": (
        lambda: called_there(lambda: torch.device("meta")), Exception, "meta"
    ),
    "under torch.func.grad": (under_grad_of_func, RuntimeError, "functorch transform"),
    "under torch.func.vmap": (over_many_thetas, RuntimeError, "functorch transform"),
    "a part held fixed later": (
        lambda: changed(lambda model: model[0].requires_grad_(False)), UsageError,
        r"others than when the run was made \('0.bias'\)",
    ),
    "a layer added later": (
        lambda: changed(lambda model: model.append(nn.Linear(3, 3).double())), UsageError,
        r"others than when the run was made \('4.bias'\)",
    ),
    "a backward hook later": (
        lambda: changed(lambda model: with_hook(model[1])), UsageError, "backward hook"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_run_is_refused(name):
    made, error, words = REFUSED[name]
    with pytest.raises(error, match=words):
        made()


# --- pairs ----------------------------------------------------------------------------------------


def traced(row: Row, **options: Any) -> None:
    run, theta = row.problem(**options)
    run.prepare(theta)
    found = gradients(run, theta)
    assert_right(found, by_differences(*row.problem(**options), row.step), row.bound)


def by_adamw(row: Row) -> None:
    run, theta = row.problem(optimizer="adamw")
    assert_right(gradients(run, theta), by_differences(run, theta, row.step), row.bound)
    assert_as_torch(row, run, theta, optimizer="adamw")


def around(context: str) -> Callable[[Row], None]:
    def held(row: Row) -> None:
        run, theta = row.problem()
        with AROUND[context]():
            found = gradients(run, theta)
        assert_right(found, by_differences(*row.problem(), row.step), row.bound)

    held.__name__ = context
    return held


def two_at_a_time(row: Row) -> None:
    found = in_threads([row.problem(), row.problem()], 3)
    assert_right(found, by_differences(*row.problem(), row.step), row.bound)


def deep_copied(row: Row) -> None:
    run, theta = row.problem()
    run.prepare(theta)
    found = gradients(copy.deepcopy(run), theta)
    assert_right(found, by_differences(*row.problem(), row.step), row.bound)


def clipped(row: Row) -> None:
    run, theta = row.problem(clip_norm=0.1)
    assert_right(gradients(run, theta), by_differences(run, theta, row.step), row.bound)


def in_parts(row: Row) -> None:
    run, theta = row.problem(accumulate=2)
    assert_right(gradients(run, theta), by_differences(run, theta, row.step), row.bound)


def warmed_up(row: Row) -> None:
    run, theta = row.problem(optimizer="adamw", schedule=Schedule("cosine", warmup_share=0.4))
    assert_right(gradients(run, theta), by_differences(run, theta, row.step), row.bound)


def between_two_modes(row: Row) -> None:
    run, theta = row.problem()
    model = run.objective.model
    truth = by_differences(run, theta, row.step)
    model.eval()
    assert_right(gradients(run, theta), truth, row.bound)
    model.train()
    for module in run.objective.model.modules():
        module.train()
    assert_right(gradients(run, theta), truth, row.bound)


PAIRS: dict[Callable[[Row], None], list[str]] = {
    by_adamw: [
        "Dropout", "BatchNorm1d", "tied", "a part held fixed", "TransformerEncoderLayer",
        "LSTM, bidirectional", "orthogonal", "BatchNorm held fixed", "Embedding, padding_idx",
        "gumbel_softmax", "complex inside", "zeros of its own in float32",
    ],
    traced: [
        "Dropout", "BatchNorm2d", "MultiheadAttention", "GRU", "tied", "RReLU", "augmentation",
        "orthogonal", "BatchNorm held fixed", "a part held fixed", "mask in a buffer",
        "own backward that is right", "stochastic depth",
    ],
    around("autocast"): ["BatchNorm1d", "scaled_dot_product_attention"],
    around("no_grad"): ["MultiheadAttention", "BatchNorm2d"],
    around("a kernel of attention"): ["TransformerEncoderLayer", "scaled_dot_product_attention"],
    around("a counter of operations"): ["RNN with dropout"],
    two_at_a_time: ["BatchNorm1d", "TransformerEncoderLayer", "RReLU"],
    deep_copied: ["BatchNorm held fixed", "tied", "Dropout2d", "a part held fixed"],
    clipped: ["BatchNorm1d", "tied", "F.dropout"],
    in_parts: ["BatchNorm1d", "Dropout", "Embedding, padding_idx"],
    warmed_up: ["BatchNorm2d", "AlphaDropout", "tied"],
    between_two_modes: ["BatchNorm1d", "BatchNorm held fixed", "Dropout"],
}  # fmt: skip
FAST = {
    (traced, "Dropout"), (traced, "BatchNorm2d"), (traced, "tied"), (traced, "RReLU"),
    (by_adamw, "Dropout"), (by_adamw, "BatchNorm1d"), (by_adamw, "tied"),
    (by_adamw, "a part held fixed"), (two_at_a_time, "RReLU"), (two_at_a_time, "BatchNorm1d"),
    (clipped, "BatchNorm1d"), (in_parts, "Dropout"), (in_parts, "BatchNorm1d"),
    (between_two_modes, "BatchNorm held fixed"), (deep_copied, "Dropout2d"),
}  # fmt: skip
PAIRED = [
    pytest.param(
        how,
        name,
        id=f"{how.__name__}-{name}",
        marks=[] if (how, name) in FAST else [pytest.mark.slow],
    )
    for how, names in PAIRS.items()
    for name in names
]


@pytest.mark.parametrize(("how", "name"), PAIRED)
def test_a_pair_is_right(how, name):
    how(MODULES[name])
