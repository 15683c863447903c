"""A refit's weights in page-locked memory, which threads fill while TensorRT refits others.

TensorRT copies weights to the device one by one: from page-locked memory at the speed of the link, from a mapped file
at an eighth of it. One thread reads a file no faster than that, eight read three times as fast.

TensorRT 8 keeps the interpreter's lock during a refit, so a thread can only go on with a call that it has begun. So
each thread reads many weights in one call, straight from the file.
"""

import os
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from workers.channel.messages import DamagedFile
from workers.engine_host.backends.tensorrt.layout import Slot
from workers.engine_host.cuda.page_locked_values import PageLockedValues
from workers.engine_host.tensors import Array, StoredValue

THREADS = min(16, os.cpu_count() or 1)
LEAST_READ = 4 << 20  # bytes that are worth a thread
WIDEST_GAP = 64 << 10  # bytes that are read in vain, so that what lies around them is read in one call
MOST_PIECES = 500  # of one call, and as many gaps; the system takes 1024 (IOV_MAX)

Key = tuple[Hashable, int]
Piece = tuple[int, Array]  # where it begins in the file, and where it is read to, U8


class StagedWeights:
    """The values of one refit's slots; `close` must be called when the refit is done, or has failed.

    `known_by` returns what a slot's value is known by, and its bytes. `stored` returns where it lies in a file, or None
    if it has to be computed. `fill` computes it into memory.
    """

    def __init__(
        self,
        memory: PageLockedValues,
        *,
        known_by: Callable[[Slot], Key],
        stored: Callable[[Slot], StoredValue | None],
        fill: Callable[[Slot, Array], None],
    ) -> None:
        self._memory = memory
        self._known_by = known_by
        self._stored = stored
        self._fill = fill
        self._arrays: dict[str, Array] = {}
        self._begun: dict[str, list[Future[None]]] = {}
        self._keys: dict[str, Key] = {}

    def __contains__(self, slot: Slot) -> bool:
        """Whether the value of a slot is staged, or about to be."""
        return slot.name in self._arrays

    def take_kept(self, slots: Sequence[Slot]) -> None:
        """Stage the slots whose values are there from an earlier refit, so that they stay until they are released."""
        for slot in slots:
            key = self._known_by(slot)
            if (memory := self._memory.get(*key)) is not None:
                self._hold(slot, key, memory)

    def begin(self, slots: Sequence[Slot]) -> None:
        """Begin to stage the values of these slots, unless they are staged; those without memory are left out."""
        files: dict[str, list[tuple[Slot, Piece]]] = {}
        for slot in slots:
            key = self._known_by(slot)
            if slot in self or (memory := self._memory.reserve(*key)) is None:
                continue
            self._hold(slot, key, memory)
            stored = self._stored(slot)
            if stored is None:
                self._begun[slot.name].append(_threads().submit(self._fill, slot, memory))
            else:
                files.setdefault(stored.path, []).append((slot, (stored.offset, memory)))
        size = max(LEAST_READ, sum(slot.nbytes for found in files.values() for slot, _ in found) // THREADS)
        for path, found in files.items():
            self._read(path, found, size)

    def value(self, slot: Slot, dtype: "np.dtype[Any]") -> Array | None:
        """Return the value of a slot, which has this dtype, when it is there; None if it was not staged.

        Raises BackendError.
        """
        for one in self._begun.get(slot.name, ()):
            one.result()
        array = self._arrays.get(slot.name)
        return None if array is None else array.view(dtype).reshape(slot.shape)

    def release(self, slots: Sequence[Slot]) -> None:
        """Let the values of these slots make room for others, once nothing reads them any more."""
        for slot in slots:
            if slot.name in self._keys:
                self._memory.release(*self._keys.pop(slot.name))
                del self._arrays[slot.name], self._begun[slot.name]

    def close(self, *, failed: bool) -> None:
        """Let go of everything; after a failure nothing is kept, because a value may not be whole."""
        wait([one for begun in self._begun.values() for one in begun])
        for key in self._keys.values():
            self._memory.release(*key)
        self._arrays.clear()
        self._begun.clear()
        self._keys.clear()
        if failed:
            self._memory.forget_all()
        self._memory.grow()

    def _hold(self, slot: Slot, key: Key, memory: Array) -> None:
        self._keys[slot.name], self._arrays[slot.name], self._begun[slot.name] = key, memory, []

    def _read(self, path: str, found: Sequence[tuple[Slot, Piece]], size: int) -> None:
        pieces = sorted(_cut(found, size), key=lambda one: one[0])
        for run in _runs(pieces, size):
            reading = _threads().submit(_read_run, path, [(offset, memory) for offset, memory, _ in run])
            for name in {name for _, _, name in run}:
                self._begun[name].append(reading)


def _cut(found: Sequence[tuple[Slot, Piece]], size: int) -> Iterator[tuple[int, Array, str]]:
    """Yield (offset, memory, name) of pieces of at most `size` bytes."""
    for slot, (offset, memory) in found:
        for start in range(0, slot.nbytes, size):
            yield offset + start, memory[start : start + size], slot.name


def _runs(pieces: Sequence[tuple[int, Array, str]], size: int) -> Iterator[list[tuple[int, Array, str]]]:
    """Yield ordered pieces in runs of about `size` bytes without wide gaps, each of which is read in one call."""
    run: list[tuple[int, Array, str]] = []
    end = nbytes = 0
    for piece in pieces:
        offset, memory, _ = piece
        if run and (
            nbytes + memory.nbytes > size or not 0 <= offset - end <= WIDEST_GAP or len(run) >= MOST_PIECES // 2
        ):
            yield run
            run, nbytes = [], 0
        run.append(piece)
        nbytes += memory.nbytes
        end = offset + memory.nbytes
    if run:
        yield run


def _read_run(path: str, pieces: Sequence[Piece]) -> None:
    """Read the pieces of a file, which lie one behind the other, in one call; raises DamagedFile if it is shorter."""
    begin, end = pieces[0][0], pieces[0][0]
    buffers = []
    for offset, memory in pieces:
        if offset > end:
            buffers.append(memoryview(bytearray(offset - end)))
        buffers.append(memory.data)
        end = offset + memory.nbytes
    with Path(path).open("rb", buffering=0) as file:
        while begin < end:
            count = os.preadv(file.fileno(), buffers, begin)
            if not count:
                detail = f"{path} ends at {begin} bytes, {end} are needed. Upload the file again."
                raise DamagedFile("weights_unreadable", detail, path)
            begin += count
            buffers = _left(buffers, count)


def _left(buffers: Sequence[memoryview], count: int) -> list[memoryview]:
    """Return what is left of buffers that were filled with so many bytes."""
    left = []
    for one in buffers:
        if count < one.nbytes:
            left.append(one[count:])
        count = max(count - one.nbytes, 0)
    return left


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(THREADS, "stage")
