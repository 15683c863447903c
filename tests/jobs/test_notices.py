import asyncio
import time
from contextlib import closing

import pytest
import redis

from app.jobs import notices
from app.jobs.notices import CHANNEL, SILENCE_S, Announcer, Listener, wait_for
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


def test_a_notice_that_is_not_utf_8_ends_no_listener(valkey_url: str) -> None:
    url = redis_url(valkey_url)

    async def listen() -> bool:
        heard = asyncio.Event()

        def note(job_id: str, _state: str) -> None:
            if job_id == "last":
                heard.set()

        with closing(Announcer(url)) as announce, redis.Redis.from_url(url) as client:
            async with Listener(url, hear=note, miss=print).running():
                while not heard.is_set():  # until the subscription holds
                    client.publish(CHANNEL, b"\xff\xfe \xff")
                    client.publish(CHANNEL, b"")
                    announce("last", State.RUNNING)
                    await wait_for(heard, 0.05)
            return heard.is_set()

    assert asyncio.run(asyncio.wait_for(listen(), 30))


def test_whatever_goes_wrong_with_a_notice_the_next_ones_are_heard(
    valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = redis_url(valkey_url)
    faults = [LookupError("a fault of our own")]

    async def listen() -> None:
        heard = asyncio.Event()

        def note(job_id: str, _state: str) -> None:
            if job_id == "bad" and faults:
                raise faults.pop()
            if job_id == "last" and not faults:
                heard.set()

        with closing(Announcer(url)) as announce:
            async with Listener(url, hear=note, miss=lambda: None).running():
                while not heard.is_set():
                    announce("bad", State.RUNNING)
                    announce("last", State.RUNNING)
                    await wait_for(heard, 0.05)

    monkeypatch.setattr(notices, "RECONNECT_S", 0.01)
    asyncio.run(asyncio.wait_for(listen(), 30))


def test_a_broker_that_does_not_answer_is_left_alone_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    announce = Announcer("redis://127.0.0.1:1/0")
    tried: list[str] = []

    def publish(_channel: str, notice: str) -> None:
        tried.append(notice)
        raise redis.ConnectionError("nobody there")

    monkeypatch.setattr(announce._client, "publish", publish)
    announce("first", State.RUNNING)
    announce("second", State.RUNNING)
    clock[0] += SILENCE_S
    announce("third", State.RUNNING)
    assert tried == ["first running", "third running"]
