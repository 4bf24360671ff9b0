"""What others wrote is data: it never runs, and nothing lands where it was not asked for."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from getpass import getuser
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import yaml
from commands import assert_refused, run
from factories import memory_text, tuning_text, write_mnist

from hyperrbp.config.loading import scalar
from hyperrbp.data import citation_networks as citations

TINY = tuning_text()
MEMORY = memory_text()


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYPERRBP_DATA", raising=False)
    (tmp_path / "tiny.yaml").write_text(TINY)
    (tmp_path / "memory.yaml").write_text(MEMORY)
    before = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A finished run of tune and one of train, to be copied and damaged."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "tiny.yaml").write_text(TINY)
    (folder / "memory.yaml").write_text(MEMORY)
    for verb, recipe in (("tune", "tiny"), ("train", "memory")):
        done = run(verb, folder / f"{recipe}.yaml", "--out", folder / verb, "-q")
        assert done.exit_code == 0, done.output
    return folder


# --- recipes -------------------------------------------------------------------------------------

TAGS = [
    "!!python/object/apply:os.system ['touch {}']",
    "!!python/object/new:os.system ['touch {}']",
    "!<tag:yaml.org,2002:python/object/apply:os.system> ['touch {}']",
    '!!python/object/apply:builtins.eval [\'__import__("pathlib").Path("{}").touch()\']',
]
RECIPES = ["{}", "seed: {}", "inner:\n  steps: 3\n  update: {}", "system: {}", "? {}\n: 1"]
READERS = [
    ["tune", "bad/recipe.yaml"],
    ["tune", "bad/recipe.yaml", "--run-code"],
    ["tune", "bad", "--resume"],
    ["tune", "tiny.yaml", "--out", "bad", "--resume"],
    ["tune", "bad/recipe.yaml", "--dry-run"],
    ["train", "bad/recipe.yaml"],
    ["train", "memory.yaml", "--out", "bad", "--resume"],
    ["check", "bad"],
    ["compare", "bad"],
    ["validate", "bad", "--json"],
    ["show", "bad"],
]


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize("each", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_hostile_recipe_is_refused_unrun(elsewhere, tag, each):
    """Tags that run code, by every command that reads a recipe, and at five places: exit code 2.

    Catches another loader than the strict one, anywhere.
    """
    ran = elsewhere / "ran"
    payload = tag.format(ran)
    yaml.unsafe_load(payload)
    assert ran.exists(), "the payload is none"
    ran.unlink()
    (elsewhere / "bad").mkdir()
    for text in RECIPES:
        (elsewhere / "bad" / "recipe.yaml").write_text(text.format(payload))
        for words in READERS if each or text == RECIPES[0] else READERS[:1]:
            done = run(*words)
            assert_refused(done, 2, "recipe.yaml:")
            assert not ran.exists(), (words, text)
    assert_refused(run("tune", "tiny.yaml", "--set", f"seed={payload}"), 2, "the tag ")
    assert scalar("[1, {a: 2}]") == [1, {"a": 2}]
    assert not ran.exists()
    assert [path.name for path in (elsewhere / "bad").iterdir()] == ["recipe.yaml"]


# --- run folders ---------------------------------------------------------------------------------


class Marker:
    """Unpickling one creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def pickles(ran: Path) -> list[bytes]:
    """The same payload as text, as bytes, and as PyTorch saves it; each seen to work."""
    hostile = [pickle.dumps(Marker(ran), protocol) for protocol in (0, 5)]
    saved = ran.with_name("saved")
    torch.save(Marker(ran), saved)
    hostile.append(saved.read_bytes())
    for content in hostile[:2]:
        pickle.loads(content)
        assert ran.exists()
        ran.unlink()
    torch.load(saved, weights_only=False)
    assert ran.exists()
    ran.unlink()
    saved.unlink()
    return hostile


