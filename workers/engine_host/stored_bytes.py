"""Whether the bytes of stored tensors are those that were uploaded.

An artifact is digested when it arrives, and may lie in a store for months afterwards. A disk that flips a bit, or a
tool that writes into the store, would give an engine wrong weights. A verification would not notice: its reference
reads the same file. So a tensor's bytes are digested when they are first used.
"""

import mmap
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from blake3 import blake3
from cachetools import LRUCache

from workers.channel.messages import BackendError, DamagedFile, ParameterSource, TensorFile

KEPT_FILES = 10_000  # more than the resident engines were loaded from


class FileIdentity(NamedTuple):
    """What a file is known by: another file of the same path, or other bytes in the same file, have another one."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, path: str) -> "FileIdentity":
        """Return the identity of the file at a path; raises OSError."""
        found = Path(path).stat()
        return cls(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


@dataclass(frozen=True, slots=True)
class _Known:
    """The ranges of a file that are right or still being checked: offset, bytes and digest of each."""

    identity: FileIdentity
    begun: set[tuple[int, int, str]] = field(default_factory=set)


class StoredBytes:
    """Checks the bytes of stored tensors, and remembers those that are right until their file changes.

    A thread checks while the tensors are used already. So whatever is made of them must not leave this process, nor be
    used again, before `settle` has returned.
    """

    def __init__(self) -> None:
        self._files: LRUCache[str, _Known] = LRUCache(KEPT_FILES)
        self._thread = ThreadPoolExecutor(1, "check")
        self._begun: list[Future[int]] = []

    def begin(self, sources: Sequence[ParameterSource]) -> None:
        """Begin to digest the tensors of these parameters that were not begun before.

        Raises BackendError "file_failed" if a file is missing, and "weights_unreadable" if it is too short.
        """
        known = self._known(tensor for source in sources for tensor in source.tensors)
        begun = []
        for source in sources:
            for name, tensor in zip(source.binding.tensors, source.tensors, strict=True):
                place, file = (tensor.offset, tensor.nbytes, tensor.blake3), known[tensor.path]
                if place not in file.begun:
                    file.begun.add(place)
                    begun.append((name, tensor))
        if begun:
            self._begun.append(self._thread.submit(_check, begun))

    def are_untouched(self, sources: Iterable[ParameterSource]) -> bool:
        """Whether the files of these parameters are what they were when their tensors were begun.

        An engine may go on reading the files that it was loaded from.
        """
        known = {path: self._files.get(path) for path in {one.path for source in sources for one in source.tensors}}
        try:
            return all(file is None or file.identity == FileIdentity.of(path) for path, file in known.items())
        except OSError:
            return False

    def settle(self) -> int:
        """Wait until all that was begun is checked, and return its bytes.

        Raises BackendError "weights_damaged" if a tensor has other bytes.
        """
        begun, self._begun = self._begun, []
        try:
            return sum(one.result() for one in begun)
        except BaseException:
            self._files.clear()
            raise

    def _known(self, tensors: Iterable[TensorFile]) -> dict[str, _Known]:
        """Return what is known of each file, by its path.

        A mapped file that is too short kills the process that reads past its end, so the sizes are compared first.
        """
        ends: dict[str, int] = {}
        for tensor in tensors:
            ends[tensor.path] = max(ends.get(tensor.path, 0), tensor.offset + tensor.nbytes)
        return {path: self._file(path, end) for path, end in ends.items()}

    def _file(self, path: str, end: int) -> _Known:
        try:
            identity = FileIdentity.of(path)
        except OSError as error:
            raise BackendError("file_failed", f"{path}: {error.strerror}") from error  # a copy is fetched again
        if identity.size < end:
            detail = f"{path} has {identity.size} bytes, {end} are needed. {_UPLOAD}"
            raise DamagedFile("weights_unreadable", detail, path)
        known = self._files.get(path)
        if known is None or known.identity != identity:
            known = self._files[path] = _Known(identity)
        return known


def _check(tensors: Sequence[tuple[str, TensorFile]]) -> int:
    """Digest tensors and return their bytes; raises DamagedFile if one has another digest than it should."""
    opened: dict[str, memoryview] = {}
    for name, tensor in tensors:
        if _digest(tensor, opened) != tensor.blake3:
            raise _damaged(name, tensor)
    return sum(tensor.nbytes for _, tensor in tensors)


def _digest(tensor: TensorFile, opened: dict[str, memoryview]) -> str:
    """Return the BLAKE3 of a tensor's bytes; `opened` are the files that are mapped already."""
    hasher = blake3(max_threads=blake3.AUTO)
    if tensor.nbytes:  # an empty file cannot be mapped
        if tensor.path not in opened:
            with Path(tensor.path).open("rb") as file:
                opened[tensor.path] = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        hasher.update(opened[tensor.path][tensor.offset : tensor.offset + tensor.nbytes])
    return hasher.hexdigest()


_UPLOAD = "The artifact store lost or damaged it; upload the file again."


def _damaged(name: str, tensor: TensorFile) -> DamagedFile:
    return DamagedFile(
        "weights_damaged",
        f"The bytes of the tensor {name} in the file sha256:{Path(tensor.path).name} are not those that were uploaded. "
        "Upload the file again with PUT /v1/blobs/<digest>, which replaces a damaged one, and send this request again.",
        tensor.path,
    )
