"""The commands whose results are kept as golden values, how they run, and what is kept of each.

Two sizes: ``short`` runs take less than a second each, but for ``check`` and ``compare``; ``full``
ones are the built-in recipe as it stands, or near its size. The values lie in
``golden/<size>/<name>.json`` and the machine that they come from in ``golden/environment.json``;
``regenerate_golden.py`` writes both.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
import shlex
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy
import scipy
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from hyperrbp.cli import app

FOLDER = Path(__file__).parent / "golden"
SIZES = ("short", "full")
METHODS = ("bptt", "tbptt", "rbp", "cg", "neumann", "forward", "lsqr", "gmres", "anderson")
OPTIMIZERS = ("adam", "gradient", "surrogate", "both")

# --- commands ------------------------------------------------------------------------------------

SMALL = "--train-steps 24 --trunc 4 --meta-steps 2"
"""A tuning that takes a fraction of a second by every method."""
SCREENED = "--train-steps 24 --trunc 4 --meta-steps 6 --set meta.screened=9"
"""The same for an optimizer that first screens some points of the box."""
MIDDLE = "--train-steps 100 --meta-steps 8"

FIXED = "--set hyperparameters.learning_rate=null --set hyperparameters.momentum=null"
VALIDATION = (
    "--set data.train_examples=600 --set data.validation_examples=300"
    " --set meta.loss=validation --set meta.learning_rate=0.3"
)
WEIGHT_DECAY = (
    f"tune digits {VALIDATION} {FIXED} --set inner.momentum=0.9 --set inner.weight_decay=0.001"
    " --set 'hyperparameters.weight_decay={by: tensor}'"
)
EXAMPLE_WEIGHTS = (
    f"tune digits {VALIDATION} {FIXED} --set data.label_noise=0.5"
    " --set hyperparameters.example_weight={}"
)
CONVOLUTION = (
    "tune digits --set model.name=conv --set 'model.options={channels: [4, 8], kernel: 3}'"
    " --set model.init_std=null --set inner.optimizer=sgd --set inner.momentum=0.5"
    " --set inner.learning_rate=0.1 --set data.train_examples=500"
)
ROLLBACK = (
    "tune digits --method bptt --on-divergence rollback --set model.options.activation=relu"
    " --set model.init_std=0.3 --set inner.optimizer=sgd --set inner.momentum=0.5"
    " --set inner.learning_rate=0.3 --set meta.learning_rate=2"
)
"""Its third or fourth inner run is not finite."""
HOPFIELD = (
    "train hopfield --set data.name=digits --set data.images=4 --set network.hidden=32"
    " --set training.validate_every=2"
)


def commands(size: str) -> dict[str, str]:
    """Return the command line of every run of a size, by name."""
    short = size == "short"
    found = {f"tune-{m}": f"tune digits --method {m}" for m in (*METHODS, "auto")}
    found |= {
        f"tune-optimizer-{name}": f"tune digits --set meta.optimizer={name}" for name in OPTIMIZERS
    }
    if short:
        searching = {f"tune-optimizer-{name}" for name in OPTIMIZERS[1:]}
        found = {
            name: f"{command} {SCREENED if name in searching else SMALL}"
            for name, command in found.items()
        }
    some = SMALL if short else MIDDLE
    init_scale = "tune digits --method bptt --set hyperparameters.init_scale={}"
    return found | {
        "tune-weight-decay": f"{WEIGHT_DECAY} {some}",
        "tune-init-scale": f"{init_scale} {some}",
        "tune-example-weights": f"{EXAMPLE_WEIGHTS} {some}",
        "tune-convolution": f"{CONVOLUTION} {SMALL if short else MIDDLE + ' --trunc 20'}",
        "tune-rollback": f"{ROLLBACK} {'--train-steps 24 --meta-steps 4' if short else MIDDLE}",
        "tune-checked": f"tune digits --check-every 2 {some}",
        "check": "check digits" + (" --train-steps 24 --trunc 4" if short else ""),
        "compare": "compare digits --repeats 1"
        + (" --methods neumann --train-steps 24 --trunc 4" if short else ""),
        "train": "train digits" + (" --set inner.steps=24" if short else ""),
        "train-hopfield": f"{HOPFIELD} --epochs {4 if short else 100}",
    }


def run(command: str, folder: Path, record_keys: Sequence[str] | None = None) -> dict[str, Any]:
    """Run a command in this process, with one thread, and return what is kept of its results.

    Args:
        command: the words after ``hyperrbp``.
        folder: where its run folder goes; must not exist.
        record_keys: what goes into the digests of records; None for all that was computed.
    """
    words = [*shlex.split(command), "--set", "threads=1", "--json", "--out", str(folder)]
    done = CliRunner().invoke(app.app, words)
    assert done.exit_code == 0, done.stderr or repr(done.exception)
    return {"command": command} | kept(json.loads(done.stdout), folder, record_keys)


# --- what is kept --------------------------------------------------------------------------------

MEASURED = {
    *("measured", "seconds", "seconds_iqr", "seconds_by_phase", "wall_seconds", "time_ratio"),
    *("peak_bytes", "process_peak_bytes", "peak_ratio", "process_ratio", "environment"),
    *("run_folder", "repeats"),
}
"""Keys of what a second run measures anew, or of where it ran."""
PROSE = {
    "why",
    "findings",
    "meaning",
    "sentence",
    "message",
    "reason",
    "warning",
    "warnings",
    "label",
}
"""Keys of sentences for people, which may be written better."""
FORMAL = {"recipe", "kind", "schema_version"}
"""Keys of what was asked for, and of the document's shape."""
MANY = 200
"""Numbers in one value, above which its digest is kept in their place."""


