"""Gathering a socket's small chunks into batches that are large enough to hand to another thread."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager

from app.errors import TooLarge
from app.http.pools import Pool

WRITERS = 8  # threads that digest and write parts of uploads


def writers() -> Pool:
    """Return the threads for the parts of all uploads of a process: addresses take turns, and one has at most half."""
    return Pool("be written", places=WRITERS, queue=0, share=WRITERS // 2)


class Room:
    """The memory that all uploads of a process may take between their sockets and the store, `nbytes` bytes.

    An upload that is slow never keeps others from theirs: once half of the room is taken, batches are no longer
    gathered but handed on as they are. Only the batches that are being written fill the other half. If there is no
    room at all, uploads are not read for as long as that lasts.
    """

    def __init__(self, nbytes: int) -> None:
        self._nbytes = nbytes
        self._taken = 0
        self._freed = asyncio.Event()

    @property
    def scarce(self) -> bool:
        """Whether batches should be handed on as they are."""
        return self._taken > self._nbytes // 2

    async def wait(self) -> None:
        """Return once there is room."""
        while self._taken >= self._nbytes:
            self._freed.clear()
            await self._freed.wait()

    @contextmanager
    def share(self) -> Iterator["Share"]:
        """Give one upload its share, which is free again when the block ends."""
        share = Share(self)
        try:
            yield share
        finally:
            share.free(share.nbytes)

    def change(self, nbytes: int) -> None:
        """Take so many bytes, or free them if the number is negative."""
        self._taken += nbytes
        if nbytes < 0:
            self._freed.set()


class Share:
    """What one upload holds of the room, `nbytes` bytes."""

    def __init__(self, room: Room) -> None:
        self.room = room
        self.nbytes = 0
        self._written: list[bytes] = []

    def take(self, nbytes: int) -> None:
        """Take note that so many bytes have arrived."""
        self.nbytes += nbytes
        self.room.change(nbytes)

    def keep_written(self, batch: list[bytes]) -> None:
        """Take note that a batch is written; it is dropped at once only if room is scarce.

        The next batch otherwise gets its memory anew from the kernel, which costs an upload a tenth of its CPU time.
        """
        self._written = batch
        if self.room.scarce:
            self.drop_written()

    def drop_written(self) -> None:
        """Empty the batch that is written, and free its memory."""
        self.free(nbytes_of(self._written))
        self._written.clear()

    def free(self, nbytes: int) -> None:
        """Take note that so many bytes are written, or thrown away."""
        freed = min(nbytes, self.nbytes)
        self.nbytes -= freed
        self.room.change(-freed)


async def batched(chunks: AsyncIterator[bytes], *, nbytes: int, limit: int, share: Share) -> AsyncIterator[list[bytes]]:
    """Yield lists of chunks; each list holds at least `nbytes` bytes, or fewer if it is the last or room is scarce.

    What is yielded stays in the share until the caller frees it.

    Raises:
        TooLarge: as soon as more than `limit` bytes have arrived.
    """
    batch: list[bytes] = []
    gathered = total = 0
    async for chunk in chunks:
        batch.append(chunk)
        gathered += len(chunk)
        share.take(len(chunk))
        if total + gathered > limit:
            raise TooLarge(too_large(limit))
        if gathered >= nbytes or share.room.scarce:
            yield batch
            total += gathered
            batch, gathered = [], 0
            await share.room.wait()
    if batch:
        yield batch


def nbytes_of(batch: Sequence[bytes]) -> int:
    """Return how many bytes a batch holds."""
    return sum(map(len, batch))


def too_large(limit: int) -> str:
    """Return the text of the error for a body of more than `limit` bytes, with the remedy."""
    return (
        f"The body is larger than the {limit} bytes announced or allowed; nothing was kept. Split the checkpoint "
        "into several files, or have ENGINESMITH_MAX_BLOB_BYTES raised."
    )
