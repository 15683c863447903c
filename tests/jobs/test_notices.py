import asyncio
import time
from contextlib import closing

import pytest
import redis

from app.jobs import notices
from app.jobs.notices import CHANNEL, RECONNECT_S, SILENCE_S, Announcer, Listener, wait_for
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


def test_a_notice_that_is_not_utf_8_ends_no_listener(valkey_url: str) -> None:
    async def heard() -> bool:
        url = redis_url(valkey_url)
        listener = Listener(url)
        async with listener.running():
            with closing(Announcer(url)) as announce, redis.Redis.from_url(url) as client:
                await _subscribed(listener, announce)
                with listener.watching("job") as changed:
                    client.publish(CHANNEL, b"\xff\xfe \xff")
                    client.publish(CHANNEL, b"")
                    announce("job", State.RUNNING)
                    await wait_for(changed, 0.9 * RECONNECT_S)  # a listener that ended would wake all, but later
                    return changed.is_set()

    assert asyncio.run(heard())


def test_whatever_goes_wrong_with_a_notice_the_next_ones_are_heard(
    valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults = [LookupError("a fault of our own")]
    hear = Listener._hear

    def flawed(listener: Listener, notice: str) -> None:
        if notice.startswith("bad") and faults:
            raise faults.pop()
        hear(listener, notice)

    async def heard() -> bool:
        url = redis_url(valkey_url)
        listener = Listener(url)
        async with listener.running():
            with closing(Announcer(url)) as announce:
                await _subscribed(listener, announce)
                announce("bad", State.RUNNING)
                await _subscribed(listener, announce)
        return not faults

    monkeypatch.setattr(notices, "RECONNECT_S", 0.01)
    monkeypatch.setattr(Listener, "_hear", flawed)
    assert asyncio.run(heard())


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


async def _subscribed(listener: Listener, announce: Announcer) -> None:
    with listener.watching("first") as heard:
        while not heard.is_set():
            announce("first", State.QUEUED)
            await wait_for(heard, 0.05)
