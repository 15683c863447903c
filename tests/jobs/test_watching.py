import asyncio
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager

import pytest
from sqlalchemy import Connection, event

from app.database import DATABASE_DOWN, Database
from app.errors import Unavailable
from app.http.pools import Pools
from app.http.turns import current_address
from app.jobs import events, lease, service, watching
from app.jobs.followed import look
from app.jobs.notices import Announcer, wait_for
from app.jobs.queue import redis_url
from app.jobs.state import FINAL, State
from app.jobs.stream import stream
from app.jobs.watching import Watching
from app.registry.service import create_model

NO_BROKER = "redis://127.0.0.1:1/0"

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture
def jobs(database: Database) -> list[str]:
    with database.transaction() as session:
        model = create_model(session, "m", "", {}).id
        return [
            service.create(session, kind="build", model_id=model, queue="q", request={}, likeness="any").id
            for _ in range(20)
        ]


def _append(database: Database, job_id: str) -> None:
    with database.transaction() as session:
        events.append(session, job_id, "log", {})


def _cancel(database: Database, job_id: str) -> None:
    with database.transaction() as session:
        lease.request_cancel(session, job_id)


async def _read(watch: Watching, database: Database, job_id: str, after: int = 0) -> list[int]:
    """Return the numbers of the events that a stream gives until it ends."""
    parts = [part async for part in stream(watch, database, Pools().reads, job_id, after)]
    return [int(part.split()[1]) for part in parts if part.startswith(b"id:")]


@pytest.mark.parametrize("end", sorted(FINAL))
def test_a_waiter_is_woken_by_the_notice_of_its_jobs_end_and_one_that_comes_later_at_once(
    database: Database, valkey_url: str, end: State
) -> None:
    async def heard() -> list[bool]:
        url = redis_url(valkey_url)
        watch = Watching(database, url, max_streams=1)
        with closing(Announcer(url)) as announce:
            async with watch.running():
                with watch.waiting("job") as ended:
                    while not ended.is_set():
                        announce("job", State.RUNNING)
                        announce("other", end)
                        if await wait_for(ended, 0.05):
                            break
                        announce("job", end)
                with watch.waiting("job") as ended, watch.waiting("third") as other:
                    return [ended.is_set(), other.is_set()]

    monkey = pytest.MonkeyPatch()
    monkey.setattr(watching, "LOOK_EVERY_S", 3600.0)
    try:
        assert asyncio.run(heard()) == [True, False]
    finally:
        monkey.undo()


