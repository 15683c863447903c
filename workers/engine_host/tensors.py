"""Parameter values as byte ranges of files, so that binding without a transform reads and copies nothing.

A runtime that can map files is given the range itself. A parameter whose transforms change its bytes is
computed once into a scratch file, one parameter at a time, and is a byte range like any other from then on.
"""

import mmap
import os
import weakref
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from cachetools import LRUCache

from app.bindings.cast_losses import CastLosses, counting_losses
from app.bindings.contiguous import contiguous_pieces
from app.bindings.steps import TransformError
from app.weights.checkpoint import CheckpointError
from app.weights.dtypes import DTYPES, numpy_dtype
from app.weights.dtypes import view as view_buffer
from app.weights.formats.safetensors import arrange, read_slots
from workers.channel.messages import BackendError, ParameterSource, TensorFile
from workers.engine_host.stored_bytes import StoredBytes

Array = np.ndarray[Any, np.dtype[Any]]
MAX_NAMED = 5
KEPT_LOSSES = 10_000
ALIGNMENT = 64  # bytes, a cache line: what vector loads like best
NAMES = {numpy_dtype(name): name for name in DTYPES}


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False)
class StoredValue:
    """A parameter's value: `nbytes` bytes at `offset` of the file at `path`, row-major.

    `owner` is the scratch file they lie in, if it is one; it is removed when the last value in it is let go.
    """

    path: str
    offset: int
    nbytes: int
    dtype: str
    shape: tuple[int, ...]
    owner: "ScratchFile | None" = field(default=None, repr=False)


class ScratchFile:
    """A file for transformed parameters that is removed with its last user."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{uuid4().hex}.bin"
        self._file = self.path.open("xb")
        self._remove = weakref.finalize(self, self.path.unlink, missing_ok=True)

    def append(self, array: Array, dtype: str) -> StoredValue:
        """Write an array's elements in row-major order, aligned; the file's owner is the value returned."""
        offset = -(-self._file.tell() // ALIGNMENT) * ALIGNMENT
        self._file.seek(offset)
        for piece in contiguous_pieces(array):
            self._file.write(raw(piece).data)
        return StoredValue(str(self.path), offset, array.nbytes, dtype, array.shape, self)

    def close(self) -> None:
        """Make what was written visible to others; nothing can be appended any more."""
        self._file.close()


class ParameterFiles:
    """Finds or makes the stored value of each parameter; equal contents are made once while any engine holds them."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._stored = StoredBytes()
        self._forgetting: list[Callable[[], None]] = []
        self._made: weakref.WeakValueDictionary[Hashable, StoredValue] = weakref.WeakValueDictionary()
        self._lost: LRUCache[Hashable, CastLosses] = LRUCache(KEPT_LOSSES)

    def locate(
        self, sources: Sequence[ParameterSource], step: Callable[[int, int], None] | None = None
    ) -> dict[str, StoredValue]:
        """Return the value of every parameter by name; `step(done, total)` is told of each one computed.

        The bytes of the stored tensors are checked meanwhile, see `settle`. Raises BackendError "file_failed" if a file
        is missing, "weights_unreadable" if it is too short, and "transform_failed" if a transform does not fit its
        tensors.
        """
        self._stored.begin(sources)
        values = {source.name: value for source in sources if (value := _direct(source) or self._known(source))}
        missing = [source for source in sources if source.name not in values]
        if missing:
            values |= self._make(missing, step or _ignore)
        return values

    def losses(self, sources: Sequence[ParameterSource]) -> dict[str, CastLosses]:
        """Return what casts lost, by parameter, as far as the parameters' values were computed in this process."""
        if not self._lost:
            return {}  # the usual case; to look for hundreds of contents takes a millisecond
        return {source.name: lost for source in sources if (lost := self._lost.get(source.content)) is not None}

    def are_untouched(self, sources: Sequence[ParameterSource]) -> bool:
        """Whether nobody has written to the files of these parameters since they were located."""
        return self._stored.are_untouched(sources)

    def settle(self) -> int:
        """Wait until the bytes of all tensors that values were made of are checked, and return how many were.

        Raises BackendError "weights_damaged" if some are not those that were uploaded. Nothing that was made since the
        last call may be used then.
        """
        try:
            return self._stored.settle()
        except BackendError:
            self._made.clear()
            for forget in self._forgetting:
                forget()
            raise

    def on_damage(self, forget: Callable[[], None]) -> None:
        """Have `forget` called whenever bytes turn out to be damaged, for who keeps values of its own making."""
        self._forgetting.append(forget)

    def _known(self, source: ParameterSource) -> StoredValue | None:
        return self._made.get(source.content)

    def _make(self, sources: Sequence[ParameterSource], step: Callable[[int, int], None]) -> dict[str, StoredValue]:
        files, scratch = MappedFiles(), ScratchFile(self._scratch)
        values = {}
        for index, source in enumerate(sources):
            step(index, len(sources))
            value = self._known(source) or scratch.append(self._computed(source, files), source.binding.dtype)
            self._made[source.content] = value
            values[source.name] = value
        scratch.close()
        return values

    def _computed(self, source: ParameterSource, files: "MappedFiles") -> Array:
        with counting_losses() as losses:
            array = _compute(source, files)
        if losses:
            self._lost[source.content] = losses
        return array