BOTH = ["checkpoint.json", "checkpoint.previous.json"]
FOLDERS = [
    ("tune", ["checkpoint.json"], ["tune", "run", "--resume", "-q"], {0}),
    ("tune", BOTH, ["tune", "run", "--resume", "-q"], {7}),
    ("tune", ["records.jsonl"], ["tune", "run", "--resume", "-q"], {0, 7}),
    ("tune", ["records.jsonl", *BOTH], ["tune", "run", "--resume", "-q"], {7}),
    ("tune", ["records.jsonl"], ["show", "run", "--figure", "a.png"], {2, 7}),
    ("tune", ["recipe.yaml"], ["tune", "run", "--resume", "-q"], {2}),
    ("tune", ["recipe.yaml"], ["validate", "run"], {2}),
    ("tune", ["recipe.yaml"], ["show", "run", "--figure", "a.png"], {2}),
    ("tune", ["result.json"], ["show", "run"], {7}),
    ("tune", ["result.json"], ["show", "run", "--json"], {7}),
    ("tune", ["result.json"], ["train", "tiny.yaml", "--hyperparameters", "run"], {7}),
    ("tune", ["result.json"], ["check", "tiny.yaml", "--hyperparameters", "run"], {7}),
    ("tune", ["result.json", "hyperparameters.yaml"], ["tune", "run", "--resume"], {0}),
    ("train", ["checkpoint.json"], ["train", "run", "--resume", "-q"], {0}),
    ("train", BOTH, ["train", "run", "--resume", "-q"], {7}),
    ("train", ["newest"], ["train", "run", "--resume", "-q"], {0}),
    ("train", ["*.safetensors"], ["train", "run", "--resume", "-q"], {7}),
    ("train", ["weights.safetensors"], ["train", "run", "--resume", "-q"], {0}),
    ("train", ["records.jsonl"], ["train", "run", "--resume", "-q"], {0, 7}),
    ("train", ["result.json"], ["show", "run"], {7}),
]


def tensors_of(folder: Path) -> Path:
    wrapper = json.loads((folder / "checkpoint.json").read_text())
    return folder / json.loads(wrapper["content"])["tensors"]["file"]


@pytest.mark.parametrize(("kind", "files", "words", "codes"), FOLDERS)
def test_a_pickle_in_a_run_folder_is_not_opened(elsewhere, runs, kind, files, words, codes):
    """Three pickles in place of each file of a run, read by the commands; a documented end.

    Catches a reader that goes back to pickle, for whatever sort of file.
    """
    ran = elsewhere / "ran"
    for content in pickles(ran):
        shutil.rmtree(elsewhere / "run", ignore_errors=True)
        shutil.copytree(runs / kind, elsewhere / "run")
        for file in files:
            found = [tensors_of(elsewhere / "run")] if file == "newest" else None
            for path in found or (elsewhere / "run").glob(file):
                path.write_bytes(content)
        done = run(*words)
        assert not ran.exists()
        assert done.exit_code in codes, done.output
        assert done.exception is None or isinstance(done.exception, SystemExit)


def forged(folder: Path, **changes) -> None:
    """A checkpoint with other content, and with the digest that fits it; the one before is gone."""
    wrapper = json.loads((folder / "checkpoint.json").read_text())
    body = json.dumps(json.loads(wrapper["content"]) | changes)
    digest = hashlib.sha256(body.encode()).hexdigest()
    (folder / "checkpoint.json").write_text(json.dumps({"sha256": digest, "content": body}))
    (folder / "checkpoint.previous.json").unlink()


