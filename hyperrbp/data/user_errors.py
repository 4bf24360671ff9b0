"""Errors of a data set's own code, in one line that names the line they come from."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from hyperrbp.exceptions import DataError, is_foreseen, type_and_message_of

_NOT_THE_USERS = (str(Path(__file__).parent.parent), str(Path(torch.__file__).parent))


@contextmanager
def reported(what: str) -> Iterator[None]:
    """Turn whatever a data set, its transforms, or its collation raise into a fault of ``what``.

    Raises:
        DataError: with the file and the line of the user's own code.
    """
    try:
        yield
    except Exception as error:
        if is_foreseen(error):
            raise
        raise DataError(f"{what}: {type_and_message_of(error)}{_place(error)}") from error


def _place(error: BaseException) -> str:
    """Return the innermost line of code that is neither ours nor PyTorch's."""
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [frame for frame in frames if not frame.filename.startswith(_NOT_THE_USERS)]
    own = [frame for frame in theirs if "site-packages" not in frame.filename]
    return f" ({(own or theirs)[-1].filename}:{(own or theirs)[-1].lineno})" if theirs else ""
