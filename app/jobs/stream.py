"""A job's events as server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""

import json
from collections.abc import AsyncIterator, Sequence

from starlette.concurrency import run_in_threadpool

from app.database import Database
from app.jobs import events, service
from app.jobs.notices import Listener, wait_for
from app.jobs.schemas import EventAnswer
from app.jobs.state import FINAL

BATCH = 200
LOOK_EVERY_S = 1.0
KEEP_ALIVE_EVERY = 15  # after so many looks without an event, a comment keeps proxies from closing the connection


async def stream(database: Database, listener: Listener, job_id: str, after: int) -> AsyncIterator[bytes]:
    """Yield the events with a number above `after`, then each new one as it comes; end after the job's last event.

    When this process ends, the stream ends early. A client that sends Last-Event-ID goes on from there.
    """
    quiet = 0
    with listener.watching(job_id) as changed:
        while True:
            changed.clear()
            batch, finished = await run_in_threadpool(_look, database, job_id, after)
            for event in batch:
                yield _frame(event)
                after = event.seq
            if not batch and (finished or listener.ending):
                return
            quiet = 0 if batch else quiet + 1
            if quiet % KEEP_ALIVE_EVERY == KEEP_ALIVE_EVERY - 1:
                yield b": still here\n\n"
            if not batch:
                await wait_for(changed, LOOK_EVERY_S)


def _look(database: Database, job_id: str, after: int) -> tuple[Sequence[EventAnswer], bool]:
    """Return the next events, and whether the job had ended.

    The state is read before the events, so a job that has ended adds no event afterwards.
    """
    with database.reading() as session:
        finished = service.get_job(session, job_id).state in FINAL
        rows = events.list(session, job_id, after, BATCH)
        return [EventAnswer.model_validate(row) for row in rows], finished


def _frame(event: EventAnswer) -> bytes:
    data = json.dumps({"data": event.data, "at": event.at.isoformat()})
    return f"id: {event.seq}\nevent: {event.type}\ndata: {data}\n\n".encode()
