import asyncio
from collections.abc import AsyncIterator

import pytest

from app.artifacts.batches import Room, Share, batched, nbytes_of

CHUNK = bytes(100)


async def chunks(count: int) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield CHUNK


async def sizes(share: Share, *, nbytes: int, count: int) -> list[int]:
    """The batches of a caller that writes each at once."""
    found = []
    async for batch in batched(chunks(count), nbytes=nbytes, limit=10**9, share=share):
        found.append(nbytes_of(batch))
        share.free(found[-1])
    return found


def test_chunks_are_gathered_while_there_is_room() -> None:
    with Room(10_000).share() as share:
        assert asyncio.run(sizes(share, nbytes=400, count=9)) == [400, 400, 100]


def test_chunks_are_handed_on_as_they_come_once_others_have_half_of_the_room() -> None:
    room = Room(10_000)
    with room.share() as stalled, room.share() as share:
        stalled.take(5001)
        assert asyncio.run(sizes(share, nbytes=400, count=3)) == [100, 100, 100]


def test_an_upload_is_not_read_while_there_is_no_room() -> None:
    async def run() -> None:
        room = Room(1000)
        with room.share() as writing, room.share() as share:
            writing.take(1000)
            upload = asyncio.create_task(sizes(share, nbytes=400, count=2))
            for _ in range(10):
                await asyncio.sleep(0)
            assert not upload.done()
            writing.free(600)
            assert await upload == [100, 100]

    asyncio.run(run())


def test_an_upload_that_ends_early_leaves_its_room_to_others() -> None:
    room = Room(1000)
    with room.share() as share:
        share.take(900)
    assert not room.scarce


def test_uploads_that_stall_hold_no_more_than_half_of_the_room_and_a_chunk_each() -> None:
    async def run() -> int:
        room = Room(10_000)
        shares = [Share(room) for _ in range(60)]
        stalled = [asyncio.create_task(hold(share)) for share in shares]
        for _ in range(1000):
            await asyncio.sleep(0)
        held = sum(share.nbytes for share in shares)
        for task in stalled:
            task.cancel()
        return held

    async def hold(share: Share) -> None:
        async def half_sent() -> AsyncIterator[bytes]:
            for _ in range(39):
                yield CHUNK
                await asyncio.sleep(0)
            await asyncio.Event().wait()

        async for batch in batched(half_sent(), nbytes=4000, limit=10**9, share=share):
            share.free(nbytes_of(batch))

    assert asyncio.run(run()) <= 5000 + 60 * len(CHUNK)


@pytest.mark.parametrize(("others", "kept"), [(0, 1), (5000, 0)])
def test_a_written_batch_is_kept_until_the_next_one_is_unless_room_is_scarce(others: int, kept: int) -> None:
    room = Room(10_000)
    batch = [CHUNK]
    with room.share() as other, room.share() as share:
        other.take(others)
        share.take(len(CHUNK))
        share.keep_written(batch)
        assert (len(batch), share.nbytes) == (kept, kept * len(CHUNK))
        share.drop_written()
        assert (batch, share.nbytes) == ([], 0)