def test_tensors_that_fit_a_forged_digest_are_not_run(elsewhere, runs):
    """A pickle with its own digest in the checkpoint, in the folder or outside: exit code 7.

    Catches a digest taken for a proof of who wrote it, and a name that leads out of the folder.
    """
    ran = elsewhere / "ran"
    for content in pickles(ran):
        digest = hashlib.sha256(content).hexdigest()
        for named in (
            {"file": "checkpoint-x.safetensors", "sha256": digest},
            {"file": "../outside.safetensors", "sha256": digest},
            {"file": 3, "sha256": digest},
            "checkpoint-x.safetensors",
        ):
            shutil.rmtree(elsewhere / "run", ignore_errors=True)
            shutil.copytree(runs / "train", elsewhere / "run")
            (elsewhere / "run" / "checkpoint-x.safetensors").write_bytes(content)
            (elsewhere / "outside.safetensors").write_bytes(content)
            forged(elsewhere / "run", tensors=named)
            done = run("train", "run", "--resume", "-q")
            assert not ran.exists()
            assert_refused(done, 7, "checkpoint")
    # Nor are whole tensors read from outside.
    whole = tensors_of(runs / "train").read_bytes()
    (elsewhere / "outside.safetensors").write_bytes(whole)
    digest = hashlib.sha256(whole).hexdigest()
    shutil.copytree(runs / "train", elsewhere / "again")
    forged(elsewhere / "again", tensors={"file": "../outside.safetensors", "sha256": digest})
    assert_refused(run("train", "again", "--resume", "-q"), 7, "its tensors cannot be read")


# --- data ----------------------------------------------------------------------------------------

