import asyncio
from contextlib import closing

import pytest
import redis

from app.jobs.notices import CHANNEL, Announcer, Listener, wait_for
from app.jobs.queue import redis_url
from app.jobs.state import FINAL, State


def test_listening_ends_at_whatever_moment_it_is_told_to(valkey_url: str) -> None:
    async def start_and_end(turns: int) -> None:
        async with Listener(redis_url(valkey_url)).running():
            for _ in range(turns):
                await asyncio.sleep(0)

    async def every_moment() -> None:
        for turns in range(100):
            await asyncio.wait_for(start_and_end(turns), 30)

    asyncio.run(every_moment())


@pytest.mark.parametrize("end", sorted(FINAL))
def test_waiters_are_woken_by_the_end_of_their_job_and_watchers_by_each_change(valkey_url: str, end: State) -> None:
    async def heard() -> list[bool]:
        listener = Listener(redis_url(valkey_url))
        with closing(Announcer(redis_url(valkey_url))) as announce:
            return await heard_by(listener, announce)

    async def heard_by(listener: Listener, announce: Announcer) -> list[bool]:
        async with listener.running():
            await _subscribed(listener, announce)
            with listener.watching("job") as changed, listener.waiting("job") as ended:
                announce("job", State.RUNNING)
                announce("other", end)
                await wait_for(changed, 10)
                before = [changed.is_set(), ended.is_set()]
                announce("job", end)
                await wait_for(ended, 10)
                after = [ended.is_set()]
            with listener.waiting("job") as ended:
                return [*before, *after, ended.is_set()]

    assert asyncio.run(heard()) == [True, False, True, True]


def test_a_notice_of_an_id_alone_wakes_whoever_watches(valkey_url: str) -> None:
    async def heard() -> bool:
        url = redis_url(valkey_url)
        listener = Listener(url)
        async with listener.running():
            with closing(Announcer(url)) as announce, redis.Redis.from_url(url) as client:
                await _subscribed(listener, announce)
                with listener.watching("job") as changed:
                    client.publish(CHANNEL, "job")
                    await wait_for(changed, 10)
                    return changed.is_set()

    assert asyncio.run(heard())


async def _subscribed(listener: Listener, announce: Announcer) -> None:
    with listener.watching("first") as heard:
        while not heard.is_set():
            announce("first", State.QUEUED)
            await wait_for(heard, 0.05)
