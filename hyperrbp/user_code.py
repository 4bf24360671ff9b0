"""Python code that a recipe names: a function of a file, or of an importable module.

Reading a recipe never runs it. The command line asks for ``--run-code`` first; from Python, whoever
runs such a recipe has said so by running it.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from hyperrbp.errors import UsageError

_NAMED = re.compile(r"(?!torchvision:)(?P<module>[^:]*[^:\s]):(?P<function>[A-Za-z_]\w*)")


def is_code(name: str) -> bool:
    """Whether a name has the form ``file.py:function`` or ``package.module:function``."""
    return _NAMED.fullmatch(name) is not None


def described(name: str) -> str:
    """What will run, in words."""
    module, function = name.rsplit(":", 1)
    return f"'{function}' of {module}"


def located(name: str, folder: Path) -> str:
    """The same name with an absolute file, where that was given relative to a folder."""
    module, function = name.rsplit(":", 1)
    return f"{(folder / module).absolute()}:{function}" if module.endswith(".py") else name


def digest(name: str) -> str | None:
    """Of the file that will run; None for a module, which is found when it is imported."""
    module, _ = name.rsplit(":", 1)
    try:
        content = Path(module).read_bytes() if module.endswith(".py") else None
    except OSError:
        return None
    return None if content is None else hashlib.sha256(content).hexdigest()[:16]


def run(name: str, *arguments: Any, **options: Any) -> Any:
    """Import the module, and call its function.

    Raises:
        UsageError: if there is no such module or function, or it fails.
    """
    return function(name, lambda found: found(*arguments, **options))


def function(name: str, use: Callable[[Callable[..., Any]], Any] = lambda found: found) -> Any:
    """Import the module, and give what ``use`` makes of its function: the function itself.

    Raises:
        UsageError: if there is no such module or function, or it fails in ``use``.
    """
    module, attribute = name.rsplit(":", 1)
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # nothing is written beside it
    try:
        found = getattr(_imported(module), attribute)
        if not callable(found):
            raise TypeError(f"{attribute} is not a function")
        return use(found)
    except (Exception, SystemExit) as error:  # it is any code at all
        reason = " ".join(str(error).split())
        raise UsageError(f"{described(name)}: {type(error).__name__}: {reason}") from error
    finally:
        sys.dont_write_bytecode = before


def _imported(module: str) -> ModuleType:
    if not module.endswith(".py"):
        return importlib.import_module(module)
    spec = importlib.util.spec_from_file_location(f"_recipe_{Path(module).stem}", module)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded
