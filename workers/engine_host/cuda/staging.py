"""Copies to the device through page-locked memory.

Out of any other, such as a mapped file, the driver copies piece by piece with one thread, and the caller waits for it.
"""

import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor

from workers.engine_host.cuda.memory import Array, bytes_of, copy_to_device, page_locked
from workers.engine_host.cuda.stream import CudaEvent, Stream

CHUNK_BYTES = 32 << 20
CHUNKS = 2  # the device reads one while the other is filled
PART_BYTES = 4 << 20  # of a chunk, filled by one thread: a single one copies slower than the device reads


class Staging:
    """A ring of page-locked chunks, allocated when first needed and kept."""

    def __init__(self, chunk_bytes: int = CHUNK_BYTES) -> None:
        self._chunk_bytes = chunk_bytes
        self._ring: deque[_Chunk] = deque()
        self._fillers = ThreadPoolExecutor(os.cpu_count())  # starts its threads when it is first used

    def reserve(self) -> None:
        """Allocate the chunks where they are not there; CudaError "device_out_of_memory" where they cannot be had."""
        while len(self._ring) < CHUNKS:
            self._ring.append(_Chunk(self._chunk_bytes))

    def copy_to_device(self, target: int, source: Array, stream: Stream) -> None:
        """Queue copies of an array to the device address `target`; it has been read when this returns.

        Raises CudaError, and ValueError where the array is not contiguous.
        """
        self.reserve()
        data = bytes_of(source)
        for start in range(0, data.nbytes, self._chunk_bytes):
            chunk = self._ring[0]
            self._ring.rotate(-1)
            chunk.send(data[start : start + self._chunk_bytes], target + start, stream, self._fillers)


class _Chunk:
    """A page-locked buffer, and the mark behind the last copy out of it."""

    def __init__(self, nbytes: int) -> None:
        self._memory = page_locked(nbytes)
        self._is_read = CudaEvent()

    def send(self, data: Array, target: int, stream: Stream, fillers: ThreadPoolExecutor) -> None:
        """Queue a copy of `data`, U8 and no longer than the chunk, once the device has read what is in the chunk."""
        self._is_read.wait()
        piece = self._memory[: data.nbytes]

        def fill(start: int) -> None:
            piece[start : start + PART_BYTES] = data[start : start + PART_BYTES]

        if data.nbytes <= PART_BYTES:
            fill(0)
        else:
            list(fillers.map(fill, range(0, data.nbytes, PART_BYTES)))  # numpy copies without the interpreter's lock
        copy_to_device(target, piece, stream)
        self._is_read.record(stream)
