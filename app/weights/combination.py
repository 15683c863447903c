"""Puts the tensors of several files, and of the version below them, together to one weight version."""

import json
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from app.errors import FieldError, Invalid
from app.weights.checkpoint import MAX_TENSORS
from app.weights.manifest import Manifest, TensorEntry, entries_from_json, entries_to_json, non_finite_to_json
from app.weights.shard_index import ShardIndex, check_shards


class Rows(NamedTuple):
    """The rows of `entries_to_json`, and those of `non_finite_to_json`.

    Those of the index of a sharded checkpoint are one object, `ShardIndex.to_json`.
    """

    tensors: Sequence[Any]
    non_finite: Sequence[Any] | None

    @classmethod
    def parse(cls, text: str | bytes) -> "Rows":
        """Read JSON with the two."""
        return cls(*json.loads(text))

    @classmethod
    def of(cls, entries: Iterable[TensorEntry]) -> "Rows":
        """Return the rows of these tensors."""
        listed = list(entries)
        return cls(entries_to_json(listed), non_finite_to_json(listed))

    @property
    def shard_index(self) -> ShardIndex | None:
        """The index that the file is; None if it is a checkpoint."""
        is_index = len(self.tensors) == 1 and isinstance(self.tensors[0], dict)
        return ShardIndex.from_json(self.tensors[0]) if is_index else None

    def entries(self) -> list[TensorEntry]:
        """Return the tensors. An index has none."""
        return [] if self.shard_index else entries_from_json(self.tensors, self.non_finite)


def combined(files: Iterable[Rows], below: Rows | None) -> Manifest:
    """Return the tensors of all files, put over those of the version `below`.

    Raises Invalid if two files have one tensor, if there are no tensors or too many, or if the tensors of the files are
    not those of an index among them.
    """
    indexes: dict[int, ShardIndex] = {}
    manifest = _together(files, indexes)
    for number, index in indexes.items():
        check_shards(index, manifest, f"/files/{number}")
    if below is not None:
        manifest = Manifest.of(below.entries()).overlay(manifest)
    if not manifest.tensors:
        raise Invalid("The files hold no tensors. Upload a checkpoint that has some.", code="no_tensors")
    _check_count(len(manifest.tensors))
    return manifest


def _together(files: Iterable[Rows], indexes: dict[int, ShardIndex]) -> Manifest:
    """Return the tensors of all files, and note the indexes among them by their numbers."""
    seen: dict[str, tuple[int, TensorEntry]] = {}
    faults: list[FieldError] = []
    for number, rows in enumerate(files):
        if (index := rows.shard_index) is not None:
            indexes[number] = index
        for entry in rows.entries():
            first, _ = seen.setdefault(entry.name, (number, entry))
            if first != number:
                faults.append(FieldError(f"/files/{number}", f"{entry.name} is already in /files/{first}"))
        if not faults:
            _check_count(len(seen))  # now, because a request may name a thousand files
    if faults:
        shown = "; ".join(f"{fault.detail} and again in {fault.pointer}" for fault in faults[:5])
        raise Invalid(
            f"A tensor may be in one file only, and {len(faults)} are in two: {shown}. "
            "Leave the repeated tensors, or the repeated file, out.",
            code="duplicate_tensor",
            errors=faults[:100],
        )
    return Manifest.of(entry for _, entry in seen.values())


def _check_count(count: int) -> None:
    if count > MAX_TENSORS:
        raise Invalid(
            f"The version would have {count} tensors; at most {MAX_TENSORS} fit. Split the model.",
            code="too_many_tensors",
        )
