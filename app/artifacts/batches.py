"""Gathering a socket's small chunks into batches that are large enough to hand to another thread."""

from collections.abc import AsyncIterator

from app.errors import TooLarge


async def batched(chunks: AsyncIterator[bytes], *, nbytes: int, limit: int) -> AsyncIterator[list[bytes]]:
    """Yield lists of chunks; each list holds at least `nbytes` bytes, but the last one may hold fewer.

    Raises:
        TooLarge: as soon as more than `limit` bytes have arrived.
    """
    batch: list[bytes] = []
    gathered = total = 0
    async for chunk in chunks:
        batch.append(chunk)
        gathered += len(chunk)
        if total + gathered > limit:
            raise TooLarge(too_large(limit))
        if gathered >= nbytes:
            yield batch
            total += gathered
            batch, gathered = [], 0
    if batch:
        yield batch


def too_large(limit: int) -> str:
    """Return the text of the error for a body of more than `limit` bytes, with the remedy."""
    return (
        f"The body is larger than the {limit} bytes announced or allowed; nothing was kept. Split the checkpoint "
        "into several files, or have ENGINESMITH_MAX_BLOB_BYTES raised."
    )
