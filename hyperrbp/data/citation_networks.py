"""Semi-supervised document classification: two citation networks and the paper's baseline (§5.2).

The networks come in the Planetoid format (Yang et al., 2016), which is pickles: a file that is not
the published one, to the bit, could run anything. So every file's SHA-256 is pinned here and
compared before a byte is interpreted. torch_geometric is an optional extra.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyperrbp.exceptions import DataError, MissingDataError, StorageError, UsageError, message_of
from hyperrbp.runtime.downloads import Digest, RemoteFile
from hyperrbp.runtime.downloads import download as download_files

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Network:
    """A citation network by name, and what is known of it before it is read."""

    folder: str  # below the data root, as torch_geometric names it
    digests: dict[str, str]  # file name → SHA-256


NETWORKS: dict[str, Network] = {
    "cora": Network(
        "Cora",
        {
            "ind.cora.x": "23cfa55d91c6f624233f5eb7b6e3f141f1bd2b2ae39608a63cf5d084bb27baab",
            "ind.cora.tx": "b9afbaa4a400df991f6f02ef677e1e44da55ffc04801fd02f9e673987829226a",
            "ind.cora.allx": "9419ba2f26f5c35243db64aba110e0f35a04851609e0dc5433450676ca6b8543",
            "ind.cora.y": "94465c14eb53e04ca262198dcbb2521ee8af60fb3f3d546cd6ca24a511b0e7d1",
            "ind.cora.ty": "41f5ac76596a1699cc33f53084a2419e92961c42bb75f36fc38e616d348532ad",
            "ind.cora.ally": "2b998f5cc7fedc86e7f97ca2498f47a1ffc1462c29e2d578b23bf3f62b6e7d71",
            "ind.cora.graph": "58f13302f39dde8852dad6fe6d15b89b077b6d7f837626bce671ef80344b383d",
            "ind.cora.test.index": (
                "297ce89af2b51a6a194181c7dbe1796c6a1cf9cd9349a88383b1b1e227867875"
            ),
        },
    ),
    # Not computed by us, but on record alike in four public repositories: in two loaders, whose
    # digests of Cora are those above, in a log of downloads, and in Git LFS pointers to the files.
    "pubmed": Network(
        "PubMed",
        {
            "ind.pubmed.x": "fbe9cb5c47200d1b7769a26e579be3b7130b556831f9d850e77c4c74f2599b33",
            "ind.pubmed.tx": "4eb5f5d0f30f26497eb0ac6ac9719d09c67e284f1ed0385c93f3ef27a671da3d",
            "ind.pubmed.allx": "508e538e2abdccdd54c4d3e9f49d638b4af7107d85845f66ddea5a5152658b7e",
            "ind.pubmed.y": "e6c807633307a07ed659249006536a147c7999c797f11a2560752990181b41b3",
            "ind.pubmed.ty": "ee2e0d4819d9fbcc403689c3bf2e49face401b605932f093bc58ab6461130fdd",
            "ind.pubmed.ally": "0c37bbe3b5014ec365e9d393cf4791925e5ed94fb194305d74f064a8d7b50f0e",
            "ind.pubmed.graph": "5b89f0036ca22909471f1e6558eb42fa06e0c730a577bde5b058b40638f81dc9",
            "ind.pubmed.test.index": (
                "b101d421688bbaecbd82e8a18f1e282378d6830f3a37666f28ebc47f844341b5"
            ),
        },
    ),
}


@dataclass(frozen=True, eq=False)
class CitationGraph:
    """N documents in C classes, and which of them cite each other.

    Two counts of links exist: the paper's Table A1 has ``citation_count`` (Cora 5,429), in which
    some pairs of documents are counted twice; ``edge_count`` has every pair once (Cora 5,278).
    """

    features: Tensor  # (N, F), float32, as published: rows are not normalized
    labels: Tensor  # (N,), int64, in 0 … C − 1
    edges: Tensor  # (2, 2E), int64: both directions, sorted, no self-loop, no duplicate
    citation_count: int

    @property
    def node_count(self) -> int:
        """N, the number of documents."""
        return len(self.labels)

    @property
    def edge_count(self) -> int:
        """E, the pairs of documents that cite each other."""
        return self.edges.shape[1] // 2

    @property
    def class_count(self) -> int:
        """C, the number of classes."""
        return int(self.labels.max()) + 1

    @property
    def feature_count(self) -> int:
        """F, the number of features of a document."""
        return self.features.shape[1]


@dataclass(frozen=True, eq=False)
class Split:
    """Which documents each part has: three disjoint int64 index vectors that cover all."""

    train: Tensor
    validation: Tensor
    test: Tensor


@dataclass(frozen=True)
class Accuracies:
    """The share of documents in their right class, in [0, 1], a part."""

    train: float
    validation: float
    test: float


def load_citations(name: str, root: Path, *, download: bool = False) -> CitationGraph:
    """Load a network by name, one of NETWORKS, from ``root/<folder>/raw``.

    Nothing is written below ``root`` unless files are missing and ``download`` is true.

    Raises:
        UsageError: if no network has this name.
        DataError: if a file is missing, unreadable or not the published one, if it cannot be
            downloaded, or if torch_geometric is not installed.
        StorageError: if a downloaded or a temporary file cannot be written.
    """
    if name not in NETWORKS:
        raise UsageError(f"no citation network '{name}'; there are {', '.join(NETWORKS)}")
    network = NETWORKS[name]
    folder = root / network.folder / "raw"
    raw = _verified_files(folder, network)
    missing = [file for file in network.digests if file not in raw]
    if missing and not download:
        raise MissingDataError(
            f"{network.folder} not found: {folder} lacks {', '.join(missing)}; name the folder that"
            f" {network.folder} lies in with --data-root or HYPERRBP_DATA, or let it be downloaded"
            " with --set data.download=true"
        )
    planetoid = _planetoid_class()
    if missing:
        # Not torch_geometric's own download, which does not check certificates.
        raw |= download_files(
            network.folder,
            {
                file: RemoteFile(
                    f"{planetoid.url}/{file}", Digest("SHA-256", network.digests[file])
                )
                for file in missing
            },
            folder,
        )
    return _parse(raw, network, planetoid)


def _verified_files(folder: Path, network: Network) -> dict[str, bytes]:
    """Read and verify the files that are there; from here on they are not looked at again."""
    raw = {}
    for name in network.digests:
        file = folder / name
        try:
            content = file.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise DataError(f"{file} cannot be read: {error.strerror or error}") from error
        if difference := Digest("SHA-256", network.digests[name]).difference(content):
            raise DataError(
                f"{file} is not the published file: {difference}; it was not opened, since it could"
                " run anything"
            )
        raw[name] = content
    return raw


def _planetoid_class() -> Any:
    # Its import warns of PyTorch's own deprecations, which no user of ours can act on.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            from torch_geometric.datasets import Planetoid
        except ImportError as error:
            raise DataError(
                f"citation networks are read with torch_geometric ({error}): install it with"
                " pip install 'hyperrbp[graph]'"
            ) from error
    return Planetoid


def _parse(raw: dict[str, bytes], network: Network, planetoid: Any) -> CitationGraph:
    import torch

    try:
        with tempfile.TemporaryDirectory(prefix="hyperrbp-") as scratch, _silence():
            # A folder of our own, for two reasons: Planetoid writes a processed copy beside what it
            # reads, and what lies in the data root may change after it was verified.
            target = Path(scratch, network.folder, "raw")
            target.mkdir(parents=True)
            for name, content in raw.items():
                (target / name).write_bytes(content)
            data = planetoid(scratch, network.folder)[0]
            from torch_geometric.io.planetoid import read_file

            neighbours = read_file(str(target), network.folder, "graph")
    except MemoryError:
        raise
    except OSError as error:
        where = error.filename or tempfile.gettempdir()
        raise StorageError(f"{where}: {error.strerror or error}") from error
    except Exception as error:  # pickles of 2016 in the libraries of the day
        reason = message_of(error)
        raise DataError(
            f"{network.folder} is undamaged, but the libraries installed cannot read it: {reason}"
        ) from error
    return CitationGraph(
        features=data.x.to(torch.float32),
        labels=data.y.to(torch.int64),
        edges=_undirected(data.edge_index),
        # Each link stands in the lists of both its ends.
        citation_count=sum(map(len, neighbours.values())) // 2,
    )


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Silence Planetoid's progress lines and the old pickles' deprecation warnings."""
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        yield