def kept(
    answer: dict[str, Any], folder: Path, record_keys: Sequence[str] | None = None
) -> dict[str, Any]:
    """Return what a run computed: nothing that was timed, measured or only worded.

    Args:
        answer: the JSON document that the command printed.
        folder: its run folder.
        record_keys: what goes into the digests of records; None for all that was computed.

    Returns:
        ``answer``, ``records`` (a digest of each), ``record_keys`` that went into these, ``first``
        (of the first gradient, to see how far off it is) and ``weights`` (a digest of each tensor).
    """
    found: dict[str, Any] = {"answer": abridged(computed(answer))}
    records_file, weights_file = folder / "records.jsonl", folder / "weights.safetensors"
    if weights_file.exists():
        found["answer"].pop("weights", None)  # their path
        found["weights"] = {
            name: hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()
            for name, tensor in load_file(weights_file).items()
        }
    if records_file.exists():
        records = [computed(json.loads(line)) for line in records_file.read_text().splitlines()]
        keys = record_keys or sorted({key for record in records for key in record})
        found["record_keys"] = list(keys)
        found["records"] = [digest(only(record, keys)) for record in records]
        gradients = [record for record in records if "gradient" in record]
        if gradients:
            wanted = ("gradient", "standard_error", "gradient_norm", "residual")
            found["first"] = abridged(only(gradients[0], wanted))
    return found


def computed(value: Any) -> Any:
    """Return a JSON value without what was measured or only worded, at every depth."""
    if isinstance(value, dict):
        dropped = MEASURED | PROSE | FORMAL
        return {key: computed(item) for key, item in value.items() if key not in dropped}
    return [computed(item) for item in value] if isinstance(value, list) else value


def only(record: dict[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    """Return a record's entries of these keys."""
    return {key: record[key] for key in keys if key in record}


def abridged(value: Any) -> Any:
    """Return a JSON value with a digest in place of everything that holds very many numbers."""
    if not isinstance(value, dict | list) or leaves(value) <= MANY:
        return value
    if isinstance(value, dict) and any(isinstance(item, dict | list) for item in value.values()):
        return {key: abridged(item) for key, item in value.items()}
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        return [abridged(item) for item in value]
    return {"sha256": digest(value)}


def leaves(value: Any) -> int:
    """Count the numbers, strings and nulls in a JSON value."""
    if isinstance(value, dict):
        return sum(map(leaves, value.values()))
    return sum(map(leaves, value)) if isinstance(value, list) else 1


def canonical(value: Any) -> str:
    """Return the one JSON text of a value: keys sorted, and every float bit for bit."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(value: Any) -> str:
    """Return the first 16 digits of the SHA-256 of a value's canonical JSON."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:16]


# --- comparison ----------------------------------------------------------------------------------


def golden(size: str, name: str) -> dict[str, Any]:
    """Read the values that are kept of a run."""
    return json.loads((FOLDER / size / f"{name}.json").read_text())


def environment() -> dict[str, str]:
    """Return all that decides how a float32 sum is rounded: libraries and processor."""
    return {
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "scipy": scipy.__version__,
        "machine": f"{platform.system()} {platform.machine()}",
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cpu": processor(),
    }


def processor() -> str:
    """Return the processor's family, model and name: MKL picks its kernels by them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    wanted = ("cpu family", "model", "model name")
    pairs = (line.split(":", 1) for line in lines if ":" in line)
    found = {key.strip(): value.strip() for key, value in pairs}
    return ", ".join(found[key] for key in wanted if key in found)


def same_environment() -> bool:
    """Whether the golden values come from a machine like this one, so that every bit must agree."""
    file = FOLDER / "environment.json"
    return file.exists() and json.loads(file.read_text()) == environment()


def differences(old: Any, new: Any, tolerance: float = 0.0, path: str = "") -> Iterator[str]:
    """Yield a line for each golden value that a new result lacks or has otherwise.

    A key that only the new result has is no difference: results may say more.

    Args:
        old: the golden value.
        new: the new one.
        tolerance: 0.0 asks for the same bits; else how far a float may be off, relative to the
            largest of its list or mapping.
        path: where in the document this is.
    """
    if isinstance(old, dict) and isinstance(new, dict):
        scale = largest(old.values())
        for key, value in old.items():
            if key not in new:
                yield f"{path}/{key}: missing"
            else:
                yield from item_differences(value, new[key], tolerance, scale, f"{path}/{key}")
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        scale = largest(old)
        for index, (before, after) in enumerate(zip(old, new, strict=True)):
            yield from item_differences(before, after, tolerance, scale, f"{path}/{index}")
    elif canonical(old) != canonical(new):
        yield f"{path}: {canonical(old)[:80]} became {canonical(new)[:80]}"


def item_differences(
    old: Any, new: Any, tolerance: float, scale: float, path: str
) -> Iterator[str]:
    """Yield the differences of one entry of a list or mapping whose largest float is ``scale``."""
    if tolerance and isinstance(old, float) and isinstance(new, float | int):
        if not math.isclose(old, new, rel_tol=0.0, abs_tol=tolerance * scale):
            yield f"{path}: {old} became {new}, more than {tolerance} of {scale}"
    else:
        yield from differences(old, new, tolerance, path)


def largest(values: Iterable[Any]) -> float:
    """Return the largest magnitude of the floats among some values, or 0.0."""
    return max((abs(value) for value in values if isinstance(value, float)), default=0.0)
