"""The named tensors of a weight version, each with the byte range that holds it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any

from app.json_digest import json_digest


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor: `blake3` is of its bytes, which start at `offset` of the file with digest `blob`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    blake3: str
    blob: str
    offset: int
    nbytes: int


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
    def from_json(cls, rows: Sequence[Any]) -> "Manifest":
        """Read what `to_json` wrote."""
        return cls.of(entries_from_json(rows))


def entries_to_json(entries: Iterable[TensorEntry]) -> list[Any]:
    """Return one row per entry; rows, not objects, because a version may have 100,000 tensors."""
    return [[e.name, e.dtype, list(e.shape), e.blake3, e.blob, e.offset, e.nbytes] for e in entries]


def entries_from_json(rows: Sequence[Any]) -> list[TensorEntry]:
    """Read what `entries_to_json` wrote."""
    return [
        TensorEntry(name, dtype, tuple(shape), blake3, blob, offset, nbytes)
        for name, dtype, shape, blake3, blob, offset, nbytes in rows
    ]