def _undirected(pairs: Tensor) -> Tensor:
    """Return both directions of every pair once, sorted, without self-loops; shape (2, …)."""
    import torch

    pairs = pairs[:, pairs[0] != pairs[1]].to(torch.int64)
    both: Tensor = torch.unique(torch.cat([pairs, pairs.flip(0)], dim=1), dim=1)
    return both.contiguous()


def principal_components(features: Tensor, dimensions: int) -> Tensor:
    """Return the documents' first principal components, shape (N, dimensions).

    Features are centred, not scaled. Computed in float64 with an exact solver and scikit-learn's
    sign rule, so without any randomness; float32 comes back, on the CPU.

    Raises:
        UsageError: if the features have fewer than ``dimensions`` components.
    """
    import torch
    from sklearn.decomposition import PCA

    if not 1 <= dimensions <= min(features.shape):
        raise UsageError(
            f"{dimensions} principal components of {features.shape[0]} documents with"
            f" {features.shape[1]} features; at most {min(features.shape)} exist"
        )
    exact = PCA(n_components=dimensions, svd_solver="covariance_eigh")
    components = exact.fit_transform(features.to("cpu", torch.float64).numpy())
    return torch.from_numpy(components).to(torch.float32).contiguous()


def split(labels_count: int, seed: int) -> Split:
    """Sample 1% of the documents to train on, 49% to validate on, the rest to test on (§5.2).

    The first two are rounded to the nearest integer, halves up: 27 / 1,327 / 1,354 for Cora,
    197 / 9,661 / 9,859 for Pubmed. Classes are not balanced, so that one can lack in training.

    Raises:
        DataError: if not even one document is left to train on (fewer than 50).
    """
    import torch

    from hyperrbp.runtime.randomness import generator

    train, validation = (labels_count + 50) // 100, (49 * labels_count + 50) // 100
    if train == 0:
        raise DataError(f"1% of {labels_count} documents leaves none to train on")
    order = torch.randperm(labels_count, generator=generator(seed, "citation split"))
    end = train + validation
    return Split(order[:train], order[train:end], order[end:])


def logistic_regression_accuracy(features: Tensor, labels: Tensor, split: Split) -> Accuracies:
    """Return the accuracies of the paper's baseline, a logistic regression on each document alone.

    scikit-learn's, with its default L2 penalty; its solver uses no random numbers, so the split is
    all that a seed decides. The paper does not say whether the features are those published or
    the principal components that the network gets. Measured on Cora, test accuracy over seeds
    0 … 9: 33.9 ± 5.7% on the former, 39.5 ± 5.6% on the latter; Table 2 has 39.96 ± 3.4%.

    Raises:
        DataError: if all training documents are of one class.
    """
    import torch
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    inputs, targets = features.to("cpu", torch.float64).numpy(), labels.cpu().numpy()
    train, validation, test = (
        part.cpu().numpy() for part in (split.train, split.validation, split.test)
    )
    if len(set(targets[train])) < 2:
        raise DataError("logistic regression needs two classes among the training documents")
    model = LogisticRegression(max_iter=1000)
    with warnings.catch_warnings():
        # Some 20 steps suffice on Cora; where 1,000 do not, a user could do nothing about it.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(inputs[train], targets[train])
    return Accuracies(
        *(float(model.score(inputs[part], targets[part])) for part in (train, validation, test))
    )
