"""Weight versions and bindings as a worker remembers them: neither changes once it is written.

A line of refits reads the same few over and over, each some hundred kilobytes of JSON.
"""

from collections.abc import Mapping, Sized
from functools import cached_property
from typing import Any, TypeVar

from cachetools import LRUCache
from sqlalchemy.orm import Session

from app.bindings.report import ParameterBinding
from app.bindings.service import load_report
from app.weights.service import load_rows

KEPT_ROWS = 50_000  # tensors of all manifests kept, and parameters of all bindings: some tens of megabytes
KeptT = TypeVar("KeptT", bound=Sized)


class StoredBinding:
    """Which tensors feed which parameter, made from a binding report when it is first asked for: after the session."""

    def __init__(self, report: Mapping[str, Any]) -> None:
        self._bindings = report["bindings"]

    def __len__(self) -> int:
        return len(self._bindings)

    @cached_property
    def parameters(self) -> tuple[ParameterBinding, ...]:
        """The bindings, in the order of the report."""
        return tuple([ParameterBinding.from_json(one) for one in self._bindings])


class Versions:
    """Reads rows by their keys, from the database only where they are not among those read last."""

    def __init__(self) -> None:
        self._manifests: LRUCache[int, list[Any]] = LRUCache(KEPT_ROWS, getsizeof=len)
        self._bindings: LRUCache[int, StoredBinding] = LRUCache(KEPT_ROWS, getsizeof=len)

    def manifest(self, session: Session, weights_id: int) -> list[Any]:
        """Return the rows of a weight version, for `Manifest.from_json`."""
        rows = self._manifests.get(weights_id)
        return _kept(self._manifests, weights_id, load_rows(session, weights_id)) if rows is None else rows

    def binding(self, session: Session, binding_id: int) -> StoredBinding:
        """Return a binding."""
        known = self._bindings.get(binding_id)
        if known is not None:
            return known
        return _kept(self._bindings, binding_id, StoredBinding(load_report(session, binding_id)))


def _kept(cache: LRUCache[int, KeptT], key: int, value: KeptT) -> KeptT:
    if len(value) <= cache.maxsize:
        cache[key] = value
    return value