def test_streams_and_waiters_go_on_without_notices(
    database: Database, jobs: Sequence[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "LOOK_EVERY_S", 0.02)

    async def follow() -> tuple[list[int], bool]:
        watch = Watching(database, NO_BROKER, max_streams=9)
        async with watch.running():
            reading = asyncio.create_task(_read(watch, database, jobs[0]))
            with watch.waiting(jobs[0]) as ended:
                for _ in range(3):
                    await asyncio.to_thread(_append, database, jobs[0])
                    await asyncio.sleep(0.05)
                before = ended.is_set()
                await asyncio.to_thread(_cancel, database, jobs[0])
                await wait_for(ended, 30)
            return await asyncio.wait_for(reading, 30), before

    assert asyncio.run(follow()) == ([1, 2, 3, 4, 5], False)


@contextmanager
def _address(address: str) -> Iterator[None]:
    token = current_address.set(address)
    yield
    current_address.reset(token)


@contextmanager
def _counted(database: Database) -> Iterator[list[str]]:
    statements: list[str] = []

    def note(_connection: Connection, _cursor: object, statement: str, *_rest: object) -> None:
        statements.append(statement)

    event.listen(database.engine, "before_cursor_execute", note)
    yield statements
    event.remove(database.engine, "before_cursor_execute", note)


def test_one_look_serves_all_streams_of_all_jobs(
    database: Database, jobs: Sequence[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While nothing happens a look costs one statement, and news two, however many streams there are."""
    monkeypatch.setattr(watching, "LOOK_EVERY_S", 3600.0)
    waiting = 0

    async def counted_wait(changed: asyncio.Event, seconds: float) -> bool:
        nonlocal waiting
        waiting += 1
        try:
            return await wait_for(changed, seconds)
        finally:
            waiting -= 1

    monkeypatch.setattr("app.jobs.stream.wait_for", counted_wait)

    async def follow() -> tuple[int, list[list[int]]]:
        watch = Watching(database, NO_BROKER, max_streams=1000)
        tasks = [asyncio.create_task(_read(watch, database, job, after=1)) for job in [*jobs] * 5]
        looking = asyncio.create_task(watch._keep_looking())  # a listener without a broker would ask for more looks

        def has_settled() -> bool:
            known = all(one.last is not None for one in watch._followed.values())
            return waiting == len(tasks) and known and not watch._due and not watch._thread.borrowed_tokens

        while not has_settled():
            await asyncio.sleep(0.01)
        for job in jobs:
            _cancel(database, job)
        with _counted(database) as statements:
            watch._look_at_all()
            await asyncio.wait(tasks)
        looking.cancel()
        return len(statements), [task.result() for task in tasks]

    statements, read = asyncio.run(follow())
    assert read == [[2]] * 100
    assert statements == 3  # with its BEGIN


def test_a_stream_that_starts_behind_reads_all_and_ends(database: Database, jobs: Sequence[str]) -> None:
    for _ in range(130):
        _append(database, jobs[0])
    _cancel(database, jobs[0])

    async def follow() -> list[int]:
        watch = Watching(database, NO_BROKER, max_streams=9)
        async with watch.running():
            return await asyncio.wait_for(_read(watch, database, jobs[0], after=10), 30)

    assert asyncio.run(follow()) == list(range(11, 133))


def test_no_more_streams_are_let_in_than_are_allowed_and_what_has_ended_makes_room(
    database: Database, jobs: Sequence[str]
) -> None:
    watch = Watching(database, NO_BROKER, max_streams=2)
    with watch.following(jobs[0]), _address("192.0.2.1"), watch.following(jobs[0]):
        with pytest.raises(Unavailable) as raised:
            watch.check_room()
        assert (raised.value.code, "ENGINESMITH_MAX_STREAMS" in raised.value.detail) == ("busy", True)
    watch.check_room()
    assert watch._followed == {}


def test_one_address_has_at_most_half_of_the_streams(database: Database, jobs: Sequence[str]) -> None:
    watch = Watching(database, NO_BROKER, max_streams=5)

    def follow(address: str) -> None:
        with _address(address):
            watch.check_room()
            open_.enter_context(watch.following(jobs[0]))

    with ExitStack() as open_:
        for _ in range(3):
            follow("192.0.2.1")
        with pytest.raises(Unavailable, match=r"3 event streams open to your address.*ENGINESMITH_TRUSTED_PROXIES"):
            follow("192.0.2.1")
        follow("192.0.2.2")
        follow("192.0.2.3")
        with pytest.raises(Unavailable, match="to 5 clients already"):
            follow("192.0.2.4")
    assert watch._streams == {}


def test_a_database_that_fails_is_looked_at_again(
    database: Database, jobs: Sequence[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "LOOK_EVERY_S", 0.02)
    looks = iter([True])

    def fail_once(*arguments: object) -> object:
        if next(looks, False):
            raise DATABASE_DOWN[0]("SELECT", {}, OSError("gone"))
        return look(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(watching, "look", fail_once)

    async def follow() -> list[int]:
        watch = Watching(database, NO_BROKER, max_streams=9)
        async with watch.running():
            reading = asyncio.create_task(_read(watch, database, jobs[0]))
            await asyncio.sleep(0.1)
            await asyncio.to_thread(_cancel, database, jobs[0])
            return await asyncio.wait_for(reading, 30)

    assert asyncio.run(follow()) == [1, 2]
