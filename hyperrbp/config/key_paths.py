"""Keys of a recipe, as they stand in messages."""

from __future__ import annotations

from hyperrbp.runtime.suggestions import shown

KeyPath = tuple[str | int, ...]
"""Where a value stands: the keys, and the places in lists, from the top."""

KeyFault = tuple[KeyPath, str]
"""A key, and what was expected there."""


class MootKey(tuple[KeyPath, str]):
    """A fault that is the doing of another key, whose value has no use for this one.

    Where the other one was overridden and this one was not, it is dropped in place of a refusal.

    Args:
        at: the key without a use.
        message: why, for a refusal.
        because: the key whose value has no use for it.
        note: why, for a note that it was dropped: ``it goes with meta.optimizer adam``.
        null: whether it is dropped by null, not by its default, which would be moot as well.
    """

    because: KeyPath
    note: str
    null: bool

    def __new__(
        cls, at: KeyPath, message: str, because: KeyPath, note: str, *, null: bool = False
    ) -> MootKey:
        """Return the pair of ``at`` and ``message``, as every fault is one."""
        fault = super().__new__(cls, (at, message))
        fault.because, fault.note, fault.null = because, note, null
        return fault

    @property
    def at(self) -> KeyPath:
        """The key without a use."""
        return self[0]


def dotted(at: KeyPath) -> str:
    """Return a key for a message; a part that would not print as it stands is quoted."""
    parts = map(str, at)
    return ".".join(p if p.strip() and p.isprintable() else shown(p) for p in parts)
