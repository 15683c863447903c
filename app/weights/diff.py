"""What changed from one weight version to another."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from app.weights.manifest import Manifest, TensorEntry

Change = Literal["added", "removed", "changed"]


@dataclass(frozen=True, slots=True)
class TensorChange:
    """One tensor that differs. `before` is None if it was added, `after` is None if it was removed."""

    name: str
    change: Change
    before: TensorEntry | None
    after: TensorEntry | None


@dataclass(frozen=True)
class ManifestDiff:
    """All tensors that differ in values, dtype or shape, by name, and the number that do not."""

    changes: tuple[TensorChange, ...]
    unchanged: int

    def count(self, change: Change) -> int:
        """The number of tensors changed in this way."""
        return sum(one.change == change for one in self.changes)

    @cached_property
    def bytes_changed(self) -> int:
        """The bytes, in the newer version, of all tensors that were added or changed."""
        return sum(one.after.nbytes for one in self.changes if one.after)


def diff(before: Manifest, after: Manifest) -> ManifestDiff:
    """Compare two manifests by the values of their tensors, in whichever files those lie."""
    changes = tuple(_changes(before, after))
    gone_or_changed = sum(one.before is not None for one in changes)
    return ManifestDiff(changes, len(before.tensors) - gone_or_changed)


def _changes(before: Manifest, after: Manifest) -> Iterator[TensorChange]:
    for name in sorted(before.tensors.keys() | after.tensors.keys()):
        old, new = before.tensors.get(name), after.tensors.get(name)
        if old is None:
            yield TensorChange(name, "added", None, new)
        elif new is None:
            yield TensorChange(name, "removed", old, None)
        elif _content(old) != _content(new):
            yield TensorChange(name, "changed", old, new)


def _content(entry: TensorEntry) -> tuple[str, tuple[int, ...], str]:
    return entry.dtype, entry.shape, entry.blake3
