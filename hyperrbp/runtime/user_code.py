"""Python code that a recipe names: a function of a file, or of an importable module.

Reading a recipe never runs it. The command line asks for ``--run-code`` first; from Python, running
such a recipe is consent.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Callable
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from hyperrbp.exceptions import UsageError, type_and_message_of

TORCHVISION = "torchvision:"
"""The prefix of names that are torchvision's own, data sets and models: no user code."""

_NAMED = re.compile(rf"(?!{TORCHVISION})(?P<module>[^:]*[^:\s]):(?P<function>[A-Za-z_]\w*)")


def is_code(name: str) -> bool:
    """Return whether a name has the form ``file.py:function`` or ``package.module:function``."""
    return _NAMED.fullmatch(name) is not None


def described(name: str) -> str:
    """Return what a name runs, as a message says it: ``'function' of file.py``."""
    module, function = name.rsplit(":", 1)
    return f"'{function}' of {module}"


def located(name: str, folder: Path) -> str:
    """Return the same name with an absolute file, where that was given relative to a folder."""
    module, function = name.rsplit(":", 1)
    if not module.endswith(".py"):
        return name
    return f"{absolute(module, folder)}:{function}"


def absolute(path: str, folder: Path) -> Path:
    """Return the path that one relative to a folder leads to; ``~`` is a home folder."""
    given = Path(path)
    with contextlib.suppress(RuntimeError):  # no such user: a name like any other
        given = given.expanduser()
    return (folder / given).absolute()


class Modules:
    """The user's own modules, for as long as they are in use.

    A file is read once and imported once: an edit meanwhile changes neither what runs nor its
    digest.
    """

    def __init__(self) -> None:
        self._contents: dict[str, bytes] = {}
        self._imported: dict[str, ModuleType] = {}

    def digest(self, name: str) -> str | None:
        """Return the digest of the file that will run; None for an importable module."""
        module, _ = name.rsplit(":", 1)
        try:
            content = self._content(module) if module.endswith(".py") else None
        except OSError:
            return None
        return None if content is None else hashlib.sha256(content).hexdigest()[:16]

    def run(self, name: str, /, *arguments: Any, **options: Any) -> Any:
        """Import the module, and call its function.

        Raises:
            UsageError: if there is no such module or function, or it fails.
        """
        return self.function(name, lambda found: found(*arguments, **options))

    def function(
        self, name: str, use: Callable[[Callable[..., Any]], Any] = lambda found: found
    ) -> Any:
        """Import the module, and give what ``use`` makes of its function: the function itself.

        Raises:
            UsageError: if there is no such module or function, or it fails in ``use``.
        """
        module, attribute = name.rsplit(":", 1)
        # Nothing is written beside it.
        before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
        try:
            found = getattr(self._module(module), attribute)
            if not callable(found):
                raise TypeError(f"{attribute} is not a function")
            return use(found)
        except (Exception, SystemExit) as error:  # it is any code at all
            raise UsageError(f"{described(name)}: {type_and_message_of(error)}") from error
        finally:
            sys.dont_write_bytecode = before

    def _content(self, file: str) -> bytes:
        if file not in self._contents:
            self._contents[file] = Path(file).read_bytes()
        return self._contents[file]

    def _module(self, module: str) -> ModuleType:
        if module not in self._imported:
            from hyperrbp.runtime.randomness import generator, seeded

            # What it samples is the same whoever imports it, and when.
            with seeded(generator(0, "code").initial_seed()):
                self._imported[module] = (
                    _executed(module, self._content(module))
                    if module.endswith(".py")
                    else importlib.import_module(module)
                )
        return self._imported[module]


class _Known(SourceFileLoader):
    """Loads a module from content that was read before: neither file nor bytecode cache is read."""

    def __init__(self, name: str, file: str, content: bytes) -> None:
        super().__init__(name, file)
        self._content = content

    def path_stats(self, path: str) -> NoReturn:
        raise OSError

    def get_data(self, path: str) -> bytes:
        return self._content


def _executed(file: str, content: bytes) -> ModuleType:
    path = str(Path(file).absolute())
    digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
    stem = re.sub(r"\W", "_", Path(file).stem)
    name = f"_recipe_{stem}_{digest}"
    loader = _Known(name, path, content)
    spec = importlib.util.spec_from_file_location(name, path, loader=loader)
    assert spec is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[name] = loaded  # where a dataclass looks for the types that it names
    try:
        loader.exec_module(loaded)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return loaded
