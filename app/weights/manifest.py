"""The named tensors of a weight version, each with the byte range that holds it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any

from app.json_digest import json_digest
from app.weights.non_finite import FINITE, NonFinite


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor: `blake3` is of its bytes, which start at `offset` of the file with digest `blob`.

    `non_finite` is None if nobody has counted. It is no part of a manifest's rows, see `non_finite_to_json`.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    blake3: str
    blob: str
    offset: int
    nbytes: int
    non_finite: NonFinite | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Manifest:
    """The tensors of one weight version by name."""

    tensors: Mapping[str, TensorEntry]

    @classmethod
    def of(cls, entries: Iterable[TensorEntry]) -> "Manifest":
        """Make the manifest of these entries, sorted by name; of two of one name the later wins."""
        by_name = {entry.name: entry for entry in entries}
        return cls(MappingProxyType(dict(sorted(by_name.items()))))

    @cached_property
    def digest(self) -> str:
        """SHA-256 over names, dtypes, shapes and values: the same however the tensors lie in files."""
        return json_digest([[e.name, e.dtype, e.shape, e.blake3] for _, e in sorted(self.tensors.items())])

    @cached_property
    def nbytes(self) -> int:
        """The bytes of all tensors together."""
        return sum(entry.nbytes for entry in self.tensors.values())

    @property
    def blobs(self) -> tuple[str, ...]:
        """The digests of the files the tensors lie in, sorted."""
        return tuple(sorted({entry.blob for entry in self.tensors.values()}))

    def overlay(self, changed: "Manifest") -> "Manifest":
        """Return this manifest with the tensors of `changed` put over or added to its own."""
        return Manifest.of([*self.tensors.values(), *changed.tensors.values()])

    def to_json(self) -> list[Any]:
        """Return one row per tensor: name, dtype, shape, blake3, blob, offset, nbytes."""
        return entries_to_json(self.tensors.values())

    @classmethod
    def from_json(cls, rows: Sequence[Any], non_finite: Sequence[Any] | None = None) -> "Manifest":
        """Read what `to_json` and `non_finite_to_json` wrote."""
        return cls.of(entries_from_json(rows, non_finite))


def entries_to_json(entries: Iterable[TensorEntry]) -> list[Any]:
    """Return one row per entry; rows, not objects, because a version may have 100,000 tensors."""
    return [[e.name, e.dtype, list(e.shape), e.blake3, e.blob, e.offset, e.nbytes] for e in entries]


def entries_from_json(rows: Sequence[Any], non_finite: Sequence[Any] | None = None) -> list[TensorEntry]:
    """Read what `entries_to_json` and `non_finite_to_json` wrote."""
    counts = {name: NonFinite(nan, inf) for name, nan, inf in non_finite or ()}
    otherwise = None if non_finite is None else FINITE
    return [
        TensorEntry(name, dtype, tuple(shape), blake3, blob, offset, nbytes, counts.get(name, otherwise))
        for name, dtype, shape, blake3, blob, offset, nbytes in rows
    ]


def non_finite_to_json(entries: Iterable[TensorEntry]) -> list[Any] | None:
    """Return [name, NaN, infinities] of each tensor that has any; None if nobody has counted in some tensor."""
    counted = [(entry.name, entry.non_finite) for entry in entries]
    if any(found is None for _, found in counted):
        return None
    return [[name, *found] for name, found in counted if found is not None and any(found)]
