"""What a process remembers of the database: rows that never change and are never removed once they are written.

A line of refits reads the same few manifests and bindings over and over, each some hundred kilobytes of JSON.
"""

from collections.abc import Callable, Sized
from threading import Lock
from typing import Any, TypeVar

from cachetools import LRUCache
from sqlalchemy.orm import Session

KEPT_ROWS = 50_000  # tensors of all manifests kept, parameters of all definitions and bindings: some tens of megabytes
MEMORY = "remembered"  # the key of `Session.info`
KeptT = TypeVar("KeptT")


class Memory:
    """Values by what they are and their row's key, those used last; one for each `Database`."""

    def __init__(self, kept_rows: int = KEPT_ROWS) -> None:
        self._lock = Lock()
        self._values: LRUCache[tuple[str, int], Any] = LRUCache(kept_rows, getsizeof=_rows)

    def get(self, key: tuple[str, int]) -> Any | None:  # noqa: ANN401 - of any type
        """Return a value, or None where it is not remembered."""
        with self._lock:
            return self._values.get(key)

    def put(self, key: tuple[str, int], value: object) -> None:
        """Remember a value, unless it is larger than all that is kept."""
        with self._lock:
            if _rows(value) <= self._values.maxsize:
                self._values[key] = value


def remembered(session: Session, what: str, key: int, read: Callable[[], KeptT]) -> KeptT:
    """Return what `read` gives, from memory where it was read before. Nobody may change it.

    Not for the transaction that writes the row: were it rolled back, another row could get the key.
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