class MappedFiles:
    """Files mapped read-only, each once, for as long as an array viewing it lives."""

    def __init__(self) -> None:
        self._maps: dict[str, mmap.mmap] = {}

    def view(self, value: StoredValue | TensorFile) -> Array:
        """Return the array at that byte range, sharing the file's pages."""
        if not value.nbytes:
            return np.empty(value.shape, numpy_dtype(value.dtype))
        return view_buffer(self._mapped(value.path), value.dtype, value.shape, value.offset)

    def _mapped(self, path: str) -> mmap.mmap:
        if path not in self._maps:
            with Path(path).open("rb") as file:
                self._maps[path] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return self._maps[path]


def raw(array: Array) -> Array:
    """Return an array's bytes as U8, flat; a view where it is C-contiguous."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def dtype_name(array: Array) -> str:
    """Return the safetensors name of an array's dtype."""
    return NAMES[array.dtype]


def read_tensors(path: str) -> dict[str, Array]:
    """Map a safetensors file and return its tensors by name; raises BackendError "bad_inputs" if it is not one."""
    file = Path(path)
    size = file.stat().st_size
    with file.open("rb") as stream:
        try:
            slots = read_slots(lambda offset, length: os.pread(stream.fileno(), length, offset), size)
        except CheckpointError as error:
            raise BackendError("bad_inputs", f"The inputs are no usable safetensors file: {error.detail}") from error
        foreign = [f"{slot.name} is {slot.dtype}" for slot in slots if slot.dtype not in DTYPES]
        if foreign:
            raise BackendError("bad_inputs", f"{'; '.join(foreign[:MAX_NAMED])}. Convert to {', '.join(DTYPES)}.")
        mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    return {slot.name: view_buffer(mapped, slot.dtype, slot.shape, slot.offset) for slot in slots}


def write_tensors(path: str, arrays: Mapping[str, Array]) -> None:
    """Write arrays as a safetensors file, which appears whole or not at all; the same arrays give the same bytes."""
    start, order = arrange({name: (dtype_name(array), array.shape) for name, array in arrays.items()})
    partial = Path(f"{path}.{uuid4().hex}.partial")
    try:
        with partial.open("xb") as file:
            file.write(start)
            for name in order:
                file.write(raw(arrays[name]).data)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _direct(source: ParameterSource) -> StoredValue | None:
    """Return the tensor itself where the parameter is exactly its bytes, aligned to its elements."""
    if source.binding.transforms or len(source.tensors) != 1:
        return None
    tensor, binding = source.tensors[0], source.binding
    if (tensor.dtype, tensor.shape) != (binding.dtype, binding.shape) or tensor.offset % DTYPES[tensor.dtype].itemsize:
        return None
    return StoredValue(tensor.path, tensor.offset, tensor.nbytes, tensor.dtype, tensor.shape)


def _compute(source: ParameterSource, files: MappedFiles) -> Array:
    try:
        return source.binding.apply([files.view(tensor) for tensor in source.tensors])
    except TransformError as error:
        raise BackendError("transform_failed", f"{error}. Check the binding against these weights again.") from error


def _ignore(_done: int, _total: int) -> None:
    """Tell nobody."""
