import asyncio
from typing import Any

from app.database import Database
from app.jobs import events
from app.jobs.followed import GONE, HISTORY, KEPT_BYTES, KEPT_EVENTS, Followed, Frame, Seen, look, read_history
from app.jobs.service import create, create_finished
from app.registry.service import create_model


def _frames(first: int, last: int, size: int = 1) -> list[Frame]:
    return [Frame(seq, b"x" * size) for seq in range(first, last + 1)]


def _numbers(job: Followed, after: int) -> list[int] | None:
    found = job.since(after)
    return None if found is None else [frame.seq for frame in found]


def test_what_is_in_memory_is_given_and_for_the_rest_the_database_is_asked() -> None:
    job = Followed()
    assert _numbers(job, 0) is None
    job.learn(Seen(3, ended=False))
    assert (_numbers(job, 0), _numbers(job, 3)) == (None, [])
    job.learn(Seen(5, ended=False, frames=_frames(4, 5)))
    assert (_numbers(job, 2), _numbers(job, 3), _numbers(job, 4), _numbers(job, 5)) == (None, [4, 5], [5], [])


def test_a_job_that_went_on_by_too_much_for_one_look_is_read_from_the_database() -> None:
    job = Followed()
    job.learn(Seen(0, ended=False))
    job.learn(Seen(2, ended=False, frames=_frames(1, 2)))
    job.learn(Seen(900, ended=False))
    assert (_numbers(job, 1), _numbers(job, 2)) == (None, None)
    job.learn(Seen(901, ended=False, frames=_frames(901, 901)))
    assert (_numbers(job, 2), _numbers(job, 900)) == (None, [901])


def test_memory_holds_so_many_events_and_bytes_however_many_come() -> None:
    job = Followed()
    job.learn(Seen(0, ended=False))
    job.learn(Seen(KEPT_EVENTS + 10, ended=False, frames=_frames(1, KEPT_EVENTS + 10)))
    assert (_numbers(job, 9), len(_numbers(job, 10) or ())) == (None, KEPT_EVENTS)
    last = KEPT_EVENTS + 13
    job.learn(Seen(last, ended=False, frames=_frames(last - 2, last, size=KEPT_BYTES // 2)))
    assert (_numbers(job, last - 3), _numbers(job, last - 2)) == (None, [last - 1, last])
    job.learn(Seen(last + 1, ended=False, frames=_frames(last + 1, last + 1, size=KEPT_BYTES + 1)))
    assert _numbers(job, last) is None


def test_streams_are_woken_by_news_only() -> None:
    async def woken() -> list[bool]:
        job = Followed()
        found = []
        with job.watched() as changed:
            for seen in (Seen(1, ended=False), Seen(1, ended=False), Seen(1, ended=True)):
                changed.clear()
                job.learn(seen)
                found.append(changed.is_set())
        return found

    assert asyncio.run(woken()) == [True, False, True]


def test_a_look_sees_each_jobs_state_and_the_events_above_the_number_known(database: Database) -> None:
    with database.transaction() as session:
        model = create_model(session, "m", "", {}).id
        made: dict[str, Any] = {"kind": "build", "model_id": model, "queue": "q", "request": {}}
        first, second = (create(session, **made, likeness="any").id for _ in range(2))
        done = create_finished(session, **made, result={}).id
        for number in range(3):
            events.append(session, first, "log", {"number": number})
        for _ in range(HISTORY + 1):
            events.append(session, second, "log", {})
    seen = look(database, {first, second, done, "none"}, {first: 2, second: 1, done: None})
    assert {job: (one.last, one.ended, [frame.seq for frame in one.frames]) for job, one in seen.items()} == {
        first: (4, False, [3, 4]),
        second: (HISTORY + 2, False, []),
        done: (1, True, []),
        "none": (GONE.last, True, []),
    }
    assert seen[first].frames[1].text.startswith(b'id: 4\nevent: log\ndata: {"data": {"number": 2}, "at": "')
    assert list(seen[first].frames) == list(read_history(database, first, 2))


def test_one_look_sees_more_jobs_than_fit_one_query(database: Database) -> None:
    with database.transaction() as session:
        model = create_model(session, "m", "", {}).id
        jobs = [
            create(session, kind="build", model_id=model, queue="q", request={}, likeness="any").id for _ in range(450)
        ]
    seen = look(database, jobs, dict.fromkeys(jobs, 0))
    assert [(one.last, len(one.frames)) for one in seen.values()] == [(1, 1)] * 450
