"""Data of the user's own that a recipe can name: one class and one registry line a kind.

Nothing here imports numerics: what a name means, and which options it takes, is known before
anything is read. Only code runs code; the others are read as data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Protocol

from pydantic import Field

from hyperrbp.data.torchvision_catalog import EmnistSplit
from hyperrbp.exceptions import UsageError
from hyperrbp.runtime import user_code
from hyperrbp.runtime.user_code import TORCHVISION

if TYPE_CHECKING:
    from hyperrbp.data.data_set import DataSet, Loaders
    from hyperrbp.data.text import Text

TEXT = "text"
"""The name of the data set that is a text."""

_HeldOut = Annotated[float, Field(gt=0, lt=1)]
_Pixels = Annotated[int, Field(ge=1, le=4096)]


class Source(Protocol):
    """A data set of the user's own, with its options."""

    def load(self, name: str, root: Path, download: bool, ids: bool) -> DataSet | Loaders | Text:
        """Load inputs in their own shape, and targets as they are.

        Args:
            name: of the data set, as in a recipe.
            root: the data root.
            download: whether what is missing may be fetched.
            ids: whether inputs that are whole numbers are token ids.

        Raises:
            DataError: if they are missing, damaged, or no examples.
        """


@dataclass(frozen=True)
class ArrayFile:
    """``mydata.npz``: x_train, y_train and x_test, y_test; or inputs and targets."""

    __pydantic_config__: ClassVar = {"extra": "forbid", "strict": True}

    heldout: _HeldOut = 0.2
    """The share that is held out at random where the file has no test arrays."""
    channels: Literal["first", "last"] | None = None
    """Where the colours of an image stand: (C, H, W) or (H, W, C)."""

    def load(self, name: str, root: Path, download: bool, ids: bool) -> DataSet:
        """Load the data set; see ``Source``."""
        from hyperrbp.data.npz import load_npz

        return load_npz(Path(name), self.heldout, self.channels, ids)


@dataclass(frozen=True)
class ImageFolder:
    """``photos/``: train/<class>/*.png, and test/<class>/*.png or a part of the former."""

    __pydantic_config__: ClassVar = {"extra": "forbid", "strict": True}

    size: _Pixels | None = None
    """Resize to so many pixels a side."""
    colors: Literal["gray", "rgb"] | None = None
    """As the first image, if not given."""
    heldout: _HeldOut = 0.2

    def load(self, name: str, root: Path, download: bool, ids: bool) -> DataSet:
        """Load the data set; see ``Source``."""
        from hyperrbp.data.images import load_folder

        return load_folder(Path(name), self.size, self.colors, self.heldout)


@dataclass(frozen=True)
class TorchvisionSet:
    """``torchvision:CIFAR10``, from the data root, as torchvision lays it out."""

    __pydantic_config__: ClassVar = {"extra": "forbid", "strict": True}

    size: _Pixels | None = None
    colors: Literal["gray", "rgb"] | None = None
    split: EmnistSplit | None = None
    """Which of EMNIST's six sets; the others have one each."""

    def load(self, name: str, root: Path, download: bool, ids: bool) -> DataSet:
        """Load the data set; see ``Source``."""
        from hyperrbp.data.torchvision_sets import load_torchvision_set

        kind = name.removeprefix(TORCHVISION)
        return load_torchvision_set(kind, root, download, self.size, self.colors, self.split)


@dataclass(frozen=True)
class TextFile:
    """``text``: windows of a text file, and the character or the byte that follows each of it."""

    __pydantic_config__: ClassVar = {"extra": "forbid", "strict": True}

    file: Annotated[str, Field(min_length=1)] | None = None
    """The names of characters of Unicode 3.2, if not given."""
    block: Annotated[int, Field(ge=1, le=10**6)] = 64
    """Tokens in a window."""
    tokens: Literal["characters", "bytes"] = "characters"
    heldout: _HeldOut = 0.1
    """The share of the text that is held out, at its end."""

    def load(self, name: str, root: Path, download: bool, ids: bool) -> Text:
        """Load the text; see ``Source``."""
        from hyperrbp.data.text import load_text

        file = None if self.file is None else Path(self.file)
        return load_text(file, self.block, self.tokens, self.heldout)


@dataclass(frozen=True)
class Code:
    """``file.py:function``, ``package.module:function``: arrays, data sets or loaders.

    See ``hyperrbp.data.from_code.load_from_code``.
    """

    arguments: Mapping[str, Any]
    modules: user_code.Modules

    def load(self, name: str, root: Path, download: bool, ids: bool) -> DataSet | Loaders:
        """Load the data set; see ``Source``."""
        from hyperrbp.data.from_code import load_from_code

        return load_from_code(name, self.arguments, self.modules, ids)


SOURCE_KINDS: dict[
    str, type[ArrayFile] | type[ImageFolder] | type[TorchvisionSet] | type[TextFile] | type[Code]
] = {
    "file.npz": ArrayFile,
    "folder/": ImageFolder,
    "torchvision:NAME": TorchvisionSet,
    TEXT: TextFile,
    "file.py:function": Code,
}
"""The kinds of sources, by the form of their names."""


def kind_of(name: str) -> str | None:
    """Return the key of SOURCE_KINDS for a name, or None if it looks like none of them."""
    if name == TEXT:
        return TEXT
    if name.startswith(TORCHVISION):
        return "torchvision:NAME"
    if user_code.is_code(name):
        return "file.py:function"
    if name.endswith(".npz") and len(name) > len(".npz"):
        return "file.npz"
    return "folder/" if name.endswith("/") else None


def source_of(name: str, options: Mapping[str, Any], modules: user_code.Modules) -> Source:
    """Return the source that a name means; ``modules`` has the code of one that is code.

    Raises:
        UsageError: if it is of no kind.
    """
    kind = kind_of(name)
    if kind is None:
        raise UsageError(f"data set '{name}': expected {', '.join(SOURCE_KINDS)}")
    return Code(options, modules) if kind == "file.py:function" else SOURCE_KINDS[kind](**options)


def located(name: str, folder: Path) -> str:
    """Return the same name with an absolute path, where that was given relative to a folder."""
    match kind_of(name):
        case "file.py:function":
            return user_code.located(name, folder)
        case "file.npz":
            return str(user_code.absolute(name, folder))
        case "folder/":
            return f"{user_code.absolute(name, folder)}/"
    return name
