"""Values that a process remembers of the database: they come from rows that never change and are never removed.

A series of refits reads the same few manifests and bindings again and again. Each is some hundred kilobytes of JSON.
"""

from collections.abc import Callable, Sized
from threading import Lock
from typing import Any, TypeVar

from cachetools import LRUCache
from sqlalchemy.orm import Session

KEPT_ROWS = 50_000  # tensors of manifests, parameters of definitions and bindings: together some tens of megabytes
MEMORY = "remembered"  # the key of `Session.info`
KeptT = TypeVar("KeptT")


class Memory:
    """The values used last, by their kind and their row's key. Each `Database` has one memory."""

    def __init__(self, kept_rows: int = KEPT_ROWS) -> None:
        self._lock = Lock()
        self._values: LRUCache[tuple[str, int], Any] = LRUCache(kept_rows, getsizeof=_rows)

    def get(self, key: tuple[str, int]) -> Any | None:  # noqa: ANN401 - of any type
        """Return a value, or None if it is not remembered."""
        with self._lock:
            return self._values.get(key)

    def put(self, key: tuple[str, int], value: object) -> None:
        """Remember a value, unless it alone is larger than the whole memory."""
        with self._lock:
            if _rows(value) <= self._values.maxsize:
                self._values[key] = value


def remembered(session: Session, what: str, key: int, read: Callable[[], KeptT]) -> KeptT:
    """Return the value that `read` gives, from memory if it was read before. The caller must not change it.

    Do not call this in the transaction that writes the row: if it is rolled back, another row may get the key.
    """
    memory: Memory | None = session.info.get(MEMORY)
    if memory is None:
        return read()
    known: KeptT | None = memory.get((what, key))
    if known is not None:
        return known
    value = read()
    memory.put((what, key), value)
    return value


def _rows(value: object) -> int:
    return len(value) if isinstance(value, Sized) and not isinstance(value, str) else 1