IDX = [f"{part}-ubyte" for part in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3")]
SMALL_MNIST = ["--set", "data.name=mnist", "--set", "data.train_examples=null", "--data-root", "."]


@pytest.mark.parametrize("verb", ["tune", "train"])
def test_a_pickle_in_place_of_images_is_not_opened(elsewhere, verb):
    """Pickles in place of idx files, and of the .pt files that old versions kept: exit code 3.

    Catches a reader that unpickles what lies in a data root.
    """
    ran = elsewhere / "ran"
    for content in pickles(ran):
        for place in (*(f"raw/{name}" for name in IDX), "processed/training.pt"):
            shutil.rmtree(elsewhere / "MNIST", ignore_errors=True)
            write_mnist(elsewhere, 60)
            file = elsewhere / "MNIST" / place
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(content)
            if file.suffix == ".pt":
                file.with_name("test.pt").write_bytes(content)
            done = run(verb, "tiny.yaml", *SMALL_MNIST)
            assert not ran.exists()
            assert_refused(done, 3, "MNIST cannot be read")


def test_a_pickle_in_place_of_a_citation_network_is_not_opened(elsewhere, data_root):
    """A pickle in place of each file of Cora, on the command line: exit code 3, unopened.

    Catches a file that is parsed before its digest is compared.
    """
    if not (data_root / "Cora").is_dir():
        pytest.skip(f"{data_root} has no Cora")
    ran = elsewhere / "ran"
    raw = elsewhere / "data" / "Cora" / "raw"
    shutil.copytree(data_root / "Cora" / "raw", raw)
    hostile = pickles(ran)
    for n, name in enumerate(citations.NETWORKS["cora"].digests):
        whole = (raw / name).read_bytes()
        (raw / name).write_bytes(hostile[n % len(hostile)])
        done = run("train", "cora", "--device", "cpu", "--data-root", "data")
        assert not ran.exists()
        assert_refused(done, 3, f"{name} is not the published file")
        (raw / name).write_bytes(whole)


def test_a_processed_copy_beside_a_citation_network_is_not_opened(elsewhere, data_root):
    """What torch_geometric would have kept beside the files is a pickle, and is left alone."""
    if not (data_root / "Cora").is_dir() or find_spec("torch_geometric") is None:
        pytest.skip("no Cora, or nothing to read it with")
    ran = elsewhere / "ran"
    folder = elsewhere / "data" / "Cora"
    shutil.copytree(data_root / "Cora" / "raw", folder / "raw")
    (folder / "processed").mkdir()
    for content in pickles(ran):
        for name in ("data.pt", "pre_transform.pt", "pre_filter.pt"):
            (folder / "processed" / name).write_bytes(content)
        assert citations.load_citations("cora", elsewhere / "data").citation_count == 5429
        assert not ran.exists()


# --- code of the user's own ----------------------------------------------------------------------

NET = """\
from pathlib import Path

Path(__file__).with_name("ran").touch()

from torch import nn


def make(features, classes, width=4):
    return nn.Sequential(nn.Linear(features, width), nn.Tanh(), nn.Linear(width, classes))
"""
LAZY = "    from package import helper\n\n    assert helper\n    return"
OWN = tuning_text(model={"name": "CODE", "options": {"width": 3}})


def own(folder: Path, code: str, text: str = NET) -> Path:
    """A recipe in a folder that names code, and the code, as a file and as a package."""
    (folder / "package").mkdir(parents=True)
    (folder / "net.py").write_text(text)
    (folder / "package" / "__init__.py").touch()
    (folder / "package" / "module.py").write_text(text.replace("    return", LAZY, 1))
    (folder / "package" / "helper.py").touch()
    recipe = folder / "own.yaml"
    recipe.write_text(OWN.replace("CODE", code))
    return recipe


@pytest.fixture
def importable(elsewhere, monkeypatch) -> Iterator[Path]:
    """A folder whose packages can be imported, and are forgotten afterwards."""
    monkeypatch.syspath_prepend(elsewhere / "mine")
    yield elsewhere / "mine"
    for name in [name for name in sys.modules if name.partition(".")[0] == "package"]:
        del sys.modules[name]


def has_run(folder: Path) -> bool:
    return bool(list(folder.rglob("ran"))) or "package.module" in sys.modules


ASKED = [
    ["tune", "mine/own.yaml"],
    ["tune", "mine/own.yaml", "--dry-run"],
    ["tune", "mine/own.yaml", "--trunc", "2", "--json"],
    ["tune", "run"],
    ["tune", "run", "--resume"],
    ["tune", "tiny.yaml", "--set", "model.name=CODE"],
    ["tune", "tiny.yaml", "--set", "model={name: 'CODE'}"],
    ["train", "mine/own.yaml"],
    ["train", "run", "--resume"],
    ["check", "mine/own.yaml"],
    ["check", "run"],
    ["compare", "mine/own.yaml"],
]


@pytest.mark.parametrize("code", ["net.py:make", "package.module:make"])
def test_code_is_refused_without_run_code(elsewhere, importable, code):
    """Every command that would run a recipe's code: one line with the way, exit code 2, unrun.

    Catches a command that does not ask, and a recipe that imports what it names when it is read.
    """
    recipe = own(importable, code)
    (elsewhere / "run").mkdir()
    shutil.copy(recipe, elsewhere / "run" / "recipe.yaml")
    before = sorted(elsewhere.rglob("*"))
    for words in ASKED:
        words = [word.replace("CODE", code) for word in words]
        done = run(*words)
        file = f"{words[1]}/recipe.yaml" if words[1] == "run" else words[1]
        assert_refused(done, 2, f"hyperrbp: {file}: model.name: would run 'make' of ")
        (line,) = done.stderr.splitlines()
        assert "net.py" in line or "of package.module;" in line
        assert line.endswith("; if you trust it, say --run-code")
        assert not has_run(elsewhere), words
        assert sorted(elsewhere.rglob("*")) == before


@pytest.mark.parametrize("code", ["net.py:make", "package.module:make"])
def test_looking_at_a_recipe_never_runs_its_code(elsewhere, importable, code):
    """validate, cat, cp and show, of a recipe and of a run folder that name code.

    Catches code that is looked for when a name is checked, and a validate that cannot look.
    """
    recipe = own(importable, code)
    (elsewhere / "run").mkdir()
    shutil.copy(recipe, elsewhere / "run" / "recipe.yaml")
    for words, exit_code in (
        (["validate", "mine/own.yaml"], 0),
        (["validate", "mine/own.yaml", "--json"], 0),
        (["validate", "run"], 0),
        (["validate", "tiny.yaml", "--set", f"model.name={code}"], 0),
        (["cat", "mine/own.yaml"], 0),
        (["cat", "run"], 0),
        (["cp", "mine/own.yaml", "copy.yaml"], 0),
        (["show", "run"], 7),
        (["show", "run", "--json"], 7),
    ):
        done = run(*words)
        assert done.exit_code == exit_code, done.output
        assert "note: runs" not in done.stderr
        assert not has_run(elsewhere), words


@pytest.mark.parametrize("code", ["net.py:make", "package.module:make"])
def test_code_that_is_allowed_runs_and_its_run_can_be_repeated(
    elsewhere, importable, monkeypatch, code
):
    """With --run-code it runs, is announced, and leaves nothing beside itself; the run folder's
    recipe gives the same bits from another working folder, and can be gone on with.

    Catches a relative path in the run folder, bytecode caches, and code that runs unannounced.
    """
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    recipe = own(importable, code)
    before = sorted(importable.rglob("*"))
    where = importable / "net.py" if code.startswith("net.py") else "package.module"
    announced = f"hyperrbp: note: runs 'make' of {where}"
    losses = []
    for folder, words in (
        (elsewhere, ["tune", recipe.relative_to(elsewhere), "--out", "run"]),
        (elsewhere / "mine", ["tune", elsewhere / "run", "--out", "../again"]),
        (elsewhere / "mine" / "package", ["tune", "../../run", "--resume", "--meta-steps", "3"]),
    ):
        monkeypatch.chdir(folder)
        done = run(*words, "--run-code", "--json", "-q")
        assert done.exit_code == 0, done.output
        assert done.stderr.splitlines() == [announced]
        losses.append(json.loads(done.stdout)["meta_loss"])
        (ran,) = importable.rglob("ran")
        ran.unlink()
        for name in ("package.module", "package.helper"):
            sys.modules.pop(name, None)
        assert sorted(importable.rglob("*")) == before
    assert losses[0] == losses[1] == losses[2][:3]
    tensors = yaml.safe_load((elsewhere / "run" / "hyperparameters.yaml").read_text())
    assert list(tensors["momentum"]) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    done = run("train", elsewhere / "run" / "recipe.yaml", "--run-code", "--out", "t", "-q")
    assert (done.exit_code, done.stderr.splitlines()) == (0, [announced])


def test_paths_to_code_are_relative_to_who_wrote_them(elsewhere):
    """In a recipe to its folder, in --set to the working folder; the other's code does not run."""
    recipe = own(elsewhere / "mine", "net.py:make")
    own(elsewhere / "here", "net.py:make")
    for words, theirs in (
        ([], "mine"),
        (["--set", "model.options.width=2"], "mine"),
        (["--set", "model.name=here/net.py:make"], "here"),
        (["--set", "model={name: 'here/net.py:make'}"], "here"),
    ):
        done = run("tune", recipe, "--run-code", "-q", "--meta-steps", "1", *words, "--out", "run")
        assert done.exit_code == 0, done.output
        (ran,) = elsewhere.rglob("ran")
        assert ran.parent.name == theirs
        ran.unlink()
        shutil.rmtree(elsewhere / "run")


MAKES = "def make(features, classes, **options):\n    "
FAULTY = [
    ("raise ValueError('no\\nway')", "net.py:make", "ValueError: no way"),
    ("import a_module_that_is_not_there", "net.py:make", "ModuleNotFoundError: No module named"),
    ("def make(:\n", "net.py:make", "SyntaxError: "),
    ("raise SystemExit(0)", "net.py:make", "SystemExit: 0"),
    ("other = 3", "net.py:make", "AttributeError: "),
    ("make = 3", "net.py:make", "TypeError: make is not a function"),
    ("def make(): pass", "net.py:make", "TypeError: "),
    (f"{MAKES}return 5", "net.py:make", "made int; expected a torch.nn.Module"),
    (f"{MAKES}return None", "net.py:make", "made NoneType; expected a torch.nn.Module"),
    (f"{MAKES}raise KeyError('x')", "net.py:make", "KeyError: 'x'"),
    (f"{MAKES}raise SystemExit('bye')", "net.py:make", "SystemExit: bye"),
    (f"{MAKES}assert False", "net.py:make", "AssertionError"),
    ("", "gone.py:make", "FileNotFoundError: "),
    ("", "package:make", "AttributeError: "),
    ("", "package.gone:make", "ModuleNotFoundError: No module named 'package.gone'"),
    ("other = 3", "package.module:make", "AttributeError: "),
]


@pytest.mark.parametrize(("text", "code", "words"), FAULTY)
def test_code_that_fails_is_a_line_and_not_a_traceback(importable, text, code, words):
    """Modules that fail, lack the function, end the process, or make no network: exit code 2.

    Catches exceptions that pass unnamed, messages of many lines, and a sys.exit that is obeyed.
    """
    done = run("tune", own(importable, code, text), "--run-code", "-q", "--out", "out")
    assert_refused(done, 2, words)
    note, fault = done.stderr.splitlines()
    module = code.rpartition(":")[0]
    assert note.startswith("hyperrbp: note: runs 'make' of ")
    assert fault.startswith("hyperrbp: 'make' of ")
    assert module in fault
    assert not Path("out").exists()


# --- what is written -----------------------------------------------------------------------------

_watched: list[tuple[str, str]] | None = None
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = {
    "os.mkdir": 1, "os.rename": 2, "os.remove": 1, "os.rmdir": 1, "os.link": 2, "os.symlink": 2,
    "os.truncate": 1, "os.chmod": 1,
}  # fmt: skip


def _hook(event: str, arguments: tuple) -> None:
    if _watched is None:
        return
    if event == "open":
        path, _, flags = arguments
        if flags & _WRITES and not isinstance(path, int):
            _watched.append((event, str(Path(os.fsdecode(path)).resolve())))
    elif event in _CHANGES:
        for path in arguments[: _CHANGES[event]]:
            _watched.append((event, str(Path(os.fsdecode(path)).resolve())))


@contextmanager
def watched() -> Iterator[list[tuple[str, str]]]:
    """Every path that Python opens for writing, makes, moves or removes."""
    global _watched
    if not hasattr(sys, "_hyperrbp_hook"):  # there is no way to take one off again
        sys._hyperrbp_hook = True
        sys.addaudithook(_hook)
    _watched = found = []
    try:
        yield found
    finally:
        _watched = None


def tree(root: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(root)): path.read_bytes() if path.is_file() else None
        for path in root.rglob("*")
    }


