"""The index of a sharded checkpoint (`*.index.json`): which tensors its files have together.

It is what `save_pretrained` of Hugging Face's transformers writes beside the shards: `weight_map` has the shard's file
name for each tensor. `metadata.total_size` is not looked at. It shall be the bytes of all, and published ones often are
not: tied tensors, bool and quantised ones were counted as the tool that wrote them saw fit.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from app.errors import FieldError, Invalid
from app.weights.checkpoint import MAX_TENSORS, CheckpointError, Read
from app.weights.format_parts.strict_json import parse_object
from app.weights.manifest import Manifest

MAX_INDEX_BYTES: Final = 32 * 1024 * 1024
BLANK: Final = b"\xef\xbb\xbf \t\r\n"
SHOWN: Final = 5
LISTED: Final = 100
LEAVE_OUT: Final = "If you know the files to be whole, leave the index out of `files`."


@dataclass(frozen=True, slots=True)
class ShardIndex:
    """`shards` has the name of the file for each tensor."""

    shards: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """Return what `from_json` reads."""
        return {"shards": dict(self.shards)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "ShardIndex":
        """Read what `to_json` wrote."""
        return cls(value["shards"])


def read_shard_index(read: Read, size: int) -> ShardIndex | None:
    """Return the index that a file of `size` bytes is, or None if it is another file.

    Raises CheckpointError if it has a weight_map that is none.
    """
    if size > MAX_INDEX_BYTES or not read(0, min(size, 64)).lstrip(BLANK).startswith(b"{"):
        return None
    raw = read(0, size)
    if b'"weight_map"' not in raw:
        return None
    content = parse_object(raw.lstrip(BLANK), "The index")
    shards = content.get("weight_map")
    if shards is None:
        return None
    if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
        raise CheckpointError("bad_header", "The weight_map must map names of tensors to names of files.")
    if len(shards) > MAX_TENSORS:
        raise CheckpointError("too_many_tensors", f"The index has {len(shards)} tensors; at most {MAX_TENSORS} fit.")
    return ShardIndex(shards)


def check_shards(index: ShardIndex, manifest: Manifest, pointer: str) -> None:
    """Raise Invalid "wrong_shards" if the tensors of the files are not those that an index lists.

    `pointer` is where the request names the index.
    """
    if faults := [*_missing(index, manifest), *_unexpected(index, manifest)]:
        more = f" (and {len(faults) - SHOWN} more)" if len(faults) > SHOWN else ""
        raise Invalid(
            f"The files are not those of the index: {'; '.join(faults[:SHOWN])}{more}. {LEAVE_OUT}",
            code="wrong_shards",
            errors=[FieldError(pointer, fault) for fault in faults[:LISTED]],
        )


def _missing(index: ShardIndex, manifest: Manifest) -> list[str]:
    missing = sorted(index.shards.keys() - manifest.tensors.keys())
    whole = Counter(index.shards.values())
    gone = Counter(index.shards[name] for name in missing)
    absent = sorted(shard for shard, count in gone.items() if count == whole[shard])
    faults = [f"{shard!r:.200} is missing (tensors in it: {gone[shard]}); upload it and add it" for shard in absent]
    lost = [name for name in missing if index.shards[name] not in absent]
    return faults + [f"{name!r:.200} is in no file, though {index.shards[name]!r:.200} should have it" for name in lost]


def _unexpected(index: ShardIndex, manifest: Manifest) -> list[str]:
    names = sorted(manifest.tensors.keys() - index.shards.keys())
    return [
        f"{name!r:.200} in {manifest.tensors[name].blob} is not in the index; leave that file out" for name in names
    ]
