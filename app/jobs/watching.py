"""Who waits for jobs in this process, and the one task that looks at the database for all of them.

The task looks at a job as soon as a notice names it, and at all of them from time to time, since notices may be lost.
"""

import asyncio
import math
import time
from collections import Counter, defaultdict, deque
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

import structlog
from anyio import CapacityLimiter, to_thread

from app.database import DATABASE_DOWN, Database
from app.errors import Unavailable
from app.http.turns import current_address
from app.jobs.followed import Followed, look
from app.jobs.notices import Listener, wait_for
from app.jobs.state import FINAL

LOOK_EVERY_S = 1.0
MAX_REST_S = 0.25
ENDS_KEPT = 1000  # jobs that ended last: a waiter may come just after the notice of the end
log = structlog.get_logger()


class Watching:
    """The streams and waiters of one process.

    Once `ending` is set, each of them answers with what is there, at the latest after LOOK_EVERY_S. One address has at
    most half of the streams.
    """

    def __init__(self, database: Database, url: str, *, max_streams: int) -> None:
        self.ending = False
        self._database = database
        self._max_streams = max_streams
        self._listener = Listener(url, hear=self._hear, miss=self._look_at_all)
        self._streams: Counter[str] = Counter()  # by address
        self._followed: dict[str, Followed] = {}
        self._waiters: dict[str, set[asyncio.Event]] = defaultdict(set)
        self._ended: deque[str] = deque(maxlen=ENDS_KEPT)
        self._due: set[str] = set()
        self._is_due = asyncio.Event()
        self._looked_at_all = -math.inf  # seconds, monotonic
        self._thread = CapacityLimiter(1)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Listen and look for as long as the block lasts."""
        async with self._listener.running():
            task = asyncio.create_task(self._keep_looking())
            try:
                yield
            finally:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task

    def check_room(self) -> None:
        """Raise Unavailable "busy" if this process has as many streams as it takes, in all or of this address."""
        if self._streams.total() >= self._max_streams:
            raise Unavailable(
                f"This process streams events to {self._max_streams} clients already (ENGINESMITH_MAX_STREAMS). Try "
                "again later, or read the events in pages: the same call without Accept: text/event-stream.",
                code="busy",
            )
        share = math.ceil(self._max_streams / 2)
        if self._streams[current_address.get()] >= share:
            raise Unavailable(
                f"This process has {share} event streams open to your address already, half of "
                "ENGINESMITH_MAX_STREAMS. Close some, or read the events in pages: the same call without Accept: "
                "text/event-stream. If a proxy stands between, name it in ENGINESMITH_TRUSTED_PROXIES.",
                code="busy",
            )

    @contextmanager
    def following(self, job_id: str) -> Iterator[tuple[Followed, asyncio.Event]]:
        """Give what all streams of a job share, and an event that is set whenever that changes."""
        followed = self._followed.setdefault(job_id, Followed())
        address = current_address.get()
        self._streams[address] += 1
        with followed.watched() as changed:
            self._look_soon(job_id)
            try:
                yield followed, changed
            finally:
                self._streams -= Counter([address])  # which drops an address without streams
                if followed.followers == 1:
                    del self._followed[job_id]

    @contextmanager
    def waiting(self, job_id: str) -> Iterator[asyncio.Event]:
        """Give an event that is set once the job has ended, or at once if the job is among the last that ended."""
        ended = asyncio.Event()
        if job_id in self._ended:
            ended.set()
        self._waiters[job_id].add(ended)
        try:
            yield ended
        finally:
            self._waiters[job_id].discard(ended)
            if not self._waiters[job_id]:
                del self._waiters[job_id]

    def _hear(self, job_id: str, state: str) -> None:
        if state in FINAL:
            self._end(job_id)
        if job_id in self._followed:
            self._look_soon(job_id)

    def _end(self, job_id: str) -> None:
        self._ended.append(job_id)
        _wake(self._waiters.get(job_id, ()))

    def _look_soon(self, job_id: str) -> None:
        self._due.add(job_id)
        self._is_due.set()

    def _look_at_all(self) -> None:
        self._looked_at_all = -math.inf
        self._is_due.set()

    async def _keep_looking(self) -> None:
        while True:
            await wait_for(self._is_due, max(0.0, self._looked_at_all + LOOK_EVERY_S - time.monotonic()))
            began = time.monotonic()
            try:
                await self._look(began)
            except DATABASE_DOWN as error:
                log.warning("jobs not looked at", error=str(error))
                await asyncio.sleep(LOOK_EVERY_S)
            except Exception:  # all streams and waiters of the process hang on this task
                log.exception("jobs not looked at")
                await asyncio.sleep(LOOK_EVERY_S)
            # At most half of the time is spent looking, however many notices there are.
            await asyncio.sleep(min(time.monotonic() - began, MAX_REST_S))

    async def _look(self, moment: float) -> None:
        self._is_due.clear()
        due, self._due = self._due, set()
        if self.ending:
            self._wake_all()
        if moment - self._looked_at_all >= LOOK_EVERY_S:
            self._looked_at_all = moment
            due = {*self._followed, *self._waiters}
        known = {job_id: one.last for job_id in due if (one := self._followed.get(job_id)) is not None}
        ids = known.keys() | (due & self._waiters.keys())
        if not ids:
            return
        seen = await to_thread.run_sync(look, self._database, ids, known, limiter=self._thread)
        for job_id, found in seen.items():
            if found.ended and job_id in self._waiters:
                self._end(job_id)
            if (followed := self._followed.get(job_id)) is not None:
                followed.learn(found)

    def _wake_all(self) -> None:
        for followed in self._followed.values():
            followed.wake()
        for waiters in self._waiters.values():
            _wake(waiters)


def _wake(events: Iterable[asyncio.Event]) -> None:
    for event in events:
        event.set()