def caches() -> list[Path]:
    """What is no file of ours, or is kept by libraries for themselves."""
    from matplotlib import font_manager, get_cachedir

    assert font_manager.fontManager.ttflist
    return [
        Path(os.devnull),
        Path(f"/proc/{os.getpid()}/clear_refs"),  # how Linux is asked for a new peak of memory
        Path(get_cachedir()).resolve(),  # its list of fonts
        Path(f"/tmp/torchinductor_{getuser()}"),  # made when PyTorch imports its compiler
    ]


WRITERS = [
    (["tune", "tiny.yaml"], "records.jsonl"),
    (["tune", "tiny.yaml", "--profile"], "profile/trace.json"),
    (["train", "memory.yaml"], "weights.safetensors"),
    (["train", "tiny.yaml", "--json"], "weights.safetensors"),
    (["check", "tiny.yaml", "--no-exact"], "check.png"),
]


@pytest.mark.parametrize(("words", "written"), WRITERS)
def test_nothing_is_written_outside_out(elsewhere, monkeypatch, words, written):
    """Every open, mkdir, rename and remove of a run, and home, temporary and working folder.

    Catches a file of convenience beside the run folder, and scratch that stays.
    """
    theirs = caches()
    for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME"):
        (elsewhere / name).mkdir()
        monkeypatch.setenv(name, str(elsewhere / name))
    monkeypatch.setattr("tempfile.tempdir", str(elsewhere / "TMPDIR"))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = tree(elsewhere)
    out = elsewhere / "out"
    with watched() as found:
        done = run(*words, "--out", "out")
    assert done.exit_code in (0, 5), done.output
    assert (out / written).is_file()
    outside = {
        (event, path)
        for event, path in found
        if not (Path(path).is_relative_to(out) or any(map(Path(path).is_relative_to, theirs)))
    }
    assert outside == set()
    assert any(path.startswith(str(out)) for _, path in found)
    after = tree(elsewhere)
    assert {name: content for name, content in after.items() if name[:3] != "out"} == before
