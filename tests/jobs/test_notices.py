import asyncio
from contextlib import closing

import redis

from app.jobs.notices import CHANNEL, Announcer, Listener, wait_for
from app.jobs.queue import redis_url
from app.jobs.state import State


def test_listening_ends_at_whatever_moment_it_is_told_to(valkey_url: str) -> None:
    async def start_and_end(turns: int) -> None:
        async with Listener(redis_url(valkey_url), hear=print, miss=print).running():
            for _ in range(turns):
                await asyncio.sleep(0)

    async def every_moment() -> None:
        for turns in range(100):
            await asyncio.wait_for(start_and_end(turns), 30)

    asyncio.run(every_moment())


def test_a_notice_is_heard_with_its_state_and_one_of_an_id_alone_without(valkey_url: str) -> None:
    heard: list[tuple[str, str]] = []
    url = redis_url(valkey_url)

    async def hear() -> None:
        last = asyncio.Event()

        def note(job_id: str, state: str) -> None:
            heard.append((job_id, state))
            if job_id == "alone":
                last.set()

        with closing(Announcer(url)) as announce, redis.Redis.from_url(url) as client:
            async with Listener(url, hear=note, miss=print).running():
                while not last.is_set():  # until the subscription holds
                    announce("job", State.RUNNING)
                    client.publish(CHANNEL, "alone")
                    await wait_for(last, 0.05)

    asyncio.run(hear())
    assert heard[-1] == ("alone", "")
    assert ("job", "running") in heard


def test_a_broker_that_does_not_answer_means_missed_notices() -> None:
    async def listen() -> bool:
        missed = asyncio.Event()
        async with Listener("redis://127.0.0.1:1/0", hear=print, miss=missed.set).running():
            return await wait_for(missed, 30)

    assert asyncio.run(listen())
