"""Copies to the device through page-locked memory.

The driver copies from any other memory, such as a mapped file, piece by piece with one thread, and the caller waits.
"""

import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor

from workers.engine_host.cuda.memory import Array, bytes_of, copy_to_device, page_locked
from workers.engine_host.cuda.stream import CudaEvent, Stream

CHUNK_BYTES = 32 << 20
CHUNKS = 2  # the device reads one while the other is filled
PART_BYTES = 4 << 20  # of a chunk for each thread that fills it; one thread copies slower than the device reads


class Staging:
    """A ring of page-locked chunks, which are allocated when they are first needed, and then kept."""

    def __init__(self, chunk_bytes: int = CHUNK_BYTES) -> None:
        self._chunk_bytes = chunk_bytes
        self._ring: deque[_Chunk] = deque()
        self._fillers = ThreadPoolExecutor(os.cpu_count())  # the pool starts its threads when it is first used

    def reserve(self) -> None:
        """Allocate the chunks that are missing.

        Raises CudaError "device_out_of_memory" if there is no memory for them.
        """
        while len(self._ring) < CHUNKS:
            self._ring.append(_Chunk(self._chunk_bytes))

    def copy_to_device(self, target: int, source: Array, stream: Stream) -> None:
        """Queue copies of an array to the device address `target`; the array has been read when this returns.

        Raises CudaError, and ValueError if the array is not contiguous.
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
        """Wait until the device has read the chunk, then fill it with `data` and queue a copy to `target`.

        `data` is U8 and no longer than the chunk.
        """
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
