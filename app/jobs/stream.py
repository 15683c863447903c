"""A job's events as server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""

from collections.abc import AsyncIterator

from app.database import Database
from app.http.pools import Pool
from app.jobs.followed import read_history
from app.jobs.notices import wait_for
from app.jobs.watching import Watching

KEEP_ALIVE_S = 15.0  # after so long without an event, a comment keeps proxies from closing the connection


async def stream(watching: Watching, database: Database, reads: Pool, job_id: str, after: int) -> AsyncIterator[bytes]:
    """Yield the events with a number above `after`, then each new one as it comes; end after the job's last event.

    When this process ends, the stream ends early. A client that sends Last-Event-ID goes on from there.
    """
    with watching.following(job_id) as (job, changed):
        while True:
            changed.clear()
            is_last = job.ended or watching.ending
            batch = job.since(after)
            if batch is None:
                batch = await reads.run(read_history, database, job_id, after)
            for frame in batch:
                yield frame.text
                after = frame.seq
            if batch:
                continue
            if is_last:
                return
            if not await wait_for(changed, KEEP_ALIVE_S):
                yield b": still here\n\n"
