"""What a child does with checkpoint files and manifests. The process that forks children imports this once."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final, Protocol

import numpy as np  # noqa: F401 - imported here once, for all children that count what is not finite

from app.children.channel import Ask
from app.errors import Invalid
from app.weights.checkpoint import CheckpointError, TensorSlot
from app.weights.combination import Rows, combined
from app.weights.hashing import TensorContent, hash_tensors
from app.weights.manifest import Manifest, TensorEntry, non_finite_to_json
from app.weights.recognition import checkpoint_formats, read_slots
from app.weights.shard_index import read_shard_index

Task = Mapping[str, Any]
CHUNK_BYTES: Final = 4 * 1024 * 1024

checkpoint_formats()  # once, for all children


class _Bytes(Protocol):
    def read(self, offset: int, length: int) -> bytes: ...

    def pieces(self, start: int, stop: int) -> Iterable[bytes]: ...


class _File:
    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read(self, offset: int, length: int) -> bytes:
        self._file.seek(offset)
        return self._file.read(length)

    def pieces(self, start: int, stop: int) -> Iterator[bytes]:
        self._file.seek(start)
        while start < stop and (piece := self._file.read(min(CHUNK_BYTES, stop - start))):
            start += len(piece)
            yield piece


class _Remote:
    """A file that the parent reads, because only it can reach the store."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask

    def read(self, offset: int, length: int) -> bytes:
        return b"".join(self.pieces(offset, offset + length))

    def pieces(self, start: int, stop: int) -> Iterator[bytes]:
        return self._ask({"start": start, "stop": stop})


def index(task: Task, ask: Ask) -> dict[str, Any]:
    """Index the file `task["file"]`, or the one that the parent reads if that is None; see `indexing`."""
    if task["file"] is None:
        return _tried(lambda: _indexed(_Remote(ask), task))
    with Path(task["file"]).open("rb") as file:
        return _tried(lambda: _indexed(_File(file), task))


def index_ranges(task: Task, _ask: Ask) -> dict[str, Any]:
    """Index ranges of the files `task["files"]`, which need not be checkpoints; see `indexing`."""
    return _tried(lambda: _indexed_ranges(task))


def combine(task: Task, ask: Ask) -> dict[str, Any]:
    """Combine the rows of `task["count"]` files, and of the version below if there is one; see `indexing`."""
    files = (Rows.parse(b"".join(ask({"file": number}))) for number in range(task["count"]))
    try:
        below = Rows.parse(b"".join(ask({"file": None}))) if task["below"] else None
        return {"made": _columns(combined(files, below))}
    except Invalid as error:
        errors = [{"pointer": fault.pointer, "detail": fault.detail} for fault in error.errors]
        return {"rejected": {"code": error.code, "detail": error.detail, "errors": errors}}


def _columns(manifest: Manifest) -> dict[str, Any]:
    _write("manifest", manifest.to_json())
    return {
        "digest": manifest.digest,
        "tensor_count": len(manifest.tensors),
        "bytes": manifest.nbytes,
        "blobs": list(manifest.blobs),
        "non_finite": non_finite_to_json(manifest.tensors.values()),
    }


def _tried(work: Callable[[], Rows]) -> dict[str, Any]:
    try:
        rows = work()
    except CheckpointError as error:
        return {"rejected": {"code": error.code, "detail": error.detail, "errors": []}}
    _write("tensors", rows.tensors)
    _write("non_finite", rows.non_finite)
    return {"made": {}}


def _write(name: str, value: object) -> None:
    """Write what the parent keeps as text, and so need not parse."""
    Path(f"{name}.json").write_text(json.dumps(value), encoding="utf-8")


def _indexed(file: _Bytes, task: Task) -> Rows:
    size: int = task["size"]
    if (index := read_shard_index(file.read, size)) is not None:
        return Rows([index.to_json()], [])
    slots = read_slots(file.read, size)
    start = slots[0].offset if slots else size
    contents = hash_tensors(slots, file.pieces(start, size))
    return Rows.of(_entry(slot, content, task["digest"]) for slot, content in zip(slots, contents, strict=True))


def _indexed_ranges(task: Task) -> Rows:
    entries = []
    for name, dtype, shape, location, offset in json.loads(Path(task["ranges"]).read_bytes()):
        slot = TensorSlot.checked(name, dtype, shape, offset)
        with Path(task["files"][location]).open("rb") as file:
            (content,) = hash_tensors([slot], _File(file).pieces(offset, slot.end))
        entries.append(_entry(slot, content, task["digests"][location]))
    return Rows.of(entries)


def _entry(slot: TensorSlot, content: TensorContent, digest: str) -> TensorEntry:
    return TensorEntry(
        slot.name, slot.dtype, slot.shape, content.blake3, digest, slot.offset, slot.nbytes, content.non_finite
    )
